"""Checkpoints that are whole or invisible: hashed, synced, and committed by a marker that is written last."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hfkit.errors import ModelError, StorageError

MARKER = "committed.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_CHUNK = 1 << 22


def commit(checkpoint: Path, **facts: Any) -> None:
    """Makes `checkpoint` count: every file is hashed and synced, then the marker with `facts` appears at once."""
    files = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MARKER):
        files[path.relative_to(checkpoint).as_posix()] = {"bytes": path.stat().st_size, "xxh3_128": file_hash(path)}
        sync(path)
    write_atomically(checkpoint / MARKER, json.dumps({**facts, "files": files}, indent=1))
    sync(checkpoint.parent)


def defect(checkpoint: Path) -> str | None:
    """Why `checkpoint` can't be used, None where every file is as it was when it was committed."""
    try:
        files = read_marker(checkpoint)["files"]
    except FileNotFoundError:
        return "incomplete: its save was interrupted"
    except (OSError, ValueError, KeyError, TypeError):
        return "incomplete: its marker can't be read"
    for name, facts in files.items():
        path = checkpoint / name
        try:
            if path.stat().st_size != facts["bytes"]:
                return f"incomplete: {name} has {path.stat().st_size:,} bytes, not {facts['bytes']:,}"
            if file_hash(path) != facts["xxh3_128"]:
                return f"damaged: {name} is not what was saved"
        except OSError as error:
            return f"incomplete: {name}: {error.strerror}"
    return None


def read_marker(checkpoint: Path) -> dict[str, Any]:
    marker: dict[str, Any] = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    return marker


def all_checkpoints(run: Path) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, newest step first; links are none of ours."""
    found = {}
    for path in run.iterdir() if run.is_dir() else ():
        match = CHECKPOINT.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def newest(run: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint without a defect, and the newer ones that were passed over with their defects."""
    skipped: list[tuple[Path, str]] = []
    for checkpoint in all_checkpoints(run):
        reason = defect(checkpoint)
        if reason is None:
            return checkpoint, skipped
        skipped.append((checkpoint, reason))
    return None, skipped


def named(checkpoint: Path) -> Path:
    """`checkpoint` where it is a committed one; ModelError with the reason where it isn't."""
    if not checkpoint.is_dir():
        what = "a file, not a checkpoint folder" if checkpoint.exists() else "no such checkpoint"
        raise ModelError(f"{checkpoint}: {what}", "--resume auto takes the newest")
    reason = defect(checkpoint)
    if reason is not None:
        raise ModelError(f"{checkpoint}: {reason}", "--resume auto takes the newest whole one")
    return checkpoint


def rotate(run: Path, keep: int, run_id: str, protect: Iterable[Path] = ()) -> None:
    """Removes this run's committed checkpoints but the `keep` newest and those in `protect`; nothing else, ever."""
    committed = [path for path in all_checkpoints(run) if _made_by(path, run_id)]
    for path in committed[keep:]:
        if path not in protect:
            remove(path)


def remove(checkpoint: Path) -> None:
    """Removes the files that the marker lists, the marker first, then the folder if nobody put anything else there."""
    names = read_marker(checkpoint)["files"]
    (checkpoint / MARKER).unlink()
    for name in names:
        (checkpoint / name).unlink(missing_ok=True)
    for folder in [*sorted((p for p in checkpoint.rglob("*") if p.is_dir()), reverse=True), checkpoint]:
        if not any(folder.iterdir()):
            folder.rmdir()


def require_space(directory: Path, needed: int, what: str) -> None:
    """StorageError where the disk under `directory` has fewer than `needed` bytes free."""
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(
            f"{directory}: disk full: {what} needs {needed:,} bytes, {free:,} are free",
            "free some space, or --output-dir on another disk; then --resume auto",
        )


def write_atomically(path: Path, text: str) -> None:
    """`path` holds the whole of `text` or what it held before, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Asks the system to put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _made_by(checkpoint: Path, run_id: str) -> bool:
    try:
        return bool(read_marker(checkpoint).get("run_id") == run_id)
    except (OSError, ValueError):
        return False
