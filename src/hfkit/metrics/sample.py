"""A metric as a function of sums over examples, and the intervals that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from hfkit.errors import DataError

Array: TypeAlias = npt.NDArray[np.float64]

Codes: TypeAlias = npt.NDArray[np.intp]

Label: TypeAlias = str | int

Key = TypeVar("Key", bound=Hashable)

WEIGHTS_AT_ONCE = 4_000_000  # floats: a bootstrap takes some 32 MB, whatever the number of rows

BCA_LINES = 1_000  # lines of a sample that are left out one by one; with more, percentiles are as good

NORMAL = NormalDist()

Z95 = 1.959963984540054  # the normal distribution's 97.5th percentile


@dataclass(frozen=True)
class Score:
    """A number with its 95% interval (None: it has none), the number of rows behind it, and its definition."""

    value: float
    low: float | None
    high: float | None
    n: int
    definition: str


@dataclass(frozen=True)
class Sample:
    """A metric on given rows as a function of how often each row counts.

    `counts` (lines,) is how many rows each line of statistics stands for; `values` maps such weights
    (resamples, lines) to (resamples, keys), and to NaN where the metric is undefined. No `keys`: the metric's name.
    `hits` (rows,): where the metric is `scale` times a plain share of the rows, which of them have it.
    """

    counts: Array
    values: Callable[[Array], Array]
    definition: str
    keys: tuple[str, ...] = ()
    interval: bool = True
    hits: Array | None = None
    scale: float = 1


def scored(samples: Mapping[str, Sample], n: int, *, seed: int = 0, resamples: int = 1000) -> dict[str, Score]:
    """Value and interval of each sample over `n` rows, by key; no intervals if `resamples` is 0."""
    values = {name: defined(name, sample, n) for name, sample in samples.items()}
    uncertain = {name: sample for name, sample in samples.items() if resamples and sample.interval and n > 1}
    drawn = bootstrap({name: one for name, one in uncertain.items() if one.hits is None}, seed, resamples)
    scores = {}
    for name, sample in samples.items():
        ends: Sequence[tuple[float | None, float | None]] = [(None, None)] * len(values[name])
        how = ""
        if name in drawn:
            ends = intervals(sample, drawn[name])
            how = f"; {resamples} resamples of rows, seed {seed}"
        elif name in uncertain:
            ends = [wilson(value / sample.scale, n, sample.scale) for value in values[name]]
            how = "; Wilson's interval"
        for key, value, (low, high) in zip(sample.keys or (name,), values[name], ends, strict=True):
            scores[key] = Score(value, low, high, n, sample.definition + how)
    return scores


def loss_of(scores: Mapping[str, Score]) -> float | None:
    """The loss of an evaluation, the mean over all that is scored; None if no metric among `scores` gives it."""
    if "nll" in scores:
        parts = [scores[name] for name in ("nll", "eos_nll") if name in scores]
        tokens = sum(part.n for part in parts)
        pairs = scores["nsp_loss"].value if "nsp_loss" in scores else 0.0
        return sum(part.value * (part.n / tokens) for part in parts) + pairs
    if "rmse" in scores:
        return scores["rmse"].value ** 2
    return scores["log_loss"].value if "log_loss" in scores else None


def wilson(share: float, n: int, scale: float = 1) -> tuple[float, float]:
    """The 95% interval of a share of `n` rows, times `scale` (Wilson 1927, the score interval)."""
    z2 = Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return scale * max(0.0, middle - half), scale * min(1.0, middle + half)


def ratio_interval(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> tuple[float, float] | None:
    """The 95% interval of sum(numerators) / sum(denominators) over units such as documents; None for one unit."""
    rows = np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], axis=1)
    if len(rows) < 2:
        return None
    sample = ratio_sample(np.ones(len(rows)), rows, "ratio of sums")
    return intervals(sample, bootstrap({"ratio": sample}, seed, resamples)["ratio"])[0]


def defined(name: str, sample: Sample, n: int) -> list[float]:
    """The metric's value for each of its keys; DataError if one is undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values: list[float] = sample.values(sample.counts[np.newaxis])[0].tolist()
    if not all(map(math.isfinite, values)):
        raise DataError(f"{name} is undefined on these {n} rows ({sample.definition})", "leave it out")
    return values


def bootstrap(samples: Mapping[Key, Sample], seed: int, resamples: int) -> dict[Key, Array]:
    """Values (resamples, keys) of each sample; samples over the same rows share their draws."""
    values: dict[Key, list[Array]] = {name: [] for name in samples}
    for counts in {id(sample.counts): sample.counts for sample in samples.values()}.values():
        group = [name for name, sample in samples.items() if sample.counts is counts]
        for weights in draws(counts, seed, resamples):
            with np.errstate(divide="ignore", invalid="ignore"):
                for name in group:
                    values[name].append(samples[name].values(weights))
    return {name: np.concatenate(chunks) for name, chunks in values.items()}


