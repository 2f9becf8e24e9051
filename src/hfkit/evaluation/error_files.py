"""Where a model is wrong: a table of labels and answers, and the examples with the largest loss."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfkit.metrics.inputs import Inputs, are_entities
from hfkit.metrics.labels import confusion_matrix
from hfkit.metrics.sample import Row, asked
from hfkit.system.files import write_atomically

WORST = 100  # rows in the file of worst errors

SMALLEST = 1e-12  # the least probability in a loss


def write_confusion(prefix: Path, rows: Sequence[Row]) -> None:
    """PREFIX_confusion.csv: examples by label (down) and answer (across); of several labels per example, the right and
    wrong answers for each label; of entities, those with the same words by type. No file for numbers and answers in
    words."""
    if "references" in rows[0]:
        return
    if are_entities([row["reference"] for row in rows]):
        _write_table(Path(f"{prefix}_confusion.csv"), _confusion_of_entities(rows))
        return
    if "probabilities" not in rows[0]:
        return
    names = list(rows[0]["probabilities"])
    if isinstance(rows[0]["reference"], list):
        table = [["label", "true_positive", "false_positive", "false_negative", "true_negative"]]
        for name in names:
            pairs = [(name in row["prediction"], name in row["reference"]) for row in rows]
            cells = ((True, True), (True, False), (False, True), (False, False))
            table.append([name, *(str(pairs.count(cell)) for cell in cells)])
    else:
        answers, actual = ([row[side] for row in rows] for side in ("prediction", "reference"))
        _, matrix = confusion_matrix(answers, actual, labels=names)
        table = [["label \\ predicted", *names]]
        table += [[name, *map(str, counts)] for name, counts in zip(names, matrix.tolist(), strict=True)]
    _write_table(Path(f"{prefix}_confusion.csv"), table)


def _confusion_of_entities(rows: Sequence[Row]) -> list[list[str]]:
    """Entities by type in the references (down) and in the answers (across); - where one side has none there."""
    data = Inputs([row["prediction"] for row in rows], [row["reference"] for row in rows])
    counts: Counter[tuple[str, str]] = Counter()
    for predicted, actual in data.entities:
        given = {(one.start, one.end): one.kind for one in predicted}
        wanted = {(one.start, one.end): one.kind for one in actual}
        counts.update((wanted.get(place, "-"), given.get(place, "-")) for place in given.keys() | wanted.keys())
    kinds = [*sorted({kind for pair in counts for kind in pair} - {"-"}), "-"]
    table = [["type \\ predicted", *kinds]]
    return table + [[kind, *(str(counts[kind, other]) for other in kinds)] for kind in kinds]


def _write_table(path: Path, table: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    write_atomically(path, text.getvalue())


def write_worst_errors(prefix: Path, rows: Sequence[Row]) -> None:
    """PREFIX_worst_errors.jsonl: the wrong answers with the largest loss, the worst first."""
    losses = [loss_of(row) for row in rows]
    wrong = [place for place, row in enumerate(rows) if row["prediction"] not in _right(row)]
    lines = []
    for place in sorted(wrong, key=lambda place: -losses[place])[:WORST]:
        row = rows[place]
        told: Row = {"label": row.get("reference", row.get("references")), "predicted": row["prediction"]}
        if "probabilities" in row:
            given, shares = row["prediction"], row["probabilities"]
            told["probability"] = [shares[name] for name in given] if isinstance(given, list) else shares[given]
        told |= {"loss": losses[place]}
        lines.append(json.dumps({"row": place + 1, **asked(row), **told}, ensure_ascii=False) + "\n")
    write_atomically(Path(f"{prefix}_worst_errors.jsonl"), "".join(lines))


def _right(row: Row) -> list[Any]:
    """The answers that are right: of no reference, the empty one."""
    return row["references"] or [""] if "references" in row else [row["reference"]]


def loss_of(row: Row) -> float:
    """The loss of an answer: as the row has it, 1 - its F1, -ln p of its label, the mean of that over several labels,
    or the squared error."""
    if "f1" in row:
        return 1 - float(row["f1"])
    if "loss" in row:
        return float(row["loss"])
    if "probabilities" not in row:
        return float((row["prediction"] - row["reference"]) ** 2)
    shares, actual = row["probabilities"], row["reference"]
    if isinstance(actual, list):
        right = [share if name in actual else 1 - share for name, share in shares.items()]
        return float(-np.log(np.clip(right, SMALLEST, 1)).mean())
    return -math.log(max(shares[actual], SMALLEST))
