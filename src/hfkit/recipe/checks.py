"""Checks of single settings whose valid values are not known to their type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hfkit.errors import Problem, did_you_mean
from hfkit.recipe.upstream import missing_trackers, optimizer_names
from hfkit.tasks import TASKS

HUB_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # OWNER/NAME


def wrong_values(values: Mapping[str, Any], task: str) -> Iterator[tuple[str, Problem]]:
    """Dotted key and problem of each wrong value; values of the wrong type are left to pydantic."""
    for key, value in values.items():
        check = CHECKS.get(key)
        yield from ((key, problem) for problem in (check(value, task) if check else ()))


def _metrics(names: Any, task: str) -> Iterator[Problem]:
    if task in TASKS and isinstance(names, list):
        yield from TASKS[task].unknown_metrics(names)


def _best(name: Any, task: str) -> Iterator[Problem]:
    watched = TASKS[task].watched or TASKS[task].metrics if task in TASKS else (name,)
    if name is not None and name not in watched:
        yield f"no evaluation during training has '{name}': {', '.join(watched)}", ""


def _optimizer(name: Any, _: str) -> Iterator[Problem]:
    if isinstance(name, str) and name not in (known := optimizer_names()):
        yield f"unknown optimizer '{name}'", did_you_mean(name, known) or f"one of {', '.join(sorted(known))}"


def _trackers(names: Any, _: str) -> Iterator[Problem]:
    if isinstance(names, list):
        yield from missing_trackers(names)


def _repository(name: Any, _: str) -> Iterator[Problem]:
    if isinstance(name, str) and not HUB_REPOSITORY.fullmatch(name):
        yield f"'{name}' is not the name of a repository", "--push OWNER/NAME"


def _batch_size(value: Any, _: str) -> Iterator[Problem]:
    """pydantic has no limits for a union of a number and a word."""
    try:
        too_small = float(value) < 1 and float(value).is_integer()
    except (TypeError, ValueError):
        return
    if too_small:
        yield f"must be at least 1, or auto, not {value}", "e.g. 8"


CHECKS = {
    "evaluation.metrics": _metrics,
    "train.best": _best,
    "train.optimizer": _optimizer,
    "train.report_to": _trackers,
    "train.push": _repository,
    "train.per_device_train_batch_size": _batch_size,
}
