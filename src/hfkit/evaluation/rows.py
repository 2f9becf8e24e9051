"""What a model said of every row: `predictions.jsonl`, written by an evaluation and read again to compare."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.errors import DataError
from hfkit.system.files import write_atomically

if TYPE_CHECKING:
    from hfkit.metrics.sample import Row

PREDICTIONS = "predictions.jsonl"


def write_rows(beside: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """BESIDE_predictions.jsonl, a row a line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomically(Path(f"{beside}_{PREDICTIONS}"), "".join(lines))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `write_rows` wrote; DataError naming the line that is none."""
    from hfkit.data.lines import read_lines

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
