"""Several systems side by side: runs, models, kept evaluations or files of predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfkit.errors import DataError, UsageError
from hfkit.evaluation.compare import Difference, compare, most_different
from hfkit.evaluation.evaluate import evaluate
from hfkit.evaluation.files import Files, require_files_alone
from hfkit.evaluation.row_metrics import default_metrics
from hfkit.evaluation.rows import PREDICTIONS, read_rows
from hfkit.evaluation.tables import rows_of_files
from hfkit.metrics.sample import Row
from hfkit.runs.results import read_task
from hfkit.settings import Recipe
from hfkit.system.console import say, warn


class Comparison(NamedTuple):
    """Every system against the first one, metric by metric, and the rows where the first two differ most."""

    differences: list[Difference]
    rows: list[dict[str, Any]]


def compare_systems(systems: Sequence[str], recipe_of: Callable[[str | None], Recipe], files: Files) -> Comparison:
    """Compares the systems on the same examples, each with the first.

    With files.references the systems are files of predictions; with recipe.data.test runs or models, which are
    evaluated; else folders or files that evaluations have left. `recipe_of`: the recipe to evaluate a system with, or
    that of the comparison for None. Raises DataError if they were measured on different examples.
    """
    if len(systems) < 2 or len(set(systems)) < len(systems):
        raise UsageError(f"{len(set(systems))} system to compare", "hfkit compare A B")
    recipe = recipe_of(None)
    if not files.references and (idle := next((name for name, value in files.typed.items() if value), None)):
        raise UsageError(f"{idle} has no effect without --references", "leave it out")
    names: Sequence[str] = recipe.evaluation.metrics
    if files.references:
        require_files_alone(recipe, "--references")
        read = {name: rows_of_files(Path(name), files.references, **files.columns, metrics=names) for name in systems}
        rows = {name: one.rows for name, one in read.items()}
        names = names or default_metrics(*read[systems[0]])
    elif recipe.data.test:
        rows = {name: _evaluated(name, recipe_of(name)) for name in systems}
    else:
        require_files_alone(recipe, "kept predictions")
        rows = _kept(systems)
    wanted = recipe.evaluation
    differences = compare(rows, names, interval=wanted.interval, seed=wanted.seed)
    return Comparison(differences, most_different(rows))


def _evaluated(name: str, recipe: Recipe) -> list[Row]:
    say(f"{name}:")
    rows = evaluate(recipe).rows
    if not rows:
        raise UsageError(f"{name}: its task keeps no predictions of single rows", "--pseudo-perplexity")
    return rows


def _kept(systems: Sequence[str]) -> dict[str, list[Row]]:
    """The rows that evaluations left: of the test data if all systems have them, else of the validation data."""
    if all(Path(name).is_file() for name in systems):
        return {name: read_rows(Path(name)) for name in systems}
    for split in ("test", "validation"):
        files = {name: Path(name) / f"{split}_{PREDICTIONS}" for name in systems}
        if all(file.is_file() for file in files.values()):
            say(f"data: what all of them kept of their {split} data")
            _warn_of_tasks(systems)
            return {name: read_rows(file) for name, file in files.items()}
    raise DataError(
        f"{' and '.join(systems)} kept no predictions of one split of the data",
        "--data FILE to measure them now, or --references FILE for files of predictions",
    )


def _warn_of_tasks(systems: Sequence[str]) -> None:
    """A warning if the systems were evaluated as different tasks; older runs do not say."""
    tasks = {name: task for name in systems if (task := read_task(name)) is not None}
    if len(set(tasks.values())) > 1:
        told = ", ".join(f"{name} as {task}" for name, task in tasks.items())
        warn(f"different tasks can measure different things by one name: {told}")
