"""The process of a command: exit codes, errors, signals."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import typer

from hfkit.errors import HfkitError, OutOfMemoryError, StorageError, UsageError, format_problem
from hfkit.system import console
from hfkit.system.console import is_main_process
from hfkit.system.launcher import leave_word
from hfkit.system.signals import end_with_launcher, stop_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code (the table is in hfkit.errors)."""
    with stop_signals() as signals:
        try:
            return _command(arguments)
        except (SystemExit, KeyboardInterrupt):
            if not signals.caught:
                raise
            print(f"error: stopped by {'Ctrl-C' if signals.caught == signal.SIGINT else 'SIGTERM'}", file=sys.stderr)
            return 128 + signals.caught


def _command(arguments: Sequence[str] | None) -> int:
    from hfkit.cli import app
    from hfkit.cli.options import without_aliases

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console.begin()
    try:
        _require_text(arguments)
        code = app(args=without_aliases(arguments), prog_name="hfkit", standalone_mode=False, obj=arguments)
    except HfkitError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if leave_word(error):
            return error.exit_code
        # Rank 0 speaks for all, but for what may have befallen another rank alone.
        if is_main_process() or isinstance(error, StorageError | OutOfMemoryError):
            for problem in error.problems:
                print(f"error: {format_problem(*problem)}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        if error.format_message():  # empty where a command without arguments has shown its help
            print(f"error: {format_problem(*_usage_problem(error.format_message(), arguments))}", file=sys.stderr)
        return 2
    if code == 130:  # typer has met a KeyboardInterrupt
        print("error: stopped by Ctrl-C", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _require_text(arguments: Sequence[str]) -> None:
    """UsageError for bytes on the command line that are no text: Python would hand them on as halves of characters."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            from hfkit.system.console import short

            shown = short(argument.encode(errors="backslashreplace").decode())
            fix = "rename the file, or put the text into one and name its --encoding"
            raise UsageError(f"{shown}: not UTF-8", fix) from None


def _usage_problem(message: str, arguments: Sequence[str]) -> tuple[str, str]:
    """Typer's message about the command line as ours, the fix apart."""
    for sign in (". Did you mean ", " (Possible options: "):
        problem, found, near = message.partition(sign)
        if found:
            return problem, f"did you mean {near.rstrip('?)')}?"
    command = [word for word in arguments[:1] if not word.startswith("-") and f"command '{word}'" not in message]
    return message.rstrip("."), " ".join(["hfkit", *command, "--help"])


def run() -> None:
    """The process of a command: from its first moment to its last, a signal ends it in order or not at all."""
    end_with_launcher()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each rank's advice on DDP, which the Trainer sets up
    if isinstance(sys.stdin, io.TextIOWrapper):  # closed, it is None
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # what is no UTF-8 is told, in every locale
    with stop_signals() as signals:
        code = main()
    signals.ignore()  # the outcome is out, and taking the interpreter down takes a moment
    sys.exit(code)
