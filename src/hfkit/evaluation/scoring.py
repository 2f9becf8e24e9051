"""The final scores of a model on one split, and the files about its examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.evaluation.error_files import write_confusion, write_worst_errors
from hfkit.evaluation.inference import predict_rows
from hfkit.evaluation.rows import write_rows
from hfkit.metrics.sample import Measured, Row

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Score
    from hfkit.settings import Recipe
    from hfkit.tasks.base import Examples, Task


def measure_split(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    recipe: Recipe,
    rows: Examples | None = None,
) -> Measured:
    """The final scores of `model` on `dataset`, and what to keep about its examples; `rows`: the dataset, encoded."""
    measured = task.measure(model, tokenizer, dataset, recipe)
    if measured is not None:
        return measured
    if rows is None:
        rows = task.encode(dataset, tokenizer, model, recipe)
    wanted = recipe.evaluation
    reduced, labels = predict_rows(task, model, tokenizer, rows, batch_size=wanted.batch_size, seed=wanted.seed)
    return task.results(dataset, reduced, labels, rows, wanted)


def score_split(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    recipe: Recipe,
    output_prefix: Path | None = None,
    rows: Examples | None = None,
) -> dict[str, Score]:
    """As `measure_split`, the scores alone. The names of files about the examples begin with `output_prefix`."""
    measured = measure_split(task, model, tokenizer, dataset, recipe, rows)
    if output_prefix is not None:
        write_files(output_prefix, list(measured.rows))
    return measured.scores


def write_files(prefix: Path, rows: Sequence[Row]) -> None:
    """Writes PREFIX_predictions.jsonl and, for answers, a confusion table and the worst errors; no rows: no files."""
    if rows:
        write_rows(prefix, rows)
    if rows and "prediction" in rows[0]:
        write_confusion(prefix, rows)
        write_worst_errors(prefix, rows)
