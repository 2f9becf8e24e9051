"""The network: offline mode, telemetry, time limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx2


# What the Hugging Face libraries read once, when they are imported; transformers asks huggingface_hub every time.
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
OFFLINE_CONSTANTS = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    "evaluate.config": ("HF_EVALUATE_OFFLINE",),
}


@contextmanager
def offline() -> Iterator[None]:
    """Inside, the Hugging Face libraries use no network, whether they are imported already or not.

    Afterwards they are as before, but their telemetry stays off.
    """
    no_telemetry()
    variables = {name: os.environ.get(name) for name in OFFLINE_VARIABLES}
    kept = {
        (module, name): getattr(sys.modules[module], name)
        for module, names in OFFLINE_CONSTANTS.items()
        if module in sys.modules
        for name in names
    }
    asked = any(_is_true(variables[name]) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    os.environ |= dict.fromkeys(OFFLINE_VARIABLES, "1")
    _set_constants(dict.fromkeys(kept, True))
    try:
        yield
    finally:
        for name, value in variables.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        # a library that was imported inside has read the variables set above
        imported = {(module, name): asked for module, names in OFFLINE_CONSTANTS.items() for name in names}
        _set_constants(imported | kept)


def _is_true(value: str | None) -> bool:
    """Whether a variable is set, as huggingface_hub reads it."""
    return value is not None and value.upper() in {"1", "ON", "YES", "TRUE"}


def _set_constants(values: Mapping[tuple[str, str], bool]) -> None:
    for (module, name), value in values.items():
        if module in sys.modules:
            setattr(sys.modules[module], name, value)


def no_telemetry() -> None:
    """For the rest of the process, huggingface_hub sends the Hub no statistics of use and installed tools."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    _set_constants({("huggingface_hub.constants", "HF_HUB_DISABLE_TELEMETRY"): True})


def is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def is_local(name: str) -> bool:
    """Whether `name` means a directory, also a missing one: ./x, ~/x, a/b/c, or x/y if there is a directory x."""
    if name.startswith("hf:") or not name:
        return False
    like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return like_path or os.path.exists(name) or os.path.isdir(Path(name).parent.name)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Inside, a request of huggingface_hub fails after `seconds` without an answer; some would wait forever."""
    from huggingface_hub import get_session

    def limit(request: httpx2.Request) -> None:
        waits = request.extensions["timeout"]
        request.extensions["timeout"] = {phase: min(wait or seconds, seconds) for phase, wait in waits.items()}

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Inside, huggingface_hub shows its progress bars if `shown`, or if its own variable says so."""
    from huggingface_hub import constants, utils

    # One of its three bars appears even in a log file, and even if there is nothing to download.
    silence = not shown and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    if silence:
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if silence:
            utils.enable_progress_bars()  # type: ignore[attr-defined]


def host() -> str:
    """The address of the Hub without a password, for messages."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
