"""Labels: one class, several classes, or a number for each example; read from one or several columns."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfkit.errors import DataError
from hfkit.system.console import say, say_once, warn

if TYPE_CHECKING:
    from datasets import Dataset

    from hfkit.settings import Data

SINGLE, MULTIPLE, REGRESSION = "single_label_classification", "multi_label_classification", "regression"

COLUMNS = {SINGLE: "label", MULTIPLE: "labels", REGRESSION: "value"}  # of a data set from `with_labels`

SEPARATORS = (",", "|", ";")  # that a guess tries

CHANGE = "(change with --problem-type)"

BOOLEAN = re.compile("true|false", re.IGNORECASE)

WHOLE = re.compile(r"-?\d+(\.0*)?")  # a whole number, as a file with or without types writes it

ID = re.compile(r"(?:LABEL_)?(\d{1,9})")  # of a class: transformers names a class without a name by its id


def problem_type_of(config: Any) -> str:
    """The problem type of a saved classifier; one with a single output is a regression, as in transformers."""
    return str(config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE))


def kind_of(dataset: Dataset) -> str | None:
    """The problem type of a data set from `with_labels`; None if it has no labels."""
    return next((kind for kind, column in COLUMNS.items() if column in dataset.column_names), None)


def with_labels(splits: Mapping[str, Dataset], label: str, data: Data, config: Any = None) -> dict[str, Dataset]:
    """The splits with one column of labels: `label` as it was, `labels` (a list of names) or `value` (a float).

    The problem type is that of the settings, else that of the model with this `config`, else a guess, which is
    printed.
    """
    guessed = splits["train"] if "train" in splits else next(iter(splits.values()))
    columns = label_columns(guessed, label)
    values = _values(guessed, columns)
    known = data.problem_type or (problem_type_of(config) if config is not None else None)
    kind = known or _guess(values, guessed, columns, data)
    separator = _separator(values, data, config) if kind == MULTIPLE and isinstance(values[0], str) else None
    order = columns if len(columns) > 1 else class_names(guessed, columns[0])
    labels = {
        split: _as(kind, values if dataset is guessed else _values(dataset, columns), split, separator)
        for split, dataset in splits.items()
    }
    if config is not None and len(columns) == 1:
        name_classes(config, class_names(guessed, columns[0]) or [])
    are_respelled = False
    if kind != REGRESSION and (config is not None or order is None):
        texts = set(flat(label for split in labels.values() for label in split))
        of_model = [] if config is None else [str(config.id2label[index]) for index in sorted(config.id2label)]
        names = spelling(texts, of_model) | names_of_ids(texts, of_model)
        if are_respelled := any(text != name for text, name in names.items()):
            labels = {split: [spelled(label, names) for label in own] for split, own in labels.items()}
            order = None
    if kind == SINGLE and not are_respelled:
        renamed = {column: COLUMNS[SINGLE] for column in columns if column != COLUMNS[SINGLE]}
        return {split: dataset.rename_columns(renamed) for split, dataset in splits.items()}
    return {split: _with_column(dataset, columns, labels[split], kind, order) for split, dataset in splits.items()}


def spelling(labels: Iterable[Any], known: Iterable[str] = ()) -> dict[str, str]:
    """How each of the labels, as text, is written: alike in files of all kinds.

    A label that differs from one of the `known` names only as a boolean (True and true) or as a whole number (1.0 and
    1) is that name. Other booleans become "true" and "false", and other whole numbers lose their point, if all labels
    are such.
    """
    texts, known = {str(label) for label in labels}, list(known)
    names = {_plain(name): name for name in known}
    one_kind = all(BOOLEAN.fullmatch(text) for text in texts) or all(WHOLE.fullmatch(text) for text in texts)
    plain = {text: _plain(text) if one_kind else text for text in texts}
    return {text: text if text in known else names.get(_plain(text), plain[text]) for text in texts}


def names_of_ids(labels: Iterable[Any], names: Sequence[str]) -> dict[str, str]:
    """The names of labels that are all ids (1 or LABEL_1), which is printed; none if one of them is a name itself."""
    texts = {str(label) for label in labels}
    ids = {text: int(match[1]) for text in texts if (match := ID.fullmatch(_plain(text)))}
    if any(map(str.isdecimal, texts)) and any(re.search(r"\d", name) and not ID.fullmatch(name) for name in names):
        return {}  # 1 may be the class "1 star"
    are_names = bool(set(spelling(texts, names).values()) & set(names))
    if are_names or not ids or len(ids) < len(texts) or max(ids.values()) >= len(names):
        return {}
    found = {text: names[ids[text]] for text in sorted(texts, key=natural)}
    pairs = [f"{text} is {name}" for text, name in found.items()]
    say(f"labels: ids of known names: {', '.join(pairs[:10])}{', ...' if len(pairs) > 10 else ''}")
    return found


def name_classes(config: Any, classes: Sequence[str]) -> None:
    """Gives the config of a model without names of classes those of the data."""
    names = classes_of_unnamed([str(name) for name in config.id2label.values()], classes)
    config.id2label = {index: names.get(str(name), name) for index, name in config.id2label.items()}
    config.label2id = {name: index for index, name in config.id2label.items()}


def classes_of_unnamed(names: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """The class of each of `names` if a model has none for its classes (LABEL_0, LABEL_1), by their order, which is
    printed; none if it has names, or another number of them."""
    unnamed = [f"LABEL_{number}" for number in range(len(classes))]
    if not classes or set(names) != set(unnamed) or set(names) == set(classes):
        return {}
    pairs = [f"{name} is {known}" for name, known in zip(unnamed, classes, strict=True)]
    say_once(
        f"labels: the model has no names for its classes: {', '.join(pairs[:10])}{', ...' if len(pairs) > 10 else ''}"
    )
    return dict(zip(unnamed, classes, strict=True))


def spelled(label: Any, names: Mapping[str, str]) -> Any:
    """The label, or each label of a list, as `spelling` has it."""
    return [names[str(one)] for one in label] if isinstance(label, list) else names[str(label)]


def _plain(text: str) -> str:
    """A boolean in lower case, a whole number without its point; else the text."""
    if BOOLEAN.fullmatch(text):
        return text.lower()
    return text.partition(".")[0] if WHOLE.fullmatch(text) else text


def label_columns(dataset: Dataset, label: str) -> list[str]:
    """The columns that `label` names: itself, or several names separated by commas."""
    return [label] if label in dataset.column_names else [name.strip() for name in label.split(",")]


def _values(dataset: Dataset, columns: list[str]) -> list[Any]:
    """The label of each row: a scalar, or a list of names; class names instead of class ids."""
    if len(columns) > 1:
        table = [dataset[column][:] for column in columns]
        for column, flags in zip(columns, table, strict=True):
            for row, flag in enumerate(flags, start=1):
                if str(flag).lower() not in ("0", "1", "0.0", "1.0", "true", "false"):
                    problem = f"row {row}: column '{column}' holds '{flag}', not 0 or 1"
                    raise DataError(problem, "name one --label-column, or columns of 0 and 1")
        on = [[str(flag).lower() in ("1", "1.0", "true") for flag in flags] for flags in table]
        return [[column for column, flag in zip(columns, row, strict=True) if flag] for row in zip(*on, strict=True)]
    values: list[Any] = dataset[columns[0]][:]
    if class_names(dataset, columns[0]) is None:
        return values
    unlabelled = next((row for row, value in enumerate(values, 1) if value == -1), None)
    if unlabelled:
        raise DataError(f"row {unlabelled} has no label (-1)", "give data with labels")
    return values_of(dataset, columns[0])


def values_of(dataset: Dataset, column: str) -> list[Any]:
    """The values of a column, with the names of classes instead of their ids; "" for an id without a name (-1)."""
    values: list[Any] = dataset[column][:]
    if (names := class_names(dataset, column)) is None:
        return values
    name = dict(enumerate(names)).get
    return [[name(one, "") for one in value] if isinstance(value, list) else name(value, "") for value in values]


def class_names(dataset: Dataset, column: str) -> list[str] | None:
    """The names of a column of classes, or of lists of classes, in their order."""
    feature = dataset.features[column]
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _guess(values: list[Any], dataset: Dataset, columns: list[str], data: Data) -> str:
    """The problem type of the values; printed unless they are plain classes."""
    name = f"column {', '.join(columns)}"
    if isinstance(values[0], list):
        say(f"problem type: {MULTIPLE}, because {name} holds lists {CHANGE}")
        return MULTIPLE
    if data.label_separator is not None:
        return MULTIPLE
    if class_names(dataset, columns[0]) is not None:
        return SINGLE
    distinct = set(values)
    numbers = [number_of(value) for value in distinct]
    if all(number is not None for number in numbers):
        odd = next(
            (n for n, one in enumerate(values, 1) if isinstance(one, str) and not math.isfinite(float(one))), None
        )
        if odd is not None:
            problem = f"row {odd}: label '{values[odd - 1]}' among numbers is not a finite number"
            raise DataError(problem, f"correct or delete it; --problem-type {SINGLE}, if it is a class")
        broken = next((n for n in numbers if n is not None and math.isfinite(n) and n != int(n)), None)
        if broken is not None:
            say(f"problem type: {REGRESSION}, because {name} holds numbers such as {broken:g} {CHANGE}")
            return REGRESSION
        if len(distinct) > 2:
            say(f"problem type: {SINGLE}, the {len(distinct):,} whole numbers in {name} are classes {CHANGE}")
        return SINGLE
    for separator in SEPARATORS:
        texts = [str(value) for value in distinct]
        parts = {part for text in texts for part in _parts(text, separator)}
        if any(separator in text for text in texts) and len(parts) < len(texts):
            say(f"problem type: {MULTIPLE}, because '{separator}' separates labels in {name} {CHANGE}")
            return MULTIPLE
    return SINGLE


def _separator(values: list[str], data: Data, config: Any) -> str | None:
    """The separator of the labels in one text, from the settings or guessed."""
    if data.label_separator is not None:
        return data.label_separator
    return _guessed_separator(values, set() if config is None else set(config.label2id))


def split_labels(values: Sequence[str], known: Iterable[str]) -> list[list[str]]:
    """The labels in each text, by the separator that gives the fewest labels that are not `known`."""
    separator = _guessed_separator(values, set(known))
    return [_parts(text, separator) for text in values]


def _guessed_separator(values: Sequence[str], known: set[str]) -> str | None:
    """The separator that gives the fewest unknown, then the fewest different labels; None if no text has one."""
    texts = set(values)
    found = [separator for separator in SEPARATORS if any(separator in text for text in texts - known)]

    def strange(separator: str) -> tuple[int, int]:
        parts = {part for text in texts for part in _parts(text, separator)}
        return (len(parts - known) if known else 0), len(parts)

    return min(found, key=strange, default=None)


def _parts(text: str, separator: str | None) -> list[str]:
    parts = [text] if separator is None else text.split(separator)
    return [part.strip() for part in parts if part.strip()]


def number_of(value: Any) -> float | None:
    """The number that a value is or spells; None if it is none. A boolean is none."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _as(kind: str, values: list[Any], split: str, separator: str | None) -> list[Any]:
    """`values` as labels of this problem type; DataError at the first that is not one."""
    if kind == MULTIPLE:
        lists = [value if isinstance(value, list) else _parts(str(value), separator) for value in values]
        return [[str(name) for name in value] for value in lists]
    for row, value in enumerate(values, start=1):
        number = number_of(value)
        if isinstance(value, list):
            raise DataError(f"{split} data, row {row}: a list of labels, not one", f"--problem-type {MULTIPLE}")
        if kind == REGRESSION and number is None:
            raise DataError(f"{split} data, row {row}: label '{value}' is not a number", f"--problem-type {SINGLE}")
        if number is not None and not math.isfinite(number) and (kind == REGRESSION or isinstance(value, float)):
            raise DataError(f"{split} data, row {row}: label {value} is not a finite number", "correct or delete it")
    if kind == REGRESSION:
        return [float(value) for value in values]
    distinct = set(values)
    if len(distinct) > 20 and len(distinct) > len(values) / 2 and any(isinstance(value, float) for value in distinct):
        raise DataError(
            f"the {split} data has {len(distinct):,} different numbers as classes in {len(values):,} rows",
            f"--problem-type {REGRESSION}",
        )
    return values


