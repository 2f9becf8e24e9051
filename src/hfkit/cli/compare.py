"""`hfkit compare`: are these systems different, by how much, and where."""

from __future__ import annotations

import dataclasses
import json as json_
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfkit.cli.evaluate import Column, PredictionColumn, ReferenceColumn, References, require_files_alone
from hfkit.cli.options import Json, Set, with_settings
from hfkit.errors import DataError, UsageError
from hfkit.system import console

if TYPE_CHECKING:
    from hfkit.evaluation.compare import Difference
    from hfkit.metrics.sample import Row

SHOWN = 100  # characters of a text


@with_settings("evaluate", data__test=("--data", "--test"), model__name=(), model__revision=())
def compare(
    settings: dict[str, Any],
    systems: Annotated[
        list[str],
        typer.Argument(metavar="A B ...", help="Runs, models, folders of hfkit evaluate -o, or files of predictions."),
    ],
    references: References = None,
    column: Column = None,
    prediction_column: PredictionColumn = None,
    reference_column: ReferenceColumn = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Compare systems with the first one on the same data, metric by metric.

    A difference has a 95% interval and a p-value: of a paired bootstrap, or of
    McNemar's test for accuracy. Then come the rows where the first two differ
    most. Systems that were measured on different data are refused.

    [bold]Examples[/bold]

    hfkit compare runs/small runs/large  [dim]# on what both held out[/dim]

    hfkit compare runs/small runs/large --data dev.csv --metrics accuracy,mcc

    hfkit compare a.txt b.txt --references ref.txt --metrics bleu,chrf
    """
    from hfkit.recipe.resolve import resolve

    if len(systems) < 2 or len(set(systems)) < len(systems):
        raise UsageError(f"{len(set(systems))} system to compare", "hfkit compare A B")
    recipe = resolve("evaluate", flags=settings, sets=set_ or ())

    from hfkit.evaluation.compare import compare as differences_of
    from hfkit.evaluation.compare import most_different
    from hfkit.evaluation.evaluate import evaluate_rows
    from hfkit.evaluation.tables import rows_of_files

    rows: dict[str, Sequence[Row]] = {}
    if references or not recipe.data.test:
        require_files_alone(recipe)
    if references:
        columns = {"prediction_column": prediction_column or column, "reference_column": reference_column or column}
        rows = {name: rows_of_files(Path(name), references, **columns) for name in systems}
    elif recipe.data.test:
        for name in systems:
            console.say(f"{name}:")
            rows[name] = evaluate_rows(resolve("evaluate", run=name, flags=settings, sets=set_ or ())).rows
            if not rows[name]:
                raise UsageError(f"{name}: its task keeps no predictions of single rows", "--pseudo-perplexity")
    else:
        rows = _kept(systems)
    wanted = recipe.evaluation
    found = differences_of(rows, wanted.metrics, interval=wanted.interval, seed=wanted.seed)
    unlike = most_different(rows)
    if json:
        console.result_json({"differences": [dataclasses.asdict(one) for one in found], "rows": unlike})
        return
    console.result(_table(systems[0], found))
    if unlike:
        console.result(f"rows where {systems[1]} differs most from {systems[0]} (gain: how much better it does)")
    for row in unlike:
        asked = " | ".join(
            _short(row[name]) for name in ("text", "text_pair", "reference", "references") if name in row
        )
        console.result(f"  row {row['row']}, gain {row['gain']:+.4g}: {asked}")
        for name, answer in row["answers"].items():
            console.result(f"    {name}: {_short(answer)}")


def _kept(systems: Sequence[str]) -> dict[str, Sequence[Row]]:
    """The rows that evaluations left: of the test data where all systems have them, else of the validation data."""
    from hfkit.evaluation.rows import PREDICTIONS, read_rows

    if all(Path(name).is_file() for name in systems):
        return {name: read_rows(Path(name)) for name in systems}
    for split in ("test", "validation"):
        files = {name: Path(name) / f"{split}_{PREDICTIONS}" for name in systems}
        if all(file.is_file() for file in files.values()):
            console.say(f"data: what all of them kept of their {split} data")
            return {name: read_rows(file) for name, file in files.items()}
    raise DataError(
        f"{' and '.join(systems)} kept no predictions of one split of the data",
        "--data FILE to measure them now, or --references FILE for files of predictions",
    )


def _table(first: str, differences: Sequence[Difference]) -> str:
    rows: list[list[str]] = []
    for other in dict.fromkeys(one.system for one in differences):
        rows.append([f"{other} - {first}"])
        for one in [one for one in differences if one.system == other]:
            values = f"{f'{one.value:.4g} - {one.first:.4g}':<19} = {one.difference:<+9.4g}"
            p = "" if one.p is None else f"p={one.p:.3g}"
            interval = console.interval(dataclasses.asdict(one))
            rows.append([f"  {one.metric}", values, f"{interval:<21}", f"{p:<8}", one.test])
    return console.table([*rows, ["  (95% intervals; p: two-sided, not corrected for the number of comparisons)"]])


def _short(value: Any) -> str:
    from hfkit.system.console import short

    text = value if isinstance(value, str) else json_.dumps(value, ensure_ascii=False)
    return short(" ".join(text.split()), SHOWN)
