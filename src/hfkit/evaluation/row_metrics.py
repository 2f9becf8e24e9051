"""Metrics of rows: of each example, what was asked and what was answered, as an evaluation keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfkit.data.labels import MULTIPLE, REGRESSION, SINGLE, natural
from hfkit.errors import DataError, UsageError
from hfkit.metrics.inputs import Inputs, are_entities, are_tags, pair
from hfkit.metrics.sample import Row, Sample, Score, scored
from hfkit.metrics.table import (
    ANSWER_METRICS,
    DEFAULT_METRICS,
    ENTITY_METRICS,
    LIKELIHOODS,
    METRICS,
    OF_LABELS,
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


def default_metrics(rows: Sequence[Row], of: str | None = None) -> tuple[str, ...]:
    """The metrics that suit the rows, which hold what `of` says; UsageError if that is left open."""
    row = rows[0]
    if "nll" in row:
        return tuple(name for name, one in LIKELIHOODS.items() if one.needs in row and one.needs != "words")
    if "probabilities" in row:
        return DEFAULT_METRICS[MULTIPLE if isinstance(row["reference"], list) else SINGLE]
    if of == "number":
        return DEFAULT_METRICS[REGRESSION]
    if of == "label" and isinstance(row["prediction"], list) and isinstance(row.get("reference"), int):
        return DEFAULT_METRICS[SINGLE]  # of probabilities
    if of == "label":
        kind = MULTIPLE if isinstance(row["prediction"], list) else SINGLE
        return tuple(name for name in DEFAULT_METRICS[kind] if METRICS[name].needs != "probabilities")
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
    several = isinstance(systems[0][0].get("reference"), list)
    inputs: dict[bool, list[Inputs]] = {}
    found = {}
    for name in names:
        sets = several and name in OF_LABELS
        decisions = sets and METRICS[name].needs != "probabilities"
        if decisions not in inputs:
            inputs[decisions] = [
                _inputs(rows, labels or (_labels_in(systems) if sets else None), decisions) for rows in systems
            ]
            pair(inputs[decisions])
        found[name] = [METRICS[name].function(one) for one in inputs[decisions]]
    return found


def _labels_in(systems: Sequence[Sequence[Row]]) -> list[str]:
    """All labels in rows that have several each."""
    sides = ("reference", "prediction")
    return sorted({label for rows in systems for row in rows for side in sides for label in row[side]}, key=natural)


def classes_of(systems: Sequence[Sequence[Row]]) -> list[str] | None:
    """The labels, if all systems give probabilities for the same ones."""
    first, *others = (list(rows[0].get("probabilities", ())) for rows in systems)
    return first if first and all(set(other) == set(first) for other in others) else None


def _inputs(rows: Sequence[Row], labels: Sequence[str] | None, decisions: bool) -> Inputs:
    """The rows as metrics take them; with several labels per row a table of probabilities, or of `decisions` 0 or 1."""
    if labels is None:
        side = next((name for name in ("reference", "references") if name in rows[0]), None)
        references = None if side is None else [row[side] for row in rows]
        return Inputs([row["prediction"] for row in rows], references)
    several = isinstance(rows[0]["reference"], list)
    if decisions:
        made, actual = (
            np.array([[float(label in row[side]) for label in labels] for row in rows])
            for side in ("prediction", "reference")
        )
        return Inputs(made, actual, labels)
    if "probabilities" not in rows[0]:
        raise DataError("the predictions have no probabilities", "hfkit predict --output FILE.jsonl writes them")
    table = np.array([[row["probabilities"][label] for label in labels] for row in rows], float)
    if not several:
        return Inputs(table, [str(row["reference"]) for row in rows], labels)
    return Inputs(table, np.array([[float(label in row["reference"]) for label in labels] for row in rows]), labels)


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
