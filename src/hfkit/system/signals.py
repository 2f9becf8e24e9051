"""SIGTERM and Ctrl-C: acted on where the program is, or remembered until the step is saved."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hfkit.errors import StoppedError
from hfkit.system import processes

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """What the two signals do in this process, and which of them came first (`caught`, 0: none).

    While `immediate`, the first one raises where the program is: SystemExit or KeyboardInterrupt, which no library
    takes for a failure of its own. Training sets it to False and asks `caught` at the end of each step. The second
    Ctrl-C raises at once in any case; a second SIGTERM changes nothing.
    """

    def __init__(self) -> None:
        self.immediate, self.caught = True, 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        again, self.caught = bool(self.caught), self.caught or number
        if (again and number == signal.SIGINT) or (self.immediate and not again):
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def on_any_rank(self, device: Any) -> bool:
        """Whether a signal has come to any process of the run; all of them get the same answer, and the same `caught`.

        One that comes while they ask each other is remembered, for the next time.
        """
        number = processes.largest(self.caught, device)
        if number:
            self.caught = number
        return bool(number)

    def stopped(self, what: str) -> StoppedError:
        """The error that tells of the signal; `what` is kept."""
        name = signal.Signals(self.caught).name
        return StoppedError(self.caught, f"stopped by {name}; {what}", "go on with the same command and --resume auto")

    def heed(self) -> None:
        """From here on both signals end what goes on at once, also after `ignore`."""
        self.immediate = True
        if in_main_thread():
            for number in NUMBERS:
                signal.signal(number, self.handle)

    def ignore(self) -> None:
        """From here on both signals do nothing: the outcome is written, and only the process is left to end."""
        if in_main_thread():
            for number in NUMBERS:
                signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """The one StopSignal of this process, in charge from the outermost entry to its exit."""
    current = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    signals = current if isinstance(current, StopSignal) else StopSignal()
    if signals is current or not in_main_thread():  # Python takes signals in the main thread only
        yield signals
        return
    previous = {number: signal.signal(number, signals.handle) for number in NUMBERS}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Has Linux send SIGTERM to this rank when its launcher ends, however that ends: no orphan trains on."""
    # RANK is torchrun's, the other is set by `accelerate launch` for a single process too.
    if sys.platform == "linux" and ("RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@functools.cache  # once in a process
def leave_to_parent() -> None:
    """In a loader's worker process: signals are for the main process to act on, and its end is the worker's end.

    A scheduler sends SIGTERM to all processes, and the step that is to be saved still needs its rows. Workers of a
    killed rank would hold its connections open, and the other ranks would wait for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_at_parents_word, daemon=True).start()


def _end_at_parents_word() -> None:
    """Only the main process, which ends its workers that way, is obeyed: multiprocessing waits for it without end."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
