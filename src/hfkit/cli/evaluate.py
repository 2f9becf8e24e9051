"""`hfkit evaluate`: numbers with a definition and an interval."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from hfkit.cli.options import Json, ModelArgument, Set, with_settings
from hfkit.errors import UsageError
from hfkit.settings import Evaluation, Recipe
from hfkit.system import console
from hfkit.system.launcher import Launch
from hfkit.system.launcher import run as run_processes

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


@with_settings("evaluate", data__test=("--data", "--test"))
def evaluate(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", metavar="FILE", help="What a model wrote: .txt, .jsonl, .csv, ...")
    ] = None,
    references: References = None,
    column: Column = None,
    prediction_column: PredictionColumn = None,
    reference_column: ReferenceColumn = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Every metric for each group, too, and their gap.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Keep eval_results.json and a line for every row here."),
    ] = None,
    allow_download: Annotated[
        bool,
        typer.Option(
            "--allow-download",
            metavar="",
            help="Run the Hub's code for --metrics that hfkit doesn't have.",
        ),
    ] = False,
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
    from hfkit.data.readers import is_table
    from hfkit.metrics.table import METRICS
    from hfkit.recipe.resolve import resolve

    recipe = resolve("evaluate", run=model_, flags=settings, sets=set_ or ())
    wanted = recipe.evaluation
    metrics, groups = wanted.metrics, []
    if predictions is None and not references:
        _refuse(
            {
                "--column": column,
                "--prediction-column": prediction_column,
                "--reference-column": reference_column,
                "--allow-download": allow_download or None,
            }
        )
        if recipe.model.name is None:
            raise UsageError("there is nothing to evaluate", "hfkit evaluate RUN, or --predictions F --references G")
        if launch is not None:
            raise typer.Exit(run_processes(launch))

        from hfkit.evaluation.evaluate import evaluate as scores_of
        from hfkit.evaluation.evaluate import evaluate_rows
        from hfkit.evaluation.tables import groups_of

        if by is None and output is None:
            scores = scores_of(recipe)
        else:
            found = evaluate_rows(recipe, output)
            scores, rows = found.scores, found.rows
        if by is not None:
            if not rows:
                raise UsageError("--by: this task keeps no predictions of single rows", "leave it out")
            groups = groups_of(recipe, by, len(rows))
    else:
        of_text = any(name in METRICS and METRICS[name].needs == "text" for name in metrics)
        if predictions is None or not (references or is_table(str(predictions)) or of_text):
            raise UsageError("predictions and references go together", "--predictions FILE --references FILE")
        require_files_alone(recipe)
        if launch is not None:
            raise UsageError("--num-processes has no effect on files: no model runs", "leave it out")

        from hfkit.evaluation.compare import default_metrics, score
        from hfkit.evaluation.rows import keep_rows
        from hfkit.evaluation.tables import rows_of_files

        rows = rows_of_files(
            predictions,
            references or (),
            prediction_column=prediction_column or column,
            reference_column=reference_column or column,
            by=by,
        )
        groups = [row.pop("group") for row in rows] if by is not None else []
        metrics = metrics or list(default_metrics(rows))
        of_hub = [name for name in metrics if allow_download and name not in METRICS]
        if allow_download and not of_hub:
            raise UsageError("--allow-download has no effect: hfkit has these metrics itself", "leave it out")
        if of_hub and by is not None:
            raise UsageError(f"--by: '{of_hub[0]}' of the Hub is computed of all rows alone", "leave one of them out")
        metrics = [name for name in metrics if name not in of_hub]
        scores = score(rows, metrics, interval=wanted.interval, seed=wanted.seed) if metrics else {}
        for name in of_hub:
            from hfkit.metrics.evaluate_module import hub_scores

            scores |= hub_scores(name, rows)
        if output is not None:
            keep_rows(output, rows, scores)

    named = {name: dataclasses.asdict(one) for name, one in scores.items()}
    result: dict[str, Any] = {"metrics": named}
    if by is not None:
        from hfkit.evaluation.compare import by_group

        sliced = by_group(rows, groups, metrics, interval=wanted.interval, seed=wanted.seed)
        of_groups = {
            group: {name: dataclasses.asdict(one) for name, one in found.items()}
            for group, found in sliced["groups"].items()
        }
        result["by"] = {"column": by, "groups": of_groups, "gap": sliced["gap"]}
    if json:
        from hfkit.runs.manifest import versions

        console.result_json({**result, "versions": versions()})
        return
    console.result(console.score_table(named))
    if by is not None:
        console.result(_group_table(result["by"]))


def require_files_alone(recipe: Recipe) -> None:
    """UsageError where more is set than what predictions that are there already are measured by."""
    wanted = recipe.evaluation
    acting = Evaluation(metrics=wanted.metrics, interval=wanted.interval, seed=wanted.seed)
    if recipe != Recipe(evaluation=acting):
        fix = "leave out all but --predictions, --references, --metrics and --seed"
        raise UsageError("a model or data has no part in comparing two files", fix)


def _refuse(options: dict[str, Any]) -> None:
    if given := [flag for flag, value in options.items() if value is not None]:
        raise UsageError(f"{given[0]} has no effect without --predictions", "leave it out")


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
