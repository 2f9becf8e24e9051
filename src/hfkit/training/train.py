"""The run: from a recipe to a trained, evaluated and saved model, read from top to bottom."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel

from hfkit.data.sources import offline_for
from hfkit.errors import DivergedError
from hfkit.evaluation.inference import predict_rows
from hfkit.evaluation.scoring import score_split
from hfkit.models import sharded
from hfkit.models.loading import require_fit, with_weights_of
from hfkit.runs.manifest import identity, versions
from hfkit.runs.run import Run
from hfkit.system.checkpoints import step_of
from hfkit.system.console import counted, is_main_process, say
from hfkit.system.network import no_telemetry
from hfkit.system.processes import distributed_inference, on_main_process, require_same
from hfkit.tasks import TASKS
from hfkit.training.arguments import join_processes, set_steps, training_arguments
from hfkit.training.batch import BatchSize, batch_size, num_devices
from hfkit.training.callbacks import RunCallback, number_name
from hfkit.training.evaluations import evaluations
from hfkit.training.pace import number_of_steps, pace
from hfkit.training.prepare import data_hash, prepare, stream_of, text_hash, with_batch_that_fits
from hfkit.training.prepared import Prepared
from hfkit.training.stream import MEGABATCH
from hfkit.training.trainer import build_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from hfkit.metrics.sample import Score
    from hfkit.settings import Recipe
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

    `resume`: "auto" (the newest complete checkpoint of the run directory, else a fresh start) or a checkpoint's path;
    `allow_changed`: also if settings or data differ from those of the checkpoint; `extend`: for more steps.
    Raises an HfkitError, before anything is written, if settings, data or model are at fault.
    """
    task = TASKS[recipe.task or ""]
    with Run.open(recipe, task.command, resume=resume, overwrite=overwrite, extend=extend) as run, ExitStack() as stack:
        if run.is_complete():
            return run.results()
        batch_size(run.recipe, num_devices(run.recipe))  # a batch that can't be divided is refused before data is read
        stack.enter_context(network_for(recipe))
        ready = prepare(task, run.recipe, run)  # splits, tokenizer, model, encoded examples
        join_processes(recipe.train)
        if run.recipe.train.per_device_train_batch_size == "auto":
            ready = with_batch_that_fits(ready, run.directory)
        run.recipe = ready.recipe
        args = training_arguments(ready.recipe, run.directory)
        sharded.require_possible(args, ready.recipe)
        schedule = plan_steps(ready, args, run)  # by steps, tokens, time or epochs
        if run.is_complete(schedule.steps):
            return run.results()
        num_examples = schedule.steps * schedule.stream.global_batch_size
        plan = evaluations(ready, schedule.steps, num_examples * schedule.mean_tokens)
        checkpoint = start(run, ready, schedule, args, allow_changed=allow_changed)
        before = score_before_training(ready, run, checkpoint)
        callback = RunCallback(run, ready, schedule.stream, plan)
        callback.train(build_trainer(ready, args, schedule.stream, callback), checkpoint)
        if sharded.is_asked(args) and not is_main_process():
            return run.results()  # rank 0 alone merges the shards
        model = trained_model(ready, run, callback, args)
        require_numbers(ready, model, schedule, args)
        scores = export_and_score(ready, run, model, args)
        run.finish(({"before training": before} if before else {}) | scores, **callback.facts())
        return run.results()


def prepare_once(recipe: Recipe, *, resume: str | None, overwrite: bool) -> Path:
    """The directory of the run that several processes are about to do. What they read is in the caches then.

    Whatever `prepare` finds at fault ends the run here, before there is more than one process.
    """
    task = TASKS[recipe.task or ""]
    run = Run.plan(recipe, task.command, resume=resume, overwrite=overwrite)
    run.unlock()  # the first rank takes the lock
    if not run.finished:
        say("preparing data and tokenizer, once for all processes")
        with network_for(recipe):
            prepare(task, run.recipe, run, shared=True)
    return run.directory


