"""Which column holds what: named in the settings, recognized by its name, or guessed from its content."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.data.labels import label_columns
from hfkit.data.readers import ID_NAMES, LABEL_NAMES, TEXT_NAMES, has_effect, is_inherited, layout_of, read_rows
from hfkit.data.sources import are_files, listed, local_files, only, type_name
from hfkit.errors import DataError
from hfkit.system.console import say, short, warn

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hfkit.settings import Data

PAIR_NAMES = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("query", "passage"),
    ("question", "passage"), ("text", "text_pair"),
)  # fmt: skip

TOKEN_NAMES = ("tokens", "words", "token", "word", "text", "sentence")

TAG_NAMES = ("tags", "ner_tags", "entities", "spans", "labels", "ner", "pos_tags", "upos", "tag", "label")

QUESTION_NAMES = {
    "text": ("question", "query", "questions"),
    "text_pair": ("context", "passage", "document", "paragraph", "text"),
    "label": ("answers", "answer", "label"),
}

SOURCE_NAMES = (
    "source", "src", "document", "article", "dialogue", "input", "text", "abstract", "content", "report", "question",
    "prompt",
)  # fmt: skip

TARGET_NAMES = (
    "target", "tgt", "summary", "highlights", "output", "translation", "abstract", "title", "answer", "completion",
)  # fmt: skip

SOURCE_TARGET_NAMES = (  # pairs of names that nothing else has
    ("source", "target"), ("src", "tgt"), ("document", "summary"), ("article", "summary"), ("article", "highlights"),
    ("dialogue", "summary"), ("text", "summary"),
)  # fmt: skip

GUESSED_ROWS = 1000  # that a guess from the content looks at

FLAGS = {
    "text": "--text-column",
    "text_pair": "--text-pair-column",
    "label": "--label-column",
    "target": "--target-column",
}


def text_column(dataset: Dataset | DatasetDict, data: Data) -> str:
    """The column with the text, named or guessed; a guess is printed. DataError if a row has no value."""
    splits = as_splits(dataset)
    text = find_text(splits, data)
    if data.columns.text is None and len(shared_columns(splits)) > 1 and _is_first(splits, data):
        say(f"text column: {text} (change with --text-column)")
    _check_rows(splits, data, [text])
    return text


def input_column(dataset: Dataset, data: Data, role: str = "text", usual: Sequence[str] = ()) -> str:
    """The column that data.columns.text names, else the first of the `usual` names, else the one with text.

    A guess is printed; `role` says there what the column holds. DataError if no column is clearly it.
    """
    names, named = dataset.column_names, data.columns.text
    column = named or next(_usual(names, usual), "")
    if column not in names:
        column = find_text(as_splits(dataset), data)
    if named is None and len(names) > 1:
        say(f"{role} column: {column} (change with --text-column)")
    elif named is None and column.lower() not in (usual or TEXT_NAMES):
        say(f"{role} column: {short(column)} (change with --no-header, if that is a {role})")
    return column


def pair_column(dataset: Dataset, data: Data) -> str | None:
    """The column that data.columns.text_pair names; DataError if the data set does not have it."""
    return named_column(as_splits(dataset), data, "text_pair")


def words_column(dataset: Dataset, data: Data) -> str | None:
    """The column that holds the words of a sentence as a list; None if the text is in one piece."""
    column = data.columns.text
    if column not in dataset.column_names:
        column = next(_usual(dataset.column_names, TOKEN_NAMES), None)
    return column if column is not None and are_words(dataset[0][column]) else None


def is_tagged(dataset: Dataset, data: Data) -> bool:
    """Whether the data set holds lists of words with lists of tags, or spans of texts, and no other label."""
    if any(name.lower() in LABEL_NAMES and type_name(dataset, name) == "string" for name in dataset.column_names):
        return False
    words = words_column(dataset, data)
    lists = [name for name in dataset.column_names if are_words(dataset[0][name]) and name != words]
    return bool(words and lists) or spans_column(dataset) is not None


def is_asking(dataset: Dataset) -> bool:
    """Whether the data set has questions, contexts and answers under their usual names."""
    names = set(map(str.lower, dataset.column_names))
    return {"question", "context"} <= names and bool({"answers", "answer"} & names)


def spans_column(dataset: Dataset) -> str | None:
    """The column that holds spans of a text, each {"start", "end", "label"}; None if there is none."""
    return next((name for name in _usual(dataset.column_names, TAG_NAMES) if has_spans(dataset, name)), None)


def has_spans(dataset: Dataset, column: str) -> bool | None:
    """Whether the column holds lists of spans; None if all lists are empty."""
    inner = getattr(dataset.features[column], "feature", None)
    return None if getattr(inner, "dtype", None) == "null" else isinstance(inner, dict)


def are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def find_text(splits: dict[str, Dataset], data: Data) -> str:
    """The column with the text, named or guessed; DataError if no column is clearly it."""
    columns = shared_columns(splits)
    free = [column for column in columns if column.lower() not in (*ID_NAMES, *LABEL_NAMES)]
    text = named_column(splits, data, "text") or _well_known(free, TEXT_NAMES) or only(_of_text(splits, free))
    text = text or only(_by_content(splits, free)[0])
    if text is None:
        raise _unclear(splits, data, "text", columns, _of_text(splits, free))
    return text


def source_columns(splits: dict[str, Dataset], data: Data) -> tuple[str, str]:
    """(source, target), each named or guessed; a guess is printed. DataError if one is not clear."""
    source, target = find_sources(splits, data)
    if (data.columns.text is None or data.columns.target is None) and _is_first(splits, data):
        say(f"source column: {source}, target column: {target} (change with {FLAGS['text']}, {FLAGS['target']})")
        guessed = [name for name in _sources_of(data, next(iter(splits))) if has_effect("header", name)]
        usual = {*SOURCE_NAMES, *TARGET_NAMES, *ID_NAMES}
        if guessed and data.header is None and not {source.lower(), target.lower()} & usual and not source.isdecimal():
            warn(f"the first line of {guessed[0]} is taken for names", "--no-header, if it is a pair like the others")
    return source, target


def find_sources(splits: dict[str, Dataset], data: Data) -> tuple[str, str]:
    """As `source_columns`, without a word."""
    columns = [name for name in shared_columns(splits) if name.lower() not in ID_NAMES]
    source = named_column(splits, data, "text") or of_language(columns, data.source_lang)
    target = named_column(splits, data, "target") or of_language(columns, data.target_lang)
    if source is None and target is None and len(columns) == 2:
        first, second = columns
        are_reversed = first.lower() in TARGET_NAMES and second.lower() in SOURCE_NAMES
        return (second, first) if are_reversed else (first, second)
    source = source or next(_usual([name for name in columns if name != target], SOURCE_NAMES), None)
    target = target or next(_usual([name for name in columns if name != source], TARGET_NAMES), None)
    left = [name for name in columns if name not in (source, target)]
    if source is None and len(left) == 1:
        source = left[0]
    elif target is None and len(left) == 1:
        target = left[0]
    for role, column in (("text", source), ("target", target)):
        if column is None:
            raise _unclear(splits, data, role, columns, left, called="source" if role == "text" else role)
    assert source is not None
    assert target is not None
    if source == target:
        raise DataError(f"column '{source}' is named as source and as target", f"{FLAGS['target']} ANOTHER")
    return source, target


def of_language(columns: Sequence[str], language: str | None) -> str | None:
    """The column named after a language: `de_DE`, or `de` alone."""
    names = () if language is None else (language.lower(), language.lower().partition("_")[0])
    return next(_usual(columns, names), None)


def is_translating(dataset: Dataset) -> bool:
    """Whether the data set has sources and targets under names that nothing else has."""
    names = set(map(str.lower, dataset.column_names))
    return "translation" in names or any({*pair} <= names for pair in SOURCE_TARGET_NAMES)


def classification_columns(dataset: Dataset | DatasetDict, data: Data) -> tuple[str, str | None, str]:
    """(text, second text of a pair or None, label), each named or guessed; a guess is printed.

    `label` can name several columns of 0 and 1 (see `label_columns`). DataError if a row has no value.
    """
    splits = as_splits(dataset)
    text, pair, label = find_classification(splits, data)
    guessed = data.columns.text is None or data.columns.label is None
    if guessed and _is_first(splits, data):
        texts = f"text columns: {text} + {pair}" if pair else f"text column: {text}"
        flags = ", ".join(FLAGS[role] for role in ("text", "text_pair", "label") if role != "text_pair" or pair)
        idle = [column for column in shared_columns(splits) if column.isdecimal() and column not in (text, pair, label)]
        unused = f", not used: {', '.join(idle)}" if idle else ""
        say(f"{texts}, label column: {label}{unused} (change with {flags})")
    _check_rows(splits, data, [text, *([pair] if pair else [])], label)
    return text, pair, label


def find_classification(splits: dict[str, Dataset], data: Data) -> tuple[str, str | None, str]:
    """(text, second text of a pair or None, label), each named or guessed; DataError if one is not clear."""
    columns = shared_columns(splits)
    text, pair, label = (named_column(splits, data, role) for role in ("text", "text_pair", "label"))

    def free(*names: Sequence[str]) -> list[str]:
        taken = {text, pair, label, *itertools.chain(*names)}
        return [column for column in columns if column not in taken and column.lower() not in ID_NAMES]

    label = label or _well_known(free(TEXT_NAMES), LABEL_NAMES)
    texts, labels = _by_content(splits, free())
    if text is None and pair is None and len(texts) < 3:
        text, pair = (*texts, None, None)[:2]
    label = label or only(labels)
    if text is None and pair is None:
        lower = {column.lower(): column for column in free()}
        text, pair = next(
            ((lower[first], lower[second]) for first, second in PAIR_NAMES if {first, second} <= lower.keys()),
            (None, None),
        )
    text = text or _well_known(free(), TEXT_NAMES) or only(_of_text(splits, free()))
    if text is None:
        raise _unclear(splits, data, "text", columns, _of_text(splits, free()))
    label = label or only(free())
    if label is None:
        raise _unclear(splits, data, "label", columns, labels or free())
    return text, pair, label


def tagged_columns(splits: dict[str, Dataset], data: Data) -> tuple[str, str]:
    """(words or text, tags of the words or spans of the text), each named or guessed; a guess is printed."""
    words, tags = find_tagged(splits, data)
    if (
        len(shared_columns(splits)) > 2
        and (data.columns.text is None or data.columns.label is None)
        and _is_first(splits, data)
    ):
        say(f"words: column {words}, tags: column {tags} (change with {FLAGS['text']}, {FLAGS['label']})")
    return words, tags


def find_tagged(splits: dict[str, Dataset], data: Data) -> tuple[str, str]:
    """As `tagged_columns`, without a word; DataError if a column is not clear."""
    columns = shared_columns(splits)
    words, tags = (named_column(splits, data, role) for role in ("text", "label"))
    words = words or next(_usual([column for column in columns if column != tags], TOKEN_NAMES), None)
    tags = tags or next(_usual([column for column in columns if column != words], TAG_NAMES), None)
    if words is not None and len(columns) == 1:
        name = ", ".join(_sources_of(data, next(iter(splits))))
        raise DataError(f"{name}: there are words and no tags", "write a word and its tag on each line")
    for role, column in (("text", words), ("label", tags)):
        if column is None:
            free = [name for name in columns if name not in (words, tags)]
            raise _unclear(splits, data, role, columns, free)
    assert words is not None
    assert tags is not None
    return words, tags


def question_columns(splits: dict[str, Dataset], data: Data) -> tuple[str, str, str]:
    """(question, context, answers), each named or with a usual name; DataError if one is missing."""
    columns = shared_columns(splits)
    found: dict[str, str] = {}
    for role, usual in QUESTION_NAMES.items():
        left = [name for name in columns if name not in found.values()]
        column = named_column(splits, data, role) or next(_usual(left, usual), None)
        if column is None:
            could_be = left if len(columns) >= len(QUESTION_NAMES) else []
            raise _unclear(splits, data, role, columns, could_be, called=usual[0])
        found[role] = column
    return found["text"], found["text_pair"], found["label"]


def _by_content(splits: dict[str, Dataset], columns: list[str]) -> tuple[list[str], list[str]]:
    """Of columns without names: those with the longest texts, and those with repeated values, fewest first."""
    if not columns or not all(map(str.isdecimal, columns)):
        return [], []
    rows = next(iter(splits.values()))[:GUESSED_ROWS]
    lengths = {column: sum(len(str(value)) for value in rows[column]) / len(rows[column]) for column in columns}
    distinct = {column: len(set(map(str, rows[column]))) for column in columns if "" not in rows[column]}
    texts = [column for column in columns if lengths[column] > max(lengths.values()) / 2]
    most = len(rows[columns[0]]) / 2
    repeating = [column for column in distinct if 2 <= distinct[column] <= most and column not in texts]
    return texts, sorted(repeating, key=lambda column: distinct[column])


def as_splits(dataset: Dataset | DatasetDict) -> dict[str, Dataset]:
    """The splits by name; one data set is its own split, or train."""
    return dict(dataset) if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}


def _is_first(splits: dict[str, Dataset], data: Data) -> bool:
    """Whether to print a guess: a task that asks split by split prints it once."""
    return "train" in splits or not data.train


def shared_columns(splits: dict[str, Dataset]) -> list[str]:
    """The columns that all splits have."""
    first, *others = splits.values()
    return [column for column in first.column_names if all(column in other.column_names for other in others)]


def _sources_of(data: Data, split: str) -> list[str]:
    sources: list[str] = getattr(data, split, []) or data.train
    return sources


def named_column(splits: dict[str, Dataset], data: Data, role: str) -> str | None:
    """The column that the settings name for `role`; DataError if a split does not have it."""
    column: str | None = getattr(data.columns, role)
    is_number = column is not None and column.replace(",", "").isdecimal()
    if is_number and is_inherited(data.header) and not any(map(str.isdecimal, shared_columns(splits))):
        return None  # of a column without a name, and here columns have names
    for split, dataset in splits.items():
        if column is not None and role == "label" and set(label_columns(dataset, column)) <= set(dataset.column_names):
            continue
        if column is not None and column not in dataset.column_names:
            free = [name for name in dataset.column_names if name not in vars(data.columns).values()]
            near = difflib.get_close_matches(column, dataset.column_names, n=1, cutoff=0.6)
            known = _well_known(free, TEXT_NAMES if role != "label" else LABEL_NAMES)
            fix = f"{FLAGS[role]} {near[0] if near else known or only(free) or 'NAME'}" if free else _column_for(role)
            name = ", ".join(_sources_of(data, split))
            raise DataError(f"{name} has no column '{column}', found: {listed(dataset.column_names)}", fix)
    return column


def _usual(columns: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """The columns that have one of these names, in the order of `names`, whatever the case of their letters."""
    lower = {column.lower(): column for column in columns}
    return (lower[name] for name in names if name in lower)


def _well_known(columns: list[str], names: Sequence[str]) -> str | None:
    """The one column with a well-known name; the first two names win over all others."""
    known = list(_usual(columns, names))
    return known[0] if len(known) == 1 or (known and known[0].lower() in names[:2]) else None


def _of_text(splits: dict[str, Dataset], columns: list[str]) -> list[str]:
    return [column for column in columns if all(type_name(dataset, column) == "string" for dataset in splits.values())]


def _unclear(
    splits: dict[str, Dataset], data: Data, role: str, columns: list[str], candidates: list[str], called: str = ""
) -> DataError:
    fix = f"{FLAGS[role]} {candidates[0]}" if candidates else _column_for(called or role)
    found = listed(columns)
    if any(set(dataset.column_names) != set(columns) for dataset in splits.values()) and not candidates:
        found = ", ".join(f"{listed(dataset.column_names)} ({split})" for split, dataset in splits.items())
        fix = "give all the same columns"
    elif all(map(str.isdecimal, columns)):
        first = next(iter(splits.values()))[0]
        found = ", ".join(f"{column} ({short(str(first[column]))})" for column in columns)
    elif (
        data.header is None
        and any(has_effect("header", source) for source in _sources_of(data, next(iter(splits))))
        and not {*TEXT_NAMES, *LABEL_NAMES} & {*map(str.lower, columns)}
    ):
        fix += ", or --no-header if these are values of a first row"
    sources = _sources_of(data, next(iter(splits)))
    name = ", ".join(sources)
    if (
        columns == ["text"]
        and sources
        and all("\t" in row for row in next(iter(splits.values()))["text"][:GUESSED_ROWS])
    ):
        table = f"{Path(sources[0]).stem}.tsv"
        problem = f"{name}: its lines hold tabs, but the suffix is not that of a table"
        return DataError(problem, f"mv {sources[0]} {table}, and --no-header if its first line is a row")
    return DataError(f"{name}: no column is clearly the {called or role}, found: {found}", fix)


def _column_for(role: str) -> str:
    """What to do where no column is left that could be named."""
    return f"give data with a column for the {'second text' if role == 'text_pair' else role}"


def _check_rows(splits: dict[str, Dataset], data: Data, texts: list[str], label: str | None = None) -> None:
    """DataError at the first row without a value; a warning with the number of empty texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for split, dataset in splits.items():
        name = ", ".join(_sources_of(data, split))
        labels = label_columns(dataset, label) if label else []
        several = len(labels) > 1 or data.problem_type == "multi_label_classification"
        for column in [*texts, *labels]:
            values = dataset.select_columns([column]).with_format("arrow")[:][column]
            missing = pc.is_null(values, nan_is_null=True)
            is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
            if is_text and column in labels and not several:
                missing = pc.or_kleene(missing, pc.equal(pc.utf8_trim_whitespace(values), ""))
            row = pc.index(missing, True).as_py()
            if row >= 0:
                place = place_of(data, split, row)
                raise DataError(f"{place}: column '{column}' is empty", "fill it in, or delete the row")
            if column not in labels and not is_text:
                raise DataError(f"{name}: column '{column}' holds {type_name(dataset, column)}, not text")
            if column not in labels and (empty := pc.sum(pc.equal(pc.utf8_trim_whitespace(values), "")).as_py()):
                warn(f"{name}: {empty:,} of {len(values):,} rows have an empty {column}", "delete them")


def place_of(data: Data, split: str, row: int) -> str:
    """File and line of a row that `load_data` gave, found by reading again; for other sources the row's number."""
    sources, skip = getattr(data, split, []), row
    if sources and are_files(sources):
        for path in itertools.chain.from_iterable(map(local_files, sources)):
            for place, _ in read_rows(path, layout_of(data)):
                if skip == 0:
                    return f"{path}: {place}"
                skip -= 1
    return f"{', '.join(_sources_of(data, split))}: {split} row {row + 1}"
