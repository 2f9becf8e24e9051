"""The task of a model that was saved with some head."""

from __future__ import annotations

from transformers import PreTrainedConfig

from hfkit.errors import ModelError, UsageError
from hfkit.evaluation.files import changed
from hfkit.models.config import was_saved_with
from hfkit.recipe.effect import acts_for
from hfkit.settings import Recipe, acts
from hfkit.system.console import say
from hfkit.tasks import TASKS
from hfkit.tasks.base import Task

GENERATING = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")  # the heads that make text


def task_of(config: PreTrainedConfig, recipe: Recipe) -> str:
    """The task whose head the model was saved with, and in which all settings act; UsageError if it is not just one."""
    fitting = _fitting(config) if config.architectures else []
    if len(fitting) > 1 and (claimed := _claimed(fitting, recipe)):
        return claimed
    if len(fitting) > 1:
        wanted = recipe.evaluation.metrics
        acting = [
            task
            for task in fitting
            if not without_effect(recipe, task) and not (wanted and TASKS[task].unknown_metrics(wanted))
        ]
        if recipe.data.columns.target is None and not wanted:
            acting = [task for task in acting if TASKS[task].guessed]
        usual = [task for task in acting or fitting if TASKS[task].guessed]
        fitting = acting if len(acting) == 1 else usual if len(usual) == 1 else fitting
    if len(fitting) != 1:
        names = ", ".join(config.architectures or []) or "its config"
        fix = f"--task {' or '.join(fitting or TASKS)}"
        raise UsageError(f"{recipe.model.name}: can't tell its task from {names}", fix)
    return fitting[0]


def _claimed(fitting: list[str], recipe: Recipe) -> str | None:
    """The one of the `fitting` tasks whose kind of data this is, which is printed; None if there is none."""
    for name in fitting:
        task, wanted = TASKS[name], recipe.evaluation.metrics
        acts = not without_effect(recipe, name) and not (wanted and task.unknown_metrics(wanted))
        if acts and (reason := task.claims(recipe.data.test)):
            say(f"task: {name}, because {reason} (change with --task)")
            return name
    return None


def without_effect(recipe: Recipe, task: str) -> list[str]:
    """The keys of the settings that differ from their defaults and do nothing when `task` is evaluated."""
    return [key for key in changed(recipe) if acts("evaluate", key) and not acts_for(task, key)]


def predicting_task(config: PreTrainedConfig, name: str | None) -> Task:
    """The task whose answers the model was saved to give; ModelError if there is none."""
    for task in map(TASKS.__getitem__, _fitting(config)):
        if type(task).answers is not Task.answers:
            return task
    kind = ", ".join(config.architectures or [config.model_type])
    generates = any(was_saved_with(auto_model, config) for auto_model in GENERATING)
    fix = f"hfkit generate {name}" if generates else "train one: hfkit finetune"
    raise ModelError(f"{name} is no classifier, it is a {kind}", fix)


def _fitting(config: PreTrainedConfig) -> list[str]:
    return [name for name, task in TASKS.items() if was_saved_with(task.auto_model, config)]
