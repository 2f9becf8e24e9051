"""Predictions and references from files, as rows that metrics take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import split_labels
from hfkit.errors import DataError, UsageError
from hfkit.metrics.sample import Row
from hfkit.system.console import say

if TYPE_CHECKING:
    from hfkit.settings import Recipe

# Column names of prediction files; the first one that is there is used.
PREDICTION_NAMES = (
    "prediction", "predictions", "predicted", "generated", "output", "answer", "tags", "entities", "text",
)  # fmt: skip

REFERENCE_NAMES = (
    "references", "reference", "target", "label", "labels", "value", "answers", "tags", "entities", "text",
)  # fmt: skip

ANSWER_NAMES = ("label", "labels", "value")  # the answers of `hfkit predict`, beside the text

AMBIGUOUS = ("output", "text", *ANSWER_NAMES)  # if one of these is used, that is printed


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
    return [str(value) for value in dataset[column]]


def rows_of_files(
    predictions: Path,
    references: Sequence[Path] = (),
    *,
    prediction_column: str | None = None,
    reference_column: str | None = None,
    by: str | None = None,
) -> list[Row]:
    """A row for each prediction: "prediction", and "reference" or, if there are several, "references".

    A .txt file has one text per line, which may be empty. Other files have one per row, in the named column or a usual
    one; a list in it stands for several references. Without `references` they come from the file of the predictions, if
    it has such a column. Rows that `hfkit predict` or `hfkit evaluate -o` wrote have "probabilities", too. `by`: a
    column of either file that becomes "group". Raises DataError for files that do not match.
    """
    table = _Table(predictions)
    answer = table.answer() if prediction_column is None else None
    made = table.column(prediction_column, PREDICTION_NAMES if answer is None else [answer])
    if references:
        usual: Sequence[str] = REFERENCE_NAMES
        others = [_Table(path) for path in references]
    else:  # in a file of answers a label is the answer, and in none a column is the reference of itself
        taken = (prediction_column,) if answer is None else ANSWER_NAMES
        usual = [name for name in REFERENCE_NAMES[:-1] if name not in taken]
        others = [table] if table.has(reference_column, usual) else []
    given = [other.column(reference_column, usual) for other in others]
    for path, lines in zip(references, given, strict=False):
        if len(lines) != len(made):
            raise DataError(
                f"{predictions} has {len(made):,} lines, {path} has {len(lines):,}",
                "give one reference per prediction, in the same order",
            )
    rows: list[Row] = [{"prediction": text} for text in made]
    if prediction_column is None and table.has("question") and table.has("answer"):
        rows = [{"question": asked, **row} for asked, row in zip(table.column("question"), rows, strict=True)]
    for row, texts in zip(rows, zip(*given, strict=True), strict=bool(given)):
        if len(texts) == 1 and not isinstance(texts[0], list):
            row["reference"] = texts[0]
        else:
            row["references"] = [one for text in texts for one in (text if isinstance(text, list) else [text])]
    if prediction_column is None and others and "probabilities" in table.names:
        rows = _with_probabilities(rows, table.column("probabilities"), predictions)
    return rows if by is None else _with_groups(rows, by, (table, *others))


def _with_groups(rows: list[Row], by: str, tables: Sequence[_Table]) -> list[Row]:
    """The rows with a "group", from the column `by` of the first table that has it."""
    holder = next((one for one in tables if one.has(by)), None)
    if holder is None:
        raise DataError(f"no column '{by}' in {' or '.join(str(one.path) for one in tables)}", "--by COLUMN")
    return [{**row, "group": str(group)} for row, group in zip(rows, holder.column(by), strict=True)]


def _with_probabilities(rows: list[Row], shares: list[Any], path: Path) -> list[Row]:
    """The rows with the probabilities of a classifier; several references are the labels of one text."""
    if not all(isinstance(one, dict) for one in shares):
        return rows
    names = [*shares[0]]
    several = isinstance(rows[0]["prediction"], list)
    texts = [row["reference"] for row in rows if isinstance(row.get("reference"), str)]
    parts = iter(split_labels(texts, names) if several else [])
    found = []
    for number, (row, one) in enumerate(zip(rows, shares, strict=True), start=1):
        actual = row.pop("references") if "references" in row else row["reference"]
        if several:
            actual = next(parts) if isinstance(actual, str) else actual if isinstance(actual, list) else [actual]
            actual = [str(name) for name in actual]
        strange = [name for name in actual if name not in names] if isinstance(actual, list) else []
        if strange or isinstance(actual, list) > several:
            problem = f"references, row {number}: {strange or actual} is no label of {path}"
            raise DataError(problem, f"its labels: {', '.join(names[:20])}")
        found.append({**row, "reference": actual, "probabilities": one})
    return found


class _Table:
    """A file of predictions or references, by column; a .txt file has lines only."""

    def __init__(self, path: Path) -> None:
        from hfkit.data.lines import read_lines
        from hfkit.data.loading import load_source
        from hfkit.data.readers import has_effect

        self.path, self.lines, self.names = path, None, []
        if has_effect("documents", path):
            self.lines = [line.rstrip("\r\n") for _, line in read_lines(path)]
            if not self.lines:
                raise DataError(f"{path}: no rows", "give one text a line")
        else:
            self.dataset = load_source([str(path)])
            self.names = self.dataset.column_names

    def has(self, name: str | None, usual: Sequence[str] = ()) -> bool:
        return any(one in self.names for one in ([name] if name else usual))

    def answer(self) -> str | None:
        """The column with the answers if `hfkit predict` wrote the file, else None."""
        is_theirs = self.names[:1] == ["text"] and self.has(None, ("probabilities", "value"))
        if not is_theirs or self.has(None, PREDICTION_NAMES[:-1]):
            return None
        return next((name for name in ANSWER_NAMES if name in self.names), None)

    def column(self, name: str | None, usual: Sequence[str] = ()) -> list[Any]:
        """The named column, else the first usual one, else the only one."""
        if self.lines is not None:
            return self.lines
        found = next((one for one in ([name] if name else usual) if one in self.names), None)
        if found is None and name is None and len(self.names) == 1:
            found = self.names[0]
        if found is None:
            wanted = f"column '{name}'" if name else f"column of the usual names ({', '.join(usual)})"
            raise DataError(f"{self.path} has no {wanted}, found: {', '.join(self.names)}", "--column NAME")
        if name is None and len(self.names) > 1 and found in AMBIGUOUS:
            say(f"{self.path}: column '{found}' (change with --prediction-column or --reference-column)")
        values = list(self.dataset[found])
        return values if name or found != "answers" else list(map(answer_texts, values))


def answer_texts(value: Any) -> list[str]:
    """The texts of the answers to a question, in the layouts of SQuAD and the Hub."""
    if isinstance(value, dict):
        value = value.get("text")
    several = value if isinstance(value, list) else [value]
    return [str(one["text"] if isinstance(one, dict) else one) for one in several if one]
