"""Training, validation and test data as `datasets` objects, and which column plays which part."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfkit import console
from hfkit.errors import DataError, UsageError
from hfkit.readers import SOURCES, format_of
from hfkit.sources import (
    SPLITS,
    digest_file,
    digest_json,
    is_local,
    is_saved,
    join,
    listed,
    load_builtin,
    load_hub,
    local_files,
    only,
    open_sources,
    own_split,
    refuse_url,
    stream_rows,
    type_name,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    from hfkit.recipe import Recipe

TEXT_NAMES = (
    "text", "sentence", "review", "content", "document", "article", "body", "comment", "message", "tweet", "utterance",
    "query", "question", "description", "abstract",
)  # fmt: skip
PAIR_NAMES = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("query", "passage"),
    ("question", "passage"), ("text", "text_pair"),
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "category", "class", "intent", "sentiment", "stars", "rating", "target", "topic", "emotion",
    "score",
)  # fmt: skip
ID_NAMES = ("id", "idx", "index", "guid", "uid", "unnamed: 0")
FLAGS = {"text": "--text-column", "text_pair": "--text-pair-column", "label": "--label-column"}


def load_data(recipe: Recipe) -> DatasetDict:
    """The splits that `recipe.data` names; a data set's own validation split where none is named.

    Holding out a share of the training rows is left to the task (`hold_out`): a corpus of one document has no rows to
    spare. Raises DataError (what is in a file), UsageError (what was typed) or StorageError (the cache).
    """
    from datasets import DatasetDict

    named = {split: sources for split in SPLITS if (sources := getattr(recipe.data, split))}
    if not named:
        raise UsageError("no data given", "--data FILE")
    documents = recipe.data.documents or "row"
    opened = {split: open_sources(sources, documents, split) for split, sources in named.items()}
    train = opened.get("train", [])
    if train and "validation" not in opened and all(own_split(part, "validation") for _, part in train):
        opened["validation"] = train
    return DatasetDict({split: join(parts, split) for split, parts in opened.items()})


def load_source(sources: Sequence[str], documents: str = "row", split: str = "train") -> Dataset:
    """All `sources` as one data set, in their order.

    `documents` says what a row of a .txt file is: the "file", a paragraph ("blank-line") or a line ("row"). `split` is
    taken from sources that have several (the Hub, builtin:NAME, a saved DatasetDict).
    """
    return join(open_sources(sources, documents, split), split)


def stream_source(sources: Sequence[str], documents: str = "row") -> IterableDataset:
    """The rows of all `sources` read when they are asked for; nothing is loaded or cached."""
    from datasets import IterableDataset

    return IterableDataset.from_generator(stream_rows, gen_kwargs={"sources": list(sources), "documents": documents})


def fingerprint(sources: Sequence[str]) -> str:
    """xxh3_128 of the content of all `sources` in order (names don't count; for the Hub: the data set's commit)."""
    import xxhash

    total = xxhash.xxh3_128()
    for source in sources:
        refuse_url(source)
        if source.startswith("builtin:"):
            total.update(digest_json(load_builtin(source)).encode())
        elif files := local_files(source):
            for file in files:
                total.update(digest_file(file).encode())
        else:
            for split, dataset in sorted(load_hub(source).items()):
                total.update(f"{split} {dataset._fingerprint}".encode())
    return str(total.hexdigest())


def hold_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(train, validation): a seeded random `share` of the rows held out, at least one row on each side."""
    if len(dataset) < 2:
        raise DataError(
            f"{len(dataset)} row can't be split into training and validation data",
            "add rows, or give --validation FILE, or --validation-split 0",
        )
    num_held_out = min(max(1, round(len(dataset) * share)), len(dataset) - 1)
    halves = dataset.train_test_split(test_size=num_held_out, seed=seed)
    return halves["train"], halves["test"]


