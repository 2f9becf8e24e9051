"""`python -m hfkit`, the console script `hfkit`, and the module that `accelerate launch -m` starts."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import typer

from hfkit.errors import HfkitError, format_problem


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code (the table is in hfkit.errors)."""
    from hfkit.cli import app
    from hfkit.cli.options import without_aliases

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(args=without_aliases(arguments), prog_name="hfkit", standalone_mode=False)
    except HfkitError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        for problem in error.problems:
            print(f"error: {format_problem(*problem)}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        command = next((word for word in arguments if not word.startswith("-")), "")
        help_line = (
            f"hfkit {command} --help" if command and "No such command" not in error.format_message() else "hfkit --help"
        )
        print(f"error: {error.format_message().rstrip('.')} (fix: {help_line})", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("error: stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone, e.g. `| head`: nothing to say, and nobody to say it to
        return 0
    return code if isinstance(code, int) else 0


def run() -> None:
    sys.exit(main())


if __name__ == "__main__":
    run()
