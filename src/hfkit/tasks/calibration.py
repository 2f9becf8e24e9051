"""What validation data decides about a trained classifier: the temperature of its logits, the threshold of a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hfkit.system.console import say

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEPS = 60  # of the golden section: a hundred-thousandth of the range

THRESHOLDS = np.arange(1, 100) / 100


def temperature(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """The number to divide logits by that minimizes the log loss (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""
    golden = (5**0.5 - 1) / 2
    low, high = 0.02, 20.0  # of 1 / temperature, in which the loss is convex
    for _ in range(STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if log_loss(logits * left, labels) < log_loss(logits * right, labels):
            high = right
        else:
            low = left
    best = 2 / (low + high)
    before, after = log_loss(logits, labels), log_loss(logits / best, labels)
    say(f"temperature: {best:.3f} (log loss of the validation data {before:.4f} -> {after:.4f})")
    return float(best)


def log_loss(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """Mean -ln p of the labels: ids (rows,) of classes, or a table (rows, labels) of 0 and 1."""
    logits = logits.astype(np.float64)
    if labels.ndim == 2:
        return float((np.logaddexp(0, logits) - labels * logits).mean())
    return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels.astype(int)]).mean())


def threshold(probabilities: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """The threshold with the best macro-F1 on these rows, one for all labels; among equals the one nearest to 0.5."""
    from hfkit.metrics.table import compute

    found = {
        float(one): compute(["f1_macro"], (probabilities >= one).astype(float), labels, interval=False)[
            "f1_macro"
        ].value
        for one in (*THRESHOLDS,)
    }
    best = max(found, key=lambda one: (found[one], -abs(one - 0.5)))
    say(f"threshold: {best:g} (macro-F1 of the validation data {found[0.5]:.4f} -> {found[best]:.4f}, chosen on it)")
    return best


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes, shape (rows, classes)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares
