"""What the processes of one run agree on and divide among them. In a single process each function is a plain call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from hfkit.errors import HfkitError, LostProcessError, UsageError, causes

Item = TypeVar("Item")

Result = TypeVar("Result")

# What gloo, NCCL and the store of torch say if another process is gone, or silent for too long.
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Watchdog caught collective operation timeout",
    "NCCL communicator was aborted",
    "remote process exited",
    "Failed to recv, got 0 bytes",
    "failed to connect",
)

EXPECTED = "HFKIT_PROCESSES"  # environment variable of ranks that `hfkit --num-processes` started: their number

_divides = False


def num_processes() -> int:
    """The number of processes that a launcher started for this command, on all machines; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def has_parent() -> bool:
    """Whether this is a rank of `hfkit --num-processes`, whose parent has prepared what ranks read."""
    return EXPECTED in os.environ


def meet(seconds: float) -> None:
    """Joins the process group of a run on CPU; a process that is silent for `seconds` counts as lost.

    The Trainer would join it, too, but passes the time-out on only with GPUs.
    """
    import torch

    if num_processes() > 1 and not torch.accelerator.is_available():
        from accelerate import PartialState

        PartialState(cpu=True, timeout=timedelta(seconds=seconds))


@contextmanager
def together(safe: Callable[[], str] = str) -> Iterator[None]:
    """Distributed inference: inside, the processes that a launcher started each take their `share`.

    Raises LostProcessError if another process has ended; `safe` says what is saved then.
    """
    global _divides
    if num_processes() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    try:
        PartialState(cpu=not torch.accelerator.is_available())
        _divides = True
        yield
    except RuntimeError as error:
        if is_lost(error):
            raise lost(error, safe()) from error
        raise
    finally:
        _divides = False


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Every n-th of `items` for each of n processes inside `together`; elsewhere all of them."""
    if not _divides:
        return items
    import torch.distributed as dist

    return items[dist.get_rank() :: dist.get_world_size()]


def gathered(found: list[Item]) -> list[Item]:
    """What all processes found in their shares, in the order of the ranks, on every rank."""
    if not _divides:
        return found
    import torch.distributed as dist

    lists: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lists, found)
    return [item for one in lists for item in one]


def on_main(function: Callable[[], Result]) -> Result:
    """The result of `function`, which only rank 0 calls; its HfkitError is raised on every rank."""
    if not _is_connected():
        return function()
    import torch.distributed as dist

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


def require_same(facts: Mapping[str, Any]) -> None:
    """UsageError on every rank if some of `facts` differ between ranks; it names each of them."""
    if not _is_connected():
        return
    import torch.distributed as dist

    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, dict(facts))
    first = everywhere[0]
    problems = []
    for name in {name: None for others in everywhere for name in others}:
        other = next((rank for rank, others in enumerate(everywhere) if others.get(name) != first.get(name)), None)
        if other is not None:
            values = f"{first.get(name)} on rank 0, {everywhere[other].get(name)} on rank {other}"
            problems.append((f"the processes of this run differ in {name}: {values}", "give all machines the same"))
    if problems:
        raise UsageError.of(problems)


def largest(value: int, device: Any) -> int:
    """The largest `value` of all ranks, on every rank."""
    if not _is_connected():
        return value
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def barrier() -> None:
    """Waits for all processes of the run."""
    if _is_connected():
        import torch.distributed as dist

        dist.barrier()


def _is_connected() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def is_lost(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes means that another process of this run is gone or can't be reached."""
    return any(isinstance(one, RuntimeError) and _signs(one) for one in causes(error))


def lost(error: BaseException, safe: str = "") -> LostProcessError:
    """The message for an error that `is_lost`; `safe`: what is saved."""
    rank, world = os.environ.get("RANK", "0"), num_processes()
    reason = next(sign for one in causes(error) for sign in _signs(one)).lower()
    message = f"rank {rank} has lost another of the {world} processes: {reason}"
    return LostProcessError(
        f"{message}; {safe}" if safe else message,
        "see why that one ended, then " + ("--resume auto" if safe else "start again"),
    )


def _signs(error: BaseException) -> list[str]:
    return [sign for sign in LOST if sign in str(error)]
