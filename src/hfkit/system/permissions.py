"""What only the command line can allow, no recipe: code that comes with a model, and pickled weights."""

from __future__ import annotations

REMOTE_CODE, PICKLE = "--trust-remote-code", "--allow-pickle"

_allowed: set[str] = set()


def allow(flag: str, on: bool) -> None:
    """Remembers whether `flag` was typed, until the next command."""
    (_allowed.add if on else _allowed.discard)(flag)


def allows(flag: str) -> bool:
    """Whether `flag` was typed for this command."""
    return flag in _allowed
