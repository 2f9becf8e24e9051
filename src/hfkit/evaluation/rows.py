"""What an evaluation leaves in a directory: `predictions.jsonl`, a line per example, and `eval_results.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfkit.data.lines import read_lines
from hfkit.errors import DataError, StorageError
from hfkit.evaluation.groups import Groups
from hfkit.metrics.sample import Row, Score
from hfkit.runs.results import read_scores, write_scores
from hfkit.system.files import write_atomically

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Evaluated:
    """Scores, a row for each example (none if the task keeps none), and the scores by group, if they were asked for."""

    scores: dict[str, Score]
    rows: list[Row]
    groups: Groups | None = None


def write_rows(prefix: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes PREFIX_predictions.jsonl, one row per line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomically(Path(f"{prefix}_{PREDICTIONS}"), "".join(lines))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `write_rows` wrote; DataError for a line that is not a row."""
    rows: list[Row] = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not {"prediction", "nll"} & row.keys():
            raise DataError(f"{path}: line {number} is no row of an evaluation", "hfkit evaluate MODEL -o D")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: no rows", "hfkit evaluate MODEL -o D")
    return rows


def keep(directory: Path, split: str, found: Evaluated, task: str | None = None) -> None:
    """Adds the scores of `split` to eval_results.json in `directory`, a file as in a run."""
    scores = {name: dataclasses.asdict(score) for name, score in found.scores.items()}
    write_scores(directory, {**read_scores(directory), split: scores}, task)


def make_directory(directory: Path) -> None:
    """Makes the directory for the results, and its parents; StorageError if that is not possible."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}", "--output DIRECTORY") from error
