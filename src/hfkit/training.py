"""The spine: from a recipe to a trained, evaluated and saved model, read from top to bottom."""

from __future__ import annotations

import hashlib
import math
import random
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit import adapters, hub, push
from hfkit.best import Best
from hfkit.checkpoints import read_marker, step_of
from hfkit.console import is_main_process, say, warn
from hfkit.distributed import on_main
from hfkit.errors import DataError, UsageError
from hfkit.runs import Run, identity, peak_memory_mib
from hfkit.signals import StopSignal, leave_to_parent, stop_signals
from hfkit.sources import stay_local
from hfkit.tasks import TASKS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from hfkit.recipe import Recipe
    from hfkit.stream import StreamedExamples, TrainingStream
    from hfkit.tasks.base import Batch, Rows, Task

TOKENIZER_ROWS = 100_000  # of a stream, for a new tokenizer
OPTIMIZERS = {"adamw": "adamw_torch_fused"}  # short names beside those of transformers.OptimizerNames
STEP_OVERHEAD = 0.003  # seconds of a step beside its passes, measured on small models
MEASURED_SHARE = 0.85  # of train.max_time that is planned for steps; the rest is for optimizer, evaluations and saves
DECAY_SHARE = 0.2  # of the steps, at the end of warmup_stable_decay (Haegele et al. 2024, arXiv 2405.18392)
EVALUATIONS = 5  # in a run, where train.eval_steps is not given
LOG_LINES = 20  # in a run, where train.logging_steps is not given


def train(
    recipe: Recipe,
    *,
    resume: str | None = None,
    overwrite: bool = False,
    allow_changed: bool = False,
    extend: bool = False,
) -> dict[str, Any]:
    """Trains what `recipe` says; returns {"run": directory, **the run's flat results such as "eval_accuracy"}.

    `resume`: "auto" (the newest whole checkpoint of the run directory, else a fresh start) or a checkpoint's path;
    `allow_changed`: also where settings or data are not those it was saved with; `extend`: for more steps.
    Raises an HfkitError, before anything is written, where settings, data or model are at fault.
    """
    task = TASKS[recipe.task or ""]
    pushes = recipe.train.push is not None and is_main_process()
    if pushes:
        push.require_access(recipe)
    run = Run.plan(recipe, task.command, resume=resume, overwrite=overwrite)
    with stop_signals() as signals:
        if run.finished and not extend:
            run.require_same(identity(recipe))
            say(f"{run.directory} is finished, nothing to do")
            outcome = {"run": str(run.directory), **run.results()}
        else:
            with run.outcome(signals):
                outcome = fit(task, recipe, run, signals, allow_changed=allow_changed, extend=extend)
        if pushes:
            signals.heed()  # the run is finished, and what follows can take long
            push.upload(recipe, task.command, outcome)
        return outcome


