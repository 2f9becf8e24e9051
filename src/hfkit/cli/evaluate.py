"""`hfkit evaluate`: numbers with a definition and an interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from hfkit import console
from hfkit.cli.options import Debug, Json, ModelArgument, Set, Verbose, with_settings
from hfkit.errors import UsageError


@with_settings("evaluate", data__test=("--data",))
def evaluate(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="Texts that a model made, one a line.")
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

    [bold]Examples[/bold]

    hfkit evaluate runs/finetune-bert-base-uncased  [dim]# on the data that the run held out[/dim]

    hfkit evaluate --model gpt2 --data book.txt --metrics perplexity

    hfkit evaluate --predictions out.txt --references gold.txt --metrics bleu,rouge
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
        recipe = resolve("evaluate", flags=settings, sets=set_ or ())
        if recipe.model.name or model_:
            raise UsageError("a model has no part in comparing two files", "leave out --model")

        from hfkit.evaluation import evaluate_files

        wanted = recipe.evaluation
        scores = evaluate_files(
            predictions, references, wanted.metrics or ["bleu", "rouge"], interval=wanted.interval, seed=wanted.seed
        )
    named = {name: dataclasses.asdict(score) for name, score in scores.items()}
    if json:
        console.result_json({"metrics": named})
    else:
        console.result(console.score_table(named))