def network_for(recipe: Recipe) -> AbstractContextManager[None]:
    """Inside, there is no network if model and data are local, unless an upload needs it. Telemetry is off."""
    if recipe.train.push is None:
        return offline_for(recipe)
    no_telemetry()
    return nullcontext()


class Schedule(NamedTuple):
    """How long the run is, and what a step takes."""

    steps: int
    stream: TrainingStream | StreamedExamples  # the examples of these steps, in order
    mean_tokens: float  # of an example


def plan_steps(ready: Prepared, args: TrainingArguments, run: Run) -> Schedule:
    """The schedule that the recipe's budget gives. Sets in `args` what follows from the number of steps."""
    recipe, trial = ready.recipe, stream_of(MEGABATCH, ready)
    examples = trial.sample(args.train_batch_size)
    if not sharded.is_asked(args):  # weights that are sharded need not fit one device
        ready.model.to(args.device)
    ready.task.adapt(ready.model, ready.collate(examples), ready.rows)
    step_seconds = cache(
        lambda: pace(ready, trial, args).step(args.train_batch_size * args.gradient_accumulation_steps)
    )
    begun = None if run.extend else run.steps_of_time()
    steps = begun or on_main_process(
        lambda: number_of_steps(recipe.train, ready.rows, trial.global_batch_size, step_seconds)
    )
    set_steps(args, recipe.train, steps)
    # From here on ranks wait for each other: all of them hear a signal to one of them, at the end of a step.
    run.signals.immediate = args.world_size == 1
    mean = trial.mean_length or sum(len(example["input_ids"]) for example in examples) / len(examples)
    return Schedule(steps, stream_of(steps, ready), mean)


def start(
    run: Run, ready: Prepared, schedule: Schedule, args: TrainingArguments, *, allow_changed: bool
) -> Path | None:
    """The checkpoint to resume from, None for a fresh start. Takes the directory and prints what is about to happen."""
    recipe = ready.recipe
    facts = {
        "training data": data_hash(recipe.data),
        "architecture": text_hash(ready.config.to_json_string()),
        "tokenizer": text_hash(ready.tokenizer.backend_tokenizer.to_str()),
        "train.max_steps": schedule.steps,
        "processes": args.world_size,
    }
    if recipe.data.chat_template is not None:  # a file can change
        facts["chat template"] = text_hash(str(ready.tokenizer.chat_template))
    require_same({**identity(recipe, **facts), **versions()})
    num_trained = ready.model.num_parameters(only_trainable=recipe.lora.enabled)
    same, fits = identity(recipe, **facts), partial(require_fit, ready.model)
    checkpoint = on_main_process(lambda: run.start(same, num_trained, allow_changed=allow_changed, require_fit=fits))
    say(summary(ready, schedule, run.directory))
    say(batch_line(batch_size(recipe, num_devices(recipe)), schedule.mean_tokens))
    if checkpoint is not None:
        say(f"resuming from step {step_of(checkpoint)} ({checkpoint})")
    return checkpoint


def summary(ready: Prepared, schedule: Schedule, directory: Path) -> str:
    """What is about to happen, in one line."""
    stream = schedule.stream
    parts = ["a stream of examples" if stream.num_rows is None else f"{stream.num_rows:,} examples"]
    if ready.held_out is not None:
        parts.append(f"{len(ready.held_out):,} validation examples")
    epochs = "" if stream.num_rows is None else f" ({len(stream) / stream.num_rows:.2g} epochs)"
    parts.append(f"{schedule.steps:,} steps of {stream.global_batch_size} examples{epochs}")
    if (padding := stream.padding()) >= 0.001:
        parts.append(f"{padding:.1%} padding")
    return f"training: {', '.join(parts)}, into {directory}"


