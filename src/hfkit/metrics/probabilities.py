"""Metrics of probabilities: log loss, Brier score, calibration, ranking; and of the likelihoods of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hfkit.errors import DataError
from hfkit.metrics.inputs import mean_sample
from hfkit.metrics.sample import Sample, additive, by_code, share, total

if TYPE_CHECKING:
    from hfkit.metrics.inputs import Inputs
    from hfkit.metrics.sample import Array

ECE_BINS = 15  # Guo et al. 2017, https://arxiv.org/abs/1706.04599


def log_loss(data: Inputs) -> Array:
    """-ln p of each row (of tables: mean over its labels); p = 0 is the smallest float64 step, as in scikit-learn."""
    epsilon = np.finfo(float).eps
    if data.tagged:
        right = np.where(np.asarray(data.references, bool), data.tag_probabilities, 1 - data.tag_probabilities)
        means: Array = -np.log(np.clip(right, epsilon, 1 - epsilon)).mean(axis=1)
        return means
    losses: Array = -np.log(np.clip(data.probabilities[np.arange(data.n), data.actual], epsilon, 1 - epsilon))
    return losses


def brier(data: Inputs) -> Sample:
    if data.tagged:
        squares = (data.tag_probabilities - np.asarray(data.references, float)) ** 2
        return mean_sample(data, squares.mean(axis=1), "(probability - 0 or 1) squared, mean over rows and labels")
    probabilities = data.probabilities
    of_reference = probabilities[np.arange(data.n), data.actual]
    squares = (probabilities**2).sum(axis=1) - of_reference**2 + (1 - of_reference) ** 2
    definition = "squared distance of probabilities and reference, mean over rows"
    if len(data.classes) == 2:  # as scikit-learn and Brier's rain forecasts: one class counts
        return mean_sample(data, squares / 2, definition + ", of one class")
    return mean_sample(data, squares, definition + ", sum over classes")


def ece(data: Inputs) -> Sample:
    """Of the top class (Guo et al. 2017); of tables of the probability of each label, over all rows and labels."""
    if data.tagged:
        confidence = data.tag_probabilities
        gaps, what = np.asarray(data.references, float) - confidence, "each label"
    else:
        confidence = data.probabilities.max(axis=1, keepdims=True)
        gaps, what = (data.probabilities.argmax(axis=1) == data.actual)[:, np.newaxis] - confidence, "top class"
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.intp) - 1, 0, ECE_BINS - 1)
    columns, width = range(bins.shape[1]), bins.size
    definition = (
        f"expected calibration error, {what}, {ECE_BINS} equal bins, too high with few rows; no interval, since "
        "resamples raise it again"
    )

    def values(weights: Array) -> Array:
        sums = np.sum([by_code(weights * gaps[:, place], bins[:, place], ECE_BINS) for place in columns], axis=0)
        total_gap: Array = np.abs(sums).sum(axis=1, keepdims=True)
        return total_gap / width

    return Sample(data.rows, values, definition, interval=False)


def ranking_sample(data: Inputs, area: Callable[[Array, Array], Array], definition: str) -> Sample:
    """A metric of the order of probabilities: of the second of two classes, else the mean of each against the rest.

    Of tables it is the mean over the labels that some rows have and some do not.

    No sums per row suffice here; `area` gets the weights of positives and negatives (resamples, values) by ascending
    probability, equal ones together.
    """
    if data.tagged:
        probabilities, flags = data.tag_probabilities, np.asarray(data.references, bool)
        columns = [column for column in range(flags.shape[1]) if 0 < flags[:, column].sum() < data.n]
        of = "of each label, mean over labels that some rows have and some do not"
        if not columns:
            raise DataError(f"no label that only some rows have: {definition} needs one", "add rows")
    else:
        probabilities, flags = data.probabilities, np.eye(len(data.classes), dtype=bool)[data.actual]
        columns, of = list(range(len(data.classes))), "of each class against the rest, mean over classes"
        if len(columns) == 2:
            columns, of = [1], f"of the class {data.classes[1]!r}"
    ranked = []
    for column in columns:
        positive = flags[:, column]
        if positive.all() or not positive.any():
            found = "every" if positive.all() else "no"
            raise DataError(
                f"{found} reference is {data.classes[column]!r}: {definition} needs rows of each class", "add some"
            )
        distinct_values, codes = np.unique(probabilities[:, column], return_inverse=True)
        ranked.append((positive, codes, len(distinct_values)))

    def values(weights: Array) -> Array:
        areas = [
            area(by_code(weights * positive, codes, size), by_code(weights * ~positive, codes, size))
            for positive, codes, size in ranked
        ]
        means: Array = np.mean(areas, axis=0)
        return means[:, np.newaxis]

    return Sample(data.rows, values, f"{definition} {of}")


def mean_average_precision(data: Inputs) -> Sample:
    probabilities, actual = data.tag_probabilities, np.asarray(data.references, bool)
    columns = np.flatnonzero(actual.any(axis=0))
    coded = [np.unique(probabilities[:, column], return_inverse=True) for column in columns]

    def values(weights: Array) -> Array:
        areas = [
            average_precision(
                by_code(weights * actual[:, column], codes, len(found)),
                by_code(weights * ~actual[:, column], codes, len(found)),
            )
            for column, (found, codes) in zip(columns, coded, strict=True)
        ]
        means: Array = np.nanmean(areas, axis=0)
        return means[:, np.newaxis]

    return Sample(data.rows, values, "average precision of each label, mean over those that the references have")


def roc_auc(positives: Array, negatives: Array) -> Array:
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return total(positives * below) / (total(positives) * total(negatives))


def average_precision(positives: Array, negatives: Array) -> Array:
    """Precision at each threshold weighted by the recall it adds, not interpolated, as in scikit-learn."""
    positives, negatives = positives[:, ::-1], negatives[:, ::-1]
    hits = np.cumsum(positives, axis=1)
    return total(positives * share(hits, hits + np.cumsum(negatives, axis=1))) / total(positives)


def bits(nats: Array) -> Array:
    found: Array = nats / np.log(2)
    return found


def nats_per(data: Inputs, unit: str, change: Callable[[Array], Array] = lambda ratio: ratio) -> Sample:
    """The summed nats of texts per `unit`; predictions are rows with "nll" and the number of units."""
    table = np.array([[row["nll"], row[unit]] for row in data.predictions], float)
    return additive(data.rows, table, lambda sums: change(sums[:, :1] / sums[:, 1:]), f"of nats per {unit}")
