"""Who made a run, with what, and what must not change when it is resumed."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.settings import SETTINGS
from hfkit.system import files
from hfkit.system.files import LOCK

if TYPE_CHECKING:
    from hfkit.settings import Recipe

MANIFEST = "run.json"

PACKAGES = ("hfkit", "torch", "transformers", "datasets", "accelerate", "peft", "tokenizers", "safetensors", "numpy")

# Settings that may differ between a run and its continuation without changing a weight.
_FREE_TO_CHANGE = {
    "train.output_dir",
    "train.eval_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.logging_steps",
    "train.dataloader_num_workers",
    "train.per_device_eval_batch_size",
    "train.num_train_epochs",
    "train.max_steps",
    "train.max_tokens",
    "train.max_time",
    "train.samples",
    "train.report_to",
    "train.push",
    "data.train",
    "data.validation",
    "data.test",
}


def checkpoint_bytes(parameters: int) -> int:
    """What a checkpoint takes: weights of 4 bytes and both Adam moments, and what it holds besides."""
    return 12 * parameters + 50_000


def default_directory(recipe: Recipe, command: str, *, continued: bool) -> Path:
    """runs/<command>-<model>, then -2, -3, ...: the first free one, or the last used one where `continued`."""
    model = Path(recipe.model.name).name if recipe.model.name else str(recipe.model.type)
    base = Path("runs") / f"{command}-{model}"
    last, number = base, 1
    while _holds_something(last):
        number += 1
        following = base.with_name(f"{base.name}-{number}")
        if continued and not _holds_something(following):
            return last
        last = following
    return last


def identity(recipe: Recipe, **facts: Any) -> dict[str, Any]:
    """What a resumed run must share with the run it continues, by the name a person would change it under."""
    values = {}
    for key in SETTINGS:
        section, _, _ = key.partition(".")
        if section in ("task", "model", "data", "train", "lora", "tokenizer") and key not in _FREE_TO_CHANGE:
            value: Any = recipe
            for name in key.split("."):
                value = getattr(value, name)
            values[key] = value
    return json.loads(json.dumps({**values, **facts}))  # type: ignore[no-any-return]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def git_commit() -> str | None:
    """The commit of the working directory, None outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory_mib() -> int:
    """Largest resident size of this process so far, in MiB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 if sys.platform == "linux" else 1024 * 1024)


def peak_device_memory_mib() -> int | None:
    """Most memory that tensors of this process took on its accelerator since the last reset, in MiB; None on a CPU."""
    import torch

    return torch.accelerator.max_memory_allocated() >> 20 if torch.accelerator.is_available() else None


def reset_peak_device_memory() -> None:
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.reset_peak_memory_stats()


def _holds_something(directory: Path) -> bool:
    first = {LOCK, files.temporary(Path(MANIFEST)).name}  # what a run that died at once has left
    return directory.is_dir() and any(path.name not in first for path in directory.iterdir())
