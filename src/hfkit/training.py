"""The spine: from a recipe to a trained, evaluated and saved model, read from top to bottom."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit import adapters, hub, push, sharding
from hfkit.arguments import (
    counted,
    division_of,
    intervals,
    num_devices,
    number_of_steps,
    optimizer,
    pace,
    rows_that_fit,
    seconds_of,
    set_schedule,
    training_arguments,
)
from hfkit.best import Best
from hfkit.checkpoints import read_marker, step_of
from hfkit.console import is_main_process, say, silence, warn
from hfkit.distributed import has_parent, largest, num_processes, on_main, require_same, together
from hfkit.errors import DataError, UsageError
from hfkit.runs import Run, identity, peak_memory_mib, versions
from hfkit.signals import StopSignal, leave_to_parent, stop_signals
from hfkit.sources import stay_local
from hfkit.tasks import TASKS

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

    from hfkit.arguments import Division
    from hfkit.callbacks import RunCallback
    from hfkit.recipe import Recipe
    from hfkit.stream import StreamedExamples, TrainingStream
    from hfkit.tasks.base import Batch, Rows, Task

TOKENIZER_ROWS = 100_000  # of a stream, for a new tokenizer


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
    recipe = run.recipe
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


def prepare_once(recipe: Recipe, *, resume: str | None, overwrite: bool) -> Run:
    """The run that several processes are about to do, its data and tokenizer in the caches that they read them from.

    Whatever `prepare` finds at fault ends it here, before there is more than one process.
    """
    task = TASKS[recipe.task or ""]
    run = Run.plan(recipe, task.command, resume=resume, overwrite=overwrite)
    run.unlock()  # it is the first rank's
    if not run.finished:
        if recipe.train.push is None:
            stay_local(recipe)
        say("preparing data and tokenizer, once for all processes")
        prepare(task, run.recipe, run, shared=True)
    return run


class Prepared(NamedTuple):
    """All that training starts from."""

    splits: dict[str, Any]
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    rows: Rows | None  # None: they are streamed
    held_out: Rows | None  # the validation rows, where there are any
    encode: Callable[[Dataset], Rows]


def fit(
    task: Task, recipe: Recipe, run: Run, signals: StopSignal, *, allow_changed: bool, extend: bool
) -> dict[str, Any]:
    """What `train` returns, after the work itself."""
    division_of(recipe, num_devices(recipe))  # a step that can't be divided is told before data is read
    if recipe.train.push is None:
        stay_local(recipe)
    else:  # the upload needs the network
        hub.no_telemetry()

    with silence() if has_parent() else nullcontext():  # which has told it already
        ready = prepare(task, recipe, run, shared=num_processes() > 1)
    splits, config, tokenizer, model, rows, held_out, _ = ready
    use_cache = getattr(config, "use_cache", None)

    from hfkit.callbacks import RunCallback, duration
    from hfkit.models import with_weights_of
    from hfkit.stream import MEGABATCH

    if recipe.train.per_device_train_batch_size == "auto":
        recipe = run.recipe = with_rows_that_fit(task, recipe, ready, run.directory)
    args = training_arguments(recipe, run.directory)
    sharding.require_possible(args, recipe)
    step_rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    trial = stream_of(MEGABATCH, task, recipe, ready, args)
    examples = trial.sample(args.train_batch_size)
    task.prepare(model, task.collate(examples, tokenizer))
    device_rows = args.train_batch_size * args.gradient_accumulation_steps
    step_seconds = cache(lambda: pace(task, model, tokenizer, trial, args).step(device_rows))
    begun = None if extend else run.steps_of_time()
    args.max_steps = begun or on_main(lambda: number_of_steps(recipe, rows, step_rows, step_seconds))
    set_schedule(args, recipe)
    stream = stream_of(args.max_steps, task, recipe, ready, args)
    # From here on ranks wait for each other: a signal to one of them is heard by all, at the end of a step.
    signals.immediate = args.world_size == 1
    if run.finished and args.max_steps <= run.manifest["steps"]:
        say(f"{run.directory} is finished after {run.manifest['steps']:,} steps, nothing to do")
        return {"run": str(run.directory), **run.results()}
    facts = {
        "training data": data_hash(recipe),
        "architecture": text_hash(config.to_json_string()),
        "tokenizer": text_hash(tokenizer.backend_tokenizer.to_str()),
        "train.max_steps": args.max_steps,
        "processes": args.world_size,
    }
    require_same({**identity(recipe, **facts), **versions()})
    num_trained = model.num_parameters(only_trainable=recipe.lora.enabled)
    checkpoint = on_main(
        lambda: run.start(identity(recipe, **facts), num_trained, allow_changed=allow_changed, extend=extend)
    )
    say(summary(args, stream, held_out, run.directory))
    say(batch_line(division_of(recipe, num_devices(recipe)), stream, examples))
    say(f"expected time: {duration(step_seconds() * args.max_steps)} for training on this machine")
    if checkpoint is not None:
        say(f"resuming from step {step_of(checkpoint)} ({checkpoint})")
    before = run.scores_before()
    if checkpoint is None and task.command == "pretrain" and "validation" in splits:
        with together(run.safe):
            before = task.evaluate(model, tokenizer, splits["validation"], without_intervals(recipe))
        shown = ", ".join(f"{name} {before[name].value:,.4g}" for name in list(before)[:2])
        say(f"validation before training: {shown}")
        run.keep_scores_before(before)

    start = time.monotonic()
    best = Best.of(recipe, task, config)
    callback = RunCallback(
        run,
        stream,
        signals,
        *intervals(recipe, args.max_steps, held_out is not None),
        tokenizer=tokenizer,
        best=best,
        budget=None if recipe.train.max_time is None else seconds_of(recipe.train.max_time),
        show=(lambda model: task.samples(model, tokenizer, held_out, recipe))
        if held_out is not None and recipe.train.samples
        else None,
    )
    trainer = trainer_of(task, recipe, ready, args, stream, callback)
    callback.take(trainer, 0.0 if checkpoint is None else read_marker(checkpoint).get("seconds", 0.0))
    with callback.progress():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    callback.raise_if_stopped()
    steps, is_sharded = trainer.state.global_step, sharding.is_asked(args)
    if is_sharded and not is_main_process():  # one whole model is put together, not one for each process
        return {"run": str(run.directory)}
    kept = steps if best is None or best.step is None else best.step
    if kept != steps:
        say(f"the best model is that of step {kept}, not the last: {best}")
    if kept != steps or is_sharded:  # of sharded weights each process has a part only
        model = with_weights_of(model, run.checkpoint(kept)).to(args.device)
    model.config.use_cache = use_cache  # turned off for training, and generation without it is slow
    scores: dict[str, Any] = {"before training": before} if before else {}
    with nullcontext() if is_sharded else together(run.safe):
        if held_out is not None:
            task.calibrate(model, tokenizer, held_out, recipe)
        if is_sharded:
            run.export(model, tokenizer)
        else:
            on_main(lambda: run.export(model, tokenizer))
        for split in ("validation", "test"):
            if split in splits:
                say(f"scoring the {split} data")
                beside = run.directory / split if is_main_process() else None
                scores[split] = task.evaluate(model, tokenizer, splits[split], recipe, beside=beside)
    if not is_main_process():
        return {"run": str(run.directory)}
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


def prepare(task: Task, recipe: Recipe, run: Run, *, shared: bool = False) -> Prepared:
    """Data, tokenizer and model, the model as it stands before the first step.

    `shared`: several processes do this, and a new tokenizer is made by one of them.
    """
    from transformers import set_seed

    from hfkit.models import describe, load_config, load_tokenizer, new_or_pretrained, quiet_libraries, require_head

    quiet_libraries()
    config = load_config(recipe)
    require_head(config, task.auto_model)  # before the data is read, which can take long
    adapters.check(recipe, config)
    splits = load_splits(task, recipe)
    if "validation" not in splits and (recipe.train.best or recipe.train.early_stopping):
        raise UsageError("the best model is told by validation data, and there is none", "--validation FILE")
    set_seed(recipe.train.seed)
    tokenizer = load_tokenizer(recipe, config, corpus(splits["train"]), begun_with=run.saved_tokenizer(), shared=shared)
    for key, value in task.model_settings(splits, config).items():
        setattr(config, key, value)
    model = new_or_pretrained(task.auto_model, recipe, config, tokenizer)
    say(f"model: {describe(model)}")

    def encode(dataset: Dataset) -> Rows:
        return task.encode(dataset, tokenizer, model, recipe)

    rows = None if recipe.data.streaming else encode(splits["train"])
    if rows is not None:
        task.begin(model, rows)
    held_out = encode(splits["validation"]) if "validation" in splits else None
    return Prepared(splits, config, tokenizer, model, rows, held_out, encode)


def stream_of(
    steps: int, task: Task, recipe: Recipe, ready: Prepared, args: TrainingArguments
) -> TrainingStream | StreamedExamples:
    """The training examples of a run of so many steps, in their order."""
    from hfkit.stream import StreamedExamples, TrainingStream

    seed, device_rows = recipe.train.seed, args.train_batch_size
    step_rows = device_rows * args.gradient_accumulation_steps * args.world_size
    if ready.rows is not None:
        return TrainingStream(ready.rows, task, steps=steps, step_rows=step_rows, seed=seed)
    return StreamedExamples(
        ready.splits["train"],
        ready.encode,
        task,
        steps=steps,
        step_rows=step_rows,
        device_rows=device_rows,
        seed=seed,
        buffer=recipe.data.shuffle_buffer,
    )


def trainer_of(
    task: Task,
    recipe: Recipe,
    ready: Prepared,
    args: TrainingArguments,
    stream: TrainingStream | StreamedExamples,
    callback: RunCallback,
) -> Trainer:
    """The stock Trainer, put together from the task's functions."""
    from transformers import Trainer

    from hfkit.metrics import loss_of
    from hfkit.stream import EvaluationRows

    held_out = None if ready.held_out is None else EvaluationRows(ready.held_out, task, recipe.evaluation.seed)

    def metrics_of(output: Any) -> dict[str, float | None]:
        assert held_out is not None
        found = (held_out.in_row_order(output.predictions), held_out.in_row_order(output.label_ids))
        scores = task.scores(*found, held_out.rows, without_intervals(recipe))
        # The Trainer's own loss is a mean over batches, of which several processes fill the last one with rows again.
        return {name: score.value for name, score in scores.items()} | {"loss": loss_of(scores)}

    trainer = Trainer(
        model=ready.model,
        args=args,
        data_collator=partial(collate, task, ready.tokenizer),
        train_dataset=stream,
        eval_dataset=held_out,
        compute_loss_func=callback.watched(task.training_loss(recipe, ready.rows, stream.step_rows), task.loss),
        preprocess_logits_for_metrics=lambda outputs, labels: task.reduce(
            outputs if isinstance(outputs, tuple) else (outputs,), labels, ready.tokenizer
        ),
        compute_metrics=metrics_of,
        callbacks=[callback],
        optimizer_cls_and_kwargs=optimizer(recipe),
    )
    if recipe.lora.enabled:  # the Trainer reads back no checkpoint of a model that has adapters and is no PeftModel
        trainer._load_from_checkpoint = lambda path, model=None: adapters.read(trainer.model, Path(path))
    return trainer


