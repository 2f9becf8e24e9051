"""Whether a run may go on from a checkpoint: the same settings, data and versions, or what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfkit.errors import ModelError, UsageError
from hfkit.settings import SETTINGS
from hfkit.system import checkpoints
from hfkit.system.console import warn

EXTEND = "--extend for a longer run"

PRECISION, OPEN = "train.precision", "auto"  # older versions did not keep what it came to

FIXED = ("train.optimizer", "train.freeze", "lora.")  # what the state of the optimizer belongs to


def require_same_settings(
    directory: Path, old: Mapping[str, Any], identity: Mapping[str, Any], max_steps: int | None
) -> None:
    """UsageError if the finished run in `directory`, with the identity `old`, had other settings than `identity`."""
    old = _with_precision(old, identity)
    wanted = {**identity, "train.max_steps": max_steps or old.get("train.max_steps")}
    changed = [
        (
            f"{directory} is a finished run of other settings: {key}: {old[key]} -> {value}",
            f"{EXTEND if key == 'train.max_steps' else 'undo it'}, or --output-dir NEW",
        )
        for key, value in wanted.items()
        if old.get(key, value) != value
    ]
    if changed:
        raise UsageError.of(changed)


def newest_whole(directory: Path, run_id: str) -> Path | None:
    """The newest complete checkpoint of the run, with a warning for each that is passed over.

    None if the run has none yet: even its first save was interrupted, so there is nothing to lose. Raises ModelError
    if it has checkpoints and none of them is whole.
    """
    checkpoint, skipped = checkpoints.newest(directory, run_id)
    for path, reason in skipped:
        warn(f"{path.name} is passed over, {reason}")
    if checkpoint is None and any((path / checkpoints.MARKER).exists() for path, _ in skipped):
        reasons = "; ".join(f"{path.name} {reason}" for path, reason in skipped[:3])
        message = f"{directory}: none of its {len(skipped)} checkpoints is whole: {reasons}"
        raise ModelError(message, "--overwrite to start again")
    return checkpoint


def require_same_run(
    checkpoint: Path,
    identity: Mapping[str, Any],
    versions: Mapping[str, str],
    *,
    allow_changed: bool,
    extend: bool,
) -> None:
    """UsageError with each part of `identity` that differs from the checkpoint's; a warning with `allow_changed`.

    `extend`: more steps are no difference. Other library versions are a warning.
    """
    marker = checkpoints.read_marker(checkpoint)
    old = marker.get("identity", {})
    new = {key: SETTINGS[key].default for key in identity.keys() - old.keys() if key in SETTINGS}
    old = {**new, **old}  # a setting that hfkit did not have yet was at its default
    was_open = old.get(PRECISION) == OPEN
    old = _with_precision(old, identity)
    keys = [key for key in sorted({*old, *identity}) if old.get(key) != identity.get(key)]
    if extend and "train.max_steps" in keys and (before := old["train.max_steps"]) < identity["train.max_steps"]:
        keys.remove("train.max_steps")
        warn(
            f"extended from {before:,} to {identity['train.max_steps']:,} steps: order and learning rate follow the "
            "longer schedule from here on, so the result is not that of a run of this length from the start"
        )
    if fixed := [key for key in keys if key.startswith(FIXED)]:
        fix = f"undo it, or start a new run from its weights: --model {checkpoint} --output-dir NEW"
        raise UsageError.of(
            [(f"{key}: {old.get(key)} -> {identity.get(key)} can't change within a run", fix) for key in fixed]
        )
    undo = "undo the change, or --allow-changed"
    changed = [
        (f"{key} changed since step {marker.get('step')}", undo)
        if key == "training data"
        else (f"{key}: {old.get(key)} -> {identity.get(key)}", EXTEND if key == "train.max_steps" else undo)
        for key in keys
    ]
    if was_open and identity.get(PRECISION) == "bfloat16":
        what = "the version that began this run did not keep its precision: it goes on in bfloat16"
        warn(what, "--precision float32")
    if changed and not allow_changed:
        raise UsageError.of([(f"{checkpoint} is of another run: {change}", fix) for change, fix in changed])
    if changed:
        changes = "; ".join(change for change, _ in changed)
        warn(f"resuming a changed run, the result will not be that of an unbroken one: {changes}")
    if new := {name: now for name, now in versions.items() if marker.get("versions", {}).get(name, now) != now}:
        warn(f"{', '.join(f'{name} {now}' for name, now in new.items())} is not what saved {checkpoint.name}")


def _with_precision(old: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with the precision of `identity`, if the version that wrote it left that open."""
    is_open = old.get(PRECISION) == OPEN
    return {**old, PRECISION: identity.get(PRECISION)} if is_open else dict(old)
