"""hfkit's metrics as modules of Hugging Face `evaluate`; only `hfkit.metrics.load` imports it, which takes seconds."""

from __future__ import annotations

import os
from typing import Any

import datasets  # noqa: TID253
import evaluate  # noqa: TID253

from hfkit.errors import DataError, UsageError
from hfkit.metrics import METRICS, compute, suggestion

NUMBERS = ("pearson", "spearman", "mae", "rmse")


def load(name: str, *, allow_download: bool = False) -> evaluate.EvaluationModule:
    """The metric, or the Hub's of that name where it is none of ours and that is allowed."""
    if name in METRICS:
        return HfkitMetric(config_name=name)
    if not allow_download:
        raise UsageError(f"unknown metric '{name}', {suggestion(name)}", "allow_download=True to look on the Hub")
    if os.path.exists(name):  # which `evaluate.load` would run
        raise UsageError(f"'{name}' is a file or folder here, and code in it is not run", "change the directory")
    return evaluate.load(name)


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
    """Labels that are numbers as whole ones (`evaluate` would cut 0.9 to 0, had they come as such)."""
    if not isinstance(values[0], float):
        return values
    if broken := [value for value in values if not value.is_integer()]:
        raise DataError(f"{broken[0]} is not a label", "whole numbers or texts")
    return [int(value) for value in values]
