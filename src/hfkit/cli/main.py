"""One command as a process: exit codes, errors, signals."""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
import traceback
from collections.abc import Sequence

import typer

from hfkit.errors import HfkitError, OutOfMemoryError, StorageError, UsageError, format_problem
from hfkit.system import console
from hfkit.system.console import is_main_process, short
from hfkit.system.launcher import leave_word
from hfkit.system.processes import num_processes
from hfkit.system.signals import end_with_launcher, stop_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code (the table is in hfkit.errors)."""
    with stop_signals() as signals:
        try:
            return _command(arguments)
        except (SystemExit, KeyboardInterrupt):
            if not signals.caught:
                raise
            print(f"error: stopped by {signals.name}", file=sys.stderr)
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
        # Rank 0 prints for all, except for errors that may occur in one other rank only.
        if is_main_process() or isinstance(error, StorageError | OutOfMemoryError):
            for problem in error.problems:
                print(f"error: {format_problem(*problem)}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        if error.format_message():  # empty if a command without arguments has printed its help
            print(f"error: {format_problem(*_usage_problem(error.format_message(), arguments))}", file=sys.stderr)
        return 2
    if code == 130:  # typer has caught a KeyboardInterrupt
        print("error: stopped by Ctrl-C", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _require_text(arguments: Sequence[str]) -> None:
    """Raises UsageError for arguments that are not UTF-8: Python passes their bytes on as lone surrogates."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = short(argument.encode(errors="backslashreplace").decode())
            fix = "rename the file, or put the text into a file and give its --encoding"
            raise UsageError(f"{shown}: not UTF-8", fix) from None


def _usage_problem(message: str, arguments: Sequence[str]) -> tuple[str, str]:
    """Typer's message about the command line as a problem and its fix."""
    for sign in (". Did you mean ", " (Possible options: "):
        problem, found, near = message.partition(sign)
        if found:
            return problem, f"did you mean {near.rstrip('?)')}?"
    command = [word for word in arguments[:1] if not word.startswith("-") and f"command '{word}'" not in message]
    return message.rstrip("."), " ".join(["hfkit", *command, "--help"])


def run() -> None:
    """The entry point `hfkit`: runs one command and exits. A signal at any moment ends it in order, or not at all."""
    end_with_launcher()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP advice from each rank, about settings of the Trainer
    if isinstance(sys.stdin, io.TextIOWrapper):  # None if it is closed
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # an error for what is not UTF-8, in every locale
    with stop_signals() as signals:
        code = main()
    signals.ignore()  # the result is printed, and nothing is left to stop
    if "torch" in sys.modules:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """Ends this process after what Python and its libraries have to do at the end; returns if output can't be written.

    Ending the interpreter as well takes torch one to two seconds for nothing. In a rank it would take the group of
    processes apart, whose threads now and then abort a rank then, or leave it waiting for one that is gone.
    """
    if code == 0 or num_processes() == 1:
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads that still work, such as a tracker's
        atexit._run_exitfuncs()
        try:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        except (OSError, ValueError):
            return  # Python says so, and has an exit code for it
        os._exit(code)
