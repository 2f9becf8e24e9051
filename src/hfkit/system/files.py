"""Files that are written whole or not at all, locks, free space."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hfkit.errors import BusyError, StorageError

_CHUNK = 1 << 22


def require_space(directory: Path, needed: int, what: str, good: str = "") -> None:
    """StorageError where the disk under `directory` has fewer than `needed` bytes free; `good`: what is safe."""
    available = free(directory)
    if available < needed:
        raise StorageError(
            f"{directory}: disk full: {what} needs {needed:,} bytes, {available:,} are free" + (good and f"; {good}"),
            "free some space, then --resume auto" if good else "free some space, or --output-dir on another disk",
        )


def free(directory: Path) -> int:
    """Free bytes on the disk that holds `directory`, or will."""
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free


def write_atomically(path: Path, text: str) -> None:
    """`path` holds the whole of `text` or what it held before, also after a crash."""
    new = temporary(path)
    try:
        new.write_text(text, encoding="utf-8")
        sync(new)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    os.replace(new, path)
    sync(path.parent)


def temporary(path: Path) -> Path:
    """Where the new content of `path` is written first: beside it, and of the same type."""
    return path.with_name(f".{path.name}")


def sync(path: Path) -> None:
    """Asks the system to put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_disk(file: IO[bytes]) -> None:
    """Puts on the disk what was written to an open file."""
    file.flush()
    os.fsync(file.fileno())


def file_hash(path: Path) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def require_writable(directory: Path) -> None:
    """StorageError where `directory` can't be made or written; it is left as it is."""
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
    """Where to write what `directory`, new or empty, is to hold; it appears whole, or not at all where that fails."""
    staged = directory.absolute().with_name(f".{directory.absolute().name}.new")
    shutil.rmtree(staged, ignore_errors=True)  # what a process that was killed has left
    try:
        staged.mkdir(parents=True)
        yield staged
        os.replace(staged, directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other process of this machine is in here for the same `path`: what the first one makes there, others
    wait for and find. A lock on a file, so that it has no time limit as messages between ranks have."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


LOCK = "lock.json"


def lock(directory: Path, announce: bool = True) -> IO[str]:
    """Holds `directory` for this process until it ends; BusyError names who has it.

    lockf, not flock: a worker that outlives its parent must not keep the lock. (Nothing else of this process may open
    the file: closing it would end the lock.)
    """
    file = (directory / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        file.close()
        owner = read_json(directory / LOCK)
        raise BusyError(
            f"{directory}: in use by pid {owner.get('pid')} on host {owner.get('host')}",
            "wait for it, or --output-dir NEW",
        ) from None
    if announce:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
    return file


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of ours; empty where there is none or it can't be read."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes means a full disk, which torch calls 'unexpected pos'."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(error) for sign in ("unexpected pos", "No space left", "os error 28")):
            return True
        error = error.__cause__ or error.__context__
    return False


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
