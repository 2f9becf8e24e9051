"""The Trainer's arguments: the one place that knows the field names of TrainingArguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hfkit.errors import UsageError
from hfkit.settings import Recipe, Train
from hfkit.system.processes import init_process_group
from hfkit.training.batch import batch_size, num_devices

OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # short names beside those of transformers.OptimizerNames

DECAY_SHARE = 0.2  # of the steps, at the end of warmup_stable_decay (Haegele et al. 2024, arXiv 2405.18392)

LOG_LINES = 20  # in a run, where train.logging_steps is not given


def training_arguments(recipe: Recipe, directory: Path) -> TrainingArguments:
    """The Trainer's arguments, all but those that follow from the number of steps: see `set_steps`.

    train.precision must be decided: see `prepare.with_precision`.
    """
    settings, has_accelerator = recipe.train, torch.accelerator.is_available()
    batch = batch_size(recipe, num_devices(recipe))
    if settings.precision == "float16" and not has_accelerator:
        raise UsageError("train.precision float16 needs a GPU", "--precision float32")
    mixed = recipe.model.dtype == "float32"  # weights of half the size need no conversion
    options: dict[str, Any] = {
        "output_dir": str(directory),
        "seed": settings.seed,
        "per_device_train_batch_size": batch.per_device,
        "per_device_eval_batch_size": settings.per_device_eval_batch_size,
        "gradient_accumulation_steps": batch.accumulation_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "dataloader_num_workers": settings.dataloader_num_workers,
        "optim": OPTIMIZERS.get(settings.optimizer, settings.optimizer),
        "adam_beta2": settings.adam_beta2 or 0.999,
        "activation_checkpointing": settings.gradient_checkpointing,
        "bf16": mixed and settings.precision == "bfloat16",
        "fp16": mixed and settings.precision == "float16",
        "torch_compile": settings.compile,
        "use_cpu": not has_accelerator,
        "max_steps": 1,  # a placeholder that needs no data set
        "train_sampling_strategy": "sequential",  # the stream is shuffled already
        "remove_unused_columns": False,
        "label_names": ["labels"],  # BertForPreTraining has a second kind, without which nothing would be scored
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",  # RunCallback saves, then evaluates
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level_replica": "error",  # the first process warns for all
        "dataloader_pin_memory": torch.cuda.is_available(),
        "accelerator_config": {"non_blocking": torch.cuda.is_available()},  # a copy need not wait for the last step
        "report_to": settings.report_to or "none",
        **settings.extra,
    }
    try:
        return TrainingArguments(**options)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"train: {str(error).strip().splitlines()[0]}", "hfkit recipes schema") from error


def join_processes(settings: Train) -> None:
    """Connects the processes of a run on CPU, where TrainingArguments would leave out the time-out."""
    init_process_group(float(settings.extra.get("ddp_timeout", 1800)))


def optimizer(settings: Train) -> tuple[Any, dict[str, Any]] | None:
    """The optimizer and its arguments, if the Trainer has no fields for them."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD, {"lr": settings.learning_rate, "momentum": settings.momentum}
    return None


def set_steps(args: TrainingArguments, settings: Train, steps: int) -> None:
    """Sets in `args` what follows from the number of steps."""
    args.max_steps = steps
    args.logging_steps = settings.logging_steps or max(1, steps // LOG_LINES)
    options = args.lr_scheduler_kwargs or {}
    if settings.lr_scheduler_type == "warmup_stable_decay" and "num_decay_steps" not in options:
        args.lr_scheduler_kwargs = {**options, "num_decay_steps": math.ceil(DECAY_SHARE * steps)}