def fit(
    task: Task, recipe: Recipe, run: Run, signals: StopSignal, *, allow_changed: bool, extend: bool
) -> dict[str, Any]:
    """What `train` returns, after the work itself."""
    if recipe.train.push is None:
        stay_local(recipe)
    else:  # the upload needs the network
        hub.no_telemetry()

    from hfkit.models import (
        describe,
        load_config,
        load_tokenizer,
        new_or_pretrained,
        quiet_libraries,
        require_head,
        with_weights_of,
    )

    quiet_libraries()
    config = load_config(recipe)
    require_head(config, task.auto_model)  # before the data is read, which can take long
    adapters.check(recipe, config)
    splits = load_splits(task, recipe)

    from transformers import Trainer, set_seed

    from hfkit.callbacks import RunCallback, duration
    from hfkit.stream import EvaluationRows, StreamedExamples, TrainingStream

    set_seed(recipe.train.seed)
    tokenizer = load_tokenizer(recipe, config, corpus(splits["train"]), begun_with=run.saved_tokenizer())
    for key, value in task.model_settings(splits, config).items():
        setattr(config, key, value)
    model = new_or_pretrained(task.auto_model, recipe, config, tokenizer)
    use_cache = getattr(config, "use_cache", None)
    say(f"model: {describe(model)}")

    def encode(dataset: Dataset) -> Rows:
        return task.encode(dataset, tokenizer, model, recipe)

    rows = None if recipe.data.streaming else encode(splits["train"])
    held_out = encode(splits["validation"]) if "validation" in splits else None
    args = training_arguments(recipe, run.directory)
    step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def stream_of(steps: int) -> TrainingStream | StreamedExamples:
        if rows is not None:
            return TrainingStream(rows, task, steps=steps, step_rows=step_rows, seed=recipe.train.seed)
        return StreamedExamples(
            splits["train"],
            encode,
            task,
            steps=steps,
            step_rows=step_rows,
            device_rows=args.train_batch_size,
            seed=recipe.train.seed,
            buffer=recipe.data.shuffle_buffer,
        )

    step_seconds = seconds_per_step(task, model, tokenizer, stream_of(1), args)
    begun = None if extend else run.steps_of_time()
    args.max_steps = begun or on_main(lambda: number_of_steps(recipe, rows, step_rows, step_seconds))
    set_schedule(args, recipe)
    stream = stream_of(args.max_steps)
    facts = {
        "training data": data_hash(recipe),
        "architecture": text_hash(config.to_json_string()),
        "tokenizer": text_hash(tokenizer.backend_tokenizer.to_str()),
        "train.max_steps": args.max_steps,
        "processes": args.world_size,
    }
    # From here on ranks wait for each other: a signal to one of them is heard by all, at the end of a step.
    signals.immediate = args.world_size == 1
    if run.finished and args.max_steps <= run.manifest["steps"]:
        say(f"{run.directory} is finished after {run.manifest['steps']:,} steps, nothing to do")
        return {"run": str(run.directory), **run.results()}
    checkpoint = on_main(
        lambda: run.start(
            identity(recipe, **facts),
            model.num_parameters(only_trainable=recipe.lora.enabled),
            allow_changed=allow_changed,
            extend=extend,
        )
    )
    say(plan(args, stream, held_out, run.directory))
    say(f"expected time: {duration(step_seconds * args.max_steps)} for training on this machine")
    if checkpoint is not None:
        say(f"resuming from step {step_of(checkpoint)} ({checkpoint})")
    quick = replace(recipe, evaluation=replace(recipe.evaluation, interval=False))
    before = run.scores_before()
    if checkpoint is None and task.command == "pretrain" and "validation" in splits:
        before = task.evaluate(model, tokenizer, splits["validation"], quick)
        shown = ", ".join(f"{name} {before[name].value:,.4g}" for name in list(before)[:2])
        say(f"validation before training: {shown}")
        run.keep_scores_before(before)
    start = time.monotonic()
    best = Best.of(recipe, task, config)
    callback = RunCallback(
        run,
        stream,
        signals,
        *schedule(recipe, args.max_steps, held_out is not None),
        tokenizer=tokenizer,
        best=best,
        budget=None if recipe.train.max_time is None else seconds_of(recipe.train.max_time),
        show=(lambda model: task.samples(model, tokenizer, held_out, recipe))
        if held_out is not None and recipe.train.samples
        else None,
    )

    def metrics_of(output: Any) -> dict[str, float]:
        assert held_out is not None
        assert in_order is not None
        found = (in_order.in_row_order(output.predictions), in_order.in_row_order(output.label_ids))
        return {name: score.value for name, score in task.scores(*found, held_out, quick).items()}

    in_order = None if held_out is None else EvaluationRows(held_out, task, recipe.evaluation.seed)
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=partial(collate, task, tokenizer),
        train_dataset=stream,
        eval_dataset=in_order,
        compute_loss_func=callback.watched(task.training_loss(recipe, rows, step_rows), task.loss),
        preprocess_logits_for_metrics=lambda outputs, labels: task.reduce(
            outputs if isinstance(outputs, tuple) else (outputs,), labels, tokenizer
        ),
        compute_metrics=metrics_of,
        callbacks=[callback],
        optimizer_cls_and_kwargs=optimizer(recipe),
    )
    callback.take(trainer, 0.0 if checkpoint is None else read_marker(checkpoint).get("seconds", 0.0))
    if recipe.lora.enabled:  # the Trainer reads back no checkpoint of a model that has adapters and is no PeftModel
        trainer._load_from_checkpoint = lambda path, model=None: adapters.read(trainer.model, Path(path))
    with callback.progress():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    callback.raise_if_stopped()
    steps = trainer.state.global_step
    if best is not None and best.step not in (None, steps):
        say(f"the best model is that of step {best.step}, not the last: {best}")
        model = with_weights_of(model, run.checkpoint(best.step))
    if not is_main_process():
        return {"run": str(run.directory)}
    model.config.use_cache = use_cache  # the Trainer turns it off, and generation without it is slow
    if held_out is not None:
        task.calibrate(model, tokenizer, held_out, recipe)
    run.export(model, tokenizer)
    scores: dict[str, Any] = {"before training": before} if before else {}
    for split in ("validation", "test"):
        if split in splits:
            say(f"scoring the {split} data")
            scores[split] = task.evaluate(model, tokenizer, splits[split], recipe, beside=run.directory / split)
    signals.ignore()
    run.finish(
        scores,
        steps=steps,
        world_size=args.world_size,
        wall_seconds=round(time.monotonic() - start, 1),
        tokens_seen=stream.tokens(0, steps * step_rows) or None,
        best=None if best is None else {"step": best.step, best.metric: best.value},
        peak_memory_mib=peak_memory_mib(),
    )
    return {"run": str(run.directory), **run.results()}


