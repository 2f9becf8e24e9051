"""What a model said of every row: `predictions.jsonl`, written by an evaluation and read again to compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hfkit.checkpoints import write_atomically
from hfkit.errors import DataError
from hfkit.readers import short

PREDICTIONS = "predictions.jsonl"
SHOWN = 80  # characters of a document; its digest says which it is

# What nats are divided by, beside tokens: of the text as it is, before any tokenizer.
SIZES: dict[str, Callable[[str], int]] = {
    "bytes": lambda text: len(text.encode()),
    "characters": len,
    "words": lambda text: len(text.split()),
}

Row = dict[str, Any]


def write_rows(beside: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """BESIDE_predictions.jsonl, a row a line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomically(Path(f"{beside}_{PREDICTIONS}"), "".join(lines))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `write_rows` wrote; DataError naming the line that is none."""
    from hfkit.readers import read_lines

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


def document_row(text: str) -> Row:
    """Of a document, which may be long: how it begins, which one it is, and its sizes."""
    return {"text": short(text, SHOWN), "digest": _digest(text), **_sizes(text)}


def pair_row(source: str, target: str) -> Row:
    """Of a target and its source: how they begin, which ones they are, and the target's sizes."""
    shown = {"text": short(source, SHOWN), "reference": short(target, SHOWN)}
    return {**shown, "digest": _digest(json.dumps([source, target])), **_sizes(target)}


def _digest(text: str) -> str:
    import xxhash

    return str(xxhash.xxh3_128(text.encode()).hexdigest())


def _sizes(text: str) -> dict[str, int]:
    return {unit: size(text) for unit, size in SIZES.items()}
