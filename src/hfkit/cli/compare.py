"""`hfkit compare`: are these systems different, by how much, and where."""

from __future__ import annotations

import dataclasses
import json as json_
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfkit.cli.evaluate import Column, PredictionColumn, ReferenceColumn, References
from hfkit.cli.options import Json, Set, with_settings
from hfkit.system import console

if TYPE_CHECKING:
    from hfkit.evaluation.compare import Difference

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
    from hfkit.evaluation.files import Files
    from hfkit.evaluation.systems import compare_systems
    from hfkit.recipe.resolve import resolve

    files = Files(None, references or (), column, prediction_column, reference_column)
    found = compare_systems(systems, lambda name: resolve("evaluate", run=name, flags=settings, sets=set_ or ()), files)
    if json:
        differences = [dataclasses.asdict(one) for one in found.differences]
        console.result_json({"differences": differences, "rows": found.rows})
        return
    console.result(_table(systems[0], found.differences))
    if found.rows:
        measure = found.rows[0]["measure"]
        console.result(f"rows where {systems[1]} differs most from {systems[0]} (gain: how much better, in {measure})")
    for row in found.rows:
        _print_row(row)


def _print_row(row: dict[str, Any]) -> None:
    from hfkit.metrics.sample import asked

    parts = [" ".join(part) if isinstance(part, list) else part for part in asked(row).values()]
    parts += [row[name] for name in ("reference", "references") if name in row]
    console.result(f"  row {row['row']}, gain {row['gain']:+.4g}: {' | '.join(map(_short, parts))}")
    for name, answer in row["answers"].items():
        console.result(f"    {name}: {_short(answer)}")


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
