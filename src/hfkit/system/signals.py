"""SIGTERM, SIGHUP and Ctrl-C: they end the program at once, or after the step in progress is saved."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

from hfkit.errors import StoppedError
from hfkit.system import processes

PR_SET_PDEATHSIG = 1  # of linux/prctl.h

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

HAS_NOHUP = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as this process began


class StopSignal:
    """What these signals do in this process; `caught` is the first one that came (0: none).

    While `immediate`, the first signal raises SystemExit or KeyboardInterrupt, which no library catches as an error of
    its own; one that comes during an import raises after it. Training sets `immediate` to False and looks at `caught`
    after each step. A second Ctrl-C always raises at once; a second one of another kind changes nothing.
    """

    def __init__(self) -> None:
        self.immediate, self.caught = True, 0
        self.postponed: threading.Timer | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.immediate and _importing(frame):
            self._postpone(number)
            return
        again, self.caught = bool(self.caught), self.caught or number
        if (again and number == signal.SIGINT) or (self.immediate and not again):
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def _postpone(self, number: int) -> None:
        """Sends this process the signal again in a moment; does nothing while one is on its way."""
        if self.postponed is None or not self.postponed.is_alive():
            self.postponed = threading.Timer(0.1, os.kill, (os.getpid(), number))
            self.postponed.daemon = True
            self.postponed.start()

    @property
    def name(self) -> str:
        """The signal that came, as people call it."""
        return "Ctrl-C" if self.caught == signal.SIGINT else signal.Signals(self.caught).name

    def on_any_rank(self, device: Any) -> bool:
        """Whether a signal has come to any process of the run; every process gets the same answer and `caught`.

        A signal that comes during this call counts at the next one.
        """
        number = processes.all_reduce_max(self.caught, device)
        if number:
            self.caught = number
        return bool(number)

    def stopped(self, what: str) -> StoppedError:
        """The error for the signal that came; `what` says what is saved."""
        name = signal.Signals(self.caught).name
        return StoppedError(self.caught, f"stopped by {name}; {what}", "go on with the same command and --resume auto")

    def heed(self) -> None:
        """From here on the signals raise at once, also after `ignore`."""
        self.immediate = True
        if in_main_thread():
            for number in _heard():
                signal.signal(number, self.handle)

    def ignore(self) -> None:
        """From here on the signals do nothing: the results are written, and the process is about to end."""
        if in_main_thread():
            for number in NUMBERS:
                signal.signal(number, signal.SIG_IGN)


def _importing(frame: FrameType | None) -> bool:
    """Whether `frame` runs in an import that hfkit began.

    What is raised there may pass through the C++ code of a library, which then aborts the process.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        if frame.f_globals.get("__name__", "").startswith("hfkit.") and frame.f_code.co_name != "<module>":
            return False  # a function of hfkit; the program that called it may itself be in an import
        frame = frame.f_back
    return False


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """The StopSignal of this process, whose handlers are set from the outermost block's start to its end."""
    current = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    signals = current if isinstance(current, StopSignal) else StopSignal()
    with nullcontext() if signals is current else handling(signals.handle):
        yield signals


def _heard() -> list[signal.Signals]:
    """The signals, without a SIGHUP that nohup has turned off: the run is to outlive its terminal."""
    return [number for number in NUMBERS if not (HAS_NOHUP and number == signal.SIGHUP)]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, `handler` handles the signals; does nothing outside the main thread, where Python allows none."""
    previous = {number: signal.signal(number, handler) for number in _heard()} if in_main_thread() else {}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def prctl(option: int, value: int) -> None:
    """Sets an attribute of this process on Linux; does nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def end_with_launcher() -> None:
    """Has Linux send SIGTERM to this rank when its launcher ends, for whatever reason: no orphan goes on training."""
    # torchrun sets RANK; `accelerate launch` sets the other one, also for a single process.
    if "RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@functools.cache  # once in a process
def leave_to_parent() -> None:
    """For a worker of a data loader: it ignores the signals, which the main process acts on, and ends with that.

    A scheduler sends SIGTERM to all processes, but the step in progress still needs its examples. Workers of a killed
    rank would keep its connections open, and the other ranks would wait for it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_parents_word, daemon=True).start()


def _end_at_parents_word() -> None:
    """Ends this worker at a SIGTERM of the main process; multiprocessing would wait for it forever."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
