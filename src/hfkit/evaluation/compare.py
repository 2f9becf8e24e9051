"""Two or more systems on the same rows: their difference, its interval and its p-value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfkit.errors import DataError
from hfkit.evaluation.row_metrics import samples_of
from hfkit.metrics.sample import Array, Row, Sample, asked, bootstrap, defined, percentiles
from hfkit.metrics.text import squad_f1

MOST = 5  # rows shown of those where two systems differ most


@dataclass(frozen=True)
class Difference:
    """How much larger a metric is in `system` than in the first system, with its 95% interval; `p` by `test`."""

    metric: str
    system: str
    first: float
    value: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    test: str


def compare(
    systems: Mapping[str, Sequence[Row]],
    names: Sequence[str] = (),
    *,
    interval: bool = True,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Difference]:
    """Every system against the first one, metric by metric; rows as evaluations keep them, in the same order.

    The rows are drawn with replacement, the same ones for all systems (paired bootstrap: Efron 1979, Koehn 2004), and
    the interval holds the middle 95% of the differences d* of the resamples. The p-value is two-sided, for "the
    systems are alike": of the resamples, the share whose d* is as far from the mean of all d* as the difference d is
    from 0, (1 + #{|d* - mean| >= |d|}) / (1 + resamples); sacreBLEU's paired bootstrap takes |d*| first, which gives
    about half of it. For accuracy and other shares of the rows it is McNemar's exact test: the probability of a split
    at least as uneven among the rows where one system alone is right, if each falls to either side with probability
    1/2. No p-value is corrected for the number of comparisons.

    Raises DataError where the systems were not measured on the same rows.
    """
    require_same(systems)
    samples, (first, *others) = samples_of(list(systems.values()), names), systems
    n = len(systems[first])
    drawn = {
        (name, place): part
        for name, parts in samples.items()
        for place, part in enumerate(parts)
        if interval and n > 1 and part.interval
    }
    values = bootstrap(drawn, seed, resamples)
    test = f"paired bootstrap, {resamples} resamples, seed {seed}"
    found: list[Difference] = []
    for place, other in enumerate(others, start=1):
        for name, parts in samples.items():
            draws = [values[name, one] for one in (0, place)] if (name, place) in drawn else []
            found += _differences(name, other, (parts[0], parts[place]), draws, n, test)
    return found


def _differences(
    name: str, system: str, pair: tuple[Sample, Sample], draws: Sequence[Array], n: int, test: str
) -> Iterator[Difference]:
    """The differences of the second sample from the first, by key; `draws`: the values of both, none: no interval."""
    sides = [defined(name, one, n) for one in pair]
    for column, (key, one, two) in enumerate(zip(pair[0].keys or (name,), *sides, strict=True)):
        if not draws:
            yield Difference(key, system, one, two, two - one, None, None, None, "none")
            continue
        both = draws[1][:, column] - draws[0][:, column]
        ((low, high),) = percentiles(both[:, np.newaxis])
        p, how = bootstrap_p(both, two - one), test
        if pair[0].hits is not None:
            p, how = mcnemar(pair[0].hits, pair[1].hits), "McNemar, exact"
        yield Difference(key, system, one, two, two - one, low, high, p, how)


def bootstrap_p(differences: Array, observed: float) -> float:
    """The two-sided p-value that `compare` defines, from the differences of the resamples."""
    differences = differences[~np.isnan(differences)]
    extreme = np.abs(differences - differences.mean()) >= abs(observed)
    return float((1 + extreme.sum()) / (1 + len(differences)))


def mcnemar(first: Any, second: Any) -> float:
    """The two-sided exact p-value of two systems' hits: binomial over the rows where one alone is right."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    n, smaller = int((first != second).sum()), int(min((first & ~second).sum(), (~first & second).sum()))
    logs = np.cumsum(np.log([1.0, *((n - k + 1) / k for k in range(1, smaller + 1))]))  # of n choose 0, 1, ...
    return float(min(1.0, 2 * np.exp(logs - n * np.log(2)).sum()))


def most_different(systems: Mapping[str, Sequence[Row]], most: int = MOST) -> list[dict[str, Any]]:
    """At most `most` rows where the second system differs most from the first.

    `gain`: how much better it does in `measure`: positive for less loss or error, too.
    """
    first, second = list(systems)[:2]
    measures = {_goodness(systems[name][0])[0] for name in (first, second)}
    are_alike = len(measures) == 1
    measure = measures.pop() if are_alike else "right answers"
    good = {
        name: np.array([_goodness(row)[1] if are_alike else _is_right(row) for row in systems[name]])
        for name in (first, second)
    }
    gains = good[second] - good[first]
    chosen = [int(row) for row in np.argsort(-np.abs(gains), kind="stable")[:most] if gains[row] != 0]
    shown = []
    for place in chosen:
        row, other = systems[first][place], systems[second][place]
        same = asked(row) | {name: row[name] for name in ("reference", "references") if name in row}
        answers = {first: _answer(row), second: _answer(other)}
        shown.append({"row": place + 1, **same, "answers": answers, "gain": float(gains[place]), "measure": measure})
    return shown


def _answer(row: Row) -> Any:
    return row["prediction"] if "prediction" in row else row["nll"]


def _goodness(row: Row) -> tuple[str, float]:
    """How good the answer of a row is, and in what: larger is better."""
    if "loss" in row:
        return "loss", -float(row["loss"])
    if "f1" in row:
        return "token F1", float(row["f1"])
    if "nll" in row:
        return "nats per byte", -float(row["nll"]) / max(int(row["bytes"]), 1)
    if "probabilities" in row:
        shares: dict[str, float] = row["probabilities"]
        actual: str | list[str] = row["reference"]
        if isinstance(actual, list):
            right = [share if name in actual else 1 - share for name, share in shares.items()]
            return "mean probability of the right answer for each label", float(np.mean(right))
        return RIGHT, shares[str(actual)]
    if isinstance(made := row["prediction"], list):  # probabilities, or an answer for each label or word
        if isinstance(row.get("reference"), int):
            return RIGHT, float(made[row["reference"]])
        if "reference" in row:  # labels of one text
            return "F1 of the labels", _set_f1(made, row["reference"])
        pairs = list(zip(made, row["references"], strict=True))
        if pairs and isinstance(pairs[0][0], str):
            return "share of right words", float(np.mean([one == other for one, other in pairs]))
        return "mean probability of the right answer for each label", float(np.mean([1 - abs(x - y) for x, y in pairs]))
    if isinstance(row.get("reference"), float | int):
        return "absolute error", -abs(float(row["prediction"]) - float(row["reference"]))
    return "token F1", max(
        float(squad_f1(str(row["prediction"]), str(one))) for one in row.get("references", [row.get("reference")])
    )


def _is_right(row: Row) -> float:
    return float(row["prediction"] == row.get("reference", row.get("references")))


RIGHT = "probability of the right label"


def _set_f1(made: Sequence[Any], actual: Sequence[Any]) -> float:
    shared = len(set(made) & set(actual))
    return 2 * shared / (len(set(made)) + len(set(actual))) if made or actual else 1.0


def require_same(systems: Mapping[str, Sequence[Row]]) -> None:
    """Raises DataError if two systems were measured on different rows."""
    first, *others = systems
    whole = digest_of(systems[first])
    for other in others:
        if (found := digest_of(systems[other])) != whole:
            raise DataError(
                f"{first} and {other} were measured on different data: {len(systems[first]):,} rows ({whole[:8]}) and "
                f"{len(systems[other]):,} rows ({found[:8]})",
                "--data FILE, and systems of one task",
            )


def digest_of(rows: Sequence[Row]) -> str:
    """A hash of the questions, not the answers: texts and references in their order."""
    import xxhash

    total = xxhash.xxh3_128()
    for row in rows:
        question = asked(row) | {name: row[name] for name in ("digest", "reference", "references") if name in row}
        total.update(json.dumps(question, sort_keys=True).encode())
    return str(total.hexdigest())
