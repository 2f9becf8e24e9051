"""The Trainer's arguments, and how long a run is: its steps, their schedule and what each takes."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.console import say
from hfkit.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from hfkit.recipe import Recipe
    from hfkit.tasks.base import Rows, Task

OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # short names beside those of transformers.OptimizerNames
STEP_OVERHEAD = 0.003  # seconds of a step beside its passes, measured on small models
MEASURED_SHARE = 0.85  # of train.max_time that is planned for steps; the rest is for optimizer, evaluations and saves
DECAY_SHARE = 0.2  # of the steps, at the end of warmup_stable_decay (Haegele et al. 2024, arXiv 2405.18392)
EVALUATIONS = 5  # in a run, where train.eval_steps is not given
LOG_LINES = 20  # in a run, where train.logging_steps is not given


def training_arguments(recipe: Recipe, directory: Path) -> TrainingArguments:
    """The one place that knows the field names of TrainingArguments; how many steps there are is set later."""
    import torch
    import transformers

    settings, has_accelerator = recipe.train, torch.accelerator.is_available()
    precision = probed_precision() if settings.precision == "auto" else settings.precision
    if precision == "float16" and not has_accelerator:
        raise UsageError("train.precision float16 needs a GPU", "--precision float32")
    mixed = recipe.model.dtype == "float32"  # weights of half the size need no conversion
    options: dict[str, Any] = {
        "output_dir": str(directory),
        "seed": settings.seed,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "per_device_eval_batch_size": settings.per_device_eval_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
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
        "dataloader_pin_memory": False,
        "report_to": settings.report_to or "none",
        **settings.extra,
    }
    try:
        return transformers.TrainingArguments(**options)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"train: {str(error).strip().splitlines()[0]}", "hfkit recipes schema") from error


def probed_precision() -> str:
    """The number type of the arithmetic that this machine is fast at: bfloat16 on GPUs and CPUs with matrix units for
    it, else float32 (a CPU without them is five times slower in bfloat16, also where it has instructions for it)."""
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
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


def seconds_per_step(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[dict[str, Any]],
    mean_length: float | None,
    args: TrainingArguments,
) -> float:
    """Seconds of one optimizer step, from timed passes over `examples`, one batch; `mean_length`: tokens of a row in
    the whole data, None where that is not known. Random states and weights stay as they are."""
    import torch

    model.to(args.device).train()
    tokens = sum(len(example["input_ids"]) for example in examples)
    seconds: list[float] = []
    with torch.random.fork_rng():
        while len(seconds) < 3 or (sum(seconds) < 1 and len(seconds) < 20):  # the first pass warms up
            start = time.monotonic()
            batch = {name: tensor.to(args.device) for name, tensor in task.collate(examples, tokenizer).items()}
            labels = batch.pop("labels")
            task.loss(model(**batch), labels).backward()  # type: ignore[no-untyped-call]
            seconds.append(time.monotonic() - start)
    model.zero_grad()
    longer = (mean_length or tokens / len(examples)) * len(examples) / tokens  # the data's batches than this one
    passes: int = args.gradient_accumulation_steps
    return statistics.median(seconds[1:]) * longer * passes + STEP_OVERHEAD
