"""Scores of files: predictions against references, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from hfkit.data.readers import is_table
from hfkit.errors import UsageError
from hfkit.evaluation.groups import by_group
from hfkit.evaluation.row_metrics import default_metrics, score
from hfkit.evaluation.rows import Evaluated, keep, make_directory, write_rows
from hfkit.evaluation.tables import rows_of_files
from hfkit.metrics.table import METRICS
from hfkit.settings import SETTINGS, Evaluation, Recipe


@dataclass(frozen=True)
class Files:
    """Files to score in place of a model; false if there are none.

    `column` holds for both sides where `prediction_column` or `reference_column` names none; None: a usual name.
    """

    predictions: Path | None = None
    references: Sequence[Path] = ()
    column: str | None = None
    prediction_column: str | None = None
    reference_column: str | None = None
    allow_download: bool = False  # of the Hub's metrics, whose code is run

    def __bool__(self) -> bool:
        return self.predictions is not None or bool(self.references)

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns of both sides, as `rows_of_files` takes them."""
        return {
            "prediction_column": self.prediction_column or self.column,
            "reference_column": self.reference_column or self.column,
        }

    @property
    def typed(self) -> dict[str, str | None]:
        """The columns by the options that name them."""
        return {
            "--column": self.column,
            "--prediction-column": self.prediction_column,
            "--reference-column": self.reference_column,
        }

    def require_sense(self, recipe: Recipe) -> None:
        """UsageError for options that do not go together, or with the settings in `recipe`."""
        if self:
            metrics = [METRICS[name].needs for name in recipe.evaluation.metrics if name in METRICS]
            paired = bool(self.references) or is_table(str(self.predictions)) or "text" in metrics
            if self.predictions is None or not paired:
                raise UsageError("predictions and references go together", "--predictions FILE --references FILE")
            require_files_alone(recipe)
            return
        for flag, value in (self.typed | {"--allow-download": self.allow_download}).items():
            if value:
                raise UsageError(f"{flag} has no effect without --predictions", "leave it out")
        if recipe.model.name is None:
            raise UsageError("there is nothing to evaluate", "hfkit evaluate RUN, or --predictions F --references G")


def evaluate_files(files: Files, wanted: Evaluation, *, by: str | None = None, output: Path | None = None) -> Evaluated:
    """The metrics of files.predictions against files.references.

    `by`: a column of either whose groups are scored, too. `output`: a directory for the scores and the rows.
    """
    assert files.predictions is not None
    rows, of = rows_of_files(files.predictions, files.references, **files.columns, by=by, metrics=wanted.metrics)
    groups = [row.pop("group") for row in rows] if by is not None else []
    metrics = wanted.metrics or list(default_metrics(rows, of))
    of_hub = _of_hub(metrics, files.allow_download)
    if of_hub and by is not None:
        raise UsageError(f"--by: '{of_hub[0]}' of the Hub is computed over all rows only", "leave one of them out")
    metrics = [name for name in metrics if name not in of_hub]
    options: dict[str, Any] = {"interval": wanted.interval, "seed": wanted.seed}
    scores = score(rows, metrics, **options) if metrics else {}
    for name in of_hub:
        from hfkit.metrics.evaluate_module import hub_scores

        scores |= hub_scores(name, rows)
    found = Evaluated(scores, rows)
    if output is not None:
        make_directory(output)
        write_rows(output / "test", rows)
        keep(output, "test", found)
    return found if by is None else replace(found, groups=by_group(rows, groups, metrics, **options))


def _of_hub(metrics: Sequence[str], allow_download: bool) -> list[str]:
    """The metrics that only the Hub has; UsageError if downloads are allowed without need."""
    of_hub = [name for name in metrics if allow_download and name not in METRICS]
    if allow_download and not of_hub:
        raise UsageError("--allow-download has no effect: hfkit has these metrics itself", "leave it out")
    return of_hub


def require_files_alone(recipe: Recipe, files: str = "--predictions/--references") -> None:
    """UsageError for each setting that does not apply to scoring `files`, by the option that was typed."""
    problems = []
    for key in changed(recipe):
        if key in ("evaluation.metrics", "evaluation.interval", "evaluation.seed"):
            continue
        has_columns = key.startswith("data.columns.") and files.endswith("references")
        fix = "use --prediction-column, --reference-column" if has_columns else "leave it out"
        problems.append((f"{option(key)} does not apply to {files}", fix))
    if problems:
        raise UsageError.of(problems)


def changed(recipe: Recipe) -> list[str]:
    """The keys of the settings that differ from their defaults."""
    usual = Recipe()
    return [key for key in SETTINGS if attrgetter(key)(recipe) != attrgetter(key)(usual)]


def option(key: str) -> str:
    """The setting as it is typed: its option, or --set KEY."""
    if key == "data.test":
        return "--data"
    flags = SETTINGS[key].metadata["flags"]
    return str(flags[0].partition("/")[0]) if flags else f"--set {key}"
