"""Metrics of labels: accuracy, F1, MCC, entity F1."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from hfkit.errors import DataError
from hfkit.metrics.inputs import Inputs
from hfkit.metrics.sample import Sample, additive, by_code, ratio_sample, share, total

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


def entity_sample(data: Inputs, *, strict: bool = False, kind: str | None = None) -> Sample:
    """Entities found with their exact words and type, as conlleval counts them over all rows (Tjong Kim Sang and De
    Meulder 2003, https://aclanthology.org/W03-0419). `kind`: those of one type alone."""
    pairs = data.strict_entities if strict else data.entities
    if kind is not None:
        pairs = [({one for one in p if one.kind == kind}, {one for one in a if one.kind == kind}) for p, a in pairs]
    rows = np.array([[len(predicted & actual), len(predicted), len(actual)] for predicted, actual in pairs], float)

    definition = "of entities with exact words and type, over all rows; an I- that continues nothing "
    definition += "is none (seqeval's strict IOB2)" if strict else "begins one (conlleval)"
    names = [f"entity_{name}{'_strict' * strict}" for name in ("precision", "recall", "f1")]
    return additive(data.rows, rows, _precision_recall_f1, definition, tuple(names))


def tag_sample_of_words(data: Inputs) -> Sample:
    """Words with the right tag, of all words."""
    rows = [[sum(map(operator.eq, predicted, actual)), len(actual)] for predicted, actual in data.tags_of_words]
    definition = "words with the right tag, of all words"
    return ratio_sample(data.rows, np.array(rows, float), definition)


def loose_entity_sample(data: Inputs, way: str) -> Sample:
    """Entities that overlap, as nervaluate counts them (SemEval 2013 task 9, https://aclanthology.org/S13-2056).

    `way`: "partial", whatever the types; words that are not exactly the same count one half. "type", of the same type.
    """
    from nervaluate import entities as its
    from nervaluate import strategies

    judge = {"partial": strategies.PartialEvaluation, "type": strategies.EntityTypeEvaluation}[way](1.0)
    rows = []
    for pair in data.entities:
        predicted, actual = (
            [its.Entity(one.kind, one.start, one.end - 1) for one in sorted(side, key=lambda one: one[1:])]
            for side in pair
        )
        found, _ = judge.evaluate(actual, predicted, [])
        rows.append([found.correct + found.partial / 2, len(predicted), len(actual)])

    said = {
        "partial": "with the same words, 1/2 for some of them, of any type",
        "type": "of the same type that overlap",
    }
    names = [f"entity_{name}_{way}" for name in ("precision", "recall", "f1")]
    definition = f"of entities {said[way]} (nervaluate)"
    return additive(data.rows, np.array(rows, float), _precision_recall_f1, definition, tuple(names))


def _precision_recall_f1(sums: Array) -> Array:
    """From the sums (resamples, 3) of hits, predicted and actual entities; F1 is undefined without any."""
    hits, predicted, actual = sums.T
    return np.stack([share(hits, predicted), share(hits, actual), 2 * hits / (predicted + actual)], axis=1)


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
