"""Predictions, references and probabilities, checked once for all metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hfkit.data.tags import TAG, entities, of_dicts, strict_entities
from hfkit.errors import DataError, UsageError
from hfkit.metrics.sample import additive

if TYPE_CHECKING:
    from hfkit.data.tags import Entity
    from hfkit.metrics.sample import Array, Codes, Label, Sample


class Inputs:
    """Predictions and references, checked once for all metrics that read them the same way."""

    def __init__(self, predictions: Any, references: Any, labels: Sequence[Label] | None = None) -> None:
        self.predictions, self._references, self.given_labels = predictions, references, labels
        self.systems: Sequence[Inputs] = [self]
        self.n = len(predictions)
        if self.n == 0:
            raise DataError("no rows to score", "give predictions that are not empty")
        if references is not None and len(references) != self.n:
            raise DataError(
                f"{self.n} predictions but {len(references)} references", "give one per prediction, in order"
            )

    @property
    def rows(self) -> Array:
        """One for each row: the `counts` of all metrics with a line per row. One object, so that they share draws."""
        return self.systems[0].ones

    @cached_property
    def ones(self) -> Array:
        return np.ones(self.n)

    @property
    def references(self) -> Any:
        if self._references is None:
            raise UsageError("no references to compare with", "give --references")
        return self._references

    @cached_property
    def generated(self) -> list[str]:
        for row, text in enumerate(self.predictions, 1):
            if not isinstance(text, str):
                raise row_error("predictions", row, f"{text!r} is not text", "give texts, '' for no answer")
        return list(self.predictions)

    @cached_property
    def texts(self) -> list[tuple[str, Sequence[str]]]:
        """Prediction and references of each row, one of which at least is not blank."""
        for row, given in enumerate(self.reference_texts, 1):
            if not any(map(str.strip, given)):
                raise row_error("references", row, "empty", "fill it in, or remove the row from both sides")
        return list(zip(self.generated, self.reference_texts, strict=True))

    @cached_property
    def answers(self) -> list[tuple[str, Sequence[str]]]:
        """Prediction and references of each row, which may be empty: "" where there is no reference."""
        return [(text, given or [""]) for text, given in zip(self.generated, self.reference_texts, strict=True)]

    @cached_property
    def reference_texts(self) -> list[Sequence[str]]:
        """The references of each row, of which there may be none."""
        references = [[given] if isinstance(given, str) else given for given in self.references]
        for row, given in enumerate(references, 1):
            if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
                raise row_error("references", row, f"{given!r} is not text", "give a text or a list of texts")
        return references

    @property
    def tagged(self) -> bool:
        """Whether the references are a table of 0 and 1, one column per label."""
        return is_table(self.references) and np.asarray(self.references[0]).dtype.kind in "biuf"

    @cached_property
    def tags(self) -> tuple[Array, Array]:
        """Predicted and reference table (rows, labels) of 0 and 1."""
        if not self.tagged or not is_table(self.predictions):
            raise DataError("no tables of 0 and 1, a column for each label", "give them, or a metric of classes")
        tables = np.asarray(self.predictions, float), np.asarray(self.references, float)
        for side, table in zip(("predictions", "references"), tables, strict=True):
            if table.shape != tables[1].shape or table.ndim != 2 or not np.isin(table, (0, 1)).all():
                raise DataError(f"{side}: no table of 0 and 1, a column for each label", "apply a threshold")
        return tables

    @cached_property
    def entities(self) -> list[tuple[set[Entity], set[Entity]]]:
        """Predicted and reference entities of each row, from tags or from spans of characters."""
        return self._found(entities)

    @cached_property
    def strict_entities(self) -> list[tuple[set[Entity], set[Entity]]]:
        """As `entities`, without those that no B- begins."""
        return self._found(strict_entities)

    def _found(self, find: Callable[[Sequence[str]], set[Entity]]) -> list[tuple[set[Entity], set[Entity]]]:
        if are_spans(self.predictions) or are_spans(self.references):
            return [
                (set(of_dicts(predicted)), set(of_dicts(actual)))
                for predicted, actual in zip(self.predictions, self.references, strict=True)
            ]
        return [(find(predicted), find(actual)) for predicted, actual in self.word_tags]

    @cached_property
    def word_tags(self) -> list[tuple[list[str], list[str]]]:
        """Predicted and reference BIO tags of each row's words."""
        for row, pair in enumerate(self.tags_of_words, 1):
            for side, tags in zip(("predictions", "references"), pair, strict=True):
                if not all(map(TAG.fullmatch, tags)):
                    raise row_error(side, row, f"{' '.join(tags)!r} are no tags", "O, B-TYPE and I-TYPE for each word")
        return self.tags_of_words

    @cached_property
    def tags_of_words(self) -> list[tuple[list[str], list[str]]]:
        """Predicted and reference tags of each row's words, of any kind."""
        sides = {"predictions": self.predictions, "references": self.references}
        rows: dict[str, list[list[str]]] = {side: [] for side in sides}
        for side, given in sides.items():
            for row, value in enumerate(given, 1):
                tags = value.split() if isinstance(value, str) else value
                if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                    raise row_error(
                        side, row, f"{value!r} are no tags", "a tag for each word, such as O, B-TYPE, I-TYPE"
                    )
                rows[side].append(tags)
        pairs = list(zip(*rows.values(), strict=True))
        for row, (predicted, actual) in enumerate(pairs, 1):
            if len(predicted) != len(actual):
                problem = f"{len(predicted)} tags for {len(actual)} words"
                raise row_error("predictions", row, problem, "give one for each word")
        return pairs

    @cached_property
    def tag_probabilities(self) -> Array:
        """Probabilities (rows, labels), each between 0 and 1 on its own."""
        if not self.tagged or not is_table(self.predictions):
            raise DataError("references are no table of 0 and 1, a column for each label", "give one")
        table = np.asarray(self.predictions, float)
        if table.shape != np.shape(self.references) or not ((table >= 0) & (table <= 1)).all():
            raise DataError("predictions are no probabilities, one for each label in every row", "apply sigmoid")
        return table

    @cached_property
    def classes(self) -> list[Label]:
        """All labels: the given ones in their order, the columns of a table, or those found, sorted."""
        if self.given_labels is not None:
            return list(self.given_labels)
        if is_table(self.predictions):
            return list(range(len(self.predictions[0])))
        sides = {"references": plain(self.references), "predictions": plain(self.predictions)}
        first = sides["references"][0]
        for side, labels in sides.items():
            for row, label in enumerate(labels, 1):
                if not isinstance(label, str if isinstance(first, str) else int):
                    problem = f"{label!r} is not a label, or not like the first of the references, {first!r}"
                    raise row_error(
                        side, row, problem, "write labels as text everywhere, or as whole numbers everywhere"
                    )
                if side == "references" and isinstance(label, str) and not label.strip():
                    raise row_error(side, row, "empty", "fill it in, or remove the row from both sides")
        return sorted({*sides["references"], *sides["predictions"]})

    @cached_property
    def actual(self) -> Codes:
        return self.codes(self.references, "references")

    @cached_property
    def predicted(self) -> Codes:
        if self.tagged:
            raise DataError("references have several labels a row", "f1_macro, f1_micro, f1_samples or subset_accuracy")
        if is_table(self.predictions):
            return np.asarray(self.probabilities.argmax(axis=1))
        return self.codes(self.predictions, "predictions")

    def codes(self, given: Any, side: str) -> Codes:
        """The position of each row's label in `classes`."""
        if is_table(given):
            raise DataError(f"{side} have several values a row", "f1_macro, f1_micro, f1_samples or subset_accuracy")
        position = {label: code for code, label in enumerate(self.classes)}
        labels = plain(given)
        for row, label in enumerate(labels, 1):
            if label not in position:
                known = ", ".join(map(repr, self.classes[:20])) + (", ..." if len(self.classes) > 20 else "")
                raise row_error(side, row, f"label {label!r} is not one of {known}", "correct it, or give all labels")
        return np.fromiter(map(position.__getitem__, labels), np.intp, self.n)

    @property
    def cells(self) -> tuple[Codes, Codes, Array]:
        """Predicted class, reference class and number of rows of each nonempty cell of the confusion of all systems."""
        first, counts = self.systems[0].joint_cells
        return self.predicted[first], self.actual[first], counts

    @cached_property
    def joint_cells(self) -> tuple[Codes, Array]:
        """For each combination of a reference and the answers of all systems: its first row, and its number of rows."""
        codes = self.actual
        for system in self.systems:
            codes = np.unique(codes * len(self.classes) + system.predicted, return_inverse=True)[1]
        _, first, counts = np.unique(codes, return_index=True, return_counts=True)
        return first, counts.astype(float)

    @cached_property
    def probabilities(self) -> Array:
        size = len(self.classes)
        if not is_table(self.predictions):
            raise DataError("predictions are no probabilities", "give one for each class in every row")
        for row, given in enumerate(self.predictions, 1):
            if len(given) != size:
                raise row_error(
                    "predictions", row, f"{len(given)} probabilities for {size} labels", "give one per label"
                )
        table = np.asarray(self.predictions, float)
        good = (table >= 0).all(axis=1) & (np.abs(table.sum(axis=1) - 1) < 1e-3)  # comparing NaN gives False
        if not good.all():
            row = int(good.argmin())
            problem = f"probabilities {table[row].tolist()} don't add up to 1"
            raise row_error("predictions", row + 1, problem, "apply softmax to logits; NaN: the model has diverged")
        return table

    @cached_property
    def numbers(self) -> tuple[Array, Array]:
        return self.finite(self.predictions, "predictions"), self.finite(self.references, "references")

    def finite(self, given: Any, side: str) -> Array:
        numbers = np.full(self.n, np.nan)
        for row, value in enumerate(plain(given)):
            with suppress(TypeError, ValueError):
                numbers[row] = value
            if not np.isfinite(numbers[row]):
                raise row_error(side, row + 1, f"{value!r} is not a finite number", "correct it")
        return numbers

    @property
    def errors(self) -> Array:
        return self.numbers[0] - self.numbers[1]