def batch_line(batch: BatchSize, mean_tokens: float) -> str:
    """What one optimizer step takes in: examples, how they are divided, and about how many tokens they have."""
    steps, processes = counted(batch.accumulation_steps, "accumulation step"), counted(batch.devices, "process")
    division = f"{batch.per_device:,} in a micro-batch x {steps} x {processes}"
    return f"each step: {counted(batch.total, 'example')} ({division}), about {mean_tokens * batch.total:,.0f} tokens"


def score_before_training(ready: Prepared, run: Run, checkpoint: Path | None) -> dict[str, Score]:
    """The scores of a model that has not trained yet, kept in the manifest; none for tasks that begin with a new head.

    A run that resumes from a checkpoint has them there. One that starts anew measures them on all ranks, whatever the
    manifest of an interrupted start says.
    """
    if checkpoint is not None or not ready.task.scores_before or ready.held_out is None:
        return run.scores_before()
    with distributed_inference(run.safe):
        data = ready.splits["validation"]
        quick = replace(ready.recipe, evaluation=replace(ready.recipe.evaluation, interval=False))
        before = score_split(ready.task, ready.model, ready.tokenizer, data, quick, rows=ready.held_out)
    shown = ", ".join(f"{name} {before[name].value:,.4g}" for name in list(before)[:2])
    say(f"validation before training: {shown}")
    run.keep_scores_before(before)
    return before


def trained_model(ready: Prepared, run: Run, callback: RunCallback, args: TrainingArguments) -> PreTrainedModel:
    """The model after the last step, or the best one if the run looks for it."""
    model = extract_model_from_parallel(ready.model, keep_fp32_wrapper=False)  # scores are of float32
    steps, best = callback.trainer.state.global_step, callback.best
    kept = steps if best is None or best.step is None else best.step
    if kept != steps:
        say(f"the best model is that of step {kept}, not the last: {best}")
    if kept != steps or sharded.is_asked(args):  # of sharded weights each process has a part only
        model = with_weights_of(model, run.checkpoint(kept)).to(args.device)
    model.config.use_cache = ready.use_cache  # turned off for training, and generation without it is slow
    return model


def require_numbers(ready: Prepared, model: PreTrainedModel, schedule: Schedule, args: TrainingArguments) -> None:
    """DivergedError if the loss of a training example is no number: the last step has left weights that are too large.

    The loss of every step before it was looked at when it was taken.
    """
    if sharded.is_asked(args):
        return
    batch = {name: tensor.to(args.device) for name, tensor in ready.collate(schedule.stream.sample(1)).items()}
    labels = batch.pop("labels")
    model.eval()
    with torch.no_grad():
        loss = ready.task.loss(model(**batch), labels)
    if not loss.isfinite():
        raise DivergedError(
            f"after the last step the loss is {number_name(loss.item())}: the model is not saved",
            f"a smaller --learning-rate than {args.learning_rate}",
        )


def export_and_score(
    ready: Prepared, run: Run, model: PreTrainedModel, args: TrainingArguments
) -> dict[str, dict[str, Score]]:
    """Saves the model in the run directory and returns its scores by split, with a file of predictions for each."""
    task, recipe, is_sharded = ready.task, ready.recipe, sharded.is_asked(args)
    scores: dict[str, dict[str, Score]] = {}
    with nullcontext() if is_sharded else distributed_inference(run.safe):
        if ready.held_out is not None:
            size, seed = recipe.evaluation.batch_size, recipe.evaluation.seed
            predict = partial(predict_rows, task, model, ready.tokenizer, ready.held_out, batch_size=size, seed=seed)
            task.tune(model, ready.held_out, recipe.evaluation, predict)
        if is_sharded:  # rank 0 is alone here
            run.export(model, ready.tokenizer)
        else:
            on_main_process(lambda: run.export(model, ready.tokenizer))
        for split in ("validation", "test"):
            if split in ready.splits:
                say(f"scoring the {split} data")
                prefix = run.directory / split if is_main_process() else None
                rows = ready.held_out if split == "validation" else None
                data = ready.splits[split]
                scores[split] = score_split(task, model, ready.tokenizer, data, ready.scoring, prefix, rows)
    return scores
