"""How long a step takes on this machine, and how many steps a run has."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hfkit.errors import UsageError
from hfkit.system.console import say
from hfkit.system.state import kept_random_state

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hfkit.settings import Train
    from hfkit.tasks.base import Examples
    from hfkit.training.prepared import Prepared
    from hfkit.training.stream import StreamedExamples, TrainingStream

STEP_OVERHEAD = 0.003  # seconds of a step beside its passes and the optimizer, measured on small models

TIMED_BATCHES = 5  # of the lengths that batches have, to tell what a step takes

PATIENCE = 5.0  # seconds that these may take; beyond, two rows must tell

MEASURED_SHARE = 0.85  # of train.max_time that is planned for steps; the rest is for evaluations and saves


def number_of_steps(
    settings: Train, rows: Examples | None, global_batch_size: int, step_seconds: Callable[[], float]
) -> int:
    """Optimizer steps of the run, by the budget that is given: steps, time (then measured), tokens or epochs."""
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.max_time is not None:
        steps = max(1, int(MEASURED_SHARE * seconds_of(settings.max_time) / step_seconds()))
        say(f"{settings.max_time} is time for about {steps:,} steps of {step_seconds():.3g} s, evaluations included")
        return steps
    if rows is None:
        raise UsageError("the length of a stream is not known", "--max-steps N, or --max-time 30m")
    if settings.max_tokens is not None:
        return math.ceil(settings.max_tokens / (float(rows.lengths.mean()) * global_batch_size))
    return math.ceil(len(rows) * (settings.num_train_epochs or 1.0) / global_batch_size)


def seconds_of(time_given: str) -> float:
    """Seconds of a time such as 90s, 30m or 1h30m."""
    parts = re.findall(r"([0-9.]+)([hms])", time_given)
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


class Pace(NamedTuple):
    """What training takes on one device, in seconds: a row's forward and backward pass in the mean, and an update."""

    row: float
    update: float

    def step(self, micro_batch_size: int) -> float:
        """Seconds of an optimizer step with so many rows on each device."""
        return micro_batch_size * self.row + self.update + STEP_OVERHEAD


def pace(ready: Prepared, stream: TrainingStream | StreamedExamples, args: TrainingArguments) -> Pace:
    """The pace of this machine, from timed micro-batches of all lengths in the stream.

    Random states and weights stay as they are.
    """
    batches, longer = stream.spread(args.train_batch_size, TIMED_BATCHES)
    with trial(ready, args) as run_micro_batch:

        def seconds(batch: Sequence[dict[str, Any]]) -> float:
            start = time.monotonic()
            run_micro_batch(batch)
            return time.monotonic() - start

        two = batches[-1][:2]
        seconds(two)  # allocates the gradients
        mean_pass = seconds(two) * statistics.mean(map(padded_tokens, batches)) / padded_tokens(two)
        expected = mean_pass * len(batches)
        if expected < PATIENCE:
            seconds(batches[-1])  # the longest: memory that is touched for the first time is slow
            rounds = 1 if expected > 1 else 3
            mean_pass = statistics.mean(statistics.median(seconds(b) for _ in range(rounds)) for b in batches)
        num_trained = sum(weight.numel() for weight in ready.model.parameters() if weight.grad is not None)
    return Pace(mean_pass * longer / args.train_batch_size, update_seconds(num_trained, args.device))


def padded_tokens(batch: Sequence[dict[str, Any]]) -> int:
    return len(batch) * max(len(example["input_ids"]) for example in batch)


@contextmanager
def trial(ready: Prepared, args: TrainingArguments) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """A function that runs a forward and a backward pass over examples as training does.

    Afterwards gradients are gone, and random states and weights are as they were.
    """
    model = ready.model
    device, half = args.device, torch.float16 if args.fp16 else torch.bfloat16

    def run_micro_batch(examples: Sequence[dict[str, Any]]) -> None:
        batch = {name: tensor.to(device) for name, tensor in ready.collate(examples).items()}
        labels = batch.pop("labels")
        with torch.autocast(device.type, half, enabled=args.fp16 or args.bf16):
            loss = ready.task.loss(model(**batch), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    model.to(device).train()
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    try:
        with kept_random_state():
            yield run_micro_batch
    finally:
        model.zero_grad()


def update_seconds(num_trained: int, device: torch.device) -> float:
    """Seconds in which AdamW changes so many weights, by the time it takes for some of them."""
    weights = torch.zeros(min(num_trained, 1 << 22), device=device, requires_grad=True)
    weights.grad = torch.ones_like(weights)
    optimizer = torch.optim.AdamW([weights], fused=True)
    seconds = []
    for _ in range(4):
        start = time.monotonic()
        torch.nn.utils.clip_grad_norm_([weights], 1.0).item()
        optimizer.step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds[1:]) * num_trained / len(weights)
