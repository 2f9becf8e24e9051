"""What happens at each step beside the step: commit, evaluate, report, stop on a signal, stop on a broken number."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hfkit import distributed
from hfkit.console import is_main_process, say
from hfkit.errors import DivergedError, StoppedError

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from hfkit.runs import Run
    from hfkit.stream import TrainingStream


class StopSignal:
    """Remembers SIGTERM and SIGINT from entry to exit; the second Ctrl-C aborts at once.

    While `immediate`, a signal raises StoppedError where the program is; training sets it to False and asks `caught`
    at the end of each step instead, so that the step is saved first.
    """

    def __init__(self) -> None:
        self.immediate, self.caught = True, 0

    def __enter__(self) -> StopSignal:
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.caught = bool(self.caught), number
        if self.immediate or (again and number == signal.SIGINT):
            raise stopped(number)


def stopped(number: int) -> StoppedError:
    return StoppedError(number, f"stopped by {signal.Signals(number).name}", "go on with --resume auto")


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Saves, evaluates and reports by the recipe's schedule.

    A step is saved before it is evaluated, and evaluation leaves the random states as they were: so a run that is
    stopped while evaluating has lost nothing, and evaluating never changes what is trained.
    """

    def __init__(
        self, run: Run, stream: TrainingStream, step_rows: int, signals: StopSignal, eval_steps: int, save_steps: int
    ) -> None:
        self.run, self.stream, self.step_rows, self.signals = run, stream, step_rows, signals
        self.eval_steps, self.save_steps = eval_steps, save_steps  # eval_steps 0: no evaluation
        self._logged = self._started = (0, 0.0)  # step and time of the last progress line and of the start

    def take(self, trainer: Trainer) -> None:
        """Becomes the one that reports for `trainer`; the library hands a callback everything but the trainer."""
        self.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)

    def raise_if_stopped(self) -> None:
        """After training: StoppedError where a signal ended it; from here on a signal acts at once."""
        self.signals.immediate = True
        if self.signals.caught:
            raise stopped(self.signals.caught)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = self._logged = (state.global_step, time.monotonic())
        self.signals.immediate = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        state.epoch = step * self.step_rows / len(self.stream.rows)  # the library sees the whole stream as one epoch
        self.signals.caught = stop = distributed.largest(self.signals.caught, args.device)
        last = step >= state.max_steps
        control.should_save = bool(stop) or last or step % self.save_steps == 0 or self._evaluates(state)
        control.should_training_stop = bool(stop) or last

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        distributed.barrier()
        distributed.on_main(lambda: self.run.commit(state.global_step))
        if self._evaluates(state) and not self.signals.caught:
            self.evaluate()

    def evaluate(self) -> None:
        """Metrics of the validation data, logged; random states are left as they were."""
        import torch

        with torch.random.fork_rng():
            self.trainer.evaluate()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if caught := distributed.largest(self.signals.caught, args.device):
            raise stopped(caught)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        for name in ("loss", "grad_norm", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                good = "no step was saved" if state.global_step <= self.save_steps else "the last checkpoint is good"
                raise DivergedError(
                    f"{name} is {logs[name]} at step {state.global_step}; {good}",
                    f"a smaller --learning-rate than {args.learning_rate}",
                )
        if "loss" in logs:
            self._progress(state, logs)
        elif "eval_loss" in logs:
            names = [key for key in logs if key.startswith("eval_") and "_per_" not in key and key != "eval_runtime"]
            shown = "  ".join(f"{name.removeprefix('eval_')} {logs[name]:.4g}" for name in names)
            say(f"  validation at step {state.global_step}: {shown}")
        if is_main_process():
            self.run.log({"step": state.global_step, **logs})

    def _progress(self, state: TrainerState, logs: dict[str, Any]) -> None:
        now, step = time.monotonic(), state.global_step
        before, then = self._logged
        tokens = self.stream.tokens(before * self.step_rows, step * self.step_rows)
        first, start = self._started
        left = (now - start) / max(step - first, 1) * (state.max_steps - step)
        say(
            f"step {step:>5}/{state.max_steps}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  "
            f"{tokens / max(now - then, 1e-9):,.0f} tokens/s  {duration(left)} left"
        )
        self._logged = (step, now)

    def _evaluates(self, state: TrainerState) -> bool:
        """Every eval_steps; not after the last step, where the final scores follow anyway."""
        step = state.global_step
        return self.eval_steps > 0 and step % self.eval_steps == 0 and step < state.max_steps


def duration(seconds: float) -> str:
    """1:02:03 or 4:05 (minutes:seconds)."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
