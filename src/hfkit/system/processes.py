"""What the processes of one run agree on and divide between them; for one process alone each is a plain call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from hfkit.errors import HfkitError, LostProcessError, UsageError

Item = TypeVar("Item")

Result = TypeVar("Result")

# What gloo, NCCL and torch's store say when another process is gone, or silent for too long.
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

EXPECTED = "HFKIT_PROCESSES"  # in the environment of ranks that `hfkit --num-processes` has started: how many they are

_divides = False


def num_processes() -> int:
    """The processes that a launcher has started for this command, on all machines; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def has_parent() -> bool:
    """Whether this is a rank that `hfkit --num-processes` has started, after it had prepared what ranks read."""
    return EXPECTED in os.environ


def meet(seconds: float) -> None:
    """Connects the processes of a run on CPU: one counts as lost when it has been silent for so many `seconds`.

    The Trainer connects them as well, and leaves the time-out out unless they have GPUs.
    """
    import torch

    if num_processes() > 1 and not torch.accelerator.is_available():
        from accelerate import PartialState

        PartialState(cpu=True, timeout=timedelta(seconds=seconds))


@contextmanager
def together(safe: Callable[[], str] = str) -> Iterator[None]:
    """Inside, passes of a model are divided between the processes that a launcher started: see `share`.

    Raises LostProcessError where another of them has ended; `safe` says what is kept then.
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
    """Those of `items` that this process takes on, every n-th inside `together`; all of them elsewhere."""
    if not _divides:
        return items
    import torch.distributed as dist

    return items[dist.get_rank() :: dist.get_world_size()]


def gathered(found: list[Item]) -> list[Item]:
    """What all processes have found in their shares, rank by rank, on every rank."""
    if not _divides:
        return found
    import torch.distributed as dist

    lists: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lists, found)
    return [item for one in lists for item in one]


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


def require_same(facts: Mapping[str, Any]) -> None:
    """UsageError, on every rank, naming each of `facts` that is not the same on all of them."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
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


def is_lost(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes means that another process of this run is gone or can't be reached."""
    while error is not None:
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST):
            return True
        error = error.__cause__ or error.__context__
    return False


def lost(error: BaseException, safe: str = "") -> LostProcessError:
    """What a person reads about an error that `is_lost`; `safe`: what is kept."""
    rank, world = os.environ.get("RANK", "0"), num_processes()
    message = f"rank {rank} has lost another of the {world} processes: {_in_short(error)}"
    return LostProcessError(
        f"{message}; {safe}" if safe else message,
        "see why that one ended, then " + ("--resume auto" if safe else "start again"),
    )


def _in_short(error: BaseException | None) -> str:
    """The library's words for it, without the place in its sources."""
    signs = []
    while error is not None:
        signs += [sign for sign in LOST if sign in str(error)]
        error = error.__cause__ or error.__context__
    return signs[0].lower()
