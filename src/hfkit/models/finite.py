"""Whether weights, gradients and the like are numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def all_finite(tensors: Iterable[Any]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    floats = [tensor for tensor in tensors if torch.is_tensor(tensor) and tensor.is_floating_point()]
    # A sum shows every one of them, at a tenth of the cost; where it is not finite it may have overflowed.
    sums = [tensor.sum(dtype=torch.float32).to(floats[0].device) for tensor in floats]
    return not sums or bool(torch.stack(sums).isfinite().all()) or all(bool(t.isfinite().all()) for t in floats)


def not_finite(model: torch.nn.Module) -> list[str]:
    """The names of the model's tensors that hold a NaN or an infinity."""
    tensors = model.state_dict()
    return [] if all_finite(tensors.values()) else [name for name, one in tensors.items() if not all_finite([one])]
