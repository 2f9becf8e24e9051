"""One pass of a model over encoded rows: longest first, every row once, results in row order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hfkit.stream import EvaluationRows
from hfkit.tasks.base import Rows, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """The model, ready to answer, on the accelerator of this machine where it has one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return model.to(accelerator or "cpu").eval()


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes, shape (rows, classes)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares


def predict_rows(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    *,
    batch_size: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """`task.reduce` of every row, shape (rows, k), and its label: shape (rows,), -1 where there is none or one for each
    token, or (rows, labels) where it is a row of numbers.

    Batches hold rows of like length, so almost nothing is padded, and the numbers do not depend on `batch_size`
    beyond rounding.
    """
    ordered = EvaluationRows(rows, task, seed)
    labels: np.ndarray = np.full(len(rows), -1)
    reduced: np.ndarray | None = None
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            places = range(start, min(start + batch_size, len(rows)))
            batch = task.collate([ordered[place] for place in places], tokenizer)
            task.prepare(model, batch)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            target = batch.pop("labels", torch.empty(0))
            part = task.reduce(model(**batch).to_tuple(), target, tokenizer).cpu().numpy()
            if reduced is None:
                reduced = np.empty((len(rows), part.shape[1]), dtype=part.dtype)
            reduced[ordered.order[start : start + batch_size]] = part
            if len(target) and (target.dim() == 1 or target.is_floating_point()):
                given = target.cpu().numpy()
                if start == 0:
                    labels = np.empty((len(rows), *given.shape[1:]), dtype=given.dtype)
                labels[ordered.order[start : start + batch_size]] = given
    model.train(was_training)
    assert reduced is not None
    return reduced, labels
