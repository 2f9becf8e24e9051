"""The training stream: which row comes at which position, and its random choices, as pure functions of the seed.

Position p of the stream is the p-th row trained on since step 0, over all epochs, ranks and restarts. Nothing depends
on how the rows were reached, so a resumed run sees exactly what an unbroken one sees.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from datasets import IterableDataset as Source
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, get_worker_info

from hfkit.errors import DataError
from hfkit.tasks.base import Examples

GROUP_ROWS = 1000  # rows of a streamed source that are encoded together

MEGABATCH = 50  # batches whose rows are ordered by length together: 97% useful tokens, and still well mixed


class TrainingStream(TorchDataset[dict[str, Any]]):
    """Examples in shuffled epochs; where lengths differ, the rows of one `batch` have similar lengths.

    `global_batch_size`: the rows of one optimizer step over all devices; a batch above is one of these.
    """

    def __init__(self, rows: Examples, *, steps: int, global_batch_size: int, seed: int) -> None:
        self.rows, self.global_batch_size, self.seed = rows, global_batch_size, seed
        self.length, self.num_rows, self.mean_length = steps * global_batch_size, len(rows), float(rows.lengths.mean())
        self.by_length = len(rows) > 2 and bool(
            np.ptp(rows.lengths[:-1]) > 0
        )  # of packed blocks only the last is short
        batches = max(1, min(MEGABATCH, len(rows) // global_batch_size))
        self.size = global_batch_size * batches  # positions in a megabatch
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()
        self._megabatch: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        random = np.random.default_rng((self.seed, 1, position))
        return self.rows.example(self.row(position), random)

    def sample(self, count: int) -> list[dict[str, Any]]:
        """The first `count` examples."""
        return [self[position] for position in range(min(count, self.length))]

    def longest(self, count: int) -> list[dict[str, Any]]:
        """Examples of the `count` longest rows; in a smaller data set they come again."""
        rows = np.resize(np.argsort(-self.rows.lengths, kind="stable"), count)
        return [self.rows.example(int(row), np.random.default_rng((self.seed, 1, 0))) for row in rows]

    def spread(self, micro_batch_size: int, count: int) -> tuple[list[list[dict[str, Any]]], float]:
        """At most `count` batches of one device that stand for all of the first megabatch, the longest last, and how
        much longer, padding counted, all of them are in the mean."""
        widths = self.rows.lengths[self._order(0)].reshape(-1, micro_batch_size).max(1)
        count = min(count, len(widths)) if self.by_length else 1
        places = ((np.arange(count) + 0.5) / count * len(widths)).astype(int)
        chosen = np.argsort(widths, kind="stable")[places]
        batches = [
            [self[batch * micro_batch_size + row] for row in range(micro_batch_size)] for batch in chosen.tolist()
        ]
        return batches, float(widths.mean() / widths[chosen].mean())

    def padding(self) -> float:
        """Share of padding in the first megabatch, where each step's rows are as long as the longest of them."""
        lengths = self.rows.lengths[self._order(0)].reshape(-1, self.global_batch_size)
        return 1 - float(lengths.sum() / (lengths.max(1).sum() * self.global_batch_size))

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
        """Examples of one megabatch, cut from the shuffled epochs; ordered by length, then whole batches shuffled."""
        positions = np.arange(number * self.size, min((number + 1) * self.size, self.length))
        epochs, places = np.divmod(positions, len(self.rows))
        rows = np.concatenate([self._epoch(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)])
        if not self.by_length:
            return rows
        random = np.random.default_rng((self.seed, 2, number))
        rows = rows[np.argsort(self.rows.lengths[rows], kind="stable")]
        # shuffled inside a batch as well, so that ranks and accumulation steps get like shares of the long rows
        batches = [random.permutation(batch) for batch in rows.reshape(-1, self.global_batch_size)]
        return np.concatenate([batches[index] for index in random.permutation(len(batches))])

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs[epoch] = np.random.default_rng((self.seed, 3, int(epoch))).permutation(len(self.rows))
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


class StreamedExamples(IterableDataset[dict[str, Any]]):
    """Examples of a source that is read while training: epoch after epoch, shuffled through a buffer.

    Rows are encoded in groups, each by `encode` as a small data set of its own, and a group's examples are shuffled.
    With workers each makes the whole stream and hands out its turns, so that any number of them gives one order.
    """

    def __init__(
        self,
        source: Source,
        encode: Callable[[Dataset], Examples],
        *,
        steps: int,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        buffer: int,
    ) -> None:
        self.source, self.encode = source.shuffle(seed=seed, buffer_size=buffer), encode
        self.global_batch_size, self.micro_batch_size, self.seed = global_batch_size, micro_batch_size, seed
        self.length = steps * global_batch_size
        self.num_rows = self.mean_length = None  # known only after an epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for position, (rows, index) in enumerate(itertools.islice(self._endless(), self.length)):
            if position // self.micro_batch_size % workers == own:
                yield rows.example(index, np.random.default_rng((self.seed, 1, position)))

    def sample(self, count: int) -> list[dict[str, Any]]:
        """The first `count` examples."""
        return list(itertools.islice(self, count))

    def longest(self, count: int) -> list[dict[str, Any]]:
        """The first `count` examples: which are the longest of a stream is not known."""
        return self.sample(count)

    def spread(self, micro_batch_size: int, count: int) -> tuple[list[list[dict[str, Any]]], float]:
        """The first batch of one device, as all are: rows of a stream are not ordered by length."""
        return [self.sample(micro_batch_size)], 1.0

    def _endless(self) -> Iterator[tuple[Examples, int]]:
        for number in itertools.count():
            self.source.set_epoch(number)  # shuffled anew in each pass
            group = -1
            for group, rows in enumerate(self.source.iter(batch_size=GROUP_ROWS)):
                encoded = self.encode(Dataset.from_dict(rows))
                order = np.random.default_rng((self.seed, 4, number, group)).permutation(len(encoded))
                yield from ((encoded, int(index)) for index in order)
            if group < 0:
                raise DataError("the streamed source has no rows", "give text with --data")

    def __len__(self) -> int:
        return self.length

    def tokens(self, start: int, stop: int) -> int:
        """0: how many tokens a stream holds is not known."""
        return 0

    def padding(self) -> float:
        """0: blocks are full, but for the last of each group."""
        return 0.0
