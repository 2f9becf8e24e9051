"""The Trainer's arguments, the rows of a step, and how long a run is: its steps, their schedule and what each takes."""

from __future__ import annotations

import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.console import say
from hfkit.distributed import meet, num_processes
from hfkit.errors import OutOfMemoryError, UsageError
from hfkit.tasks import TASKS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from hfkit.recipe import Recipe
    from hfkit.stream import StreamedExamples, TrainingStream
    from hfkit.tasks.base import Rows, Task

OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # short names beside those of transformers.OptimizerNames
STEP_OVERHEAD = 0.003  # seconds of a step beside its passes and the optimizer, measured on small models
TIMED_BATCHES = 5  # of the lengths that batches have, to tell what a step takes
PATIENCE = 5.0  # seconds that these may take; beyond, two rows must tell
FILLED, SPARE = 0.9, 100 << 20  # share of free memory that a pass to fit may take, bytes that it must leave
MEASURED_SHARE = 0.85  # of train.max_time that is planned for steps; the rest is for evaluations and saves
DECAY_SHARE = 0.2  # of the steps, at the end of warmup_stable_decay (Haegele et al. 2024, arXiv 2405.18392)
EVALUATIONS = 5  # in a run, where train.eval_steps is not given
LOG_LINES = 20  # in a run, where train.logging_steps is not given


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


def counted(number: int, noun: str) -> str:
    """`number` and the noun: 1 process, 2 processes, 2 rows."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def training_arguments(recipe: Recipe, directory: Path) -> TrainingArguments:
    """The one place that knows the field names of TrainingArguments; how many steps there are is set later."""
    import torch
    import transformers

    settings, has_accelerator = recipe.train, torch.accelerator.is_available()
    division = division_of(recipe, num_devices(recipe))
    precision = probed_precision() if settings.precision == "auto" else settings.precision
    if precision == "float16" and not has_accelerator:
        raise UsageError("train.precision float16 needs a GPU", "--precision float32")
    mixed = recipe.model.dtype == "float32"  # weights of half the size need no conversion
    options: dict[str, Any] = {
        "output_dir": str(directory),
        "seed": settings.seed,
        "per_device_train_batch_size": division.rows,
        "per_device_eval_batch_size": settings.per_device_eval_batch_size,
        "gradient_accumulation_steps": division.passes,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "dataloader_num_workers": settings.dataloader_num_workers,
        "optim": OPTIMIZERS.get(settings.optimizer, settings.optimizer),
        "adam_beta2": settings.adam_beta2 or 0.999,
        "activation_checkpointing": settings.gradient_checkpointing,
        "bf16": mixed and precision == "bfloat16",
        "fp16": mixed and precision == "float16",
        "torch_compile": settings.compile,
        "use_cpu": not has_accelerator,
        "max_steps": 1,
        "train_sampling_strategy": "sequential",  # the stream is shuffled already
        "remove_unused_columns": False,
        "label_names": ["labels"],  # BertForPreTraining has a second kind, without which nothing would be scored
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",  # RunCallback saves, then evaluates
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level_replica": "error",  # the first process warns for all
        "dataloader_pin_memory": False,
        "report_to": settings.report_to or "none",
        **settings.extra,
    }
    meet(float(settings.extra.get("ddp_timeout", 1800)))
    try:
        return transformers.TrainingArguments(**options)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"train: {str(error).strip().splitlines()[0]}", "hfkit recipes schema") from error


def probed_precision() -> str:
    """The number type of the arithmetic that this machine is fast at: bfloat16 on GPUs and CPUs with matrix units for
    it, else float32 (a CPU without them is five times slower in bfloat16, also where it has instructions for it)."""
    import torch

    from hfkit.inference import gpu_has_bfloat16

    if torch.cuda.is_available():
        return "bfloat16" if gpu_has_bfloat16() else "float32"
    return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"


def optimizer(recipe: Recipe) -> tuple[Any, dict[str, Any]] | None:
    """The optimizer with its settings where the Trainer has no field for them."""
    import torch

    if recipe.train.optimizer == "sgd":
        return torch.optim.SGD, {"lr": recipe.train.learning_rate, "momentum": recipe.train.momentum}
    return None


def number_of_steps(recipe: Recipe, rows: Rows | None, step_rows: int, step_seconds: Callable[[], float]) -> int:
    """Optimizer steps of the run, by the budget that is given: steps, time (measured then), tokens or epochs."""
    settings = recipe.train
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.max_time is not None:
        steps = max(1, int(MEASURED_SHARE * seconds_of(settings.max_time) / step_seconds()))
        say(f"{settings.max_time} is time for about {steps:,} steps of {step_seconds():.3g} s, evaluations included")
        return steps
    if rows is None:
        raise UsageError("the length of a stream is not known", "--max-steps N, or --max-time 30m")
    if settings.max_tokens is not None:
        return math.ceil(settings.max_tokens / (float(rows.lengths.mean()) * step_rows))
    return math.ceil(len(rows) * (settings.num_train_epochs or 1.0) / step_rows)


def set_schedule(args: TrainingArguments, recipe: Recipe) -> None:
    """What follows from the number of steps."""
    args.logging_steps = recipe.train.logging_steps or max(1, args.max_steps // LOG_LINES)
    options = args.lr_scheduler_kwargs or {}
    if recipe.train.lr_scheduler_type == "warmup_stable_decay" and "num_decay_steps" not in options:
        args.lr_scheduler_kwargs = {**options, "num_decay_steps": math.ceil(DECAY_SHARE * args.max_steps)}


def seconds_of(time_given: str) -> float:
    """Seconds of a time such as 90s, 30m or 1h30m."""
    parts = re.findall(r"([0-9.]+)([hms])", time_given)
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def intervals(recipe: Recipe, max_steps: int, evaluates: bool) -> tuple[int, int]:
    """Steps between evaluations (0: none) and between checkpoints."""
    eval_steps = recipe.train.eval_steps or math.ceil(max_steps / EVALUATIONS)
    return (eval_steps if evaluates else 0), recipe.train.save_steps or eval_steps


class Pace(NamedTuple):
    """What training takes on one device, in seconds: a row's forward and backward pass in the mean, and an update."""

    row: float
    update: float

    def step(self, device_rows: int) -> float:
        """Seconds of an optimizer step with so many rows on each device."""
        return device_rows * self.row + self.update + STEP_OVERHEAD