def _with_column(
    dataset: Dataset, columns: list[str], values: list[Any], kind: str, order: list[str] | None
) -> Dataset:
    from datasets import ClassLabel, List, Value

    target = COLUMNS[kind]
    several = List(ClassLabel(names=order) if order else Value("string"))
    feature = {SINGLE: Value("string"), MULTIPLE: several, REGRESSION: Value("float64")}[kind]
    if kind == MULTIPLE and order:
        values = [[order.index(name) for name in value] for value in values]
    return dataset.remove_columns(columns).add_column(target, values, feature=feature)


def labels_of(dataset: Dataset) -> list[Any]:
    """The label of each row: a name, a list of names or a number."""
    column = COLUMNS[kind_of(dataset) or SINGLE]
    values = _values(dataset, [column])
    return [str(value) for value in values] if column == COLUMNS[SINGLE] else values


def label_names(dataset: Dataset, config: Any) -> list[str]:
    """The names of all labels in the training data, in the order of their ids.

    That is the order of a ClassLabel or of columns of 0 and 1, else that of the model if it has the same names, else
    natural order (10 after 9).
    """
    order = class_names(dataset, COLUMNS[kind_of(dataset) or SINGLE])
    counts = Counter(flat(labels_of(dataset)))
    if len(counts) < 2:
        raise DataError(
            f"the training data has one label only: '{next(iter(counts), 'none')}'",
            "name the right column with --label-column, or add rows of another class",
        )
    once = sum(count == 1 for count in counts.values())
    if once > max(1, len(counts) / 10):
        warn(
            f"{once:,} of {len(counts):,} labels have only one training row each, too few to learn them",
            "check --label-column, or merge labels",
        )
    if order is not None:
        return list(order)
    own = [str(config.id2label[index]) for index in sorted(config.id2label)]
    return own if set(own) == set(counts) else sorted(counts, key=natural)


def flat(labels: Iterable[Any]) -> list[str]:
    """All names in labels that are a name or a list of names each."""
    return [name for label in labels for name in (label if isinstance(label, list) else [label])]


def check_known(splits: Mapping[str, Dataset], names: Sequence[str]) -> None:
    """DataError at the first label that is not one of `names`."""
    known = set(names)
    whose, fix = ("training data", ", or add training rows with it") if "train" in splits else ("model", "")
    for split, dataset in splits.items():
        for row, label in enumerate(labels_of(dataset), start=1):
            for name in flat([label]):
                if name not in known:
                    raise DataError(
                        f"{split} data, row {row}: label '{name}' is not a label of the {whose}: "
                        f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}",
                        f"correct the label{fix}",
                    )


def natural(name: str) -> tuple[float, list[tuple[int, str]]]:
    """Sort key: numbers first, by size (-1, 0, 1.5, 10), then names, with the digits in them by size, too."""
    try:
        return float(name), []
    except ValueError:
        parts = re.split(r"(\d+)", name)
        return math.inf, [(len(part), part) if part.isdigit() else (0, part) for part in parts]


IGNORED = -100  # label of a position that has no loss, as everywhere in torch and transformers
