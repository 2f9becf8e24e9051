"""The network: offline mode, telemetry, time limits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx2


def no_network() -> None:
    """Cuts the Hugging Face libraries off the network for the rest of the process, imported already or not."""
    no_telemetry()
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ[variable] = "1"
    # Each library reads its variable once, at import; transformers asks huggingface_hub every time.
    _set_if_imported("huggingface_hub.constants", "HF_HUB_OFFLINE")
    _set_if_imported("datasets.config", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    _set_if_imported("evaluate.config", "HF_EVALUATE_OFFLINE")


def no_telemetry() -> None:
    """Stops huggingface_hub from reporting use, and from telling the Hub which tools are installed."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    _set_if_imported("huggingface_hub.constants", "HF_HUB_DISABLE_TELEMETRY")


def _set_if_imported(module: str, *constants: str) -> None:
    for constant in constants:
        if module in sys.modules:
            setattr(sys.modules[module], constant, True)


def is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def is_local(name: str) -> bool:
    """True where `name` means a directory, also a missing one: ./x, ~/x, a/b/c, or x/y beside a directory x."""
    if name.startswith("hf:") or not name:
        return False
    like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return like_path or os.path.exists(name) or os.path.isdir(Path(name).parent.name)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """No answer for `seconds` is a time-out: snapshot_download waits for ever in some requests, 60 s in others."""
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
    """Inside, huggingface_hub shows its bars or, where its own variable says nothing else, none of them."""
    from huggingface_hub import constants, utils

    # Of its three bars one appears even in a log file, and even when there is nothing to download.
    silence = not shown and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    if silence:
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if silence:
            utils.enable_progress_bars()  # type: ignore[attr-defined]


def host() -> str:
    """The Hub's address as it may be shown: HF_ENDPOINT without a password."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
