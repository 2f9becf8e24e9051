"""Where a classifier is wrong: a table of labels and answers, and the rows with the worst of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfkit.data.labels import MULTIPLE, REGRESSION
from hfkit.metrics.labels import confusion_matrix
from hfkit.system.files import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

    from hfkit.metrics.sample import Row
    from hfkit.tasks.windows import EncodedTexts

WORST = 100  # rows in the file of worst errors

SMALLEST = 1e-12  # probability that a loss is made of


def write_confusion(beside: Path, answers: np.ndarray, rows: EncodedTexts, threshold: float) -> None:
    """BESIDE_confusion.csv: rows by label (down) and answer (across), or of several labels right and wrong ones of
    each; nothing for numbers."""
    names, actual = rows.names, _actual(rows)
    if rows.kind == REGRESSION:
        return
    if rows.kind == MULTIPLE:
        table = [["label", "true_positive", "false_positive", "false_negative", "true_negative"]]
        for name, given, wanted in zip(names, (answers >= threshold).T, (actual == 1).T, strict=True):
            cells = (given & wanted, given & ~wanted, ~given & wanted, ~given & ~wanted)
            table.append([name, *(str(int(cell.sum())) for cell in cells)])
    else:
        _, matrix = confusion_matrix(answers.argmax(axis=1).tolist(), actual.tolist(), labels=range(len(names)))
        table = [["label \\ predicted", *names]]
        table += [[name, *map(str, counts)] for name, counts in zip(names, matrix.tolist(), strict=True)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    write_atomically(Path(f"{beside}_confusion.csv"), text.getvalue())


def write_worst_errors(
    beside: Path, dataset: Dataset, answers: np.ndarray, rows: EncodedTexts, threshold: float
) -> None:
    """BESIDE_worst_errors.jsonl: the wrong answers with the largest loss, the worst first."""
    actual = _actual(rows)
    if rows.kind == REGRESSION:
        losses, wrong = (answers - actual) ** 2, answers != actual
    elif rows.kind == MULTIPLE:
        right = np.where(actual == 1, answers, 1 - answers)
        losses = -np.log(np.clip(right, SMALLEST, 1)).mean(axis=1)
        wrong = ((answers >= threshold) != actual).any(axis=1)
    else:
        losses = -np.log(np.clip(answers[np.arange(len(actual)), actual], SMALLEST, 1))
        wrong = answers.argmax(axis=1) != actual
    lines = []
    for row in [int(row) for row in np.argsort(-losses, kind="stable") if wrong[row]][:WORST]:
        texts = {name: dataset[row][name] for name in ("text", "text_pair") if name in dataset.column_names}
        told = _told(rows, actual[row], answers[row], threshold)
        lines.append(json.dumps({"row": row + 1, **texts, **told, "loss": float(losses[row])}, ensure_ascii=False))
    write_atomically(Path(f"{beside}_worst_errors.jsonl"), "".join(f"{line}\n" for line in lines))


def prediction_rows(dataset: Dataset, answers: np.ndarray, rows: EncodedTexts, threshold: float) -> Iterator[Row]:
    """Text, label, answer and all probabilities of each row, as `hfkit.results` has them."""
    texts = dataset.select_columns([name for name in ("text", "text_pair") if name in dataset.column_names])
    for text, actual, answer in zip(texts, _actual(rows), answers, strict=True):
        told = _told(rows, actual, answer, threshold)
        row = {**text, "reference": told["label"], "prediction": told["predicted"]}
        if rows.kind != REGRESSION:
            row["probabilities"] = {
                name: float(f"{share:.9g}") for name, share in zip(rows.names, answer.tolist(), strict=True)
            }
        yield row


def _actual(rows: EncodedTexts) -> np.ndarray:
    """The label of each text as its id, its row of 0 and 1 or its number."""
    assert rows.labels is not None
    return np.array([rows.labels[start] for start in rows.starts])


def _told(rows: EncodedTexts, actual: Any, answer: Any, threshold: float) -> dict[str, Any]:
    """Label, answer, and the probability of what was answered."""
    if rows.kind == REGRESSION:
        return {"label": float(actual), "predicted": float(answer)}
    if rows.kind == MULTIPLE:
        given = answer >= threshold
        shares = _chosen(answer.tolist(), given)
        return {"label": _chosen(rows.names, actual), "predicted": _chosen(rows.names, given), "probability": shares}
    best = int(answer.argmax())
    return {"label": rows.names[actual], "predicted": rows.names[best], "probability": float(answer[best])}


def _chosen(values: Sequence[Any], flags: Any) -> list[Any]:
    return [value for value, flag in zip(values, flags, strict=True) if flag]
