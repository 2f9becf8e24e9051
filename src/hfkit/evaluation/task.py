"""The task of a model that was saved with some head."""

from __future__ import annotations

from transformers import PreTrainedConfig

from hfkit.errors import ModelError, UsageError
from hfkit.models.config import was_saved_with
from hfkit.tasks import TASKS
from hfkit.tasks.base import Task


def task_of(config: PreTrainedConfig, name: str | None) -> str:
    """The task whose head the model was saved with; UsageError if there is not exactly one."""
    fitting = _fitting(config) if config.architectures else []
    if len(fitting) != 1:
        names = ", ".join(config.architectures or []) or "its config"
        raise UsageError(f"{name}: can't tell its task from {names}", f"--task {' or '.join(fitting or TASKS)}")
    return fitting[0]


def predicting_task(config: PreTrainedConfig, name: str | None) -> Task:
    """The task whose answers the model was saved to give; ModelError if there is none."""
    for task in map(TASKS.__getitem__, _fitting(config)):
        if type(task).answers is not Task.answers:
            return task
    kind = ", ".join(config.architectures or [config.model_type])
    raise ModelError(f"{name} is no classifier, it is a {kind}", "train one: hfkit finetune")


def _fitting(config: PreTrainedConfig) -> list[str]:
    return [name for name, task in TASKS.items() if was_saved_with(task.auto_model, config)]