def hold_out_end(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(train, validation): the one row of `dataset` cut by position, its last `share` held out, and says so.

    `seed` is not used: it makes the call the same as `hold_out`'s.
    """
    text = dataset["text"][0]
    cut = int(len(text) * (1 - share))  # as nanoGPT cuts tinyshakespeare
    if not 0 < cut < len(text):
        raise DataError(f"one document of {len(text)} characters can't be split", "give --validation FILE")
    console.say(f"validation: the last {len(text) - cut:,} of {len(text):,} characters of the one document")
    first, last = (dataset.map(lambda _, part=part: {"text": part}) for part in (text[:cut], text[cut:]))
    return first, last


def text_column(dataset: Dataset | DatasetDict, recipe: Recipe) -> str:
    """The column with the text, named or guessed (and said aloud); its rows are checked for missing values."""
    splits = _as_splits(dataset)
    columns = _shared_columns(splits)
    text = _named(splits, recipe, "text")
    if text is None:
        free = [column for column in columns if column.lower() not in (*ID_NAMES, *LABEL_NAMES)]
        text = _well_known(free, TEXT_NAMES) or only(_of_text(splits, free))
        if text is None:
            raise _unclear(splits, recipe, "text", columns, _of_text(splits, free))
        if len(columns) > 1 and _is_first(splits, recipe):
            console.say(f"text column: {text} (change with --text-column)")
    _check_rows(splits, recipe, [text])
    return text


def classification_columns(dataset: Dataset | DatasetDict, recipe: Recipe) -> tuple[str, str | None, str]:
    """(text, second text of a pair or None, label), each named or guessed (and said aloud); their rows are checked.

    Issue D adds what else a label can be (lists, 0/1 columns, numbers) and files without a header (`data.csv`).
    """
    splits = _as_splits(dataset)
    columns = _shared_columns(splits)
    text, pair, label = (_named(splits, recipe, role) for role in ("text", "text_pair", "label"))
    guessed = text is None or label is None

    def free(*names: Sequence[str]) -> list[str]:
        taken = {text, pair, label, *itertools.chain(*names)}
        return [column for column in columns if column not in taken and column.lower() not in ID_NAMES]

    label = label or _well_known(free(TEXT_NAMES), LABEL_NAMES)
    if text is None and pair is None:
        lower = {column.lower(): column for column in free()}
        text, pair = next(
            ((lower[first], lower[second]) for first, second in PAIR_NAMES if {first, second} <= lower.keys()),
            (None, None),
        )
    text = text or _well_known(free(), TEXT_NAMES) or only(_of_text(splits, free()))
    if text is None:
        raise _unclear(splits, recipe, "text", columns, _of_text(splits, free()))
    label = label or only(free())
    if label is None:
        raise _unclear(splits, recipe, "label", columns, free())
    if guessed and _is_first(splits, recipe):
        texts = f"text columns: {text} + {pair}" if pair else f"text column: {text}"
        flags = ", ".join(FLAGS[role] for role in FLAGS if role != "text_pair" or pair)
        console.say(f"{texts}, label column: {label} (change with {flags})")
    _check_rows(splits, recipe, [text, *([pair] if pair else [])], label)
    return text, pair, label


def _as_splits(dataset: Dataset | DatasetDict) -> dict[str, Dataset]:
    return dict(dataset) if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}


def _is_first(splits: dict[str, Dataset], recipe: Recipe) -> bool:
    """Where a task asks split by split, a guess is said once."""
    return "train" in splits or not recipe.data.train


def _shared_columns(splits: dict[str, Dataset]) -> list[str]:
    first, *others = splits.values()
    return [column for column in first.column_names if all(column in other.column_names for other in others)]


def _sources_of(recipe: Recipe, split: str) -> list[str]:
    sources: list[str] = getattr(recipe.data, split, []) or recipe.data.train
    return sources


def _named(splits: dict[str, Dataset], recipe: Recipe, role: str) -> str | None:
    """The column that the recipe names for `role`, which every split must have."""
    column: str | None = getattr(recipe.data.columns, role)
    for split, dataset in splits.items():
        if column is not None and column not in dataset.column_names:
            free = [name for name in dataset.column_names if name not in vars(recipe.data.columns).values()]
            near = difflib.get_close_matches(column, dataset.column_names, n=1, cutoff=0.6)
            known = _well_known(free, TEXT_NAMES if role != "label" else LABEL_NAMES)
            fix = f"{FLAGS[role]} {near[0] if near else known or only(free) or 'NAME'}"
            name = ", ".join(_sources_of(recipe, split))
            raise DataError(f"{name} has no column '{column}', found: {listed(dataset.column_names)}", fix)
    return column


def _well_known(columns: list[str], names: Sequence[str]) -> str | None:
    """The one column with a well-known name; the first two names win over all others."""
    lower = {column.lower(): column for column in columns}
    known = [lower[name] for name in names if name in lower]
    return known[0] if len(known) == 1 or (known and known[0].lower() in names[:2]) else None


def _of_text(splits: dict[str, Dataset], columns: list[str]) -> list[str]:
    return [column for column in columns if all(type_name(dataset, column) == "string" for dataset in splits.values())]


def _unclear(
    splits: dict[str, Dataset], recipe: Recipe, role: str, columns: list[str], candidates: list[str]
) -> DataError:
    fix, found = f"{FLAGS[role]} {candidates[0] if candidates else 'NAME'}", listed(columns)
    if any(set(dataset.column_names) != set(columns) for dataset in splits.values()) and not candidates:
        found = ", ".join(f"{listed(dataset.column_names)} ({split})" for split, dataset in splits.items())
        fix = "give all the same columns"
    name = ", ".join(_sources_of(recipe, "train"))
    return DataError(f"{name}: no column is clearly the {role}, found: {found}", fix)


def _check_rows(splits: dict[str, Dataset], recipe: Recipe, texts: list[str], label: str | None = None) -> None:
    """Raises at the first row without a value, warns with a count of empty texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for split, dataset in splits.items():
        name = ", ".join(_sources_of(recipe, split))
        for column in [*texts, *([label] if label else [])]:
            values = dataset.select_columns([column]).with_format("arrow")[:][column]
            missing = pc.is_null(values)
            is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
            if is_text and column == label:
                missing = pc.or_kleene(missing, pc.equal(pc.utf8_trim_whitespace(values), ""))
            row = pc.index(missing, True).as_py()
            if row >= 0:
                place = _place(recipe, split, row)
                raise DataError(f"{place}: column '{column}' is empty", "fill it in, or delete the row")
            if column != label and not is_text:
                raise DataError(f"{name}: column '{column}' holds {type_name(dataset, column)}, not text")
            if column != label and (empty := pc.sum(pc.equal(pc.utf8_trim_whitespace(values), "")).as_py()):
                console.warn(f"{name}: {empty:,} of {len(values):,} rows have an empty {column}", "delete them")


def _place(recipe: Recipe, split: str, row: int) -> str:
    """File and line of a row of `load_data`'s result, found by reading again; the row's number where that can't be."""
    sources, skip = getattr(recipe.data, split, []), row
    in_files = [not source.startswith("builtin:") and not is_saved(source) and is_local(source) for source in sources]
    if sources and all(in_files):
        for path in itertools.chain.from_iterable(map(local_files, sources)):
            for place, _ in SOURCES[format_of(path)[0]](path, recipe.data.documents or "row")[1]:
                if skip == 0:
                    return f"{path}: {place}"
                skip -= 1
    return f"{', '.join(_sources_of(recipe, split))}: {split} row {row + 1}"
