"""The few things that processes of one run must agree on; with one process each is a plain call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hfkit.errors import HfkitError

Result = TypeVar("Result")


def on_main(function: Callable[[], Result]) -> Result:
    """The result of `function`, called on rank 0 only; its HfkitError is raised on every rank."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return function()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = function()
        except HfkitError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    result: Result = box[0]
    return result


def largest(value: int, device: Any) -> int:
    """The largest `value` of all ranks, on every rank."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def barrier() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