def collate(task: Task, tokenizer: PreTrainedTokenizerBase, examples: Sequence[dict[str, Any]]) -> Batch:
    """Examples as one padded batch, in a loader's worker process too."""
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None:
        leave_to_parent()
    return task.collate(examples, tokenizer)


def load_splits(task: Task, recipe: Recipe) -> dict[str, Any]:
    """The task's splits, each with rows."""
    from datasets import IterableDataset

    splits = task.load(recipe)
    for name, dataset in splits.items():
        if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
            flag = "data" if name == "train" else name
            raise DataError(f"the {name} data has no rows", f"give rows with --{flag}")
    if recipe.data.max_train_samples is not None:
        splits["train"] = sampled(splits["train"], recipe.data.max_train_samples, recipe.train.seed)
    return splits


def sampled(dataset: Dataset, num_rows: int, seed: int) -> Dataset:
    """`num_rows` random rows of `dataset`, in its order, and says so; all of them where there are no more."""
    if num_rows >= len(dataset):
        warn(f"data.max_train_samples {num_rows:,} has no effect: the training data has {len(dataset):,} rows")
        return dataset
    say(f"training on {num_rows:,} of {len(dataset):,} rows, drawn with seed {seed}")
    return dataset.select(sorted(random.Random(seed).sample(range(len(dataset)), num_rows)))


def corpus(dataset: Dataset | IterableDataset) -> Iterable[str]:
    """The texts that a new tokenizer is trained on: all of them, or the first TOKENIZER_ROWS of a stream."""
    if hasattr(dataset, "num_rows"):
        texts: Iterable[str] = dataset["text"]
        return texts
    return (row["text"] for row in dataset.take(TOKENIZER_ROWS))


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


def number_of_steps(recipe: Recipe, rows: Rows | None, step_rows: int, step_seconds: float) -> int:
    """Optimizer steps of the run, by the first budget that is given: steps, tokens, time or epochs."""
    settings = recipe.train
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.max_time is not None:
        steps = max(1, int(MEASURED_SHARE * seconds_of(settings.max_time) / step_seconds))
        say(f"{settings.max_time} is time for about {steps:,} steps of {step_seconds:.3g} s, evaluations included")
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


def schedule(recipe: Recipe, max_steps: int, evaluates: bool) -> tuple[int, int]:
    """Steps between evaluations (0: none) and between checkpoints."""
    eval_steps = recipe.train.eval_steps or math.ceil(max_steps / EVALUATIONS)
    return (eval_steps if evaluates else 0), recipe.train.save_steps or eval_steps


def plan(
    args: TrainingArguments, stream: TrainingStream | StreamedExamples, held_out: Rows | None, directory: Path
) -> str:
    """What is about to happen, in one line."""
    parts = ["a stream of rows" if stream.num_rows is None else f"{stream.num_rows:,} rows"]
    if held_out is not None:
        parts.append(f"{len(held_out):,} validation rows")
    epochs = "" if stream.num_rows is None else f" ({len(stream) / stream.num_rows:.2g} epochs)"
    parts.append(f"{args.max_steps:,} steps of {stream.step_rows} rows{epochs}")
    if (padding := stream.padding()) >= 0.001:
        parts.append(f"{padding:.1%} padding")
    return f"training: {', '.join(parts)}, into {directory}"


def seconds_per_step(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stream: TrainingStream | StreamedExamples,
    args: TrainingArguments,
) -> float:
    """Seconds of one optimizer step, from timed passes over a first batch, on which the model is prepared, too.

    Random states and weights stay as they are.
    """
    import torch

    model.to(args.device).train()
    examples = stream.sample(args.train_batch_size)
    task.prepare(model, task.collate(examples, tokenizer))
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
    mean = stream.mean_length or tokens / len(examples)
    rows = stream.step_rows / int(args.world_size)
    return statistics.median(seconds[1:]) / tokens * mean * rows + STEP_OVERHEAD


def data_hash(recipe: Recipe) -> str:
    from hfkit.data import fingerprint

    return fingerprint(recipe.data.train)


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
