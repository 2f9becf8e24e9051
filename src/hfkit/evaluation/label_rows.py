"""Labels of two files, spelled alike: a class or several for each row, with or without probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfkit.data.labels import flat, names_of_ids, natural, spelled, spelling, split_labels
from hfkit.errors import DataError
from hfkit.metrics.sample import Row
from hfkit.system.console import say

SHOWN = 10  # labels in a message


def label_rows(
    made: Sequence[Any], given: Sequence[Any], names: Sequence[str] = (), *, several: bool = False
) -> list[Row]:
    """A row for each label in `made` (predictions) and `given` (references); lists are the labels of one row.

    Booleans and whole numbers are spelled alike. `names`: of the classes, whose ids may stand for them on one side.
    `several`: texts hold several labels, too. Rows of numbers, which are probabilities or a column of 0 and 1 for each
    label, stay as they are. Raises DataError for labels that have none in common.
    """
    if _are_columns(made, given):
        if all(value in (0, 1) for row in made for value in row):
            say("labels: rows of 0 and 1, all of one length, are a column for each label; ids would differ in length")
        return [{"prediction": one, "references": actual} for one, actual in zip(made, given, strict=True)]
    if isinstance(made[0], list) and all(isinstance(share, float) for share in made[0]) and made[0]:
        columns = {name: number for number, name in enumerate(names or map(str, range(len(made[0]))))}
        return [
            {"prediction": one, "reference": columns.get(str(label), label)}
            for one, label in zip(made, given, strict=True)
        ]
    several = several or any(isinstance(label, list) for label in (*made, *given))
    for side, labels in (("predictions", made), ("references", given)):
        _require_labels(side, labels, several=several)
    if several:
        made, given = _sets(made, given)
    found, actual = flat(made), flat(given)
    actual_names = spelling(actual, names) | names_of_ids(actual, names)
    known = sorted(set(actual_names.values()) | set(names), key=natural)
    found_names = spelling(found, known) | names_of_ids(found, names)
    _require_common(set(found_names.values()), set(actual_names.values()), known=names)
    return [
        {"prediction": spelled(one, found_names), "reference": spelled(label, actual_names)}
        for one, label in zip(made, given, strict=True)
    ]


def with_probabilities(rows: Sequence[Row], shares: Sequence[Mapping[str, float]]) -> list[Row]:
    """The rows of `label_rows` with the probabilities of a classifier; DataError for a label without one."""
    names = [*shares[0]]
    found = []
    for number, (row, one) in enumerate(zip(rows, shares, strict=True), start=1):
        strange = [name for name in flat([row["reference"]]) if name not in one]
        if strange or isinstance(row["reference"], list) > isinstance(row["prediction"], list):
            problem = f"references, row {number}: {_listed(strange or row['reference'])} is no label of the predictions"
            raise DataError(problem, f"their labels: {_listed(names)}")
        found.append({**row, "probabilities": one})
    return found


def _are_columns(made: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether the references are rows of 0 and 1, and the predictions are such rows, or probabilities."""
    if not all(isinstance(row, list) for row in (*made, *given)):
        return False
    lengths = {len(row) for row in (*made, *given)}
    are_numbers = all(isinstance(value, int | float) and 0 <= value <= 1 for row in made for value in row)
    are_flags = all(isinstance(value, int | float) and value in (0, 1) for row in given for value in row)
    return len(lengths) == 1 and lengths != {0} and are_numbers and are_flags


def _require_labels(side: str, labels: Sequence[Any], *, several: bool) -> None:
    for row, label in enumerate(labels, start=1):
        if label is None or (isinstance(label, str) and not label.strip() and not several):
            raise DataError(f"{side}, row {row}: empty", "fill it in, or remove the row from both sides")
        for one in label if isinstance(label, list) else [label]:
            if not isinstance(one, str | int) and not (isinstance(one, float) and one.is_integer()):
                raise DataError(f"{side}, row {row}: {one!r} is not a label", "write labels as text or whole numbers")


def _sets(made: Sequence[Any], given: Sequence[Any]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Both sides as lists; a text is divided where that gives the labels of the lists."""
    known = {str(one) for label in (*made, *given) if isinstance(label, list) for one in label}
    sides = []
    for side in (made, given):
        texts = iter(split_labels([str(label) for label in side if not isinstance(label, list)], known))
        sides.append([label if isinstance(label, list) else next(texts) for label in side])
    return sides[0], sides[1]


def _require_common(found: set[str], actual: set[str], known: Sequence[str]) -> None:
    if found and actual and not found & actual and not found | actual <= set(known):
        problem = f"no label is on both sides: the predictions hold {_listed(found)}, the references {_listed(actual)}"
        raise DataError(
            problem,
            "write the same names on both sides, or name the columns with --prediction-column and --reference-column",
        )


def _listed(labels: Any) -> str:
    names = sorted(map(str, [labels] if isinstance(labels, str) else labels), key=natural)
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
