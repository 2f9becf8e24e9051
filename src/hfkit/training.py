"""The spine: from a recipe to a trained, evaluated and saved model, read from top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.checkpoints import step_of
from hfkit.console import is_main_process, say
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
    run = Run.plan(recipe, task.command, resume=resume, overwrite=overwrite)
    if run.finished and not extend:
        run.require_same(identity(recipe))
        say(f"{run.directory} is finished, nothing to do")
        return {"run": str(run.directory), **run.results()}
    with stop_signals() as signals, run.outcome(signals):
        return fit(task, recipe, run, signals, allow_changed=allow_changed, extend=extend)


def fit(
    task: Task, recipe: Recipe, run: Run, signals: StopSignal, *, allow_changed: bool, extend: bool
) -> dict[str, Any]:
    """What `train` returns, after the work itself."""
    stay_local(recipe)

    splits = load_splits(task, recipe)

    from transformers import Trainer, set_seed

    from hfkit.callbacks import RunCallback, duration
    from hfkit.models import describe, load_config, load_tokenizer, new_or_pretrained, quiet_libraries
    from hfkit.stream import EvaluationRows, StreamedExamples, TrainingStream

    quiet_libraries()
    set_seed(recipe.train.seed)
    config = load_config(recipe)
    tokenizer = load_tokenizer(recipe, config, corpus(splits["train"]))
    for key, value in task.model_settings(splits, config).items():
        setattr(config, key, value)
    model = new_or_pretrained(task.auto_model, recipe, config, tokenizer)
    use_cache = getattr(config, "use_cache", None)
    say(f"model: {describe(model)}")

    def encode(dataset: Dataset) -> Rows:
        return task.encode(dataset, tokenizer, model, recipe)

    rows = None if recipe.data.streaming else encode(splits["train"])
    held_out = encode(splits["validation"]) if "validation" in splits else None
    args = training_arguments(recipe, run.directory, None if rows is None else len(rows))
    step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    stream: TrainingStream | StreamedExamples
    if rows is not None:
        stream = TrainingStream(rows, task, steps=args.max_steps, step_rows=step_rows, seed=recipe.train.seed)
    else:
        stream = StreamedExamples(
            splits["train"],
            encode,
            task,
            steps=args.max_steps,
            step_rows=step_rows,
            device_rows=args.train_batch_size,
            seed=recipe.train.seed,
            buffer=recipe.data.shuffle_buffer,
        )
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
        lambda: run.start(identity(recipe, **facts), model.num_parameters(), allow_changed=allow_changed, extend=extend)
    )
    say(plan(args, stream, held_out, run.directory))
    seconds = expected_seconds(task, model, tokenizer, stream, args)
    say(f"expected time: {duration(seconds)} for training on this machine")
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
    callback = RunCallback(run, stream, signals, *schedule(recipe, args.max_steps, held_out is not None))
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=partial(collate, task, tokenizer),
        train_dataset=stream,
        eval_dataset=EvaluationRows(held_out, task, recipe.evaluation.seed) if held_out else None,
        compute_loss_func=callback.watched(task.training_loss(recipe, rows, step_rows), task.loss),
        preprocess_logits_for_metrics=lambda outputs, labels: task.reduce(
            outputs if isinstance(outputs, tuple) else (outputs,), labels, tokenizer
        ),
        compute_metrics=lambda output: {
            name: score.value
            for name, score in task.scores(output.predictions, output.label_ids, held_out, quick).items()
        },
        callbacks=[callback],
    )
    callback.take(trainer)
    done = checkpoint is not None and step_of(checkpoint) >= args.max_steps
    if done:  # all steps were made, only the end is missing; the Trainer would make one more
        model = type(model).from_pretrained(checkpoint, local_files_only=True)
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    callback.raise_if_stopped()
    if not is_main_process():
        return {"run": str(run.directory)}
    model.config.use_cache = use_cache  # the Trainer turns it off, and generation without it is slow
    run.export(model, tokenizer)
    scores: dict[str, Any] = {"before training": before} if before else {}
    for split in ("validation", "test"):
        if split in splits:
            say(f"scoring the {split} data")
            scores[split] = task.evaluate(model, tokenizer, splits[split], recipe)
    signals.ignore()
    run.finish(
        scores,
        steps=args.max_steps,
        world_size=args.world_size,
        wall_seconds=round(time.monotonic() - start, 1),
        tokens_seen=stream.tokens(0, len(stream)) or None,
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
    return splits


def corpus(dataset: Dataset | IterableDataset) -> Iterable[str]:
    """The texts that a new tokenizer is trained on: all of them, or the first TOKENIZER_ROWS of a stream."""
    if hasattr(dataset, "num_rows"):
        texts: Iterable[str] = dataset["text"]
        return texts
    return (row["text"] for row in dataset.take(TOKENIZER_ROWS))


def training_arguments(recipe: Recipe, directory: Path, num_rows: int | None) -> TrainingArguments:
    """The one place that knows the field names of TrainingArguments. `num_rows`: of the training data, if known."""
    import transformers

    settings = recipe.train
    if num_rows is None and settings.max_steps is None:
        raise UsageError("the length of a stream is not known", "--max-steps N")
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
        args.max_steps = settings.max_steps or math.ceil(
            (num_rows or 0) * (settings.num_train_epochs or 1.0) / step_rows
        )
        args.logging_steps = settings.logging_steps or max(1, args.max_steps // LOG_LINES)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(f"train: {str(error).strip().splitlines()[0]}", "hfkit recipes schema") from error
    return args


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
    return f"training: {', '.join(parts)}, into {directory}"


def expected_seconds(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stream: TrainingStream | StreamedExamples,
    args: TrainingArguments,
) -> float:
    """Seconds of training, from a timed pass over the first batch; random states and weights stay as they are."""
    import torch

    model.to(args.device).train()
    examples = stream.sample(args.train_batch_size)
    tokens = sum(len(example["input_ids"]) for example in examples)
    with torch.random.fork_rng():
        for _ in range(2):  # the first pass warms up
            batch = {name: tensor.to(args.device) for name, tensor in task.collate(examples, tokenizer).items()}
            labels = batch.pop("labels")
            start = time.monotonic()
            task.loss(model(**batch), labels).backward()  # type: ignore[no-untyped-call]
            seconds = time.monotonic() - start
    model.zero_grad()
    mean = stream.mean_length or tokens / len(examples)
    return float(seconds / tokens * mean * len(stream) / args.world_size)


def data_hash(recipe: Recipe) -> str:
    from hfkit.data import fingerprint

    return fingerprint(recipe.data.train)


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
