"""The Trainer's arguments, the rows of a step, and how long a run is: its steps, their schedule and what each takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.errors import UsageError
from hfkit.system.processes import meet
from hfkit.training.batch import division_of, num_devices

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hfkit.settings import Recipe

OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # short names beside those of transformers.OptimizerNames

DECAY_SHARE = 0.2  # of the steps, at the end of warmup_stable_decay (Haegele et al. 2024, arXiv 2405.18392)

EVALUATIONS = 5  # in a run, where train.eval_steps is not given

LOG_LINES = 20  # in a run, where train.logging_steps is not given


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

    from hfkit.models.device import gpu_has_bfloat16

    if torch.cuda.is_available():
        return "bfloat16" if gpu_has_bfloat16() else "float32"
    return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"


def optimizer(recipe: Recipe) -> tuple[Any, dict[str, Any]] | None:
    """The optimizer with its settings where the Trainer has no field for them."""
    import torch

    if recipe.train.optimizer == "sgd":
        return torch.optim.SGD, {"lr": recipe.train.learning_rate, "momentum": recipe.train.momentum}
    return None


def set_schedule(args: TrainingArguments, recipe: Recipe) -> None:
    """What follows from the number of steps."""
    args.logging_steps = recipe.train.logging_steps or max(1, args.max_steps // LOG_LINES)
    options = args.lr_scheduler_kwargs or {}
    if recipe.train.lr_scheduler_type == "warmup_stable_decay" and "num_decay_steps" not in options:
        args.lr_scheduler_kwargs = {**options, "num_decay_steps": math.ceil(DECAY_SHARE * args.max_steps)}


def intervals(recipe: Recipe, max_steps: int, evaluates: bool) -> tuple[int, int]:
    """Steps between evaluations (0: none) and between checkpoints."""
    eval_steps = recipe.train.eval_steps or math.ceil(max_steps / EVALUATIONS)
    return (eval_steps if evaluates else 0), recipe.train.save_steps or eval_steps
