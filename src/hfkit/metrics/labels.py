"""Metrics of labels: accuracy, F1, MCC, entity F1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from hfkit.errors import DataError
from hfkit.metrics.inputs import Inputs
from hfkit.metrics.sample import Sample, additive, by_code, share, total

if TYPE_CHECKING:
    from hfkit.metrics.sample import Array, Label


def confusion_matrix(
    predictions: Sequence[Label], references: Sequence[Label], *, labels: Sequence[Label] | None = None
) -> tuple[list[Label], npt.NDArray[np.int64]]:
    """The classes, and how many rows of each (axis 0) were predicted as each (axis 1)."""
    data = Inputs(predictions, references, labels)
    size = len(data.classes)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (data.actual, data.predicted), 1)
    return data.classes, matrix


def accuracy_sample(data: Inputs, definition: str) -> Sample:
    hits = np.asarray(data.predicted == data.actual, float)
    return replace(label_sample(data, accuracy, definition), hits=hits)


class Confusion(NamedTuple):
    """Rows by class (resamples, classes): rightly predicted, predicted, and in the references."""

    hits: Array
    predicted: Array
    actual: Array


def label_sample(data: Inputs, choose: Callable[[Confusion], Array], definition: str) -> Sample:
    predicted, actual, counts = data.cells
    size = len(data.classes)

    def values(weights: Array) -> Array:
        hits = by_code(weights * (predicted == actual), actual, size)
        return choose(Confusion(hits, by_code(weights, predicted, size), by_code(weights, actual, size)))[:, np.newaxis]

    return Sample(counts, values, definition)


def tag_sample(data: Inputs, choose: Callable[[Confusion], Array], definition: str) -> Sample:
    """As `label_sample`, with the rows of each label for itself."""
    predicted, actual = data.tags
    rows = np.stack([predicted * actual, predicted, actual])

    def aggregate(sums: Array) -> Array:
        return choose(Confusion(*np.split(sums, 3, axis=1)))[:, np.newaxis]

    return additive(data.rows, np.concatenate(list(rows), axis=1), aggregate, definition)


def class_or_tag_sample(data: Inputs, choose: Callable[[Confusion], Array], name: str) -> Sample:
    """The mean of `choose` over classes: those that occur, or, of tables, all columns, as scikit-learn has it."""
    if data.tagged:
        return tag_sample(data, lambda c: choose(c).mean(axis=-1), f"mean {name} of all labels, 0 where undefined")
    return label_sample(data, macro(choose), f"mean {name} of the classes that occur")


def f1_pooled(c: Confusion) -> Array:
    return share(2 * total(c.hits), total(c.predicted) + total(c.actual))


def f1_of_rows(data: Inputs) -> Array:
    predicted, actual = data.tags
    return share(2 * total(predicted * actual), total(predicted) + total(actual))


def entity_sample(data: Inputs) -> Sample:
    """Entities found with their exact words and type, as conlleval counts them over all rows (Tjong Kim Sang and De
    Meulder 2003, https://aclanthology.org/W03-0419)."""
    found = [(entities(predicted), entities(actual)) for predicted, actual in data.word_tags]
    rows = np.array([[len(predicted & actual), len(predicted), len(actual)] for predicted, actual in found], float)

    def aggregate(sums: Array) -> Array:
        hits, predicted, actual = sums.T
        return np.stack([share(hits, predicted), share(hits, actual), 2 * hits / (predicted + actual)], axis=1)

    definition = "of entities with exact words and type, over all rows; an I- that continues nothing begins one"
    return additive(data.rows, rows, aggregate, definition, ("entity_precision", "entity_recall", "entity_f1"))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, word after the last) of each."""
    found, current, start = set(), "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if current and not (prefix == "I" and kind == current):
            found.add((current, start, place))
            current = ""
        if kind and not current:
            current, start = kind, place
    return found


def accuracy(c: Confusion) -> Array:
    return total(c.hits) / total(c.actual)


def precision(c: Confusion) -> Array:
    return share(c.hits, c.predicted)


def recall(c: Confusion) -> Array:
    return share(c.hits, c.actual)


def f1(c: Confusion) -> Array:
    return share(2 * c.hits, c.predicted + c.actual)


def macro(by_class: Callable[[Confusion], Array]) -> Callable[[Confusion], Array]:
    """The mean over classes that occur, as scikit-learn: 0 where a class is only in predictions or references."""
    return lambda c: total(by_class(c)) / total(np.sign(c.predicted + c.actual))


def balanced_accuracy(c: Confusion) -> Array:
    return total(recall(c)) / total(np.sign(c.actual))


def f1_weighted(c: Confusion) -> Array:
    return total(f1(c) * c.actual) / total(c.actual)


def mcc(c: Confusion) -> Array:
    """Gorodkin 2004, as scikit-learn: correlation of the one-hot matrices of predictions and references."""
    n = total(c.actual)
    covariance = total(c.hits) * n - total(c.predicted * c.actual)
    predicted, actual = n**2 - total(c.predicted**2), n**2 - total(c.actual**2)
    return share(covariance, np.sqrt(predicted * actual))


def binary_sample(data: Inputs, choose: Callable[[Confusion], Array], name: str) -> Sample:
    """The score of the second class, in the order of `labels` or sorted: 1 of 0 and 1, 'spam' of 'ham' and 'spam'."""
    if len(data.classes) != 2:
        raise DataError(
            f"{name} is of one of two classes, and there are {len(data.classes)}", "f1_macro, f1_micro or f1_weighted"
        )
    return label_sample(data, lambda c: choose(c)[:, 1], f"{name} of the class {data.classes[1]!r}, 0 where undefined")