def intervals(sample: Sample, drawn: Array) -> list[tuple[float, float]]:
    """The 95% interval of each key, from the values (resamples, keys) of a bootstrap.

    Bias-corrected and accelerated (BCa: Efron 1987, doi 10.1080/01621459.1987.10478410): the percentiles are moved by
    how far the middle of the resamples is from the value (a macro F1 of few rows is lower in most of them), and by the
    skewness of what each row does to the value, from the rows left out one by one. Where that is undefined, and for
    samples of more than `BCA_LINES` lines, they are the plain percentiles.
    """
    if len(sample.counts) > BCA_LINES:
        return percentiles(drawn)
    present = np.flatnonzero(sample.counts)
    times, without = sample.counts[present, np.newaxis], np.repeat(sample.counts[np.newaxis], len(present), axis=0)
    without[np.arange(len(present)), present] -= 1
    with np.errstate(divide="ignore", invalid="ignore"):
        value, left = sample.values(sample.counts[np.newaxis])[0], sample.values(without)
        influence = (times * left).sum(axis=0) / times.sum() - left
        skewness = (times * influence**3).sum(axis=0) / (times * influence**2).sum(axis=0) ** 1.5
    found = []
    for column, plain in enumerate(percentiles(drawn)):
        values = drawn[~np.isnan(drawn[:, column]), column]
        below = (np.sum(values < value[column]) + np.sum(values == value[column]) / 2) / max(len(values), 1)
        if not 0 < below < 1 or not np.isfinite(skewness[column]):
            found.append(plain)
            continue
        bias, acceleration = NORMAL.inv_cdf(below), skewness[column] / 6
        moved = (bias + (bias + z) / (1 - acceleration * (bias + z)) for z in (-Z95, Z95))
        low, high = np.quantile(values, [NORMAL.cdf(one) for one in moved]).tolist()
        found.append((low, high))
    return found


def percentiles(values: Array) -> list[tuple[float, float]]:
    """The middle 95% of each column, without the resamples in which the metric is undefined."""
    low, high = np.nanpercentile(values, (2.5, 97.5), axis=0).tolist()
    return list(zip(low, high, strict=True))


def draws(counts: Array, seed: int, resamples: int) -> Iterator[Array]:
    """Weights (some resamples, lines): as many rows as there are, drawn with replacement and counted by line.

    Drawing rows and counting lines is a multinomial draw over lines, so a million rows in four confusion cells cost
    four numbers. Where each line is one row, counting drawn indices is the faster way to the same distribution.
    """
    rng = np.random.default_rng(seed)
    lines, n = len(counts), int(counts.sum())
    at_once = max(1, WEIGHTS_AT_ONCE // lines)
    for start in range(0, resamples, at_once):
        weights = np.empty((min(at_once, resamples - start), lines))
        for row in weights:
            drawn = np.bincount(rng.integers(n, size=n), minlength=n) if n == lines else rng.multinomial(n, counts / n)
            row[:] = drawn
        yield weights


def additive(
    counts: Array, rows: Array, aggregate: Callable[[Array], Array], definition: str, keys: tuple[str, ...] = ()
) -> Sample:
    """A metric of the summed `rows` (lines, statistics): `aggregate` maps (resamples, statistics) to values."""
    return Sample(counts, lambda weights: aggregate(weights @ rows), definition, keys)


def ratio_sample(counts: Array, rows: Array, definition: str) -> Sample:
    """The sum of the first column of `rows` (lines, 2) over that of the second."""
    return additive(counts, rows, lambda sums: sums[:, :1] / sums[:, 1:], definition)


def by_code(weights: Array, codes: Codes, size: int) -> Array:
    """Weights (resamples, lines) summed by the code of their line: (resamples, size)."""
    return np.stack([np.bincount(codes, row, size) for row in weights])


def total(values: Array) -> Array:
    """The sum over the last axis."""
    sums: Array = values.sum(axis=-1)
    return sums


def share(part: Array, whole: Array) -> Array:
    """part / whole, 0 where there is nothing (scikit-learn's zero_division=0)."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


Row = dict[str, Any]

QUESTIONS = ("text", "text_pair", "tokens", "question", "context")


def asked(row: Row) -> Row:
    """What a row says that the system was asked: texts, or lists of words (a number of "tokens" is none)."""
    return {name: row[name] for name in QUESTIONS if isinstance(row.get(name), str | list)}


class Measured(NamedTuple):
    """Scores of a data set, and what to keep about each example, in order; no rows: nothing to keep."""

    scores: dict[str, Score]
    rows: Iterable[Row]
