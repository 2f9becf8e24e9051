"""What `pretrain` and `finetune` do with their options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfkit.errors import UsageError
from hfkit.recipe.shipped import find_recipe
from hfkit.system import console

if TYPE_CHECKING:
    from hfkit.settings import Recipe
    from hfkit.system.launcher import Launch


def run_training(
    command: str,
    settings: dict[str, Any],
    recipe: str | None,
    sets: list[str] | None,
    dry_run: bool,
    resume: str | None,
    overwrite: bool,
    allow_changed: bool,
    extend: bool,
    as_json: bool,
    launch: Launch | None,
    plan: bool,
) -> None:
    """Resolves, prints, plans or trains, and closes with what there is now and what to type next."""
    from hfkit.recipe.resolve import dump_yaml, resolve

    path = find_recipe(recipe) if recipe else None
    resolved = resolve(command, recipe=path, flags=settings, sets=sets or ())
    if dry_run:
        console.result(dump_yaml(resolved, command), end="")
        return
    if resolved.model.name is None and resolved.model.type is None:
        raise UsageError("no model is named", "--model bert-base-uncased, or a directory")
    if recipe is None and not any("data.train" in given for given in (*settings, *(sets or ()))):
        console.say(f"no --data given: training on {resolved.data.train[0]}, which every Python brings")

    if plan:
        from hfkit.inspection.plan import as_text
        from hfkit.inspection.plan import plan as plan_run

        counts, parallel = (launch.counts, launch.parallel or "ddp") if launch is not None else ((), "ddp")
        facts = plan_run(resolved, counts, parallel)
        if as_json:
            console.result_json(facts)
        else:
            console.result(as_text(facts))
        return

    if launch is not None:
        from hfkit.system.launcher import run as run_processes
        from hfkit.training.batch import batch_size
        from hfkit.training.train import prepare_once

        batch_size(resolved, launch.num_processes)  # a step that can't be divided is told before data is read

        def prepare() -> Path:
            return prepare_once(resolved, resume=resume, overwrite=overwrite)

        raise typer.Exit(run_processes(launch, prepare))

    from hfkit.models.push import NotUploadedError
    from hfkit.training.train import train

    try:
        outcome = train(resolved, resume=resume, overwrite=overwrite, allow_changed=allow_changed, extend=extend)
    except NotUploadedError as error:
        _show(command, resolved, error.outcome, as_json)
        raise
    _show(command, resolved, outcome, as_json)


def _show(command: str, resolved: Recipe, outcome: dict[str, Any], as_json: bool) -> None:
    from hfkit.runs.results import read_scores

    scores = read_scores(outcome["run"])
    if as_json:
        console.result_json({"run": outcome["run"], "metrics": scores.get("test") or scores.get("validation") or {}})
        return
    for split, named in scores.items():
        console.result(f"{split}:")
        console.result(console.score_table(named))
    console.result(f"run: {outcome['run']}")
    console.say(next_step(command, resolved.task or "", outcome["run"], resolved.lora.enabled))


def next_step(command: str, task: str, run: str, is_adapter: bool) -> str:
    if command == "finetune":
        return f'next: hfkit predict {run} --text "..."'
    if task == "clm":
        return f'next: hfkit generate --model {run} --prompt "..."'
    if is_adapter:
        return f"next: hfkit export {run} --merge --output-dir NEW, which `hfkit finetune --model NEW` takes"
    return f"next: hfkit finetune --model {run} --data train.csv"
