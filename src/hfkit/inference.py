"""One pass of a model over encoded rows: longest first, every row once, results in row order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hfkit.distributed import gathered, share
from hfkit.stream import EvaluationRows
from hfkit.tasks.base import Rows, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """The model, ready to answer, on the accelerator of this machine where it has one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return model.to(accelerator or "cpu").eval()


def gpu_has_bfloat16() -> bool:
    """Whether there is a GPU here that computes in bfloat16, as those from 2020 on do; older ones emulate it."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


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
    beyond rounding. Inside `distributed.together` the same batches are divided between the processes, and each of them
    gets the results of all.
    """
    ordered = EvaluationRows(rows, task, seed)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (rows, reduced, labels) of each batch
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in share(range(0, len(rows), batch_size)):
            places = range(start, min(start + batch_size, len(rows)))
            batch = task.collate([ordered[place] for place in places], tokenizer)
            task.prepare(model, batch)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            target = batch.pop("labels", torch.empty(0))
            part = task.reduce(model(**batch).to_tuple(), target, tokenizer).cpu().numpy()
            given: np.ndarray = np.full(len(places), -1)
            if len(target) and (target.dim() == 1 or target.is_floating_point()):
                given = target.cpu().numpy()
            parts.append((ordered.order[start : start + batch_size], part, given))
    model.train(was_training)
    order, reduced, labels = map(np.concatenate, zip(*gathered(parts), strict=True))
    by_row = np.argsort(order)
    return reduced[by_row], labels[by_row]
