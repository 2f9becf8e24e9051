"""Metrics of rows: of each example, what was asked and what was answered, as an evaluation keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfkit.data.labels import MULTIPLE, REGRESSION, SINGLE
from hfkit.errors import UsageError
from hfkit.metrics.inputs import Inputs, are_entities, are_tags, pair
from hfkit.metrics.sample import Row, Sample, Score, scored
from hfkit.metrics.table import (
    ANSWER_METRICS,
    DEFAULT_METRICS,
    ENTITY_METRICS,
    LIKELIHOODS,
    METRICS,
    TAG_METRICS,
    require_known,
)
from hfkit.metrics.text import bleu_for
from hfkit.system.console import warn


def usual_metrics(references: Sequence[Any]) -> list[str]:
    """The metrics of texts if none is named: none without references, each a text or a list of texts."""
    texts = [text for one in references for text in (one if isinstance(one, list) else [one])]
    return [bleu_for(texts), "rouge"] if texts else []


def score(
    rows: Sequence[Row], names: Sequence[str] = (), *, interval: bool = True, seed: int = 0, resamples: int = 1000
) -> dict[str, Score]:
    """The metrics `names` of one system's rows, as evaluations keep them; default: those that suit the rows."""
    samples = {name: only for name, (only,) in samples_of([rows], names).items()}
    return scored(samples, len(rows), seed=seed, resamples=resamples if interval else 0)


def default_metrics(rows: Sequence[Row]) -> tuple[str, ...]:
    """The metrics that suit the rows; UsageError if the rows leave it open."""
    row = rows[0]
    if "nll" in row:
        return tuple(name for name, one in LIKELIHOODS.items() if one.needs in row and one.needs != "words")
    if "probabilities" in row:
        return DEFAULT_METRICS[MULTIPLE if isinstance(row["reference"], list) else SINGLE]
    if "question" in row:
        return ANSWER_METRICS
    if are_entities([row["prediction"] for row in rows]):
        return ENTITY_METRICS
    if are_tags([row["prediction"] for row in rows]):
        return TAG_METRICS
    if isinstance(row["prediction"], list) and "reference" in row:
        return DEFAULT_METRICS[SINGLE]
    if isinstance(row["prediction"], int):
        fix = "--metrics accuracy,f1_macro or --metrics pearson,rmse"
        raise UsageError("whole numbers may be classes or amounts", fix)
    if isinstance(row["prediction"], float):
        return DEFAULT_METRICS[REGRESSION]
    side = "references" if "references" in row else "reference"
    return tuple(usual_metrics([row[side] for row in rows]) if side in row else ("bleu", "rouge"))


def samples_of(
    systems: Sequence[Sequence[Row]], names: Sequence[str] = (), labels: Sequence[str] | None = None
) -> dict[str, list[Sample]]:
    """The samples of all systems by metric; they share their draws. `labels`: all labels, if some rows lack one."""
    names = names or default_metrics(systems[0])
    if "nll" in systems[0][0]:
        return _likelihoods(systems, names)
    require_known(names)
    labels = labels or classes_of(systems)
    inputs = {kind: [_inputs(rows, labels, kind) for rows in systems] for kind in ("answers", "decisions")}
    for some in inputs.values():
        pair(some)
    several = isinstance(systems[0][0].get("reference"), list)
    found = {}
    for name in names:
        kind = "decisions" if several and METRICS[name].needs != "probabilities" else "answers"
        found[name] = [METRICS[name].function(one) for one in inputs[kind]]
    return found


def classes_of(systems: Sequence[Sequence[Row]]) -> list[str] | None:
    """The labels, if all systems give probabilities for the same ones."""
    first, *others = (list(rows[0].get("probabilities", ())) for rows in systems)
    return first if first and all(set(other) == set(first) for other in others) else None


def _inputs(rows: Sequence[Row], labels: Sequence[str] | None, kind: str) -> Inputs:
    """The rows as metrics take them; with several labels per row, `kind` "decisions" are 0 or 1, "answers" shares."""
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
