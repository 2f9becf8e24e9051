"""Two or more systems on the same rows: their difference, its interval and its p-value; and one system by group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfkit.data.labels import MULTIPLE, REGRESSION, SINGLE
from hfkit.errors import DataError, UsageError
from hfkit.metrics.inputs import Inputs, pair
from hfkit.metrics.sample import Array, Row, Sample, Score, bootstrap, defined, percentiles, scored
from hfkit.metrics.table import DEFAULT_METRICS, LIKELIHOODS, METRICS, require_known
from hfkit.metrics.text import squad_f1
from hfkit.system.console import say, warn

MOST = 5  # rows shown of those where two systems differ most

TEXTS = ("bleu", "rouge")  # where no metric is named


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


def score(
    rows: Sequence[Row], names: Sequence[str] = (), *, interval: bool = True, seed: int = 0, resamples: int = 1000
) -> dict[str, Score]:
    """The metrics `names` of one system's rows, as `hfkit.results` has them."""
    samples = {name: only for name, (only,) in samples_of([rows], names).items()}
    return scored(samples, len(rows), seed=seed, resamples=resamples if interval else 0)


def compare(
    systems: Mapping[str, Sequence[Row]],
    names: Sequence[str] = (),
    *,
    interval: bool = True,
    seed: int = 0,
    resamples: int = 1000,
) -> list[Difference]:
    """Every system against the first one, metric by metric; rows as `hfkit.results` has them, in the same order.

    The rows are drawn with replacement, the same ones for all systems (paired bootstrap: Efron 1979, Koehn 2004), and
    the interval holds the middle 95% of the differences d* of the resamples. The p-value is two-sided, for "the
    systems are alike": of the resamples, the share whose d* is as far from the mean of all d* as the difference d is
    from 0, (1 + #{|d* - mean| >= |d|}) / (1 + resamples); sacreBLEU's paired bootstrap takes |d*| first, which gives
    about half of it. Of accuracy (and what else is a share of the rows) it is McNemar's exact test: given the rows
    where one system alone is right, how likely a split at least as uneven as theirs is, if each falls to either side
    with probability 1/2. No p-value is corrected for the number of comparisons.

    Raises DataError where the systems were not measured on the same rows.
    """
    require_same(systems)
    samples = samples_of(list(systems.values()), names)
    first, *others = systems
    n = len(systems[first])
    values = {name: dict(zip(systems, _values(name, parts, n), strict=True)) for name, parts in samples.items()}
    drawn = {
        (name, system): part
        for name, parts in samples.items()
        for system, part in zip(systems, parts, strict=True)
        if interval and n > 1 and part.interval
    }
    drawn_values = bootstrap(drawn, seed, resamples)
    hits = {(name, system): part.hits for (name, system), part in drawn.items()}
    found = []
    for other in others:
        for name, parts in samples.items():
            sample = parts[0]
            for column, key in enumerate(sample.keys or (name,)):
                one, two = values[name][first][column], values[name][other][column]
                low = high = p = None
                test = "none"
                if (name, other) in drawn_values:
                    both = drawn_values[name, other][:, column] - drawn_values[name, first][:, column]
                    ((low, high),) = percentiles(both[:, np.newaxis])
                    p, test = bootstrap_p(both, two - one), f"paired bootstrap, {resamples} resamples, seed {seed}"
                    if sample.hits is not None:
                        p, test = mcnemar(sample.hits, hits[name, other]), "McNemar, exact"
                found.append(Difference(key, other, one, two, two - one, low, high, p, test))
    return found


def _values(name: str, samples: Sequence[Sample], n: int) -> list[list[float]]:
    return [defined(name, sample, n) for sample in samples]


def bootstrap_p(differences: Array, observed: float) -> float:
    """The two-sided p-value that `compare` defines, from the differences of the resamples."""
    differences = differences[~np.isnan(differences)]
    extreme = np.abs(differences - differences.mean()) >= abs(observed)
    return float((1 + extreme.sum()) / (1 + len(differences)))


