"""Checkpoints that are on the disk whole or not at all: hashed, synced, and committed by a marker written last."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hfkit.errors import ModelError
from hfkit.system.files import file_hash, sync, temporary, write_atomically

MARKER = "committed.json"

ASIDE = "set-aside"  # the folder of a run for checkpoints that a rewind has passed over

REMOVING = "removing.json"  # the marker's name once a removal has begun, so that a later one can finish it

CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]*)")

Found = dict[str, tuple[int, int]]  # files of a folder: inode and time of change


def found_in(checkpoint: Path) -> Found:
    """The files in `checkpoint`; links are not hfkit's."""
    return {
        path.relative_to(checkpoint).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in checkpoint.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def commit(checkpoint: Path, before: Found, **facts: Any) -> None:
    """Commits `checkpoint`: hashes and syncs every file, then writes the marker with `facts` at once.

    A file that was there `before` and that the save did not change is not hfkit's.
    """
    files = {}
    for name, change in sorted(found_in(checkpoint).items()):
        if before.get(name) != change and name not in (MARKER, temporary(Path(MARKER)).name, REMOVING):
            path = checkpoint / name
            files[name] = {"bytes": path.stat().st_size, "xxh3_128": file_hash(path)}
            sync(path)
    sync(checkpoint)
    marker = {**facts, "files": files}
    write_atomically(checkpoint / MARKER, json.dumps({**marker, "xxh3_128": _digest(marker)}, indent=1))
    sync(checkpoint.parent)


def defect(checkpoint: Path) -> str | None:
    """Why `checkpoint` can't be used; None if every file is as it was committed."""
    try:
        files = read_marker(checkpoint)["files"]
    except FileNotFoundError:
        return "incomplete: its save was interrupted"
    except (OSError, ValueError):
        return f"damaged: {MARKER} can't be read"
    for name, facts in files.items():
        path = checkpoint / name
        try:
            if path.stat().st_size != facts.get("bytes"):
                return f"incomplete: {name} has {path.stat().st_size:,} bytes, not {facts.get('bytes')}"
            if file_hash(path) != facts.get("xxh3_128"):
                return f"damaged: {name} is not what was saved"
        except OSError as error:
            return f"incomplete: {name}: {error.strerror}"
    return None


def read_marker(checkpoint: Path, name: str = MARKER) -> dict[str, Any]:
    """The facts and files of a commit; OSError or ValueError if there is none."""
    marker: dict[str, Any] = json.loads((checkpoint / name).read_text(encoding="utf-8"))
    files = marker.get("files") if isinstance(marker, dict) else None
    if files and (digest := marker.pop("xxh3_128", None)) and digest != _digest(marker):
        raise ValueError(f"{checkpoint / name} is not what was written")
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        raise ValueError(f"{checkpoint / name} holds no list of files")
    return marker


def _digest(marker: dict[str, Any]) -> str:
    import xxhash

    return xxhash.xxh3_128(json.dumps(marker).encode()).hexdigest()


def size(checkpoint: Path) -> int:
    """Bytes of a committed checkpoint."""
    return sum(facts["bytes"] for facts in read_marker(checkpoint)["files"].values())


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def all_checkpoints(run: Path) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, newest step first, without links."""
    folders = run.iterdir() if run.is_dir() else ()
    found = [path for path in folders if CHECKPOINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=step_of, reverse=True)


def is_ours(folder: Path) -> bool:
    """Whether `folder` is a checkpoint of an hfkit run, whole or not; those of a plain Trainer have no marker."""
    named = CHECKPOINT.fullmatch(folder.resolve().name) is not None
    return named and ((folder / MARKER).exists() or (folder.resolve().parent / "run.json").exists())


def newest(run: Path, run_id: str | None = None) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint (of the run `run_id`) without a defect, and the newer ones with their defects."""
    skipped: list[tuple[Path, str]] = []
    for checkpoint in all_checkpoints(run):
        reason = defect(checkpoint)
        if reason is None and run_id not in (None, read_marker(checkpoint).get("run_id")):
            reason = "another run's"
        if reason is None:
            return checkpoint, skipped
        skipped.append((checkpoint, reason))
    return None, skipped


def set_aside(run: Path, step: int) -> list[Path]:
    """Moves the checkpoints after `step` into a folder of the run, newest first; returns where they are now."""
    moved, number = [], 1
    while (run / ASIDE / str(number)).exists():
        number += 1
    for checkpoint in all_checkpoints(run):
        if step_of(checkpoint) > step:
            place = run / ASIDE / str(number) / checkpoint.name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(checkpoint, place)
            moved.append(place)
    if moved:
        sync(run)
    return moved


def named(checkpoint: Path) -> Path:
    """`checkpoint` if it is committed and whole; else ModelError with the reason."""
    if not checkpoint.is_dir():
        reason: str | None = "a file, not a checkpoint folder" if checkpoint.exists() else "no such checkpoint"
    elif all_checkpoints(checkpoint):
        reason = "a run, not a checkpoint of it"
    else:
        reason = defect(checkpoint)
    if reason is None:
        return checkpoint
    run = checkpoint if all_checkpoints(checkpoint) else checkpoint.parent
    whole = newest(run)[0]
    fix = f"--resume {shlex.quote(str(whole))}" if whole else f"leave out --resume: {run} has no whole checkpoint"
    raise ModelError(f"{checkpoint}: {reason}", fix)


def rotate(run: Path, keep: int, run_id: str, protect: Iterable[Path] = ()) -> None:
    """Removes the committed checkpoints of this run except the `keep` newest and those in `protect`; nothing else."""
    every = all_checkpoints(run)
    committed = [path for path in every if _made_by(path, run_id, MARKER)]
    begun = [path for path in every if path not in committed and _made_by(path, run_id, REMOVING)]
    for path in [*begun, *committed[keep:]]:
        if path not in protect:
            remove(path)


def remove(checkpoint: Path) -> None:
    """Removes the files that the marker lists, then the folder if nothing else is in it."""
    if (checkpoint / MARKER).exists():
        os.replace(checkpoint / MARKER, checkpoint / REMOVING)
    for name in read_marker(checkpoint, REMOVING)["files"]:
        path = checkpoint / name
        if path.parent.resolve().is_relative_to(checkpoint.resolve()):  # anyone can edit a marker
            with suppress(OSError):
                path.unlink()
    (checkpoint / REMOVING).unlink()
    for folder in [*sorted((p for p in checkpoint.rglob("*") if p.is_dir()), reverse=True), checkpoint]:
        with suppress(OSError):  # not empty
            folder.rmdir()


def _made_by(checkpoint: Path, run_id: str, marker: str) -> bool:
    try:
        return bool(read_marker(checkpoint, marker).get("run_id") == run_id)
    except (OSError, ValueError):
        return False
