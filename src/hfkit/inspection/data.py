"""What is in a data set, before compute is spent on it."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from hfkit.data.columns import (
    FLAGS,
    as_splits,
    find_classification,
    find_tagged,
    find_text,
    is_asking,
    is_tagged,
    is_translating,
    place_of,
    question_columns,
    shared_columns,
)
from hfkit.data.conversations import form_of, is_conversing
from hfkit.data.labels import MULTIPLE, REGRESSION, SINGLE, flat, label_columns, labels_of, with_labels
from hfkit.data.loading import load_data
from hfkit.data.pairs import look_parallel, open_pairs
from hfkit.data.questions import load_questions
from hfkit.data.readers import LABEL_NAMES, has_effect
from hfkit.data.sources import is_local, local_files, offline_for, type_name
from hfkit.data.tagged import load_tagged, words_of
from hfkit.data.tags import entities
from hfkit.errors import DataError, UsageError, did_you_mean
from hfkit.inspection.conversations import rendered
from hfkit.inspection.findings import Facts, Findings, of_rows, pair_facts, split_findings
from hfkit.inspection.lengths import distribution
from hfkit.settings import Data, Model, Recipe, Tokenizer
from hfkit.tasks import DEFAULT_TASKS, TASKS
from hfkit.tasks.encoded_conversations import USUAL_LENGTH
from hfkit.tasks.windows import MAX_LENGTH

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TAGGING = next(name for name, task in TASKS.items() if "tokens" in task.questions)  # the task of tagged words

PAIRING = [name for name, task in TASKS.items() if "target" in task.roles]  # those of sources and targets

ASKING = next(name for name, task in TASKS.items() if "context" in task.questions)  # that of questions about texts

CHATTING = next(name for name, task in TASKS.items() if "messages" in task.questions)  # that of conversations

BATCH_ROWS = 1000

EXAMPLES = 3


def inspect(data: Data, *, task: str | None = None, model: str | None = None, tokenizer: str | None = None) -> Facts:
    """Facts about every split of `data`, and under "findings" what needs a decision; ready for JSON.

    The task decides which columns count. Without one, it is that of `finetune` if there is a label, else that of
    `pretrain`. Tokens are counted if a tokenizer or a model is named. Raises UsageError for an unknown task and for a
    data.max_length that the model can't take, and what load_data raises.
    """
    if task is not None and task not in TASKS:
        fix = did_you_mean(task, TASKS) or f"--task {next(iter(TASKS))}"
        raise UsageError(f"unknown task '{task}', hfkit has: {', '.join(TASKS)}", fix)
    if data.documents is None:
        usual = TASKS[task or DEFAULT_TASKS["pretrain"]].defaults({})
        data = dataclasses.replace(data, documents=usual.get("data.documents"))
    recipe = Recipe(data=data, model=Model(name=model, from_scratch=True), tokenizer=Tokenizer(name=tokenizer))
    with offline_for(recipe):
        return _facts(recipe, task)


def _facts(recipe: Recipe, task: str | None) -> Facts:
    data = recipe.data
    findings: Findings = []
    if task in PAIRING or (task is None and look_parallel(data.train)):
        return _facts_of_pairs(recipe)
    splits = as_splits(load_data(data))
    if task is None and all(map(is_translating, splits.values())):
        return _facts_of_pairs(recipe)
    if task is None and all(is_tagged(dataset, data) for dataset in splits.values()):
        task = TAGGING
    if task is None and all(is_asking(dataset) for dataset in splits.values()):
        task = ASKING
    if task is None and all(map(is_conversing, splits.values())):
        task = CHATTING
    roles = _roles(splits, recipe, task, findings)
    facts: Facts = {
        "task": task or DEFAULT_TASKS["finetune" if "label" in roles else "pretrain"],
        "documents": data.documents if _has_text_files(data) else None,
        "columns": _columns(splits, roles),
        "splits": {split: {"rows": len(dataset)} for split, dataset in splits.items()},
    }
    if task == TAGGING:
        splits, roles = _sentences(splits, recipe, facts), {"text": "text"}
    if task == ASKING:
        splits, roles = _questions(splits, recipe, facts), {"text": "question", "text_pair": "context"}
    if roles:
        encoder, longest = _tokenizer(recipe)
        if task == CHATTING:
            splits, roles = rendered(splits, data, encoder, facts, findings), {"text": "text"}
        labels = _labels(splits, roles, recipe, findings) if "label" in roles else {}
        limit = _max_length(data, longest, USUAL_LENGTH if task == CHATTING else MAX_LENGTH)
        texts = [roles[role] for role in ("text", "text_pair") if role in roles]
        hashes = {split: _hashes(dataset, texts) for split, dataset in splits.items()}
        for split, dataset in splits.items():
            part = facts["splits"][split]
            part |= _sizes(dataset, texts)
            part["repeated"] = _repeated(dataset, texts, hashes[split], labels.get(split))
            if split != "train" and "train" in splits:
                part["also_in_train"] = _also_in(dataset, texts, hashes[split], hashes["train"])
            if encoder is not None:
                part["tokens"] = _tokens(
                    dataset, texts, encoder, limit if "label" in roles or task == CHATTING else None, "label" in roles
                )
            if split in labels:
                part |= _label_facts(labels[split])
            findings += _missing(split, dataset, roles, recipe) if task not in (TAGGING, ASKING, CHATTING) else []
            findings += split_findings(split, facts, longest)
    facts["findings"] = [{"problem": problem, "fix": fix} for problem, fix in findings]
    return facts


def _facts_of_pairs(recipe: Recipe) -> Facts:
    """The facts about sources and targets; repeats and leaks are those of sources."""
    data = recipe.data
    findings: Findings = []
    opened = open_pairs(data)
    encoder, longest = _tokenizer(recipe)
    limit = _max_length(data, longest)
    splits = opened.pairs()
    facts: Facts = {
        "task": recipe.task or PAIRING[0],
        "documents": None,
        "columns": _columns(opened.splits, dict(zip(("text", "target"), opened.names, strict=True))),
        "splits": {split: {"rows": len(dataset)} for split, dataset in splits.items()},
    }
    hashes = {split: _hashes(dataset, ["text"]) for split, dataset in splits.items()}
    for split, dataset in splits.items():
        part = facts["splits"][split]
        part |= _sizes(dataset, ["text"])
        part["target"] = _sizes(dataset, ["target"])
        part["pairs"] = pair_facts(dataset["text"][:], dataset["target"][:])
        part["repeated"] = _repeated(dataset, ["text"], hashes[split], None)
        if split != "train" and "train" in splits:
            part["also_in_train"] = _also_in(dataset, ["text"], hashes[split], hashes["train"])
        if encoder is not None:
            part["tokens"] = _tokens(dataset, ["text"], encoder, limit)
            part["target"]["tokens"] = _tokens(dataset, ["target"], encoder, limit)
        findings += split_findings(split, facts, longest)
    facts["findings"] = [{"problem": problem, "fix": fix} for problem, fix in findings]
    return facts


def _sentences(splits: dict[str, Dataset], recipe: Recipe, facts: Facts) -> dict[str, Dataset]:
    """The text of each tagged sentence; adds words and entities by type to `facts`."""
    from datasets import Dataset

    texts = {}
    for split, dataset in load_tagged(splits, recipe.data).items():
        kinds = Counter(entity.kind for tags in dataset["tags"] for entity in entities(tags))
        words = words_of(dataset)
        facts["splits"][split] |= {
            "words": sum(len(one.starts) for one in words),
            "entities": dict(kinds.most_common()),
        }
        texts[split] = Dataset.from_dict({"text": [one.text for one in words]})
    return texts


def _questions(splits: dict[str, Dataset], recipe: Recipe, facts: Facts) -> dict[str, Dataset]:
    """Questions and contexts; adds to `facts` how many contexts there are, and questions without an answer."""
    found = load_questions(splits, recipe.data)
    for split, dataset in found.items():
        facts["splits"][split] |= {
            "rows": len(dataset),
            "contexts": len(set(dataset["context"])),
            "open": sum(not texts for texts in dataset["answers"]),
        }
    return found


def _has_text_files(data: Data) -> bool:
    files = (file for source in data.train if is_local(source) for file in local_files(source))
    return any(has_effect("documents", file) for file in files)


def _columns(splits: dict[str, Dataset], roles: Mapping[str, str]) -> Facts:
    """Type, role and first value of every column, from the first split that has it."""
    labels = label_columns(next(iter(splits.values())), roles["label"]) if "label" in roles else []
    role_of = {column: role for role, column in roles.items()} | dict.fromkeys(labels, "label")
    columns: Facts = {}
    for dataset in splits.values():
        for name in dataset.column_names:
            fact = {"type": type_name(dataset, name), "role": role_of.get(name), "example": str(dataset[0][name])[:200]}
            columns.setdefault(name, fact)
    return columns


def _roles(splits: dict[str, Dataset], recipe: Recipe, task: str | None, findings: Findings) -> dict[str, str]:
    """The column of each role. If it is not clear and none is named: no roles, and a finding that says why."""
    has_label = "label" in TASKS[task].roles if task is not None else _may_have_labels(splits, recipe)
    try:
        if task == TAGGING:
            return dict(zip(("text", "label"), find_tagged(splits, recipe.data), strict=True))
        if task == CHATTING:
            column = recipe.data.columns.text or form_of(next(iter(splits.values()))[0])
            return {"text": column}
        if task == ASKING:
            return dict(zip(("text", "text_pair", "label"), question_columns(splits, recipe.data), strict=True))
        if has_label:
            columns = zip(("text", "text_pair", "label"), find_classification(splits, recipe.data), strict=True)
            roles = {role: column for role, column in columns if column is not None}
        else:
            roles = {"text": find_text(splits, recipe.data)}
        for column in [column for role, column in roles.items() if role != "label"]:
            for split, dataset in splits.items():
                if type_name(dataset, column) not in ("string", "large_string"):
                    raise DataError(f"{split}: column '{column}' holds {type_name(dataset, column)}, not text")
    except DataError as error:
        if any(getattr(recipe.data.columns, role) is not None for role in FLAGS):
            raise
        findings.append((error.problems[0][0], _likely(splits) or error.problems[0][1]))
        return {}
    return roles


def _likely(splits: dict[str, Dataset]) -> str:
    """The flags that name the column with the most text and the column whose values repeat most, if there are any."""
    rows = next(iter(splits.values())).select_columns(shared_columns(splits))[:BATCH_ROWS]
    texts = {name: sum(map(len, values)) for name, values in rows.items() if all(isinstance(v, str) for v in values)}
    text = max(texts, key=lambda name: texts[name], default=None)
    kinds = {name: len(set(map(str, values))) for name, values in rows.items() if name != text}
    label = min(kinds, key=lambda name: kinds[name], default=None)
    flags = [f"{FLAGS['text']} {shlex.quote(text)}"] if text is not None else []
    if flags and label is not None and kinds[label] <= len(rows[label]) / 2:
        flags.append(f"{FLAGS['label']} {shlex.quote(label)}")
    return " ".join(flags)


def _may_have_labels(splits: dict[str, Dataset], recipe: Recipe) -> bool:
    """False if the column that could be the label has no usual name and its values repeat too little."""
    if recipe.data.columns.label:
        return True
    try:
        label = find_classification(splits, recipe.data)[2]
    except DataError:
        return False
    dataset = next(iter(splits.values()))
    return label.lower() in LABEL_NAMES or len(set(map(str, dataset[label][:]))) <= len(dataset) / 2


def _tokenizer(recipe: Recipe) -> tuple[PreTrainedTokenizerBase | None, int | None]:
    """The tokenizer, if one is named, and the largest number of tokens that it and the model take, if it is limited."""
    name = recipe.tokenizer.name or recipe.model.name
    if name is None:
        return None, None
    # slow, and needed only here
    from hfkit.models.config import POSITION_OFFSETS, as_limit, load_config, quiet_libraries
    from hfkit.models.tokenizer import open_tokenizer

    quiet_libraries()
    tokenizer = open_tokenizer(name)
    limits = [as_limit(tokenizer.model_max_length)]
    if recipe.model.name is not None:
        config = load_config(recipe.model)
        positions = as_limit(getattr(config, "max_position_embeddings", None))
        limits.append(None if positions is None else positions - POSITION_OFFSETS.get(config.model_type, 0))
    return tokenizer, min((one for one in limits if one is not None), default=None)


def _max_length(data: Data, longest: int | None, usual: int = MAX_LENGTH) -> int:
    """The number of tokens at which a task truncates its input: at most the `usual` one where none is named."""
    limit = data.max_length or min(longest or usual, usual)
    if longest is not None and limit > longest:
        problem = f"data.max_length {limit} is longer than the model's {longest} tokens"
        raise UsageError(problem, f"--max-length {longest}")
    return limit


def _batches(dataset: Dataset, texts: Sequence[str]) -> Iterator[list[list[str]]]:
    """The values of the text columns, BATCH_ROWS at a time; a missing text is an empty one."""
    for batch in dataset.select_columns(list(texts)).with_format("arrow").iter(BATCH_ROWS):
        yield [[text or "" for text in batch[column].to_pylist()] for column in texts]


def _hashes(dataset: Dataset, texts: Sequence[str]) -> np.ndarray:
    """64-bit hashes, shape (rows,). Of 30 million files of a million different texts, one has two equal hashes."""
    rows = (row for batch in _batches(dataset, texts) for row in zip(*batch, strict=True))
    return np.fromiter((xxhash.xxh3_64_intdigest("\0".join(row).encode()) for row in rows), np.uint64, len(dataset))


def _labels(
    splits: dict[str, Dataset], roles: Mapping[str, str], recipe: Recipe, findings: Findings
) -> dict[str, list[Any]]:
    """The label of every row as training reads it: a name, a list of names or a number; None if it is missing."""
    labels: dict[str, list[Any]] = {}
    text, label = roles["text"], roles["label"]
    columns = label_columns(next(iter(splits.values())), label)
    blank = _blank_is_missing(columns, recipe.data)
    rows: dict[str, list[int]] = {}
    for split, dataset in splits.items():
        missing = set(_without(dataset, columns, blank))
        rows[split] = [row for row in range(len(dataset)) if row not in missing]
    if not all(rows.values()):
        return {}
    try:
        labelled = {  # the text column only keeps a split from having no column while the label is renamed
            split: dataset.select_columns([text, *columns]).rename_column(text, "-").select(rows[split])
            for split, dataset in splits.items()
        }
        for split, dataset in with_labels(labelled, label, recipe.data).items():
            labels[split] = [None] * len(splits[split])
            for row, value in zip(rows[split], labels_of(dataset), strict=True):
                labels[split][row] = value
    except DataError as error:
        findings += error.problems
        return {}
    return labels


def _blank_is_missing(columns: Sequence[str], data: Data) -> bool:
    """Whether a blank label is a missing one: unless a row may have no label at all."""
    return len(columns) == 1 and data.problem_type != MULTIPLE


def _without(dataset: Dataset, columns: Sequence[str], blank: bool) -> Iterator[int]:
    """Indices of the rows without a value in one of `columns`; with `blank`, white space is no value."""
    for start, batch in enumerate(dataset.select_columns(list(columns)).with_format("arrow").iter(BATCH_ROWS)):
        for place, row in enumerate(zip(*(batch[column].to_pylist() for column in columns), strict=True)):
            if any(value is None or (blank and isinstance(value, str) and not value.strip()) for value in row):
                yield start * BATCH_ROWS + place


def _label_facts(labels: list[Any]) -> Facts:
    """The count of each label, the most frequent first; of numbers the minimum, mean and maximum."""
    there = [label for label in labels if label is not None]
    if all(isinstance(label, float) for label in there):
        return {
            "problem_type": REGRESSION,
            "values": {"min": min(there), "mean": sum(there) / len(there), "max": max(there)},
        }
    kind = MULTIPLE if any(isinstance(label, list) for label in there) else SINGLE
    return {"problem_type": kind, "labels": dict(Counter(flat(there)).most_common())}


def _sizes(dataset: Dataset, texts: Sequence[str]) -> Facts:
    """Bytes of text, the number of rows with an empty text, and lengths in characters."""
    size, empty = 0, 0
    lengths: list[int] = []
    for batch in _batches(dataset, texts):
        size += sum(len(text.encode()) for column in batch for text in column)
        for row in zip(*batch, strict=True):
            empty += any(not text.strip() for text in row)
            lengths.append(sum(map(len, row)))
    return {"bytes": size, "empty": empty, "characters": distribution(np.array(lengths))}


def _repeated(dataset: Dataset, texts: Sequence[str], hashes: np.ndarray, labels: list[Any] | None) -> Facts:
    """The rows that repeat an earlier text, the most frequent of these texts, and texts with different labels."""
    _, first, group, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    often = [index for index in np.lexsort((first, -counts))[:EXAMPLES] if counts[index] > 1]
    examples = [{"text": _example(dataset, texts, first[index]), "rows": int(counts[index])} for index in often]
    facts: Facts = {"rows": int(len(hashes) - len(counts)), "examples": examples}
    if labels is not None:
        pairs = {(text, str(label)) for text, label in zip(group.tolist(), labels, strict=True) if label is not None}
        several = sorted(first[text] for text, count in Counter(text for text, _ in pairs).items() if count > 1)
        shown = [_example(dataset, texts, row) for row in several[:EXAMPLES]]
        facts["several_labels"] = {"texts": len(several), "examples": shown}
    return facts


def _also_in(dataset: Dataset, texts: Sequence[str], hashes: np.ndarray, train: np.ndarray) -> Facts:
    """The rows whose text is also in the training data."""
    rows = np.flatnonzero(np.isin(hashes, train))
    return {"rows": len(rows), "examples": [_example(dataset, texts, row) for row in rows[:EXAMPLES]]}


def _example(dataset: Dataset, texts: Sequence[str], row: int) -> str:
    return " + ".join(dataset[int(row)][column] or "" for column in texts)[:200]


def _tokens(
    dataset: Dataset, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None, special: bool = True
) -> Facts:
    """Lengths in tokens, `special` ones that the tokenizer adds included, and the number of unknown tokens.

    With `limit` also the rows that a task would truncate to `limit` tokens. A language model has none: it reads one
    document after the other.
    """
    lengths: list[int] = []
    unknown = 0
    for batch in _batches(dataset, texts):
        encoded = tokenizer(*batch, add_special_tokens=special, return_attention_mask=False, verbose=False)
        lengths += map(len, encoded["input_ids"])
        if (
            tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id
        ):  # as in BERT, not GPT-2
            unknown += sum(row.count(tokenizer.unk_token_id) for row in encoded["input_ids"])
    facts = {**distribution(np.array(lengths)), "unknown": unknown}
    return facts if limit is None else {**facts, "limit": limit, "cut": sum(length > limit for length in lengths)}


def _missing(split: str, dataset: Dataset, roles: Mapping[str, str], recipe: Recipe) -> Findings:
    """A finding for each column with missing values; training would refuse them."""
    findings: Findings = []
    for role, name in roles.items():
        columns = label_columns(dataset, name)
        for column in columns:
            rows = list(_without(dataset, [column], role == "label" and _blank_is_missing(columns, recipe.data)))
            if rows:
                problem = f"{split}: {of_rows(len(rows), len(dataset))} have no value in column '{column}'"
                place = place_of(recipe.data, split, rows[0])
                findings.append((f"{problem}, first {place}", "fill it in, or delete the row"))
    return findings
