"""Files and folders that are written whole or not at all, file locks, free space."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hfkit.errors import BusyError, StorageError, causes

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = "lock.json"

DISK_FULL = ("unexpected pos", "No space left", "os error 28")  # what torch, the system and Rust say

_CHUNK = 1 << 22  # bytes that are hashed at once


def require_space(directory: Path, needed: int, what: str, good: str = "") -> None:
    """StorageError if the disk of `directory` has fewer than `needed` bytes free. `good`: what is saved already."""
    available = free(directory)
    if available < needed:
        raise StorageError(
            f"{directory}: disk full: {what} needs {needed:,} bytes, {available:,} are free" + (good and f"; {good}"),
            "free some space, then --resume auto" if good else "free some space, or --output-dir on another disk",
        )


def free(directory: Path) -> int:
    """Free bytes on the disk of `directory`, which may not exist yet."""
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def write_atomically(path: Path, text: str) -> None:
    """`path` holds the whole of `text` or what it held before, also after a crash."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` once it is on the disk; if the block raises, `path` stays as it was."""
    new = temporary(path)
    try:
        with new.open("wb") as file:
            yield file
            to_disk(file)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync(path.parent)


def temporary(path: Path) -> Path:
    """Where the new content of `path` is written first: beside it, with the same suffix."""
    return path.with_name(f".{path.name}")


def sync(path: Path) -> None:
    """Has the system put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_disk(file: IO[bytes]) -> None:
    """Has the system put on the disk what was written to an open file."""
    file.flush()
    os.fsync(file.fileno())


def file_hash(path: Path) -> str:
    """xxh3_128 of the content, in hex."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def require_writable(directory: Path) -> None:
    """StorageError if `directory` can't be made or written; nothing is changed."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise StorageError(f"{directory}: {existing} is a file", "--output-dir NEW")
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"x")
    except OSError as error:
        raise StorageError(f"{directory}: can't be written: {error.strerror}", "--output-dir ELSEWHERE") from error


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A folder to write to; after the block it becomes `directory`, which is new or empty.

    If the block raises, `directory` stays as it was.
    """
    staged = directory.absolute().with_name(f".{directory.absolute().name}.new")
    shutil.rmtree(staged, ignore_errors=True)  # left by a process that was killed
    try:
        staged.mkdir(parents=True)
        yield staged
        os.replace(staged, directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process is inside for the same `path`, as long as it takes.

    The lock is a file beside `path`: messages between ranks have a time limit, and a file lock has none.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def lock_file(path: Path) -> BaseFileLock | None:
    """A lock on the file `path`, which is made if it is missing; None if another process holds it.

    It is held until `release()` or the end of this process. A forked worker does not inherit it (as of filelock 4.2),
    so one that outlives its parent leaves the lock free.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def lock_directory(directory: Path, announce: bool = True) -> BaseFileLock:
    """The lock on a run's directory; BusyError names the process that holds it. `announce`: name this one in turn."""
    lock = lock_file(directory / LOCK)
    if lock is None:
        owner = read_json(directory / LOCK)
        raise BusyError(
            f"{directory}: in use by pid {owner.get('pid')} on host {owner.get('host')}",
            "wait for it, or --output-dir NEW",
        )
    if announce:
        (directory / LOCK).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
    return lock


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of hfkit; empty if there is none or it can't be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes means a full disk."""
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(sign in str(one) for sign in DISK_FULL)
        for one in causes(error)
    )


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
