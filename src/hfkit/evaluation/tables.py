"""Predictions and references from files, as rows that metrics take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.data.labels import class_names, classes_of_unnamed, number_of, spelled, values_of
from hfkit.data.sources import only, type_name
from hfkit.errors import DataError, UsageError
from hfkit.evaluation.label_rows import label_rows, with_probabilities
from hfkit.metrics.inputs import are_entities
from hfkit.metrics.sample import Row
from hfkit.metrics.table import OF_LABELS, OF_NUMBERS, OF_TAGS, OF_TEXTS
from hfkit.system.console import say

if TYPE_CHECKING:
    from hfkit.settings import Recipe

# Usual column names, by side: those that say which side it is, then those that say what it holds.
SIDES = {
    "prediction": ("prediction", "predictions", "predicted", "generated"),
    "reference": ("references", "reference", "target"),
}

OF_BOTH = {"label": ("label", "labels"), "tags": ("tags", "entities"), "number": ("value",)}

CONTENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "prediction": {"text": ("output", "answer", "text"), **OF_BOTH},
    "reference": {"text": ("answers", "text"), **OF_BOTH},
}

ANSWER_NAMES = ("label", "labels", "value")  # the answers of `hfkit predict`, beside the text

AMBIGUOUS = ("output", "text", *ANSWER_NAMES)  # if one of these is used, that is printed

SETS = ("f1_samples", "subset_accuracy", "hamming_loss", "mean_average_precision")  # of several labels a row


class FileRows(NamedTuple):
    """Rows from files, and what they hold: "text", "label", "tags", "number", or None where that is open."""

    rows: list[Row]
    of: str | None


def groups_of(recipe: Recipe, column: str, num_rows: int) -> list[str]:
    """The values in `column` of recipe.data.test, as text, one for each of its `num_rows` examples."""
    from hfkit.data.loading import load_data

    if not recipe.data.test:
        raise UsageError("--by names a column of the data", "--data FILE")
    dataset = load_data(dataclasses.replace(recipe.data, train=[], validation=[]))["test"]
    if column not in dataset.column_names:
        raise DataError(f"the data has no column '{column}', found: {', '.join(dataset.column_names)}", "--by COLUMN")
    if len(dataset) != num_rows:
        raise DataError(f"{len(dataset):,} rows, but {num_rows:,} were measured: no group of each", "leave out --by")
    return [str(value) for value in values_of(dataset, column)]


def rows_of_files(
    predictions: Path,
    references: Sequence[Path] = (),
    *,
    prediction_column: str | None = None,
    reference_column: str | None = None,
    by: str | None = None,
    metrics: Sequence[str] = (),
) -> FileRows:
    """A row for each prediction: "prediction", and "reference" or, if there are several, "references".

    A .txt file has one text per line, which may be empty. Other files have one per row, in the named column or a usual
    one for the `metrics`; a list in it stands for several references, or is the labels of one row. Without `references`
    they come from the file of the predictions, if it has such a column. Rows that `hfkit predict` or `hfkit evaluate
    -o` wrote have "probabilities", too. `by`: a column of either file that becomes "group". Raises DataError for files
    that do not match.
    """
    table = _Table(predictions)
    others = [_Table(path) for path in references]
    of = _content(metrics)
    answer = table.answer() if prediction_column is None else None
    found = prediction_column or answer or table.usual("prediction", of)
    if references:
        usual = [reference_column or other.usual("reference", of) for other in others]
        if not prediction_column and not answer and not reference_column:
            found, usual = _agreed(found, usual, of, table, others)
    else:  # in a file of answers a label is the answer, and in none a column is the reference of itself
        taken = ("text", *ANSWER_NAMES) if answer else ("text", found)
        name = reference_column or table.usual("reference", of, taken, alone=False)
        if reference_column is None and {_kind_of_name(found), _kind_of_name(name)} == {"text", "label"} and not answer:
            name = None  # a text and its label, not two answers
        others, usual = ([table], [name]) if name is not None else ([], [])
    made = table.column(found, "prediction", is_guess=not prediction_column)
    given = [
        other.column(name, "reference", is_guess=not reference_column)
        for other, name in zip(others, usual, strict=True)
    ]
    for path, lines in zip(references, given, strict=False):
        if len(lines) != len(made):
            raise DataError(
                f"{predictions} has {len(made):,} lines, {path} has {len(lines):,}",
                "give one reference per prediction, in the same order",
            )
    shares = table.probabilities() if not prediction_column and others else None
    if of is None and given:
        is_named = bool(shares) or any(map(_holds_labels, others, usual))
        of = "number" if _are_amounts(made, given[0]) else "label" if is_named and not _are_tags(made) else None
    if of == "label" and len(given) > 1:
        raise DataError(f"{len(given)} files of references, and a label has one", f"--references {references[0]} alone")
    if of == "label" and given:
        classes = others[0].classes(usual[0]) or table.classes(found)
        if shares and (named := classes_of_unnamed([*shares[0]], classes or [])):
            made = [spelled(label, named) for label in made]
            shares = [{named[name]: share for name, share in one.items()} for one in shares]
        names = [*shares[0]] if shares else classes
        rows = label_rows(made, given[0], names or (), several=any(name in SETS for name in metrics))
        rows = with_probabilities(rows, shares) if shares else rows
    else:
        rows = _text_rows(made, given)
    if not prediction_column and table.has("question") and table.has("answer"):
        rows = [{"question": asked, **row} for asked, row in zip(table.values("question"), rows, strict=True)]
    return FileRows(rows if by is None else _with_groups(rows, by, (table, *others)), of)


def _content(metrics: Sequence[str]) -> str | None:
    """What the metrics score, if all score the same."""
    groups = {"text": OF_TEXTS, "label": OF_LABELS, "tags": OF_TAGS, "number": OF_NUMBERS}
    found = {of for name in metrics for of, known in groups.items() if name in known}
    return only(sorted(found))


def _agreed(
    found: str | None, usual: list[str | None], of: str | None, table: _Table, others: Sequence[_Table]
) -> tuple[str | None, list[str | None]]:
    """The guessed columns of both sides: one name for both where no name says which side it is.

    Raises DataError where one is a column of texts and the other one of labels.
    """
    if found in SIDES["prediction"] or any(name in (None, found, *SIDES["reference"]) for name in usual):
        return found, usual
    names = CONTENTS["prediction"][of] if of else [name for kind in CONTENTS["prediction"].values() for name in kind]
    shared = next((name for name in names if all(one.has(name) for one in (table, *others))), None)
    if shared is not None:
        return shared, [shared] * len(usual)
    kinds = [_kind_of_name(name) for name in (found, *usual)]
    if {"text", "label"} <= set(kinds):
        problem = f"{table.path} has texts in '{found}', and {others[0].path} labels in '{usual[0]}'"
        if kinds[0] == "label":
            problem = f"{table.path} has labels in '{found}', and {others[0].path} texts in '{usual[0]}'"
        raise DataError(problem, f"--prediction-column {found} --reference-column {usual[0]}, if these belong together")
    return found, usual


def _kind_of_name(name: str | None) -> str | None:
    return next((of for side in CONTENTS.values() for of, names in side.items() if name in names), None)


def _holds_labels(table: _Table, column: str | None) -> bool:
    """Whether the column is one of labels by its name or its type."""
    if column is None:
        return False
    return column in OF_BOTH["label"] or table.classes(column) is not None or table.is_boolean(column)


def _are_tags(made: Sequence[Any]) -> bool:
    """Whether lists are the tags of words: BIO tags, or some that come again in a row, as no set of labels has them."""
    lists = [row for row in made if isinstance(row, list)]
    return are_entities(lists) or any(
        all(isinstance(tag, str) for tag in row) and len({*row}) < len(row) for row in lists
    )


def _are_amounts(made: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether both sides are numbers, and not all of them whole."""
    numbers = list(map(number_of, (*made, *given)))
    return None not in numbers and any(number != number // 1 for number in numbers if number is not None)


def _text_rows(made: Sequence[Any], given: Sequence[Sequence[Any]]) -> list[Row]:
    """A row for each prediction, with its one reference, or its several ones in a list."""
    rows: list[Row] = [{"prediction": text} for text in made]
    for row, texts in zip(rows, zip(*given, strict=True), strict=bool(given)):
        if len(texts) == 1 and not isinstance(texts[0], list):
            row["reference"] = texts[0]
        else:
            row["references"] = [one for text in texts for one in (text if isinstance(text, list) else [text])]
    return rows


def _with_groups(rows: list[Row], by: str, tables: Sequence[_Table]) -> list[Row]:
    """The rows with a "group", from the column `by` of the first table that has it."""
    holder = next((one for one in tables if one.has(by)), None)
    if holder is None:
        raise DataError(f"no column '{by}' in {' or '.join(str(one.path) for one in tables)}", "--by COLUMN")
    return [{**row, "group": str(group)} for row, group in zip(rows, holder.values(by), strict=True)]


class _Table:
    """A file of predictions or references, by column; a .txt file has lines only."""

    def __init__(self, path: Path) -> None:
        from hfkit.data.lines import read_lines
        from hfkit.data.loading import load_source
        from hfkit.data.readers import FIXED, has_effect

        self.path, self.lines, self.names = path, None, []
        if has_effect("documents", path):
            self.lines = [line.rstrip("\r\n") for _, line in read_lines(path)]
            if not self.lines:
                raise DataError(f"{path}: no rows", "give one text a line")
        else:
            self.dataset = load_source([str(path)], layout=FIXED)
            self.names = self.dataset.column_names

    def has(self, name: str) -> bool:
        return name in self.names

    def usual(self, side: str, of: str | None, taken: Sequence[str | None] = (), *, alone: bool = True) -> str | None:
        """The first usual column of this side, else the only one if that may be `alone`; None of lines.

        Columns for what the metrics are `of` come first. DataError if a table has none and `alone`.
        """
        if self.lines is not None:
            return None
        contents = CONTENTS[side]
        first = contents.get(of or "", ())
        rest = [name for names in contents.values() for name in names if name != "text"] + ["text"]
        names = [name for name in dict.fromkeys((*SIDES[side], *first, *rest)) if name not in taken]
        found = next((name for name in names if name in self.names), None)
        if found is None and alone:
            found = only(self.names)
            if found is None:
                wanted = f"column of the usual names ({', '.join(names)})"
                raise DataError(f"{self.path} has no {wanted}, found: {', '.join(self.names)}", f"--{side}-column NAME")
        return found

    def answer(self) -> str | None:
        """The column with the answers if `hfkit predict` wrote the file, else None."""
        is_theirs = self.names[:1] == ["text"] and (self.has("probabilities") or self.has("value"))
        named = (*SIDES["prediction"], "output", "answer", "tags", "entities")
        if not is_theirs or any(map(self.has, named)):
            return None
        return next((name for name in ANSWER_NAMES if name in self.names), None)

    def column(self, name: str | None, side: str, *, is_guess: bool) -> list[Any]:
        """The values of a column, or the lines; a guess is printed where another column could be meant."""
        if self.lines is not None:
            return self.lines
        assert name is not None
        if not self.has(name):
            raise DataError(
                f"{self.path} has no column '{name}', found: {', '.join(self.names)}", f"--{side}-column NAME"
            )
        if is_guess and len(self.names) > 1 and name in AMBIGUOUS:
            say(f"{self.path}: column '{name}' (change with --{side}-column)")
        values = self.values(name)
        return list(map(answer_texts, values)) if is_guess and name == "answers" else values

    def values(self, name: str) -> list[Any]:
        return values_of(self.dataset, name)

    def classes(self, name: str | None) -> list[str] | None:
        """The names of the classes in a column of class ids."""
        return class_names(self.dataset, name) if name is not None and self.has(name) else None

    def is_boolean(self, name: str) -> bool:
        return self.has(name) and type_name(self.dataset, name) == "bool"

    def probabilities(self) -> list[dict[str, float]] | None:
        """{label: probability} of each row, if `hfkit predict` or `hfkit evaluate` wrote them."""
        shares: list[Any] = self.values("probabilities") if self.has("probabilities") else [None]
        return shares if all(isinstance(one, dict) for one in shares) else None


def answer_texts(value: Any) -> list[str]:
    """The texts of the answers to a question, in the layouts of SQuAD and the Hub."""
    if isinstance(value, dict):
        value = value.get("text")
    several = value if isinstance(value, list) else [value]
    return [str(one["text"] if isinstance(one, dict) else one) for one in several if one]