def mcnemar(first: Any, second: Any) -> float:
    """The two-sided exact p-value of two systems' hits and misses: binomial over the rows where one alone is right."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    n, smaller = int((first != second).sum()), int(min((first & ~second).sum(), (~first & second).sum()))
    logs = np.cumsum(np.log([1.0, *((n - k + 1) / k for k in range(1, smaller + 1))]))  # of n choose 0, 1, ...
    return float(min(1.0, 2 * np.exp(logs - n * np.log(2)).sum()))


def by_group(
    rows: Sequence[Row],
    groups: Sequence[str],
    names: Sequence[str] = (),
    *,
    interval: bool = True,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """{"groups": {group: {metric: Score}}, "gap": {metric: {value, low, high, largest, smallest}}}.

    The gap is the value of the group with the largest minus that of the group with the smallest; its interval draws
    the rows of each group apart and keeps these two groups. Of many small groups chance alone makes two differ: the
    interval knows nothing of having chosen them. A metric that is undefined in a group is left out there.
    """
    labels = _classes([rows])
    scores: dict[str, dict[str, Score]] = {}
    drawn: dict[str, dict[str, Array]] = {}
    for number, group in enumerate(dict.fromkeys(groups)):
        part = [row for row, of in zip(rows, groups, strict=True) if of == group]
        scores[group], drawn[group] = {}, {}
        for name in names or default_metrics(rows):
            try:
                sample = samples_of([part], [name], labels)[name][0]
                found = scored({name: sample}, len(part), seed=seed, resamples=resamples if interval else 0)
            except DataError as error:
                say(f"{group}: no {name}: {error.problems[0][0]}")
                continue
            scores[group] |= found
            if interval and sample.interval and len(part) > 1:
                values = bootstrap({name: sample}, seed + 1 + number, resamples)[name]
                drawn[group] |= {key: values[:, column] for column, key in enumerate(sample.keys or (name,))}
    gaps = {}
    for key in dict.fromkeys(key for found in scores.values() for key in found):
        order = sorted((group for group in scores if key in scores[group]), key=lambda group: scores[group][key].value)
        smallest, largest = order[0], order[-1]
        gap: dict[str, Any] = {"value": scores[largest][key].value - scores[smallest][key].value}
        gap |= {"low": None, "high": None, "largest": largest, "smallest": smallest}
        if smallest != largest and key in drawn[largest] and key in drawn[smallest]:
            both = drawn[largest][key] - drawn[smallest][key]
            ((gap["low"], gap["high"]),) = percentiles(both[:, np.newaxis])
        gaps[key] = gap
    return {"groups": scores, "gap": gaps}


def most_different(systems: Mapping[str, Sequence[Row]], most: int = MOST) -> list[dict[str, Any]]:
    """Rows where the second system does most unlike the first, by the smaller of `most` and what differs at all:
    `gain` is by how much it does better (the probability of the label, nats per byte, token F1, or the error)."""
    first, second = list(systems)[:2]
    gains = np.array([_goodness(row) for row in systems[second]]) - [_goodness(row) for row in systems[first]]
    chosen = [int(row) for row in np.argsort(-np.abs(gains), kind="stable")[:most] if gains[row] != 0]
    shown = []
    for place in chosen:
        row, other = systems[first][place], systems[second][place]
        same: Row = {name: row[name] for name in ("text", "text_pair", "reference", "references") if name in row}
        answers = {first: _answer(row), second: _answer(other)}
        shown.append({"row": place + 1, **same, "answers": answers, "gain": float(gains[place])})
    return shown


def _answer(row: Row) -> Any:
    return row["prediction"] if "prediction" in row else row["nll"]


def _goodness(row: Row) -> float:
    """How good the answer of a row is: larger is better."""
    if "nll" in row:
        return -float(row["nll"]) / max(int(row["bytes"]), 1)
    if "probabilities" in row:
        shares: dict[str, float] = row["probabilities"]
        actual: str | list[str] = row["reference"]
        if isinstance(actual, list):
            return float(np.mean([share if name in actual else 1 - share for name, share in shares.items()]))
        return shares[str(actual)]
    if isinstance(made := row["prediction"], list):  # probabilities of the classes, or an answer for each label or word
        if "reference" in row:
            return float(made[row["reference"]])
        pairs = zip(made, row["references"], strict=True)
        return float(np.mean([x == y if isinstance(x, str) else 1 - abs(x - y) for x, y in pairs]))
    if isinstance(row.get("reference"), float | int):
        return -abs(float(row["prediction"]) - float(row["reference"]))
    return max(squad_f1(str(row["prediction"]), str(one)) for one in row.get("references", [row.get("reference")]))


def require_same(systems: Mapping[str, Sequence[Row]]) -> None:
    """DataError where two systems were measured on different rows."""
    first, *others = systems
    whole = digest_of(systems[first])
    for other in others:
        if (found := digest_of(systems[other])) != whole:
            raise DataError(
                f"{first} and {other} were measured on different data: {len(systems[first]):,} rows ({whole[:8]}) and "
                f"{len(systems[other]):,} rows ({found[:8]})",
                "--data FILE measures both on the same",
            )


def digest_of(rows: Sequence[Row]) -> str:
    """The hash of what was asked, whatever was answered: texts and references in their order."""
    import xxhash

    total = xxhash.xxh3_128()
    for row in rows:
        asked = {name: row[name] for name in ("text", "text_pair", "digest", "reference", "references") if name in row}
        total.update(json.dumps(asked, sort_keys=True).encode())
    return str(total.hexdigest())


def default_metrics(rows: Sequence[Row]) -> tuple[str, ...]:
    row = rows[0]
    if "nll" in row:
        return tuple(name for name, one in LIKELIHOODS.items() if one.needs in row and one.needs != "words")
    if "probabilities" in row:
        return DEFAULT_METRICS[MULTIPLE if isinstance(row["reference"], list) else SINGLE]
    if isinstance(row["prediction"], list) and "reference" in row:
        return DEFAULT_METRICS[SINGLE]
    if isinstance(row["prediction"], int):
        fix = "--metrics accuracy,f1_macro or --metrics pearson,rmse"
        raise UsageError("whole numbers may be classes or amounts", fix)
    return DEFAULT_METRICS[REGRESSION] if isinstance(row["prediction"], float) else TEXTS


def samples_of(
    systems: Sequence[Sequence[Row]], names: Sequence[str] = (), labels: Sequence[str] | None = None
) -> dict[str, list[Sample]]:
    """By metric: the sample of each system; all share their draws. `labels`: all there are, where rows lack some."""
    names = names or default_metrics(systems[0])
    if "nll" in systems[0][0]:
        return _likelihoods(systems, names)
    require_known(names)
    labels = labels or _classes(systems)
    inputs = {kind: [_inputs(rows, labels, kind) for rows in systems] for kind in ("answers", "decisions")}
    for some in inputs.values():
        pair(some)
    several = isinstance(systems[0][0].get("reference"), list)
    found = {}
    for name in names:
        kind = "decisions" if several and METRICS[name].needs != "probabilities" else "answers"
        found[name] = [METRICS[name].function(one) for one in inputs[kind]]
    return found


def _classes(systems: Sequence[Sequence[Row]]) -> list[str] | None:
    """The labels, where all systems give probabilities of the same ones."""
    first, *others = (list(rows[0].get("probabilities", ())) for rows in systems)
    return first if first and all(set(other) == set(first) for other in others) else None


def _inputs(rows: Sequence[Row], labels: Sequence[str] | None, kind: str) -> Inputs:
    """The rows as metrics take them; "decisions" of several labels a row are those given, "answers" probabilities."""
    if labels is None:
        side = next((name for name in ("reference", "references") if name in rows[0]), None)
        references = None if side is None else [row[side] for row in rows]
        made = [row["prediction"] for row in rows]
        if references is not None and isinstance(made[0], str) and isinstance(references[0], int):
            references = [str(label) for label in references]  # as classifiers name their labels
        return Inputs(made, references)
    table = np.array([[row["probabilities"][label] for label in labels] for row in rows], float)
    if not isinstance(rows[0]["reference"], list):
        return Inputs(table, [str(row["reference"]) for row in rows], labels)
    actual, given = (
        np.array([[float(label in row[side]) for label in labels] for row in rows])
        for side in ("reference", "prediction")
    )
    return Inputs(given if kind == "decisions" else table, actual)


def _likelihoods(systems: Sequence[Sequence[Row]], names: Sequence[str]) -> dict[str, list[Sample]]:
    known = ", ".join(LIKELIHOODS)
    if unknown := [
        (f"unknown metric '{name}' of likelihoods: {known}", "") for name in names if name not in LIKELIHOODS
    ]:
        raise UsageError.of(unknown)
    tokens = {sum(row["tokens"] for row in rows) for rows in systems}
    if len(tokens) > 1 and (per_token := [name for name in names if LIKELIHOODS[name].needs == "tokens"]):
        warn(
            f"{' and '.join(per_token)} can't be compared: the tokenizers divide the text differently", "bits_per_byte"
        )
    inputs = [Inputs(rows, None) for rows in systems]
    pair(inputs)
    return {name: [LIKELIHOODS[name].function(one) for one in inputs] for name in names}
