"""`hfkit finetune`: a pretrained model learns a task from labelled data."""

from __future__ import annotations

from typing import Any

from hfkit.cli.options import (
    AllowChanged,
    Debug,
    DryRun,
    Extend,
    Json,
    Overwrite,
    Plan,
    RecipeArgument,
    Resume,
    Set,
    Verbose,
    with_settings,
)
from hfkit.cli.training import run_training
from hfkit.system.launcher import Launch


@with_settings("finetune")
def finetune(
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
    verbose: Verbose = False,
    debug: Debug = False,
    launch: Launch | None = None,
) -> None:
    """Fine-tune a model on labelled text (classification).

    [bold]Examples[/bold]

    hfkit finetune --model bert-base-uncased  [dim]# on a built-in data set[/dim]

    hfkit finetune --model bert-base-uncased --data train.csv --validation dev.csv

    hfkit finetune --model runs/pretrain-bert --data a.tsv --label-column stars

    hfkit finetune finetune-docstrings --model bert-base-uncased --epochs 2

    `hfkit recipes schema` lists all settings, --set KEY=VALUE sets any of them.
    """
    run_training(
        "finetune", settings, recipe, set_, dry_run, resume, overwrite, allow_changed, extend, json, launch, plan
    )
