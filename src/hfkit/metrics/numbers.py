"""Metrics of numbers: correlations and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hfkit.metrics.sample import Sample, additive, by_code, total

if TYPE_CHECKING:
    from hfkit.metrics.inputs import Inputs
    from hfkit.metrics.sample import Array, Codes


def pearson(data: Inputs) -> Sample:
    x, y = (standardised(values) for values in data.numbers)
    rows = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def aggregate(sums: Array) -> Array:
        mean_x, mean_y, xx, yy, xy = sums.T / data.n
        variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
        r = (xy - mean_x * mean_y) / np.sqrt(variance_x * variance_y)
        return np.where(np.minimum(variance_x, variance_y) > 1e-12, r, np.nan)[:, np.newaxis]  # all drawn rows equal

    return additive(data.rows, rows, aggregate, "Pearson correlation, undefined where one side is constant")


def standardised(values: Array) -> Array:
    spread = values.std() if np.ptp(values) > 0 else np.inf  # rounding gives constants a spread of their own
    scaled: Array = (values - values.mean()) / spread
    return scaled


def spearman(data: Inputs) -> Sample:
    coded = [np.unique(values, return_inverse=True) for values in data.numbers]

    def values(weights: Array) -> Array:
        x, y = (centred_ranks(weights, codes, len(found)) for found, codes in coded)
        r = total(weights * x * y) / np.sqrt(total(weights * x * x) * total(weights * y * y))
        return r[:, np.newaxis]

    return Sample(data.rows, values, "Spearman rank correlation, ties share, undefined where one side is constant")


def centred_ranks(weights: Array, codes: Codes, size: int) -> Array:
    """Ranks (resamples, rows) within each resample, from which the mean rank is taken away."""
    ties = by_code(weights, codes, size)
    ranks: Array = (np.cumsum(ties, axis=1) - ties / 2 - weights.sum(axis=1, keepdims=True) / 2)[:, codes]
    return ranks
