"""The global batch: how it is split into devices, micro-batches and gradient accumulation steps."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from hfkit.errors import OutOfMemoryError, UsageError
from hfkit.system.console import counted, say
from hfkit.system.processes import num_processes
from hfkit.tasks import TASKS
from hfkit.training.pace import trial

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from hfkit.settings import Recipe
    from hfkit.tasks.base import Task
    from hfkit.training.stream import StreamedExamples, TrainingStream

FILLED, SPARE = 0.9, 100 << 20  # share of free memory that a pass to fit may take, bytes that it must leave


class Division(NamedTuple):
    """How the rows of a step are divided: so many in a pass, so many passes on each of so many devices."""

    rows: int
    passes: int
    devices: int

    @property
    def step_rows(self) -> int:
        return self.rows * self.passes * self.devices


def division_of(recipe: Recipe, devices: int) -> Division:
    """How the recipe divides a step on so many devices; for rows "auto" the one of the fewest passes.

    Where nobody says, a pass has no more rows than the task's own batches. Raises UsageError naming the possible
    divisions where train.global_batch_size can't be divided as asked.
    """
    settings, total = recipe.train, recipe.train.global_batch_size
    rows, passes = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    if total is None:
        assert isinstance(rows, int)
        return Division(rows, passes or 1, devices)
    possible = divisions(total, devices)
    if not possible:
        near = [f"{number * devices:,}" for number in (total // devices, total // devices + 1) if number]
        counts = ", ".join(str(count) for count in range(1, total + 1) if total % count == 0 and count <= 2 * devices)
        raise UsageError(
            f"train.global_batch_size {total:,} can't be shared equally by {devices} processes",
            f"--global-batch-size {' or '.join(near)}, or so many processes: {counts}",
        )
    asked = [one for one in possible if rows in (None, "auto", one.rows) and passes in (None, one.passes)]
    if not asked:
        given = {"--batch-size": rows, "--gradient-accumulation-steps": passes}
        wanted = " ".join(f"{flag} {value}" for flag, value in given.items() if value is not None)
        shown = ", ".join(f"{one.rows} x {one.passes}" for one in possible)
        raise UsageError(
            f"train.global_batch_size {total:,} on {counted(devices, 'process')} can't be had with {wanted}",
            f"rows in a pass x passes: {shown}",
        )
    usual = TASKS[recipe.task or ""].defaults(
        {f"model.{name}": getattr(recipe.model, name) for name in ("name", "type", "from_scratch")}
    )["train.global_batch_size"]
    return next(one for one in asked if rows == "auto" or len(asked) == 1 or one.rows <= usual)


def divisions(total: int, devices: int) -> list[Division]:
    """The ways to divide a step of `total` rows among devices, the fewest passes first; none where it can't be."""
    share = total // devices if total % devices == 0 else 0
    return [Division(rows, share // rows, devices) for rows in range(share, 0, -1) if share % rows == 0]


def num_devices(recipe: Recipe) -> int:
    """The devices that share the rows of a step: one for each process, or all GPUs where no launcher is at work."""
    import torch

    if "WORLD_SIZE" in os.environ:
        return num_processes()
    return 1 if recipe.train.extra.get("use_cpu") else max(1, torch.cuda.device_count())


def rows_that_fit(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stream: TrainingStream | StreamedExamples,
    division: Division,
    args: TrainingArguments,
) -> int:
    """The most rows of a pass for which memory is there, of those that divide the step of `division` among its devices;
    tried on the longest rows of the data, beside the optimizer's state."""
    import torch
    from accelerate.utils import find_executable_batch_size

    sizes = (found.rows for found in divisions(division.step_rows, division.devices))
    largest = next(sizes)
    if largest == 1:
        return 1

    @find_executable_batch_size(starting_batch_size=largest, reduce_batch_size_fn=lambda: next(sizes, 0))  # type: ignore[untyped-decorator]
    def fits(rows: int) -> int:
        with trial(task, model, tokenizer, args) as run_pass, within_free_memory():
            # AdamW's two moments and, of several processes, the gradients that are sent
            others = [torch.empty_like(w) for w in model.parameters() for _ in range(2 + (division.devices > 1))]
            run_pass(stream.longest(rows))
            del others
        return rows

    try:
        found: int = fits()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise OutOfMemoryError(
            "not one row fits the memory", "shorter rows (--block-size, --max-length) or a smaller model"
        ) from None
    say(f"batch: {counted(found, 'row')} fit in a pass" + (f", {largest:,} don't" if found < largest else ""))
    return found


@contextmanager
def within_free_memory() -> Iterator[None]:
    """On Linux, main memory that is not there can't be had inside; the system would rather end the process."""
    import resource

    import psutil
    import torch

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
