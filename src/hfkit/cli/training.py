"""What `pretrain` and `finetune` do with their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from hfkit.cli.options import (
    AllowChanged,
    DryRun,
    Extend,
    Json,
    Overwrite,
    Plan,
    RecipeArgument,
    Resume,
    Set,
)
from hfkit.errors import UsageError
from hfkit.recipe.shipped import find_recipe
from hfkit.settings import Recipe
from hfkit.system import console
from hfkit.system.launcher import Launch
from hfkit.tasks import TASKS


def run_training(
    command: str,
    settings: dict[str, Any],
    recipe: RecipeArgument = None,
    set_: Set = None,
    dry_run: DryRun = False,
    plan: Plan = False,
    resume: Resume = None,
    overwrite: Overwrite = False,
    allow_changed: AllowChanged = False,
    extend: Extend = False,
    json: Json = False,
    launch: Launch | None = None,
) -> None:
    """Prints the recipe, plans the run, or trains and prints the scores and the next command to type."""
    from hfkit.recipe.resolve import dump_yaml, resolve

    path = find_recipe(recipe) if recipe else None
    resolved = resolve(command, recipe=path, flags=settings, sets=set_ or ())
    if dry_run:
        console.result(dump_yaml(resolved, command), end="")
        return
    if resolved.model.name is None and resolved.model.type is None:
        raise UsageError("no model is named", "--model bert-base-uncased, or a directory")
    named = any("data.train" in given for given in (*settings, *(set_ or ())))
    if recipe is None and not named and resolved.data.train:
        console.say(f"no --data given: training on {resolved.data.train[0]}, which every Python brings")
    if plan:
        _plan(resolved, launch, json)
    elif launch is not None:
        _start_processes(resolved, launch, resume, overwrite)
    else:
        from hfkit.models.push import NotUploadedError
        from hfkit.training.train import train

        try:
            outcome = train(resolved, resume=resume, overwrite=overwrite, allow_changed=allow_changed, extend=extend)
        except NotUploadedError as error:
            _show(resolved, error.outcome, json)
            raise
        _show(resolved, outcome, json)


def _plan(recipe: Recipe, launch: Launch | None, as_json: bool) -> None:
    """Prints memory, disk, steps and time of the run."""
    from hfkit.inspection.plan import as_text, plan

    facts = plan(recipe, launch.counts, launch.parallel or "ddp") if launch is not None else plan(recipe)
    if as_json:
        console.result_json(facts)
    else:
        console.result(as_text(facts))


def _start_processes(recipe: Recipe, launch: Launch, resume: str | None, overwrite: bool) -> None:
    """Trains in several processes; ends with their exit code."""
    from hfkit.system.launcher import run
    from hfkit.training.batch import batch_size
    from hfkit.training.train import prepare_once

    batch_size(recipe, launch.num_processes)  # an impossible batch size is an error before data is read

    def prepare() -> Path:
        return prepare_once(recipe, resume=resume, overwrite=overwrite)

    raise typer.Exit(run(launch, prepare))


def _show(recipe: Recipe, outcome: dict[str, Any], as_json: bool) -> None:
    from hfkit.runs.results import read_scores

    scores = read_scores(outcome["run"])
    if as_json:
        console.result_json({"run": outcome["run"], "metrics": scores.get("test") or scores.get("validation") or {}})
        return
    for split, named in scores.items():
        console.result(f"{split}:")
        console.result(console.score_table(named))
    console.result(f"run: {outcome['run']}")
    console.say(f"next: {TASKS[str(recipe.task)].next_step(outcome['run'], recipe.lora.enabled)}")
