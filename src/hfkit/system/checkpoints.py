"""What is on the disk whole or not at all: files, new directories, and checkpoints, which are hashed, synced, and
committed by a marker that is written last."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hfkit.errors import ModelError
from hfkit.system.files import file_hash, sync, temporary, write_atomically

MARKER = "committed.json"

REMOVING = "removing.json"  # what the marker becomes when a removal begins, so that the next one can finish it

CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]*)")

Found = dict[str, tuple[int, int]]  # files of a folder: inode and time of change


def found_in(checkpoint: Path) -> Found:
    """What lies in `checkpoint` already; links are none of ours."""
    return {
        path.relative_to(checkpoint).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in checkpoint.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def commit(checkpoint: Path, before: Found, **facts: Any) -> None:
    """Makes `checkpoint` count: every file is hashed and synced, then the marker with `facts` appears at once.

    A file that was there `before` the save and that the save left alone is somebody else's.
    """
    files = {}
    for name, change in sorted(found_in(checkpoint).items()):
        if before.get(name) != change and name not in (MARKER, temporary(Path(MARKER)).name, REMOVING):
            path = checkpoint / name
            files[name] = {"bytes": path.stat().st_size, "xxh3_128": file_hash(path)}
            sync(path)
    sync(checkpoint)
    write_atomically(checkpoint / MARKER, json.dumps({**facts, "files": files}, indent=1))
    sync(checkpoint.parent)


def defect(checkpoint: Path) -> str | None:
    """Why `checkpoint` can't be used, None where every file is as it was when it was committed."""
    try:
        files = read_marker(checkpoint)["files"]
    except FileNotFoundError:
        return "incomplete: its save was interrupted"
    except (OSError, ValueError):
        return "incomplete: its marker can't be read"
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
    """The facts and files of a commit; OSError or ValueError where there is none."""
    marker: dict[str, Any] = json.loads((checkpoint / name).read_text(encoding="utf-8"))
    files = marker.get("files") if isinstance(marker, dict) else None
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        raise ValueError(f"{checkpoint / name} holds no list of files")
    return marker


def size(checkpoint: Path) -> int:
    """Bytes of a committed checkpoint."""
    return sum(facts["bytes"] for facts in read_marker(checkpoint)["files"].values())


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def all_checkpoints(run: Path) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, newest step first; links are none of ours."""
    folders = run.iterdir() if run.is_dir() else ()
    found = [path for path in folders if CHECKPOINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=step_of, reverse=True)


def is_ours(folder: Path) -> bool:
    """Whether `folder` is a checkpoint of an hfkit run, whole or not; the Trainer's own have no marker to miss."""
    named = CHECKPOINT.fullmatch(folder.resolve().name) is not None
    return named and ((folder / MARKER).exists() or (folder.resolve().parent / "run.json").exists())


def newest(run: Path, run_id: str | None = None) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint (of this run) without a defect, and the newer ones that were passed over, and why."""
    skipped: list[tuple[Path, str]] = []
    for checkpoint in all_checkpoints(run):
        reason = defect(checkpoint)
        if reason is None and run_id not in (None, read_marker(checkpoint).get("run_id")):
            reason = "another run's"
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
    every = all_checkpoints(run)
    committed = [path for path in every if _made_by(path, run_id, MARKER)]
    begun = [path for path in every if path not in committed and _made_by(path, run_id, REMOVING)]
    for path in [*begun, *committed[keep:]]:
        if path not in protect:
            remove(path)


def remove(checkpoint: Path) -> None:
    """Removes the files that the marker lists, then the folder if nobody put anything else there."""
    if (checkpoint / MARKER).exists():
        os.replace(checkpoint / MARKER, checkpoint / REMOVING)
    for name in read_marker(checkpoint, REMOVING)["files"]:
        path = checkpoint / name
        if path.parent.resolve().is_relative_to(checkpoint.resolve()):  # a marker is a file that anyone can edit
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
