"""What an evaluation leaves in a directory: `predictions.jsonl`, a line per example, and `eval_results.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfkit.data.lines import read_lines
from hfkit.errors import DataError, StorageError
from hfkit.metrics.sample import Row, Score
from hfkit.runs.results import DETAILS, read_scores
from hfkit.system.files import write_atomically

PREDICTIONS = "predictions.jsonl"


def write_rows(prefix: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes PREFIX_predictions.jsonl, one row per line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomically(Path(f"{prefix}_{PREDICTIONS}"), "".join(lines))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `write_rows` wrote; DataError naming the line that is none."""
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


def keep_rows(directory: Path, rows: Sequence[Row], scores: Mapping[str, Score]) -> None:
    """Leaves what was measured from files in `directory`, as an evaluation of a model does."""
    make_directory(directory)
    write_rows(directory / "test", rows)
    keep_scores(directory, "test", scores)


def make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}", "--output DIRECTORY") from error


def keep_scores(directory: Path, split: str, scores: Mapping[str, Score]) -> None:
    """Puts the scores of `split` into eval_results.json, as a run has it, beside those of other splits."""
    details = {**read_scores(directory), split: {name: dataclasses.asdict(score) for name, score in scores.items()}}
    write_atomically(directory / DETAILS, json.dumps({"metrics": details}, indent=1))
