"""The cache of read files, keyed and checked by content."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.errors import DataError, StorageError, first_line
from hfkit.system.console import say, warn
from hfkit.system.files import file_hash, locked, replacing, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset


def cached(key: str, name: str, split: str, read: Callable[[], tuple[Any, Iterable[Any]]]) -> Dataset:
    """The rows of `read` (arrow schema and record batches) from the cache; built first if missing or damaged."""
    import datasets
    from datasets.table import MemoryMappedTable

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hfkit" / key
    arrow, digest = folder / "data.arrow", folder / "data.xxh3"
    try:
        if digest.exists() and (not arrow.exists() or digest.read_text() != digest_file(arrow)):
            warn(f"{arrow}: this cache of {name} is damaged and is built again")
            for damaged in (digest, *folder.glob("*.arrow")):  # also what `map` made of these rows
                damaged.unlink(missing_ok=True)
        if not digest.exists():
            with locked(folder):
                if not digest.exists():  # no other process has made it in the meantime
                    folder.mkdir(parents=True, exist_ok=True)
                    _write(arrow, name, *read())
                    write_atomically(digest, file_hash(arrow))
        table = MemoryMappedTable.from_file(str(arrow))
    except DataError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise StorageError(
            f"{folder}: the data cache can't be used: {reason}", "set HF_DATASETS_CACHE=FOLDER"
        ) from None
    return datasets.Dataset(table, split=datasets.NamedSplit(split), fingerprint=key)


def _write(target: Path, name: str, schema: Any, batches: Iterable[Any]) -> None:
    """Writes one arrow stream, whole or not at all."""
    import pyarrow as pa

    if os.path.isfile(name) and os.path.getsize(name) > 100e6:
        say(f"reading {name} ({os.path.getsize(name) / 1e6:,.0f} MB), once")
    num_rows = 0
    with replacing(target) as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            num_rows += len(batch)
        if not num_rows:
            raise DataError(f"{name}: no rows", "give a file with at least one row")


def digest_file(path: Path) -> str:
    """xxh3_128 of the file's content; DataError if it can't be read."""
    try:
        return file_hash(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None


def digest_json(value: Any) -> str:
    import xxhash

    return str(xxhash.xxh3_128_hexdigest(json.dumps(value).encode()))
