"""The spine: from a recipe to a trained, evaluated and saved model, read from top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit import hub
from hfkit.console import is_main_process, say
from hfkit.distributed import on_main
from hfkit.errors import DataError, UsageError
from hfkit.runs import Run, identity, peak_memory_mib
from hfkit.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from hfkit.recipe import Recipe
    from hfkit.stream import TrainingStream
    from hfkit.tasks.base import Task

EVALUATIONS = 5  # in a run, where train.eval_steps is not given
LOG_LINES = 20  # in a run, where train.logging_steps is not given


def train(
    recipe: Recipe, *, resume: str | None = None, overwrite: bool = False, allow_changed: bool = False
) -> dict[str, Any]:
    """Trains what `recipe` says; returns {"run": directory, **the run's flat results such as "eval_accuracy"}.

    `resume`: "auto" (the newest whole checkpoint of the run directory, else a fresh start) or a checkpoint's path.
    Raises an HfkitError, before anything is written, where settings, data or model are at fault.
    """
    task = TASKS[recipe.task or ""]
    run = Run.plan(recipe, task.command, resume=resume, overwrite=overwrite)
    if run.finished:
        say(f"{run.directory} is finished, nothing to do")
        return {"run": str(run.directory), **run.results()}
    hub.stay_local(recipe)

    splits = load_splits(task, recipe)

    from transformers import Trainer, set_seed

    from hfkit.callbacks import RunCallback, StopSignal, duration
    from hfkit.models import describe, load_config, load_tokenizer, new_or_pretrained, quiet_libraries
    from hfkit.stream import EvaluationRows, TrainingStream

    quiet_libraries()
    set_seed(recipe.train.seed)
    config = load_config(recipe)
    tokenizer = load_tokenizer(recipe, config, splits["train"]["text"])
    for key, value in task.model_settings(splits, config).items():
        setattr(config, key, value)
    model = new_or_pretrained(task.auto_model, recipe, config, tokenizer)
    use_cache = getattr(config, "use_cache", None)
    say(f"model: {describe(model)}")

    rows: dict[str, Any] = {
        split: task.encode(splits[split], tokenizer, model, recipe)
        for split in ("train", "validation")
        if split in splits
    }
    args = training_arguments(recipe, run.directory, len(rows["train"]))
    step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    stream = TrainingStream(
        rows["train"], task, length=args.max_steps * step_rows, batch=step_rows, seed=recipe.train.seed
    )
    facts = {
        "training data": data_hash(recipe),
        "model.config": text_hash(config.to_json_string()),
        "tokenizer": text_hash(tokenizer.backend_tokenizer.to_str()),
        "max_steps": args.max_steps,
        "processes": args.world_size,
    }
    checkpoint = on_main(
        lambda: run.start(identity(recipe, **facts), model.num_parameters(), allow_changed=allow_changed)
    )
    say(plan(args, stream, step_rows, rows, run.directory))
    seconds = expected_seconds(task, model, tokenizer, stream, args)
    say(f"expected time: {duration(seconds)} for training on this machine")
    if checkpoint is not None:
        say(f"resuming from step {checkpoint.name.rpartition('-')[2]} ({checkpoint})")
    quick = replace(recipe, evaluation=replace(recipe.evaluation, interval=False))
    start = time.monotonic()
    with StopSignal() as signals, run.outcome():
        callback = RunCallback(run, stream, step_rows, signals, *schedule(recipe, args.max_steps, "validation" in rows))
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=lambda examples: task.collate(examples, tokenizer),
            train_dataset=stream,
            eval_dataset=EvaluationRows(rows["validation"], task, recipe.evaluation.seed)
            if "validation" in rows
            else None,
            compute_loss_func=task.loss,
            preprocess_logits_for_metrics=lambda logits, labels: task.reduce(
                logits[0] if isinstance(logits, tuple) else logits, labels
            ),
            compute_metrics=lambda output: {
                name: score.value
                for name, score in task.scores(output.predictions, output.label_ids, config, quick).items()
            },
            callbacks=[callback],
        )
        callback.take(trainer)
        done = checkpoint is not None and int(checkpoint.name.rpartition("-")[2]) >= args.max_steps
        if done:  # all steps were made, only the end is missing; the Trainer would make one more
            model = type(model).from_pretrained(checkpoint, local_files_only=True)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        callback.raise_if_stopped()
        if not is_main_process():
            return {"run": str(run.directory)}
        model.config.use_cache = use_cache  # the Trainer turns it off, and generation without it is slow
        run.export(model, tokenizer)
        scores: dict[str, Any] = {}
        for split in ("validation", "test"):
            if split in splits:
                say(f"scoring the {split} data")
                scores[split] = task.evaluate(model, tokenizer, splits[split], recipe)
        run.finish(
            scores,
            steps=args.max_steps,
            wall_seconds=round(time.monotonic() - start, 1),
            tokens_seen=stream.tokens(0, len(stream)),
            peak_memory_mib=peak_memory_mib(),
        )
    return {"run": str(run.directory), **run.results()}


def load_splits(task: Task, recipe: Recipe) -> dict[str, Any]:
    """The task's splits, each with rows."""
    splits = task.load(recipe)
    for name, dataset in splits.items():
        if len(dataset) == 0:
            flag = "data" if name == "train" else name
            raise DataError(f"the {name} data has no rows", f"give rows with --{flag}")
    return splits


def training_arguments(recipe: Recipe, directory: Path, num_rows: int) -> TrainingArguments:
    """The one place that knows the field names of TrainingArguments. `num_rows`: rows of the training data."""
    import transformers

    settings = recipe.train
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
        "max_steps": 1,
        "train_sampling_strategy": "sequential",  # the stream is shuffled already
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",  # RunCallback saves, then evaluates
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        **settings.extra,
    }
    try:
        args = transformers.TrainingArguments(**options)
        step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.max_steps = settings.max_steps or math.ceil(num_rows * (settings.num_train_epochs or 1.0) / step_rows)
        args.logging_steps = settings.logging_steps or max(1, args.max_steps // LOG_LINES)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"train: {str(error).strip().splitlines()[0]}", "hfkit recipes schema") from error
    return args


def schedule(recipe: Recipe, max_steps: int, evaluates: bool) -> tuple[int, int]:
    """Steps between evaluations (0: none) and between checkpoints."""
    eval_steps = recipe.train.eval_steps or math.ceil(max_steps / EVALUATIONS)
    return (eval_steps if evaluates else 0), recipe.train.save_steps or eval_steps


def plan(args: TrainingArguments, stream: TrainingStream, step_rows: int, rows: Mapping[str, Any], run: Path) -> str:
    """What is about to happen, in one line."""
    parts = [f"{len(stream.rows):,} rows"]
    if "validation" in rows:
        parts.append(f"{len(rows['validation']):,} validation rows")
    parts.append(f"{args.max_steps:,} steps of {step_rows} rows ({len(stream) / len(stream.rows):.2g} epochs)")
    return f"training: {', '.join(parts)}, into {run}"


def expected_seconds(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stream: TrainingStream,
    args: TrainingArguments,
) -> float:
    """Seconds of training, from one timed forward and backward pass; random states and weights stay as they are."""
    import numpy as np
    import torch

    size = min(args.train_batch_size, 8)
    model.to(args.device).train()
    with torch.random.fork_rng():
        for places in (range(2), range(len(stream) - size, len(stream))):  # the first pass warms up
            examples = [stream[place] for place in places]
            batch = {name: tensor.to(args.device) for name, tensor in task.collate(examples, tokenizer).items()}
            start = time.monotonic()
            labels = batch.pop("labels")
            task.loss(model(**batch), labels).backward()  # type: ignore[no-untyped-call]
            seconds = time.monotonic() - start
    model.zero_grad()
    tokens = batch["input_ids"].numel()
    return float(seconds / tokens * np.mean(stream.rows.lengths) * len(stream) / args.world_size)


def data_hash(recipe: Recipe) -> str:
    from hfkit.data import fingerprint

    return fingerprint(recipe.data.train)


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
