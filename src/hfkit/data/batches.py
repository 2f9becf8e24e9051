"""Batches of examples of like length, for models that only answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

TOKENS = {"cpu": 4096, "other": 32_768}  # of a batch: fewer leave a device idle, more fall out of a CPU's caches


def by_length(
    lengths: npt.ArrayLike,
    size: int | None = None,
    *,
    device: str = "cpu",
    most: Callable[[int], int] | None = None,
) -> list[npt.NDArray[np.int64]]:
    """The places of examples of these `lengths` in batches, longest first.

    A batch has `size` examples; None: as many as have TOKENS on a `device` of this type, padding included. `most`: how
    many examples of a length a batch may have.
    """
    import numpy as np

    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    tokens = TOKENS.get(device, TOKENS["other"])
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        number = size or max(1, tokens // longest)
        if most is not None:
            number = max(1, min(number, most(longest)))
        batches.append(order[start : start + number])
        start += number
    return batches
