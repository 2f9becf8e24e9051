"""One pass of a model over encoded examples: longest first, results in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from hfkit.data.batches import by_length
from hfkit.data.labels import IGNORED
from hfkit.system.processes import all_gather, shard
from hfkit.tasks.base import Examples, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def predict_rows(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Examples,
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """`task.reduce` of every example, shape (rows, k), or (rows, tokens, k) filled up with IGNORED, and the labels.

    Labels: shape (rows,), or (rows, labels) if each is a row of numbers; -1 without labels, or with one for each token.
    Batches hold `batch_size` examples of similar length, or as many as have enough tokens to use the device; numbers do
    not depend on it beyond rounding. Inside `distributed_inference` the processes share the batches, and each gets all
    results.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (rows, reduced, labels) of each batch
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for places in shard(by_length(rows.lengths, batch_size, device=model.device.type)):
            batch = task.collate(
                [rows.example(row, np.random.default_rng((seed, row))) for row in places.tolist()], tokenizer
            )
            task.adapt(model, batch)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            target = batch.pop("labels", torch.empty(0))
            part = task.reduce(model(**batch).to_tuple(), target, tokenizer).cpu().numpy()
            given: np.ndarray = np.full(len(places), -1)
            if len(target) and (target.dim() == 1 or target.is_floating_point()):
                given = target.cpu().numpy()
            parts.append((places, part, given))
    model.train(was_training)
    order, reduced, labels = map(joined, zip(*all_gather(parts), strict=True))
    by_row = np.argsort(order)
    return reduced[by_row], labels[by_row]


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The parts one after the other, those with fewer tokens (axis 1) filled up with IGNORED."""
    if parts[0].ndim < 3:
        return np.concatenate(parts)
    shape = sum(map(len, parts)), max(part.shape[1] for part in parts), parts[0].shape[2]
    whole = np.full(shape, IGNORED, np.float32)
    start = 0
    for part in parts:
        whole[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return whole


class EvaluationRows(TorchDataset[dict[str, Any]]):
    """Every example once, longest first; the random choices of example i depend on (seed, i) alone."""

    def __init__(self, rows: Examples, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.order = np.argsort(-rows.lengths, kind="stable")

    def __len__(self) -> int:
        return len(self.order)

    def in_row_order(self, values: np.ndarray) -> np.ndarray:
        """Values by place, brought into the order of the examples."""
        ordered = np.empty_like(values)
        ordered[self.order] = values
        return ordered

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = int(self.order[place])
        return self.rows.example(row, np.random.default_rng((self.seed, row)))
