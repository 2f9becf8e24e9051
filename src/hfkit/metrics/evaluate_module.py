"""hfkit's metrics as modules of Hugging Face `evaluate`. Import it only if one is used: that takes seconds."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Real
from typing import Any

import datasets
import evaluate

from hfkit.errors import DataError, UsageError, first_line
from hfkit.metrics.sample import Row, Score
from hfkit.metrics.table import METRICS, compute, suggestion
from hfkit.system.compat import code_hash
from hfkit.system.console import short
from hfkit.system.network import no_telemetry

NUMBERS = ("pearson", "spearman", "mae", "rmse")


def load(name: str, *, allow_download: bool = False) -> evaluate.EvaluationModule:
    """The metric of this name, hfkit's own or, with `allow_download`, that of the Hub."""
    if name in METRICS:
        return HfkitMetric(config_name=name)
    if not allow_download:
        raise UsageError(f"unknown metric '{name}', {suggestion(name)}", "allow_download=True to look on the Hub")
    if os.path.exists(name):  # which `evaluate.load` would run
        raise UsageError(f"'{name}' is a file or folder here, and code in it is not run", "change the directory")
    no_telemetry()
    try:
        return evaluate.load(name)
    except Exception as error:  # of the network, or of the metric's code
        raise UsageError(
            f"metric '{name}' can't be loaded from the Hub: {first_line(error)}", suggestion(name)
        ) from error


def hub_scores(name: str, rows: Sequence[Row]) -> dict[str, Score]:
    """The scores of the Hub's metric, by its own keys. They have no intervals: it is unknown what they average."""
    module = load(name, allow_download=True)
    columns = {"predictions": [row["prediction"] for row in rows]}
    if referred := next((key for key in ("references", "reference") if key in rows[0]), None):
        columns["references"] = [row[referred] for row in rows]
    try:
        found = module.compute(**columns) or {}
    except Exception as error:  # the metric's code may raise any
        problem = f"metric '{name}' of the Hub fails on these rows: {first_line(error)}"
        raise DataError(problem, "leave it out") from error
    numbers = {key: float(value) for key, value in found.items() if isinstance(value, Real)}
    if not numbers or not all(map(math.isfinite, numbers.values())):
        raise DataError(f"metric '{name}' of the Hub gives no number: {short(str(found))}", "leave it out")
    definition = f"{name} of the Hub, code {code_hash(module)[:12]}; no interval"
    own = {key: name if key == name else f"{name}/{key}" for key in numbers}  # a name that no metric of hfkit has
    return {own[key]: Score(value, None, None, len(rows), definition) for key, value in numbers.items()}


class HfkitMetric(evaluate.Metric):  # type: ignore[misc]
    """One of METRICS, by the name of its configuration."""

    def _info(self) -> evaluate.MetricInfo:
        text, number = datasets.Value("string"), datasets.Value("float64")
        texts, row = datasets.Sequence(text), datasets.Sequence(number)
        shapes = [(text, text), (text, texts), (number, number), (row, number), (row, text), (row, row)]
        return evaluate.MetricInfo(
            description=f"{self.config_name} as hfkit defines it",
            citation="",
            inputs_description="predictions, references, and labels where there are more than the rows show",
            features=[datasets.Features({"predictions": one, "references": other}) for one, other in shapes],
        )

    @property
    def name(self) -> str:
        return str(self.config_name)

    def _compute(self, predictions: Any, references: Any, labels: Any = None) -> dict[str, float]:
        if self.name not in NUMBERS:
            predictions, references = _whole(predictions), _whole(references)
        scores = compute([self.name], predictions, references, labels=labels, interval=False)
        return {key: score.value for key, score in scores.items()}


def _whole(values: list[Any]) -> list[Any]:
    """Numeric labels as whole numbers. (Declared as integers, `evaluate` would truncate 0.9 to 0.)"""
    if not isinstance(values[0], float):
        return values
    if broken := [value for value in values if not value.is_integer()]:
        raise DataError(f"{broken[0]} is not a label", "whole numbers or texts")
    return [int(value) for value in values]
