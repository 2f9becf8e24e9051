"""What a user's mistake ends in: one line per problem, the fix beside it, and an exit code of its own.

HfkitError            1  never raised itself: a bug of ours shows its traceback instead
+-- UsageError        2  a flag, a recipe or a setting
+-- DataError         3  a file, a row, a label
+-- DivergedError     4  the loss or a gradient is no longer a number
+-- ModelError        5  a model, tokenizer or checkpoint that can't be read
+-- StorageError      6  disk full, not writable
+-- OutOfMemoryError  7  no room for the batch or the model
+-- LostProcessError  8  another process or machine of the run is gone or can't be reached
+-- BusyError        75  another process works in the directory
+-- StoppedError     128 + the signal: 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP), after saving
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Iterator, Sequence


class HfkitError(Exception):
    """One or several problems, each a message and the fix to type next (an empty fix prints none)."""

    exit_code = 1

    def __init__(self, message: str, fix: str = "", *, others: Sequence[tuple[str, str]] = ()) -> None:
        self.problems = [(message, fix), *others]
        super().__init__("\n".join(format_problem(*problem) for problem in self.problems))

    @classmethod
    def of(cls, problems: Sequence[tuple[str, str]]) -> HfkitError:
        """All `problems` as one error, in their order."""
        (message, fix), *others = problems
        return cls(message, fix, others=others)


class UsageError(HfkitError):
    exit_code = 2


class DataError(HfkitError):
    exit_code = 3


class DivergedError(HfkitError):
    exit_code = 4


class ModelError(HfkitError):
    exit_code = 5


class StorageError(HfkitError):
    exit_code = 6


class OutOfMemoryError(HfkitError):
    exit_code = 7


class LostProcessError(HfkitError):
    exit_code = 8


class BusyError(HfkitError):
    exit_code = 75


class StoppedError(HfkitError):
    """Stopped by a signal after saving; the exit code is the shell's 128 + signal number."""

    def __init__(self, signum: int, message: str, fix: str = "") -> None:
        super().__init__(message, fix)
        self.exit_code = 128 + signal.Signals(signum).value


def format_problem(message: str, fix: str) -> str:
    return f"{message} (fix: {fix})" if fix else message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest of `known`, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


Problem = tuple[str, str]  # message and fix

OUT_OF_MEMORY = (
    "can't allocate memory",
    "bad_alloc",
    "Cannot allocate memory",
    "out of memory",
    "ALLOC_FAILED",  # cuBLAS and cuDNN, which allocate for themselves
)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and then what caused it, the root last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes means that memory ran out."""
    return any(
        isinstance(one, OutOfMemoryError | MemoryError) or any(sign in str(one) for sign in OUT_OF_MEMORY)
        for one in causes(error)
    )
