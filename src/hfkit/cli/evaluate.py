"""`hfkit evaluate`: numbers with a definition and an interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfkit.cli.options import Json, ModelArgument, Set, with_settings
from hfkit.errors import UsageError
from hfkit.system import console
from hfkit.system.launcher import Launch
from hfkit.system.launcher import run as run_processes

if TYPE_CHECKING:
    from hfkit.evaluation.rows import Evaluated
    from hfkit.metrics.sample import Score

References = Annotated[
    list[Path] | None,
    typer.Option("--references", metavar="FILE", help="What they should have been; several files for several each."),
]

Column = Annotated[
    str | None, typer.Option("--column", metavar="NAME", help="Column of --predictions and --references.")
]

PredictionColumn = Annotated[
    str | None, typer.Option("--prediction-column", metavar="NAME", help="Column of --predictions.")
]

ReferenceColumn = Annotated[
    str | None, typer.Option("--reference-column", metavar="NAME", help="Column of --references.")
]


Predictions = Annotated[
    Path | None, typer.Option("--predictions", metavar="FILE", help="What a model wrote: .txt, .jsonl, .csv, ...")
]

By = Annotated[
    str | None, typer.Option("--by", metavar="COLUMN", help="Every metric for each group, too, and their gap.")
]

Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Keep eval_results.json and a line for every row here."),
]

AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", metavar="", help="Run the Hub's code for --metrics that hfkit doesn't have."),
]


@with_settings("evaluate", data__test=("--data", "--test"))
def evaluate(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    predictions: Predictions = None,
    references: References = None,
    column: Column = None,
    prediction_column: PredictionColumn = None,
    reference_column: ReferenceColumn = None,
    by: By = None,
    output: Output = None,
    allow_download: AllowDownload = False,
    set_: Set = None,
    json: Json = False,
    launch: Launch | None = None,
) -> None:
    """Measure a run or a model on data, or predictions against references.

    Every number comes with its definition, the rows behind it and a 95% interval.

    [bold]Examples[/bold]

    hfkit evaluate runs/finetune-bert-base-uncased  [dim]# on what it held out[/dim]

    hfkit evaluate runs/finetune-bert-base-uncased --data dev.csv --by genre

    hfkit evaluate --model gpt2 --data book.txt --metrics perplexity

    hfkit evaluate --predictions out.txt --references ref.txt --metrics bleu
    """
    from hfkit.api import evaluate_recipe
    from hfkit.evaluation.files import Files
    from hfkit.recipe.resolve import resolve

    recipe = resolve("evaluate", run=model_, flags=settings, sets=set_ or ())
    files = Files(predictions, references or (), column, prediction_column, reference_column, allow_download)
    files.require_sense(recipe)
    if launch is not None:
        if files:
            raise UsageError("--num-processes has no effect on files: no model runs", "leave it out")
        raise typer.Exit(run_processes(launch))
    _print(evaluate_recipe(recipe, files, by=by, output=output), by, json)


def _plain(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(one) for name, one in scores.items()}


def _print(found: Evaluated, by: str | None, json: bool) -> None:
    result: dict[str, Any] = {"metrics": _plain(found.scores)}
    if found.groups is not None:
        scores = {group: _plain(one) for group, one in found.groups.scores.items()}
        result["by"] = {"column": by, "groups": scores, "gap": found.groups.gap}
    if json:
        from hfkit.runs.manifest import versions

        console.result_json({**result, "versions": versions()})
        return
    console.result(console.score_table(result["metrics"]))
    if "by" in result:
        console.result(_group_table(result["by"]))


def _group_table(by: dict[str, Any]) -> str:
    """For each metric a line per group, and the gap."""
    rows: list[list[str]] = []
    for metric, gap in by["gap"].items():
        rows.append([f"{metric} by {by['column']}"])
        for group, found in by["groups"].items():
            if metric in found:
                rows.append([f"  {group}", *console.value_cells(found[metric]), f"n={found[metric]['n']:,}"])
        rows.append(["  gap", *console.value_cells(gap), f"{gap['largest']} - {gap['smallest']}"])
    return console.table(rows)
