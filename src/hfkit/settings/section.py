"""`setting()` and `Section`: how a setting is declared."""

from __future__ import annotations

from dataclasses import field
from typing import Any

MAX_SEED = 2**32 - 1  # numpy's


def setting(
    flags: str = "",
    default: Any = None,
    *,
    help: str,
    only: str = "",
    unless: str = "",
    needs: str = "",
    rare: bool = False,
    commas: bool = False,
    **limits: Any,
) -> Any:
    """A dataclass field for one setting. Several flags, commands or keys are separated by blanks.

    `only`: the commands in which it acts, if not all of its section. `unless`: settings that make it idle. `needs`: the
    setting without which it is idle, KEY or KEY=VALUE. `rare`: left out of `--help`. `commas`: texts are split at
    commas. `limits`: as pydantic names them.
    """
    metadata: dict[str, Any] = {"description": help, "flags": tuple(flags.split()), "only": tuple(only.split())}
    metadata |= {"unless": tuple(unless.split()), "needs": needs, "rare": rare, "commas": commas, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - pydantic's own spelling