def without_intervals(recipe: Recipe) -> Recipe:
    return replace(recipe, evaluation=replace(recipe.evaluation, interval=False))


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


def with_rows_that_fit(task: Task, recipe: Recipe, ready: Prepared, directory: Path) -> Recipe:
    """`recipe` with the most rows in a pass that fit the memory of every process."""
    args = training_arguments(recipe, directory)
    stream = stream_of(1, task, recipe, ready, args)
    task.prepare(ready.model, task.collate(stream.sample(1), ready.tokenizer))
    division = division_of(recipe, num_devices(recipe))
    rows = rows_that_fit(task, ready.model, ready.tokenizer, stream, division, args)
    rows = -largest(-rows, args.device)
    return replace(recipe, train=replace(recipe.train, per_device_train_batch_size=rows))


def batch_line(
    division: Division, stream: TrainingStream | StreamedExamples, examples: Sequence[dict[str, Any]]
) -> str:
    """What one step of the optimizer takes in: rows, how they are divided, and their tokens in the mean."""
    mean = stream.mean_length or sum(len(example["input_ids"]) for example in examples) / len(examples)
    passes, processes = counted(division.passes, "pass"), counted(division.devices, "process")
    return (
        f"each step: {counted(division.step_rows, 'row')} ({division.rows:,} in a pass x {passes} x {processes}), "
        f"about {mean * division.step_rows:,.0f} tokens"
    )


def summary(
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


def data_hash(recipe: Recipe) -> str:
    from hfkit.data import fingerprint

    return fingerprint(recipe.data.train)


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