def pace(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stream: TrainingStream | StreamedExamples,
    args: TrainingArguments,
) -> Pace:
    """The pace of this machine, from timed passes over batches of all lengths that the stream has. Random states and
    weights stay as they are."""
    batches, longer = stream.spread(args.train_batch_size, TIMED_BATCHES)
    with trial(task, model, tokenizer, args) as run_pass:

        def seconds(batch: Sequence[dict[str, Any]]) -> float:
            start = time.monotonic()
            run_pass(batch)
            return time.monotonic() - start

        two = batches[-1][:2]
        seconds(two)  # allocates the gradients
        mean_pass = seconds(two) * statistics.mean(map(padded_tokens, batches)) / padded_tokens(two)
        expected = mean_pass * len(batches)
        if expected < PATIENCE:
            seconds(batches[-1])  # the longest: memory that is touched for the first time is slow
            rounds = 1 if expected > 1 else 3
            mean_pass = statistics.mean(statistics.median(seconds(b) for _ in range(rounds)) for b in batches)
        num_trained = sum(weight.numel() for weight in model.parameters() if weight.grad is not None)
    return Pace(mean_pass * longer / args.train_batch_size, update_seconds(num_trained, args.device))


def padded_tokens(batch: Sequence[dict[str, Any]]) -> int:
    return len(batch) * max(len(example["input_ids"]) for example in batch)


@contextmanager
def trial(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """A function that runs a forward and a backward pass over examples as training does. Gradients are gone
    afterwards, random states and weights as they were."""
    import torch

    device, half = args.device, torch.float16 if args.fp16 else torch.bfloat16

    def run_pass(examples: Sequence[dict[str, Any]]) -> None:
        batch = {name: tensor.to(device) for name, tensor in task.collate(examples, tokenizer).items()}
        labels = batch.pop("labels")
        with torch.autocast(device.type, half, enabled=args.fp16 or args.bf16):
            loss = task.loss(model(**batch), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    model.to(device).train()
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    try:
        with torch.random.fork_rng():
            yield run_pass
    finally:
        model.zero_grad()


def update_seconds(num_trained: int, device: torch.device) -> float:
    """Seconds in which AdamW changes so many weights, by the time it takes for some of them."""
    import torch

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
