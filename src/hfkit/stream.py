"""The training stream: which row comes at which position, and its random choices, as pure functions of the seed.

Position p of the stream is the p-th row trained on since step 0, over all epochs, ranks and restarts. Nothing depends
on how the rows were reached, so a resumed run sees exactly what an unbroken one sees.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from hfkit.tasks.base import Rows, Task

MEGABATCH = 50  # batches whose rows are ordered by length together: 97% useful tokens, and still well mixed


class TrainingStream(TorchDataset[dict[str, Any]]):
    """Rows in shuffled epochs; where lengths differ, the rows of one `batch` have similar lengths.

    `length` (positions) is a whole number of batches, `batch` the rows of one optimizer step over all devices.
    """

    def __init__(self, rows: Rows, task: Task, *, length: int, batch: int, seed: int) -> None:
        self.rows, self.task, self.length, self.batch, self.seed = rows, task, length, batch, seed
        self.by_length = len(rows) > 2 and bool(
            np.ptp(rows.lengths[:-1]) > 0
        )  # of packed blocks only the last is short
        self.size = batch * max(1, min(MEGABATCH, len(rows) // batch))  # positions in a megabatch
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()
        self._megabatch: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        random = np.random.default_rng((self.seed, 1, position))
        return self.task.example(self.rows[self.row(position)], random)

    def row(self, position: int) -> int:
        """Index of the row at `position`."""
        number, offset = divmod(position, self.size)
        if self._megabatch[0] != number:
            self._megabatch = (number, self._order(number))
        return int(self._megabatch[1][offset])

    def tokens(self, start: int, stop: int) -> int:
        """Tokens of the rows at positions `start` to `stop`, padding not counted."""
        total = 0
        for number in range(start // self.size, -(-stop // self.size)):
            first = number * self.size
            rows = self._order(number)[max(start - first, 0) : stop - first]
            total += int(self.rows.lengths[rows].sum())
        return total

    def _order(self, number: int) -> np.ndarray:
        """Rows of one megabatch, cut from the shuffled epochs; ordered by length, then whole batches shuffled."""
        positions = np.arange(number * self.size, min((number + 1) * self.size, self.length))
        epochs, places = np.divmod(positions, len(self.rows))
        rows = np.concatenate([self._epoch(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)])
        if not self.by_length:
            return rows
        random = np.random.default_rng((self.seed, 2, number))
        rows = rows[np.argsort(self.rows.lengths[rows], kind="stable")]
        # shuffled inside a batch as well, so that ranks and accumulation steps get like shares of the long rows
        batches = [random.permutation(batch) for batch in rows.reshape(-1, self.batch)]
        return np.concatenate([batches[index] for index in random.permutation(len(batches))])

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs[epoch] = np.random.default_rng((self.seed, 3, int(epoch))).permutation(len(self.rows))
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


class EvaluationRows(TorchDataset[dict[str, Any]]):
    """Every row once, longest first; the random choices of row i depend on (seed, i) alone."""

    def __init__(self, rows: Rows, task: Task, seed: int) -> None:
        self.rows, self.task, self.seed = rows, task, seed
        self.order = np.argsort(-rows.lengths, kind="stable")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = int(self.order[place])
        return self.task.example(self.rows[row], np.random.default_rng((self.seed, row)))
