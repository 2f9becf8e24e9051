"""`hfkit finetune`: a pretrained model learns a task from labelled data."""

from __future__ import annotations

from typing import Any

from hfkit.cli.options import (
    AllowChanged,
    Debug,
    DryRun,
    Json,
    Overwrite,
    RecipeArgument,
    Resume,
    Set,
    Verbose,
    with_settings,
)
from hfkit.cli.training import run_training


@with_settings("finetune")
def finetune(
    settings: dict[str, Any],
    recipe: RecipeArgument = None,
    set_: Set = None,
    dry_run: DryRun = False,
    resume: Resume = None,
    overwrite: Overwrite = False,
    allow_changed: AllowChanged = False,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a model on labelled text (classification).

    [bold]Examples[/bold]

    hfkit finetune --model bert-base-uncased  [dim]# on a small built-in data set[/dim]

    hfkit finetune --model bert-base-uncased --data train.csv --validation dev.csv

    hfkit finetune --model runs/pretrain-bert --data reviews.tsv --text-column review --label-column stars

    hfkit finetune recipe.yaml --lr 3e-5 --epochs 2 --output-dir runs/try-2
    """
    run_training("finetune", settings, recipe, set_, dry_run, resume, overwrite, allow_changed, json)
