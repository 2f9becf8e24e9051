"""What is in a data set, before compute is spent on it: `hfkit data inspect`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfkit.data.columns import FLAGS, as_splits, find_classification, find_text, label_columns, place_of, shared_columns
from hfkit.data.labels import MULTIPLE, REGRESSION, SINGLE, flat, labels_of, with_labels
from hfkit.data.lines import format_of
from hfkit.data.loading import load_data
from hfkit.data.readers import LABEL_NAMES
from hfkit.data.sources import is_local, local_files, stay_local, type_name
from hfkit.errors import DataError, UsageError
from hfkit.system.console import short, table
from hfkit.tasks.windows import MAX_LENGTH

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hfkit.settings import Recipe

Facts = dict[str, Any]

Findings = list[tuple[str, str]]  # what needs a decision, and what to type

BATCH_ROWS = 1000

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

DOCUMENTS = {"file": "a file", "blank-line": "a paragraph, up to a blank line", "row": "a line"}

QUANTILE_NAMES = ("half have at most", "90% have at most", "99% have at most", "the longest has")

EXAMPLES = 3

LABELS_SHOWN = 10

BAR = 40  # characters of the longest bar of a histogram

LOPSIDED = 0.8  # share of one label from which accuracy says little

MANY_UNKNOWN = 0.01  # share of unknown tokens from which a tokenizer doesn't fit the text


def inspect(recipe: Recipe) -> Facts:
    """Facts of every split of `recipe.data`, and under "findings" what needs a decision; ready for JSON.

    The task decides which columns count: that of the recipe, else classification where a label is found, else text.
    Tokens are counted where a tokenizer or a model is named. Raises what load_data raises.
    """
    stay_local(recipe)
    splits = as_splits(load_data(recipe))
    findings: Findings = []
    roles = _roles(splits, recipe, findings)
    facts: Facts = {
        "task": recipe.task or ("text-classification" if "label" in roles else "clm"),
        "documents": recipe.data.documents if _has_text_files(recipe) else None,
        "columns": _columns(splits, roles),
        "splits": {split: {"rows": len(dataset)} for split, dataset in splits.items()},
    }
    if roles:
        tokenizer, longest = _tokenizer(recipe)
        labels = _labels(splits, roles, recipe, findings) if "label" in roles else {}
        limit = recipe.data.max_length or min(longest or MAX_LENGTH, MAX_LENGTH)
        if longest is not None and limit > longest:
            message = f"data.max_length {limit} is longer than the model's {longest} tokens"
            raise UsageError(message, f"--max-length {longest}")
        texts = [roles[role] for role in ("text", "text_pair") if role in roles]
        hashes = {split: _hashes(dataset, texts) for split, dataset in splits.items()}
        for split, dataset in splits.items():
            part = facts["splits"][split]
            part |= _sizes(dataset, texts)
            part["repeated"] = _repeated(dataset, texts, hashes[split], labels.get(split))
            if split != "train" and "train" in splits:
                part["also_in_train"] = _also_in(dataset, texts, hashes[split], hashes["train"])
            if tokenizer is not None:
                part["tokens"] = _tokens(dataset, texts, tokenizer, limit if "label" in roles else None)
            if split in labels:
                part |= _label_facts(labels[split])
            findings += _missing(split, dataset, roles, recipe)
            findings += _split_findings(split, facts, longest)
    facts["findings"] = [{"problem": problem, "fix": fix} for problem, fix in findings]
    return facts


def _has_text_files(recipe: Recipe) -> bool:
    files = (file for source in recipe.data.train if is_local(source) for file in local_files(source))
    return any(format_of(file)[0] == ".txt" for file in files)


def _columns(splits: dict[str, Dataset], roles: Mapping[str, str]) -> Facts:
    """Type, role and first value of every column, as the first split that has it says."""
    labels = label_columns(next(iter(splits.values())), roles["label"]) if "label" in roles else []
    role_of = {column: role for role, column in roles.items()} | dict.fromkeys(labels, "label")
    columns: Facts = {}
    for dataset in splits.values():
        for name in dataset.column_names:
            fact = {"type": type_name(dataset, name), "role": role_of.get(name), "example": str(dataset[0][name])[:200]}
            columns.setdefault(name, fact)
    return columns


def _roles(splits: dict[str, Dataset], recipe: Recipe, findings: Findings) -> dict[str, str]:
    """The column of each role; none, and a finding that says why, where that is not clear and nothing was named."""
    named = [role for role in FLAGS if getattr(recipe.data.columns, role) is not None]
    try:
        if recipe.task in (None, "text-classification") and _may_have_labels(splits, recipe):
            columns = zip(("text", "text_pair", "label"), find_classification(splits, recipe), strict=True)
            roles = {role: column for role, column in columns if column is not None}
        else:
            roles = {"text": find_text(splits, recipe)}
        for column in [column for role, column in roles.items() if role != "label"]:
            for split, dataset in splits.items():
                if type_name(dataset, column) not in ("string", "large_string"):
                    raise DataError(f"{split}: column '{column}' holds {type_name(dataset, column)}, not text")
    except DataError as error:
        if named:
            raise
        findings.append((error.problems[0][0], _likely(splits) or error.problems[0][1]))
        return {}
    return roles


def _likely(splits: dict[str, Dataset]) -> str:
    """The flags for the column with most text and the one whose values repeat most, as far as there are such."""
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
    """False for text with columns about it, which may well have a name but repeat too little to be a label."""
    if recipe.task or recipe.data.columns.label:
        return True
    try:
        label = find_classification(splits, recipe)[2]
    except DataError:
        return False
    dataset = next(iter(splits.values()))
    return label.lower() in LABEL_NAMES or len(set(map(str, dataset[label][:]))) <= len(dataset) / 2


def _tokenizer(recipe: Recipe) -> tuple[PreTrainedTokenizerBase | None, int | None]:
    """The tokenizer that is named, and the longest row in tokens that it and the model take."""
    if recipe.tokenizer.name is None and recipe.model.name is None:
        return None, None
    from transformers import PreTrainedConfig

    from hfkit.models.config import POSITION_OFFSETS, load_config, quiet_libraries
    from hfkit.models.tokenizer import load_tokenizer

    quiet_libraries()
    config = load_config(recipe) if recipe.model.name else PreTrainedConfig()
    tokenizer = load_tokenizer(recipe, config)
    longest = tokenizer.model_max_length
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        longest = min(longest, positions - POSITION_OFFSETS.get(config.model_type, 0))
    return tokenizer, longest if longest < 10**9 else None  # "very large" is the library's word for no limit


def _batches(dataset: Dataset, texts: Sequence[str]) -> Iterator[list[list[str]]]:
    """The text columns, BATCH_ROWS at a time; a missing text is an empty one."""
    for batch in dataset.select_columns(list(texts)).with_format("arrow").iter(BATCH_ROWS):
        yield [[text or "" for text in batch[column].to_pylist()] for column in texts]


def _hashes(dataset: Dataset, texts: Sequence[str]) -> np.ndarray:
    """64 bits per row, shape (rows,): a million different texts have two alike in one of 30 million files."""
    import numpy as np
    import xxhash

    rows = (row for batch in _batches(dataset, texts) for row in zip(*batch, strict=True))
    return np.fromiter((xxhash.xxh3_64_intdigest("\0".join(row).encode()) for row in rows), np.uint64, len(dataset))


def _labels(
    splits: dict[str, Dataset], roles: Mapping[str, str], recipe: Recipe, findings: Findings
) -> dict[str, list[Any]]:
    """The label of every row as training takes it: a name, a list of names or a number; None where it is missing."""
    labels: dict[str, list[Any]] = {}
    text, label = roles["text"], roles["label"]
    columns = label_columns(next(iter(splits.values())), label)
    blank = _blank_is_missing(columns, recipe)
    rows: dict[str, list[int]] = {}
    for split, dataset in splits.items():
        missing = set(_without(dataset, columns, blank))
        rows[split] = [row for row in range(len(dataset)) if row not in missing]
    if not all(rows.values()):
        return {}
    try:
        there = {
            split: dataset.select_columns([text, *columns]).rename_column(text, "-").select(rows[split])
            for split, dataset in splits.items()
        }  # another column beside them, or none would be left in between
        for split, dataset in with_labels(there, label, recipe).items():
            labels[split] = [None] * len(splits[split])
            for row, value in zip(rows[split], labels_of(dataset), strict=True):
                labels[split][row] = value
    except DataError as error:
        findings += error.problems
        return {}
    return labels


def _blank_is_missing(columns: Sequence[str], recipe: Recipe) -> bool:
    """False where a row may have no label at all."""
    return len(columns) == 1 and recipe.data.problem_type != MULTIPLE


def _without(dataset: Dataset, columns: Sequence[str], blank: bool) -> Iterator[int]:
    """The rows that have no value in one of `columns`; with `blank`, text of blanks alone is none."""
    for start, batch in enumerate(dataset.select_columns(list(columns)).with_format("arrow").iter(BATCH_ROWS)):
        for place, row in enumerate(zip(*(batch[column].to_pylist() for column in columns), strict=True)):
            if any(value is None or (blank and isinstance(value, str) and not value.strip()) for value in row):
                yield start * BATCH_ROWS + place


def _label_facts(labels: list[Any]) -> Facts:
    """How often each label comes, the most frequent first; of numbers the ends and the mean."""
    there = [label for label in labels if label is not None]
    if all(isinstance(label, float) for label in there):
        return {
            "problem_type": REGRESSION,
            "values": {"min": min(there), "mean": sum(there) / len(there), "max": max(there)},
        }
    kind = MULTIPLE if any(isinstance(label, list) for label in there) else SINGLE
    return {"problem_type": kind, "labels": dict(Counter(flat(there)).most_common())}


def _sizes(dataset: Dataset, texts: Sequence[str]) -> Facts:
    import numpy as np

    size, empty = 0, 0
    lengths: list[int] = []
    for batch in _batches(dataset, texts):
        size += sum(len(text.encode()) for column in batch for text in column)
        for row in zip(*batch, strict=True):
            empty += any(not text.strip() for text in row)
            lengths.append(sum(map(len, row)))
    return {"bytes": size, "empty": empty, "characters": _distribution(np.array(lengths))}


def _distribution(lengths: np.ndarray) -> Facts:
    """Sum, quantiles and rows per power of two: {"8": 3} are three rows of 8 to 15."""
    import numpy as np

    bins = Counter(int(length).bit_length() for length in lengths)
    quantiles = {name: int(np.quantile(lengths, share, method="inverted_cdf")) for name, share in QUANTILES.items()}
    histogram = {str(2**bits >> 1): bins[bits] for bits in range(min(bins), max(bins) + 1)}
    return {"sum": int(lengths.sum()), **quantiles, "histogram": histogram}


def _repeated(dataset: Dataset, texts: Sequence[str], hashes: np.ndarray, labels: list[Any] | None) -> Facts:
    """Rows whose text came before, the most frequent of them, and texts that have several labels."""
    import numpy as np

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
    """Rows whose text is also in the training data."""
    import numpy as np

    rows = np.flatnonzero(np.isin(hashes, train))
    return {"rows": len(rows), "examples": [_example(dataset, texts, row) for row in rows[:EXAMPLES]]}


def _example(dataset: Dataset, texts: Sequence[str], row: int) -> str:
    return " + ".join(dataset[int(row)][column] or "" for column in texts)[:200]


def _tokens(dataset: Dataset, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None) -> Facts:
    """Lengths in tokens, and how many are unknown; with `limit`, as a classifier sees the rows and cuts them there.

    Without, no special tokens: a language model gets documents one after the other, and nothing is cut.
    """
    import numpy as np

    lengths: list[int] = []
    unknown = 0
    for batch in _batches(dataset, texts):
        encoded = tokenizer(*batch, add_special_tokens=limit is not None, return_attention_mask=False, verbose=False)
        lengths += map(len, encoded["input_ids"])
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:  # as in GPT-2
            unknown += sum(row.count(tokenizer.unk_token_id) for row in encoded["input_ids"])
    facts = {**_distribution(np.array(lengths)), "unknown": unknown}
    return facts if limit is None else {**facts, "limit": limit, "cut": sum(length > limit for length in lengths)}


def _missing(split: str, dataset: Dataset, roles: Mapping[str, str], recipe: Recipe) -> Findings:
    """Rows without a value, at which training would stop."""
    findings: Findings = []
    for role, name in roles.items():
        columns = label_columns(dataset, name)
        for column in columns:
            rows = list(_without(dataset, [column], role == "label" and _blank_is_missing(columns, recipe)))
            if rows:
                problem = f"{split}: {_of(len(rows), len(dataset))} have nothing in column '{column}'"
                place = place_of(recipe, split, rows[0])
                findings.append((f"{problem}, first {place}", "fill it in, or delete the row"))
    return findings


def _split_findings(split: str, facts: Facts, longest: int | None) -> Findings:
    part, train = facts["splits"][split], facts["splits"].get("train", {})
    rows, labels, repeated = part["rows"], part.get("labels"), part["repeated"]
    findings: Findings = []
    if part["empty"]:
        fix = "delete them" if labels is not None else "hfkit pretrain ... --set data.clean.white_space=true"
        findings.append((f"{split}: {_of(part['empty'], rows)} have an empty text", fix))
    if repeated["rows"] and split == "train":
        most = repeated["examples"][0]
        problem = f"train: {_of(repeated['rows'], rows)} repeat an earlier text"
        often = f"most often {_quoted(most['text'])}, {most['rows']:,} times"
        if labels is None:
            findings.append((f"{problem}, {often}", "hfkit pretrain ... --set data.clean.deduplicate=true"))
        elif "validation" in facts["splits"]:
            findings.append((f"{problem}, {often}", "delete them, unless they are meant"))
        else:
            problem = f"{problem}, so what is held out of them may be known from training; {often}"
            findings.append((problem, "delete them, or give --validation FILE"))
    if several := repeated.get("several_labels", {}).get("texts"):
        texts = f"{several:,} {'text has' if several == 1 else 'texts have'} rows with different labels"
        example = _quoted(repeated["several_labels"]["examples"][0])
        findings.append((f"{split}: {texts}, e.g. {example}", "decide on one label for each"))
    if overlap := part.get("also_in_train", {}).get("rows"):
        problem = f"{split}: {_of(overlap, rows)} have a text that is also in train, so scores will be too good"
        example = _quoted(part["also_in_train"]["examples"][0])
        findings.append((f"{problem}, e.g. {example}", "delete them from one of the two"))
    if tokens := part.get("tokens"):
        if tokens.get("cut"):
            problem = f"{split}: {_of(tokens['cut'], rows)} are longer than {tokens['limit']:,} tokens and get cut"
            needed = max(other["tokens"]["max"] for other in facts["splits"].values() if "tokens" in other)
            possible = min(needed, longest or needed)
            more = possible > tokens["limit"]
            findings.append(
                (problem, f"--max-length {possible}" if more else "a --model for longer texts, or --allow-truncation")
            )
        if tokens["unknown"] > MANY_UNKNOWN * tokens["sum"]:
            problem = f"{split}: the tokenizer does not know {tokens['unknown'] / tokens['sum']:.1%} of the tokens"
            findings.append((problem, "a --model for this language or alphabet"))
    if labels and split == "train":
        label, count = next(iter(labels.items()))
        if len(labels) == 1:
            findings.append((f"train: all labels are '{short(label)}'", "--label-column NAME, or add other rows"))
        elif part["problem_type"] == SINGLE and count >= LOPSIDED * rows:
            problem = f"train: {count / rows:.1%} of the rows have the label '{short(label)}', so accuracy says little"
            findings.append((problem, "hfkit finetune ... --metrics mcc,f1_macro --best f1_macro"))
        elif part["problem_type"] == SINGLE and len(labels) > rows / 2:
            problem = f"train: {len(labels):,} different labels in {rows:,} rows"
            findings.append((problem, "--label-column NAME"))
        if len(labels) > 1 and (once := [label for label, count in labels.items() if count == 1]):
            findings.append((f"train: seen only once: {_some(once)}", "add rows, or join rare labels"))
    if (
        labels
        and split != "train"
        and "labels" in train
        and (new := [one for one in labels if one not in train["labels"]])
    ):
        findings.append((f"{split}: labels that are not in train: {_some(new)}", "correct them, or add training rows"))
    return findings


def _of(count: int, rows: int) -> str:
    return f"{count:,} of {rows:,} rows ({count / rows:.1%})"


def _quoted(text: str) -> str:
    return f"'{short(' '.join(text.split()))}'"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LABELS_SHOWN:,} more" if len(names) > LABELS_SHOWN else ""
    return ", ".join(map(short, names[:LABELS_SHOWN])) + more


def as_text(facts: Facts) -> str:
    """The facts, all but the findings, as a person reads them."""
    splits: Facts = facts["splits"]
    first, part = next(iter(splits.items()))
    flags = ", ".join(dict.fromkeys(FLAGS[fact["role"]] for fact in facts["columns"].values() if fact["role"]))
    columns = [["columns" + (f" (change with {flags})" if flags else "")]]
    for name, fact in facts["columns"].items():
        role = f"the {fact['role'].replace('_', ' ')}" if fact["role"] else ""
        columns.append([f"  {short(name)}", fact["type"], role, _sample(fact["example"])])
    if facts["documents"]:
        columns.append([f"a row is {DOCUMENTS[facts['documents']]} (change with --documents)"])
    blocks = [table(columns), table([["", *splits], *_numbers(splits)], "<>")]
    if "characters" in part and part["rows"] > 1:
        unit = "tokens" if "tokens" in part else "characters"
        blocks.append(table([[f"{unit} in a row, {first}"], *_bars(part[unit]["histogram"])], "<><"))
    if part.get("labels"):
        blocks.append(table(_label_counts(splits), "<>"))
    if "values" in part:
        ends = [
            [f"  {key}", *(f"{other['values'][key]:.4g}" for other in splits.values())]
            for key in ("min", "mean", "max")
        ]
        blocks.append(table([["label", *splits], *ends], "<>"))
    return "\n\n".join(blocks)


def _label_counts(splits: Facts) -> list[list[str]]:
    """For each of the most frequent labels of the first split, its count in every split."""
    labels = next(iter(splits.values()))["labels"]
    rows = [["labels", *(f"{len(part['labels']):,} in {split}" for split, part in splits.items())]]
    for label in list(labels)[:LABELS_SHOWN]:
        shares = [_share(part["labels"].get(label, 0), part["rows"]) for part in splits.values()]
        rows.append([f"  {short(label)}", *shares])
    more = len(labels) - LABELS_SHOWN
    return rows + ([[f"  and {more:,} more"]] if more > 0 else [])


def _numbers(splits: Facts) -> list[list[str]]:
    lines: list[list[str]] = []

    def add(name: str, *path: str, share: bool = False) -> None:
        cells = []
        for part in splits.values():
            value: Any = part
            for key in path:
                value = value.get(key) if value else None
            cells.append("" if value is None else _share(value, part["rows"]) if share else f"{value:,}")
        if any(cells):
            lines.append([name, *cells])

    add("rows", "rows")
    add("bytes of text", "bytes")
    add("empty texts", "empty", share=True)
    add("repeated texts", "repeated", "rows", share=True)
    add("texts with several labels", "repeated", "several_labels", "texts")
    add("texts also in train", "also_in_train", "rows", share=True)
    for unit in ("characters", "tokens"):
        add(unit, unit, "sum")
        several = any(part["rows"] > 1 for part in splits.values())
        for key, name in zip(QUANTILES, QUANTILE_NAMES, strict=True) if several else ():
            add(f"  {name}", unit, key)
    add("  unknown", "tokens", "unknown")
    first = next(iter(splits.values()))
    add(f"  rows cut at {first.get('tokens', {}).get('limit')}", "tokens", "cut", share=True)
    if "characters" in first and "tokens" not in first:
        lines.append(["(--model NAME counts tokens, too)"])
    return lines


def _bars(histogram: Mapping[str, int]) -> Iterator[list[str]]:
    most = max(histogram.values())
    for low, count in histogram.items():
        name = f"{int(low):,} to {2 * int(low) - 1:,}" if int(low) > 1 else low
        yield [f"  {name}", f"{count:,}", "#" * -(-BAR * count // most)]


def _share(count: int, rows: int) -> str:
    return f"{count:,} ({count / rows:.1%})" if count else "0"


def _sample(text: str) -> str:
    return f"e.g. {short(' '.join(text.split()), 60)}"
