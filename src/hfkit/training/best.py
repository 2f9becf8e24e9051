"""Which evaluation of a run was the best, and whether waiting for a better one is over.

The state is a function of the evaluations in `metrics.jsonl`, so a resumed run knows what an unbroken one knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfkit.metrics.table import lower_is_better

if TYPE_CHECKING:
    from hfkit.settings import Train
    from hfkit.tasks.base import Task


@dataclass
class Best:
    """The best evaluation so far by `metric`; `patience`: evaluations to wait for a better one, None for ever."""

    metric: str
    patience: int | None
    step: int | None = None
    value: float = math.nan
    waited: int = 0  # evaluations since the best one
    last_step: int = 0  # of the last evaluation

    @classmethod
    def of(cls, settings: Train, task: Task, config: Any) -> Best | None:
        """By train.best, or the task's own metric where only train.early_stopping is given; None without either."""
        if settings.best is None and settings.early_stopping is None:
            return None
        return cls(settings.best or task.usual_metrics(config)[0], settings.early_stopping)

    def take_all(self, log: Iterable[Mapping[str, Any]]) -> None:
        """Takes the evaluations among the lines of `metrics.jsonl`."""
        for line in log:
            if f"eval_{self.metric}" in line and line["step"] > self.last_step:
                self.take(line["step"], line)

    def take(self, step: int, metrics: Mapping[str, Any]) -> None:
        value, self.last_step = float(metrics[f"eval_{self.metric}"]), step
        better = value < self.value if lower_is_better(self.metric) else value > self.value
        if self.step is None or better:
            self.step, self.value, self.waited = step, value, 0
        else:
            self.waited += 1

    @property
    def over(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4g} at step {self.step}"