def pair(systems: Sequence[Inputs]) -> None:
    """Makes the samples of several systems on the same rows share their draws, so that differences can be drawn."""
    for one in systems:
        one.systems = systems


def row_error(side: str, row: int, problem: str, fix: str) -> DataError:
    return DataError(f"{side}, row {row}: {problem}", fix)


def is_table(values: Any) -> bool:
    return np.ndim(values[0]) == 1


def are_spans(rows: Any) -> bool:
    """Whether the rows are lists of {"start", "end", "label"}: the first that is not empty says so."""
    first = next((row for row in rows if isinstance(row, list) and row), [None])
    return isinstance(first[0], dict)


def are_entities(rows: Any) -> bool:
    """Whether the rows are lists of BIO tags or of spans."""
    tags = [tag for row in rows if isinstance(row, list) for tag in row]
    return are_spans(rows) or (bool(tags) and all(isinstance(tag, str) and TAG.fullmatch(tag) for tag in tags))


def are_tags(rows: Any) -> bool:
    """Whether the rows are lists of text, one for each word."""
    return all(isinstance(row, list) and all(isinstance(tag, str) for tag in row) for row in rows) and any(rows)


def plain(values: Any) -> list[Any]:
    """A list of Python's own str, int and float, whose hashes do not depend on the type they came in."""
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def mean_sample(
    data: Inputs, values: npt.ArrayLike, definition: str, finish: Callable[[Array], Array] = lambda means: means
) -> Sample:
    rows = np.asarray(values, float)[:, np.newaxis]
    return additive(data.rows, rows, lambda sums: finish(sums / data.n), definition)


def share_sample(data: Inputs, hits: npt.ArrayLike, definition: str, scale: float = 1) -> Sample:
    """`scale` times the share of rows that are hits."""
    rows = np.asarray(hits, float)
    return replace(mean_sample(data, scale * rows, definition), hits=rows, scale=scale)
