"""How long texts are: sums, quantiles and histograms."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hfkit.inspection.findings import Facts

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def distribution(lengths: np.ndarray) -> Facts:
    """Sum, quantiles and a histogram by powers of two: {"8": 3} means three rows of 8 to 15."""
    bins = Counter(int(length).bit_length() for length in lengths)
    quantiles = {name: int(np.quantile(lengths, share, method="inverted_cdf")) for name, share in QUANTILES.items()}
    histogram = {str(2**bits >> 1): bins[bits] for bits in range(min(bins), max(bins) + 1)}
    return {"sum": int(lengths.sum()), **quantiles, "histogram": histogram}
