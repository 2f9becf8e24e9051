"""Printing: results to stdout, everything else to stderr, both from the main process only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from hfkit.errors import StorageError

_verbose = False

_silent = False

_said: set[str] = set()


def set_verbose(on: bool) -> None:
    global _verbose
    _verbose = on


def is_main_process() -> bool:
    """True in rank 0 and outside a distributed run (torchrun and accelerate both set RANK)."""
    return os.environ.get("RANK", "0") == "0"


def result(text: str, end: str = "\n") -> None:
    """Prints what the user asked for on stdout."""
    if is_main_process():
        try:
            sys.stdout.write(text + end)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has closed the pipe, e.g. `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except OSError as error:
            problem = f"stdout can't be written: {error.strerror}"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer is lost, too
            raise StorageError(problem, "free some space, or write elsewhere") from None


def result_json(value: Any) -> None:
    """Prints one JSON object on one line of stdout. Raises ValueError for infinity and NaN, which JSON lacks."""
    result(json.dumps(value, ensure_ascii=False, allow_nan=False))


@contextmanager
def silence() -> Iterator[None]:
    """Inside, `say` and `warn` print nothing: the same work is done again, or was done before, with its messages."""
    global _silent
    _silent = True
    try:
        yield
    finally:
        _silent = False


def say(text: str) -> None:
    """Prints progress or a decision on stderr."""
    if is_main_process() and not _silent:
        print(text, file=sys.stderr, flush=True)


def say_once(text: str) -> None:
    """Like `say`, but prints the same text only once in a command."""
    if text not in _said:
        _said.add(text)
        say(text)


def begin() -> None:
    """Starts a new command: `say_once` may print again what an earlier command in this process has printed."""
    _said.clear()


def detail(text: str) -> None:
    """Like `say`, but only with -v."""
    if _verbose:
        say(text)


def warn(text: str, fix: str = "", *, once: bool = False) -> None:
    """`once`: the same warning only once in a command."""
    (say_once if once else say)(f"warning: {text}" + (f" (fix: {fix})" if fix else ""))


def table(rows: Iterable[Sequence[str]], align: str = "<") -> str:
    """The rows as lines of text, their cells in columns of equal width, two spaces apart.

    align: `<` (left) or `>` (right) for each column; the last sign also holds for all further columns. A row of one
    cell is a heading or a note: it widens no column. Wide characters (Chinese, emoji) count as two.
    """
    from rich.cells import cell_len  # rich.table would wrap lines at the width of the terminal, in a pipe at 80

    rows = list(rows)
    columns = zip_longest(*(row for row in rows if len(row) > 1), fillvalue="")
    widths = [max(map(cell_len, column)) for column in columns]
    lines = []
    for row in rows:
        cells = []
        for cell, width, sign in zip_longest(row, widths[: len(row)], align[: len(row)]):
            spaces = " " * ((width or 0) - cell_len(cell))
            cells.append(spaces + cell if (sign or align[-1]) == ">" else cell + spaces)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    """A line per metric: name, value, interval and definition. What all definitions end with stands once below."""
    tails = {score["definition"].partition("; ")[2] for score in scores.values()}
    rows = []
    for name, score in scores.items():
        meaning = score["definition"].partition("; ")[0] if len(tails) == 1 else score["definition"]
        rows.append([f"  {name}", *value_cells(score), meaning])
    numbers = {score["n"] for score in scores.values()}
    facts = [*filter(None, tails)] if len(tails) == 1 else []
    facts += [f"n={number:,}" for number in numbers] if len(numbers) == 1 else []
    facts += ["95% intervals"] if any(score["low"] is not None for score in scores.values()) else []
    return table([*rows, *([[f"  ({', '.join(facts)})"]] if facts else [])])


def value_cells(score: dict[str, Any]) -> tuple[str, str]:
    """A score's value and its interval, padded so that they stand below each other in most tables."""
    return f"{score['value']:<7.4g}", f"{interval(score):<17}"


def interval(score: dict[str, Any]) -> str:
    """[low, high], or nothing for a score without an interval."""
    return "" if score["low"] is None else f"[{score['low']:.4g}, {score['high']:.4g}]"


def counted(number: int, noun: str) -> str:
    """The number with the noun in the right form: 1 process, 2 processes, 2 rows."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def duration(seconds: float) -> str:
    """1:02:03 or 4:05 (minutes:seconds)."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def size(number: int) -> str:
    """A number of bytes with its unit: 7 bytes, 2 KiB."""
    return f"{number} bytes" if number < 1024 else f"{scaled(number, 1024)}B"


def scaled(number: float, base: int = 1000) -> str:
    """A number with a prefix: 1.23 G for 1,230,000,000, or 1.15 Gi with base 1024."""
    power = 0
    while number >= base and power < 7:
        number, power = number / base, power + 1
    prefix = ("", *("kMGTPEZ" if base == 1000 else "KMGTPEZ"))[power]
    return f"{number:.3g} {prefix}{'i' if power and base == 1024 else ''}"


def short(text: str, most: int = 40) -> str:
    """The text, with an ellipsis in place of what exceeds `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
