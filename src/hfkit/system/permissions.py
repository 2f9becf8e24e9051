"""What a person has allowed on this command line, and no recipe can: code that a model brings, and pickled weights."""

from __future__ import annotations

REMOTE_CODE, PICKLE = "--trust-remote-code", "--allow-pickle"

_allowed: set[str] = set()


def allow(flag: str, on: bool) -> None:
    """Remembers whether the switch `flag` was typed, until the next command."""
    (_allowed.add if on else _allowed.discard)(flag)


def allows(flag: str) -> bool:
    return flag in _allowed
