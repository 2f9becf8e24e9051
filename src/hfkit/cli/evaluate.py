"""`hfkit evaluate`: numbers with a definition and an interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from hfkit import console
from hfkit.cli.options import Debug, Json, ModelArgument, Set, Verbose, with_settings
from hfkit.errors import UsageError
from hfkit.recipe import Evaluation, Recipe


@with_settings("evaluate", data__test=("--data", "--test"))
def evaluate(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="Texts that a model wrote, one a line.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option("--references", metavar="FILE", help="What they should have been.")
    ] = None,
    set_: Set = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure a run or a model on data, or predictions against references.

    Every number comes with its definition, the rows behind it and a 95% interval.

    [bold]Examples[/bold]

    hfkit evaluate runs/finetune-bert-base-uncased  [dim]# on what it held out[/dim]

    hfkit evaluate runs/finetune-bert-base-uncased --data dev.csv --json

    hfkit evaluate --model gpt2 --data book.txt --metrics perplexity

    hfkit evaluate --predictions out.txt --references ref.txt --metrics bleu
    """
    from hfkit.resolve import resolve

    if predictions is None and references is None:
        recipe = resolve("evaluate", run=model_, flags=settings, sets=set_ or ())
        if recipe.model.name is None:
            raise UsageError("there is nothing to evaluate", "hfkit evaluate RUN, or --predictions F --references G")

        from hfkit.evaluation import evaluate as evaluate_model

        scores = evaluate_model(recipe)
    else:
        if predictions is None or references is None:
            raise UsageError("predictions and references go together", "--predictions FILE --references FILE")
        recipe = resolve("evaluate", run=model_, flags=settings, sets=set_ or ())
        wanted = recipe.evaluation
        acting = Evaluation(metrics=wanted.metrics, interval=wanted.interval, seed=wanted.seed)
        if recipe != Recipe(evaluation=acting):
            fix = "leave out all but --predictions, --references, --metrics and --seed"
            raise UsageError("a model or data has no part in comparing two files", fix)

        from hfkit.evaluation import evaluate_files

        scores = evaluate_files(
            predictions, references, wanted.metrics or ["bleu", "rouge"], interval=wanted.interval, seed=wanted.seed
        )
    named = {name: dataclasses.asdict(score) for name, score in scores.items()}
    if json:
        console.result_json({"metrics": named})
    else:
        console.result(console.score_table(named))
