"""What happens at each step beside the step: commit, evaluate, report, stop on a signal, stop on a broken number."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hfkit.errors import DivergedError, StoppedError, first_line
from hfkit.evaluation.scoring import score_split
from hfkit.metrics.table import metric_of
from hfkit.models import adapters, sharded
from hfkit.models.finite import all_finite
from hfkit.runs.manifest import peak_device_memory_mib, peak_memory_mib, reset_peak_device_memory
from hfkit.runs.results import append_log, read_log
from hfkit.system import processes
from hfkit.system.checkpoints import read_marker
from hfkit.system.console import counted, duration, is_main_process, say, warn
from hfkit.system.state import kept_random_state
from hfkit.training.best import Best
from hfkit.training.pace import seconds_of

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from hfkit.runs.run import Run
    from hfkit.tasks.base import Loss
    from hfkit.training.evaluations import Evaluations
    from hfkit.training.prepared import Prepared
    from hfkit.training.stream import StreamedExamples, TrainingStream

SECONDS_TO_PACE = 3.0  # of steps, from which the time of the others is told

TIMINGS = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}  # what the Trainer adds to scores


class NothingLeft(Exception):
    """Raised where a resumed run has nothing left to train."""


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Saves, evaluates and reports by the recipe's schedule.

    A step is saved before it is evaluated, and evaluation leaves the random states as they were: so a run that is
    stopped while evaluating has lost nothing, and evaluating never changes what is trained.
    """

    def __init__(
        self, run: Run, ready: Prepared, stream: TrainingStream | StreamedExamples, evaluations: Evaluations
    ) -> None:
        self.run, self.ready, self.stream, self.signals = run, ready, stream, run.signals
        settings, self.evaluations = ready.recipe.train, evaluations
        self.best = Best.of(settings, ready.task, ready.config)
        self.budget = None if settings.max_time is None else seconds_of(settings.max_time)
        self._created = time.monotonic()
        self._logged = self._started = (0, 0.0)  # step and time of the last progress line and of the start
        self._loss: Any = None  # of the last micro-batch, shape ()
        self._paced = (0, 0.0)  # step and time of the end of the first one
        self._is_announced = False  # what training will take
        self._bar: Progress | None = None

    def train(self, trainer: Trainer, checkpoint: Path | None) -> None:
        """Trains from `checkpoint`, None for a fresh start; StoppedError if a signal to any rank ended it.

        The callback is the only one that reports for `trainer`, which the library keeps from callbacks.
        """
        self.trainer = trainer
        self._seconds_before = 0.0 if checkpoint is None else read_marker(checkpoint).get("seconds", 0.0)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        reset_peak_device_memory()  # of the trial steps
        with self.progress(), suppress(NothingLeft):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self._peak_device_memory_mib = peak_device_memory_mib()  # scoring, which follows, takes other amounts
        # From here on a signal acts at once. One of several ranks would leave the others waiting: they finish the run.
        self.signals.immediate = trainer.args.world_size == 1
        if self.signals.on_any_rank(trainer.args.device):
            raise self._stopped()

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the training."""
        steps = self.trainer.state.global_step
        return {
            "steps": steps,
            "world_size": self.trainer.args.world_size,
            "wall_seconds": round(time.monotonic() - self._created, 1),
            "tokens_seen": self.stream.tokens(0, steps * self.stream.global_batch_size) or None,
            "best": None if self.best is None else {"step": self.best.step, self.best.metric: self.best.value},
            "peak_memory_mib": peak_memory_mib(),
            "peak_device_memory_mib": self._peak_device_memory_mib,
        }

    def watched(self, training_loss: Loss, loss: Loss) -> Loss:
        """`training_loss` where gradients are taken, its value looked at before it changes a weight, else `loss`."""

        def watched_loss(*values: Any, **options: Any) -> Any:
            if not torch.is_grad_enabled():
                return loss(*values, **options)
            result = training_loss(*values, **options)
            self._loss = result.detach()
            return result

        return watched_loss

    def _stopped(self) -> StoppedError:
        return self.signals.stopped(self.run.safe())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if sharded.is_asked(args):
            sharded.require_sharded(kwargs["model"])
        self._started = self._logged = (state.global_step, time.monotonic())
        self.signals.immediate = False
        if self.best is not None:
            self.best.take_all(read_log(self.run.directory))
            if state.global_step > self.best.last_step and self._evaluates(state):  # it was killed before it could
                self.evaluate()
        if state.global_step >= state.max_steps or self._is_over():
            raise NothingLeft

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops before a gradient that is no number reaches the weights. (A loss scaler skips such steps itself.)"""
        if self.trainer.accelerator.scaler is not None:
            return
        gradients = [weight.grad for weight in kwargs["model"].parameters() if weight.grad is not None]
        if not (args.max_grad_norm > 0 and clipped_in_order(gradients)) and not all_finite(gradients):
            loss = self._loss.item()
            what = "the gradient is not finite" if math.isfinite(loss) else f"loss is {number_name(loss)}"
            raise self._diverged(what, state.global_step + 1, args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        rows = self.stream.num_rows or len(self.stream)
        state.epoch = step * self.stream.global_batch_size / rows  # the library sees the whole stream as one epoch
        self._announce(state)
        stop = self.signals.on_any_rank(args.device)
        last = step >= state.max_steps or self._is_over()
        control.should_save = stop or last or step % self.evaluations.save_steps == 0 or self._evaluates(state)
        control.should_training_stop = stop or last
        if control.should_save:
            optimizer = [value for values in kwargs["optimizer"].state.values() for value in values.values()]
            if not all_finite([*kwargs["model"].state_dict().values(), *optimizer]):
                raise self._diverged("a weight or optimizer state is not finite", step, args)
            processes.on_main_process(lambda: self.run.prepare_save(step))
        if self._bar is not None:
            left = f"{duration(self._seconds_left(state))} left"
            self._bar.update(self._bar.task_ids[0], completed=step, total=state.max_steps, description=left)

    def _announce(self, state: TrainerState) -> None:
        """Prints once what training will take, at the pace of its first steps but the very first, which is slower."""
        first, (step, now) = self._started[0], (state.global_step, time.monotonic())
        if step == first + 1:
            self._paced = (step, now)
        elif not self._is_announced and step < state.max_steps and now - self._paced[1] >= SECONDS_TO_PACE:
            self._is_announced = True
            seconds = (now - self._paced[1]) / (step - self._paced[0])
            said = duration(seconds * (state.max_steps - first))
            say(f"expected time: {said} for training, at the pace of {counted(step - self._paced[0], 'step')}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        processes.barrier()
        processes.on_main_process(lambda: self._commit(state.global_step))
        if self.signals.on_any_rank(args.device):
            control.should_training_stop = True
        elif self._evaluates(state):
            self.evaluate()
            control.should_training_stop = control.should_training_stop or self._is_over()

    def _commit(self, step: int) -> None:
        checkpoint = self.run.checkpoint(step)
        self.ready.tokenizer.save_pretrained(checkpoint)  # so that a checkpoint is a model that opens
        sharded.complete(checkpoint, self.trainer.model)
        if self.ready.recipe.lora.enabled:
            adapters.complete(checkpoint, self.trainer.model, adapters.base_for(self.ready.recipe.model))
        self.run.commit(step, self._seconds(), None if self.best is None else self.best.step)

    def evaluate(self) -> None:
        """Metrics of the validation data, logged; random states are left as they were."""
        start = time.monotonic()
        with kept_random_state():
            metrics = self.trainer.evaluate()
            if self.best is not None and f"eval_{self.best.metric}" not in metrics:
                metrics |= self._score(self.best.metric)
            if self.best is not None:
                self.best.take(self.trainer.state.global_step, metrics)
                if self.best.over:
                    say(f"  no better for {self.best.waited} evaluations: {self.best} stays the best, training ends")
            if self.ready.recipe.train.samples:  # on all ranks: of sharded weights each has a part only
                ready, seed = self.ready, self.ready.recipe.evaluation.seed
                assert ready.held_out is not None
                try:
                    for line in ready.task.samples(self.trainer.model, ready.tokenizer, ready.held_out, seed):
                        say(f"    {line}")
                except Exception as error:  # a by-product must not end a run
                    warn(f"no sample text: {first_line(error)}", "--no-samples", once=True)
        seconds = time.monotonic() - start  # tokens/s and the pace are those of training
        self._logged, self._paced = ((step, then + seconds) for step, then in (self._logged, self._paced))

    def _score(self, metric: str) -> dict[str, float]:
        """A metric of the validation data that needs more than one pass, said and logged."""
        ready, step = self.ready, self.trainer.state.global_step
        wanted = replace(ready.recipe.evaluation, metrics=[metric_of(metric)], interval=False)
        recipe = replace(ready.recipe, evaluation=wanted)
        with processes.distributed_inference(self.run.safe):
            scores = score_split(ready.task, self.trainer.model, ready.tokenizer, ready.splits["validation"], recipe)
        value = scores[metric].value
        say(f"  {metric} at step {step}: {value:.4g}")
        found = {f"eval_{metric}": value}
        if is_main_process():
            append_log(self.run.directory, {"step": step, **found})
        return found

    def _is_over(self) -> bool:
        """Whether patience or time has run out."""
        late = self.budget is not None and self._seconds() >= self.budget
        if self.budget is not None and processes.all_reduce_max(int(late), self.trainer.args.device):
            return True
        return self.best is not None and self.best.over

    def _seconds(self) -> float:
        """For how long the run has trained, over all its starts."""
        return self._seconds_before + time.monotonic() - self._started[1]

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Training inside shows a bar if stderr is a terminal."""
        if is_main_process() and sys.stderr.isatty():
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=None)
        with self._bar or nullcontext():
            yield

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.signals.on_any_rank(args.device):
            raise self._stopped()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if logs.get("eval_loss", 0) is None:  # of a task that names none
            del logs["eval_loss"]
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise self._diverged(f"{name} is {number_name(logs[name])}", state.global_step, args)
        if "loss" in logs:
            self._progress(state, logs)
        elif logs.keys() >= TIMINGS:
            names = [key for key in logs if key.startswith("eval_") and key not in TIMINGS]
            shown = "  ".join(f"{name.removeprefix('eval_')} {logs[name]:.4g}" for name in names)
            say(f"  validation at step {state.global_step}: {shown}")
        if is_main_process():
            append_log(self.run.directory, {"step": state.global_step, **logs})

    def _diverged(self, what: str, step: int, args: TrainingArguments) -> DivergedError:
        return DivergedError(
            f"{what} at step {step}; {self.run.safe()}", f"a smaller --learning-rate than {args.learning_rate}"
        )

    def _progress(self, state: TrainerState, logs: dict[str, Any]) -> None:
        now, step = time.monotonic(), state.global_step
        before, then = self._logged
        rows = self.stream.global_batch_size
        tokens = self.stream.tokens(before * rows, step * rows)
        done, unit = (tokens, "tokens") if tokens else ((step - before) * rows, "examples")
        norm = f"grad {logs['grad_norm']:.3g}  " if "grad_norm" in logs else ""
        say(
            f"step {step:>5}/{state.max_steps}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  {norm}"
            f"{done / max(now - then, 1e-9):,.0f} {unit}/s  {duration(self._seconds_left(state))} left"
        )
        self._logged = (step, now)

    def _seconds_left(self, state: TrainerState) -> float:
        """At the mean pace since this start."""
        first, start = self._started
        pace: float = (time.monotonic() - start) / max(state.global_step - first, 1)
        return pace * int(state.max_steps - state.global_step)

    def _evaluates(self, state: TrainerState) -> bool:
        """Every `eval_steps`; after the last step only where the best is looked for: the final scores follow anyway."""
        step, last = state.global_step, state.global_step >= state.max_steps
        every = self.evaluations.eval_steps
        return every > 0 and (self.best is not None if last else step % every == 0)


def clipped_in_order(gradients: Sequence[Any]) -> bool:
    """Whether gradients that were scaled to a norm show that the norm was a number, and with it all of them.

    A NaN among them makes every element NaN, an infinity makes every finite element 0: one element tells, where it is
    neither. The smallest tensors are looked at, so this costs next to nothing.
    """
    return any(
        bool(torch.isfinite(gradient).all() and gradient.any())
        for gradient in sorted(gradients, key=lambda gradient: gradient.numel())[:3]
    )


def number_name(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite"
