"""The global batch: how it is split into devices, micro-batches and gradient accumulation steps."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch
from accelerate.utils import find_executable_batch_size

from hfkit.errors import OutOfMemoryError, UsageError
from hfkit.runs.failure import smaller_batch
from hfkit.system.console import counted, say
from hfkit.system.processes import num_processes
from hfkit.tasks import TASKS
from hfkit.training.pace import trial

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hfkit.settings import Recipe
    from hfkit.training.prepared import Prepared
    from hfkit.training.stream import StreamedExamples, TrainingStream

FILLED, SPARE = 0.9, 100 << 20  # fraction of free memory that a micro-batch may take, bytes that it must leave


class BatchSize(NamedTuple):
    """How one optimizer step is divided: examples of a micro-batch, gradient accumulation steps, devices."""

    per_device: int
    accumulation_steps: int
    devices: int

    @property
    def total(self) -> int:
        """Examples of one optimizer step, the global batch."""
        return self.per_device * self.accumulation_steps * self.devices

    @property
    def per_process(self) -> int:
        """Examples of one forward pass in this process, which has several devices only without a launcher."""
        return self.per_device * max(1, self.devices // num_processes())


def batch_size(recipe: Recipe, devices: int) -> BatchSize:
    """The batch size of `recipe` on so many devices; for "auto" the one with the fewest gradient accumulation steps.

    Without a value from the user a micro-batch has at most the task's own batch size. Raises UsageError with the
    possible values if train.global_batch_size can't be divided as asked.
    """
    settings, total = recipe.train, recipe.train.global_batch_size
    per_device, accumulation = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    if total is None:
        assert isinstance(per_device, int)
        return BatchSize(per_device, accumulation or 1, devices)
    possible = batch_sizes(total, devices)
    if not possible:
        near = [f"{number * devices:,}" for number in (total // devices, total // devices + 1) if number]
        counts = ", ".join(str(count) for count in range(1, total + 1) if total % count == 0 and count <= 2 * devices)
        raise UsageError(
            f"train.global_batch_size {total:,} can't be divided equally among {devices} processes",
            f"--global-batch-size {' or '.join(near)}, or a number of processes that divides it: {counts}",
        )
    asked = [one for one in possible if per_device in (None, "auto", one.per_device)]
    asked = [one for one in asked if accumulation in (None, one.accumulation_steps)]
    if not asked:
        given = {"--batch-size": per_device, "--gradient-accumulation-steps": accumulation}
        wanted = " ".join(f"{flag} {value}" for flag, value in given.items() if value is not None)
        most = per_device if isinstance(per_device, int) else total
        nearest = next(one for one in possible if one.per_device <= most)
        typed = f"--batch-size {nearest.per_device} --gradient-accumulation-steps {nearest.accumulation_steps}"
        shown = ", ".join(f"{one.per_device} x {one.accumulation_steps}" for one in possible)
        raise UsageError(
            f"train.global_batch_size {total:,} on {counted(devices, 'process')} is not possible with {wanted}",
            f"{typed}; possible: {shown}",
        )
    usual = TASKS[recipe.task or ""].defaults(
        {f"model.{name}": getattr(recipe.model, name) for name in ("name", "type", "from_scratch")}
    )["train.global_batch_size"]
    return next(one for one in asked if per_device == "auto" or len(asked) == 1 or one.per_device <= usual)


def batch_sizes(total: int, devices: int) -> list[BatchSize]:
    """All ways to divide `total` examples among `devices`, the fewest gradient accumulation steps first."""
    share = total // devices if total % devices == 0 else 0
    return [BatchSize(size, share // size, devices) for size in range(share, 0, -1) if share % size == 0]


def num_devices(recipe: Recipe) -> int:
    """The devices that share a global batch: one for each process, or all GPUs without a launcher."""
    if "WORLD_SIZE" in os.environ:
        return num_processes()
    return 1 if recipe.train.extra.get("use_cpu") else max(1, torch.cuda.device_count())


def examples_that_fit(
    ready: Prepared, stream: TrainingStream | StreamedExamples, batch: BatchSize, args: TrainingArguments
) -> int:
    """The largest micro-batch that fits the memory, of those that divide the global batch of `batch`.

    It is tried on the longest examples of the data, beside the optimizer's state.
    """
    possible = [found.per_device for found in batch_sizes(batch.total, batch.devices)]
    sizes = iter(possible)
    largest = next(sizes)
    if largest == 1:
        return 1

    @find_executable_batch_size(starting_batch_size=largest, reduce_batch_size_fn=lambda: next(sizes, 0))  # type: ignore[untyped-decorator]
    def fits(size: int) -> int:
        with trial(ready, args) as run_micro_batch, within_free_memory():
            # AdamW's two moments, the gradients of earlier micro-batches and, of several processes, those that are sent
            copies = 2 + (size < possible[0]) + (batch.devices > 1)
            trained = [weight for weight in ready.model.parameters() if weight.requires_grad]
            others = [torch.empty_like(weight) for weight in trained for _ in range(copies)]
            run_micro_batch(stream.longest(size))
            del others
        return size

    try:
        found: int = fits()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise OutOfMemoryError(
            "not one example fits in memory", smaller_batch(ready.recipe.train, ready.recipe.data)
        ) from None
    refused = f", {largest:,} don't" if found < largest else ""
    say(f"batch: {counted(found, 'example')} fit in a micro-batch{refused}")
    return found


@contextmanager
def within_free_memory() -> Iterator[None]:
    """Inside, an allocation beyond a share of the free memory fails, of the GPU or of Linux.

    Beyond all of its main memory Linux would end the process. On a GPU, later steps need some room for the holes
    between tensors of other sizes.
    """
    import resource  # Unix only

    if torch.cuda.is_available():
        reserve = int((1 - FILLED) * torch.cuda.mem_get_info()[0])
        held = torch.empty(reserve, dtype=torch.uint8, device="cuda")
        try:
            yield
        finally:
            del held
        return
    if sys.platform != "linux" or torch.accelerator.is_available():
        yield
        return

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    used = psutil.Process().memory_info().data
    room = free if soft == resource.RLIM_INFINITY else min(free, soft - used)
    resource.setrlimit(resource.RLIMIT_DATA, (used + max(int(FILLED * room) - SPARE, 0), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
