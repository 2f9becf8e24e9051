"""The spine: from a recipe to a trained, evaluated and saved model, read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.sources import stay_local
from hfkit.models import push, sharded
from hfkit.runs.manifest import identity, peak_memory_mib, versions
from hfkit.runs.run import Run
from hfkit.system import network
from hfkit.system.checkpoints import read_marker, step_of
from hfkit.system.console import counted, is_main_process, say, silence
from hfkit.system.processes import has_parent, num_processes, on_main, require_same, together
from hfkit.system.signals import StopSignal, stop_signals
from hfkit.tasks import TASKS
from hfkit.training.arguments import intervals, set_schedule, training_arguments
from hfkit.training.batch import division_of, num_devices
from hfkit.training.best import Best
from hfkit.training.pace import number_of_steps, pace, seconds_of
from hfkit.training.prepare import data_hash, prepare, stream_of, text_hash, with_rows_that_fit
from hfkit.training.trainer import trainer_of, without_intervals

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hfkit.settings import Recipe
    from hfkit.tasks.base import Rows, Task
    from hfkit.training.batch import Division
    from hfkit.training.stream import StreamedExamples, TrainingStream


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


def fit(
    task: Task, recipe: Recipe, run: Run, signals: StopSignal, *, allow_changed: bool, extend: bool
) -> dict[str, Any]:
    """What `train` returns, after the work itself."""
    division_of(recipe, num_devices(recipe))  # a step that can't be divided is told before data is read
    if recipe.train.push is None:
        stay_local(recipe)
    else:  # the upload needs the network
        network.no_telemetry()

    with silence() if has_parent() else nullcontext():  # which has told it already
        ready = prepare(task, recipe, run, shared=num_processes() > 1)
    splits, config, tokenizer, model, rows, held_out, _ = ready
    use_cache = getattr(config, "use_cache", None)

    from hfkit.models.loading import with_weights_of
    from hfkit.system.console import duration
    from hfkit.training.callbacks import RunCallback
    from hfkit.training.stream import MEGABATCH

    if recipe.train.per_device_train_batch_size == "auto":
        recipe = run.recipe = with_rows_that_fit(task, recipe, ready, run.directory)
    args = training_arguments(recipe, run.directory)
    sharded.require_possible(args, recipe)
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
    steps, is_sharded = trainer.state.global_step, sharded.is_asked(args)
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
