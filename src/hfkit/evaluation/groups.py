"""The metrics of one system by group of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hfkit.errors import DataError
from hfkit.evaluation.row_metrics import classes_of, default_metrics, samples_of
from hfkit.metrics.sample import Array, Row, Score, bootstrap, percentiles, scored
from hfkit.system.console import say


class Groups(NamedTuple):
    """Scores by group and metric, and for each metric the gap: {value, low, high, largest, smallest}."""

    scores: dict[str, dict[str, Score]]
    gap: dict[str, dict[str, Any]]


def by_group(
    rows: Sequence[Row],
    groups: Sequence[str],
    names: Sequence[str] = (),
    *,
    interval: bool = True,
    seed: int = 0,
    resamples: int = 1000,
) -> Groups:
    """The metrics of each group, and the gap between the groups.

    The gap is the largest value of a group minus the smallest. Its interval resamples the rows of these two groups; it
    does not allow for their choice, and among many small groups two differ by chance. A metric that is undefined in a
    group is left out there.
    """
    labels = classes_of([rows])
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
    return Groups(scores, gaps)
