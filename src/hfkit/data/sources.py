"""What a source can be: a file, folder or pattern, a saved data set, builtin:NAME, or a name on the Hub."""

from __future__ import annotations

import difflib
import errno
import functools
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data import builtin
from hfkit.data.cache import cached, digest_file, digest_json
from hfkit.data.lines import format_of
from hfkit.data.readers import FORMATS, VERSION, Layout, Rows, format_name, read_batches, read_rows, settled
from hfkit.errors import DataError, StorageError, UsageError, first_line
from hfkit.system import network
from hfkit.system.console import say, say_once, short

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hfkit.settings import Recipe

SPLITS = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}

# What to do with files of other kinds that people have.
OTHER_KINDS = {
    ".zip": "unpack it; a .zip of one file is read as it is",
    **dict.fromkeys((".tar", ".tgz", ".7z", ".rar"), "unpack it, and give the file in it"),
    **dict.fromkeys((".xlsb", ".numbers"), "save the sheet as CSV, and give that file"),
    **dict.fromkeys((".docx", ".doc", ".odt", ".pdf", ".rtf", ".epub"), "save it as plain text, and give that file"),
    **dict.fromkeys((".feather", ".orc", ".h5", ".pkl", ".pickle", ".npy", ".npz"), "write it as .parquet or .jsonl"),
}

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")  # owner/name:config


def offline_for(recipe: Recipe) -> AbstractContextManager[None]:
    """Inside, there is no network if no model and no data of `recipe` is on the Hub."""
    data = [*recipe.data.train, *recipe.data.validation, *recipe.data.test]
    return offline_if_local([recipe.model.name, recipe.tokenizer.name], data)


@contextmanager
def offline_if_local(models: Sequence[str | None], data: Sequence[str] = ()) -> Iterator[None]:
    """Inside, there is no network if none of these models (or tokenizers) and sources is on the Hub."""
    if all(network.is_local(name) for name in models if name is not None) and all(map(is_local, data)):
        with network.offline():
            yield
    else:
        network.no_telemetry()
        yield


def open_sources(sources: Sequence[str], layout: Layout, split: str) -> list[tuple[str, Dataset | DatasetDict]]:
    """Each file, saved data set, built-in or Hub data set behind `sources`, with its name for messages."""
    import datasets

    datasets.disable_progress_bars()
    parts: list[tuple[str, Dataset | DatasetDict]] = []
    for source in sources:
        refuse_url(source)
        if source.startswith("builtin:"):
            parts.append((source, _open_builtin(source)))
        elif not (files := local_files(source)):
            parts.append((source, load_hub(source)))
        elif is_saved(source):
            parts.append((source, _load_saved(source)))
        else:
            if os.path.isdir(source) and HUB_NAME.fullmatch(source):
                say(f"using local directory ./{source}, not the Hub's {source} (fix: hf:{source} is the Hub's)")
            parts += [(str(file), _open_file(file, layout, split)) for file in files]
    return parts


def stream_rows(sources: Sequence[str], layout: Layout) -> Rows:
    """The training rows of `sources` one by one, each with its place; nothing is loaded or cached."""
    for source in sources:
        refuse_url(source)
        if source.startswith("builtin:"):
            columns = load_builtin(source)["train"]
            rows: Iterable[Any] = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        elif not (files := local_files(source)):
            rows = load_hub(source, split="train", streaming=True)
        elif is_saved(source):
            rows = join([(source, _load_saved(source))], "train")
        else:
            for file in files:
                _require_readable(file)
                yield from ((f"{file}: {place}", row) for place, row in read_rows(file, layout))
            continue
        yield from ((f"{source}: row {number}", row) for number, row in enumerate(rows, 1))


def refuse_url(source: str) -> None:
    if "://" in source or "::" in source:
        raise UsageError(f"{source}: data can't be read from a URL", "download it, and give that file")


def local_files(source: str) -> list[Path]:
    """The files behind a path, folder or pattern, sorted; empty for a name on the Hub."""
    if source.startswith("hf:"):
        return []
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        if is_saved(path):  # cache-*.arrow is what `map` leaves there
            files = [file for file in Path(path).rglob("*") if file.is_file() and not file.match("cache-*.arrow")]
            return sorted(files)
        return _files_in_folder(Path(path), source)
    if os.path.exists(path):
        return [Path(path)]
    if glob.has_magic(path):
        files = [Path(match) for match in sorted(glob.glob(path, recursive=True)) if os.path.isfile(match)]
        if not files:
            raise DataError(f"{source}: no file matches this pattern", "put the pattern in quotes, check the folder")
        return files
    if _can_be_on_hub(source):
        return []
    if os.path.islink(path):
        raise DataError(f"{source}: a link to {os.readlink(path)}, which does not exist", "correct the link")
    folder = os.path.dirname(path) or "."
    near = difflib.get_close_matches(
        os.path.basename(path), os.listdir(folder) if os.path.isdir(folder) else [], n=1, cutoff=0.6
    )
    nearest = os.path.join(os.path.dirname(source), near[0]) if near else ""
    raise DataError(f"{source}: no such file", f"did you mean '{nearest}'?" if nearest else "")


def _files_in_folder(folder: Path, source: str) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and format_of(file)[0] in FORMATS)
    if not files:
        raise DataError(f"{source}: no data files in this folder", f"known kinds: {' '.join(FORMATS)}")
    roles = {split: file for file in files for split, names in SPLITS.items() for name in names
             if name in re.split(r"[^a-z]+", file.name.lower())}  # fmt: skip
    if len(roles) > 1:
        fix = " ".join(
            f"{'--data' if split == 'train' else f'--{split}'} {roles[split]}" for split in SPLITS if split in roles
        )
        raise DataError(f"{source}: a folder with several splits", fix)
    return files


def _can_be_on_hub(source: str) -> bool:
    """Whether this is `name` or `owner/name` and not a file: without known suffix, dot or local folder."""
    owner, slash, _ = source.partition("/")
    here = os.path.isdir(owner) if slash else "." in source
    return HUB_NAME.fullmatch(source) is not None and format_of(Path(source))[0] not in FORMATS and not here


def is_saved(source: str) -> bool:
    """Whether this is a folder from `save_to_disk`."""
    return any(
        os.path.isfile(os.path.join(os.path.expanduser(source), name)) for name in ("state.json", "dataset_dict.json")
    )


def are_files(sources: Sequence[str]) -> bool:
    """Whether these are files of this machine, and no saved, built-in or Hub data set is among them."""
    return all(not one.startswith("builtin:") and not is_saved(one) and is_local(one) for one in sources)


def is_local(source: str) -> bool:
    """Whether this source never needs the Hub."""
    refuse_url(source)
    return source.startswith("builtin:") or bool(local_files(source))


def _load_saved(source: str) -> Dataset | DatasetDict:
    from datasets import load_from_disk

    try:
        return load_from_disk(os.path.expanduser(source))
    except Exception as error:
        raise DataError(
            f"{source}: a damaged saved data set: {first_line(error)}", "save it again with save_to_disk"
        ) from None


@functools.cache  # seconds: the standard library is parsed
def load_builtin(source: str) -> dict[str, dict[str, list[str]]]:
    return dict(builtin.load(source.removeprefix("builtin:")))


def _open_builtin(source: str) -> DatasetDict:
    import pyarrow as pa
    from datasets import DatasetDict

    splits = {}
    for split, columns in load_builtin(source).items():
        table = pa.table(columns, pa.schema([(column, pa.string()) for column in columns]))
        read = lambda table=table: (table.schema, table.to_batches())  # noqa: E731
        splits[split] = cached(digest_json([VERSION, columns]), source, split, read)
    return DatasetDict(splits)


def load_hub(source: str, **options: Any) -> Any:
    """A data set of the Hub: `NAME` or `NAME:CONFIG`, also after `hf:`. It is data only; no code of its author runs.

    A DatasetDict, or what `options` of load_dataset make of it.
    """
    network.no_telemetry()
    import datasets
    import httpx2
    from huggingface_hub import constants

    name, _, config = source.removeprefix("hf:").partition(":")
    missing = f"{source}:" if source.startswith("hf:") else f"{source}: no such file, and"
    try:
        return datasets.load_dataset(name, config or None, **options)
    except datasets.exceptions.DatasetNotFoundError:
        fix = "check the name; for a private or gated one: `hf auth login`"
        raise DataError(f"{missing} the Hub has no data set of this name that you can read", fix) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            message = f"can't write {name} into {datasets.config.HF_DATASETS_CACHE}: {error.strerror}"
            raise StorageError(message, "make room there, or set HF_HOME to a directory on another disk") from error
        if constants.is_offline_mode():
            fix = "once, with a connection: HF_HUB_OFFLINE=0 hfkit ..., or give a file"
            raise DataError(f"{missing} HF_HUB_OFFLINE is set, and {name} is not in the cache", fix) from error
        if isinstance(error, (OSError, httpx2.TransportError)):
            fix = "check the network and the proxy, or give a file"
            raise DataError(f"{missing} {name} can't be fetched from the Hub: {first_line(error)}", fix) from error
        if available := re.search(r"[Aa]vailable[^\[]*\[(.*?)\]", str(error)):
            configs = re.findall(r"'([\w.-]+)'", available[1])
            which = f"no configuration '{config}'" if config else "several configurations"
            raise DataError(f"{name} has {which}, found: {', '.join(configs)}", f"give {name}:{configs[0]}") from None
        raise DataError(f"{name}: can't be read: {first_line(error.__cause__ or error)}") from error


def own_split(part: Dataset | DatasetDict, split: str) -> str | None:
    """The name of `split` in a data set with several splits; None if it has none, or is a single split."""
    return next((name for name in SPLITS[split] if name in part), None) if isinstance(part, dict) else None


def join(parts: list[tuple[str, Dataset | DatasetDict]], split: str) -> Dataset:
    """All parts as one data set; DataError if their columns differ."""
    from datasets import concatenate_datasets

    chosen: list[tuple[str, Dataset]] = []
    for name, part in parts:
        if isinstance(part, dict):
            own = own_split(part, split) or only(list(part))
            if own is None:
                raise DataError(f"{name} has no {split} split, found: {', '.join(part)}")
            part = part[own]
        if not len(part):
            raise DataError(f"{name}: no rows")
        chosen.append((name, part))
    first_name, first = chosen[0]
    for name, part in chosen[1:]:
        if set(part.column_names) != set(first.column_names):
            here, there = listed(part.column_names), listed(first.column_names)
            raise DataError(f"{name} has the columns {here}, but {first_name} has {there}", "give both the same")
        for column in first.column_names:
            here, there = type_name(part, column), type_name(first, column)
            if here != there and "null" not in f"{here} {there}".split():
                raise DataError(f"{name}: column '{column}' holds {here}, but {there} in {first_name}")
    return concatenate_datasets([part for _, part in chosen], split=first.split) if len(chosen) > 1 else first


def _require_readable(path: Path) -> None:
    """DataError if `path` is no regular file or not of a known kind; says if text is read by its content."""
    (suffix, compression), kind = format_of(path), format_name(path)
    if not path.is_file():
        raise DataError(f"{path}: not a regular file", "write it to a file first")
    if not kind:
        fix = OTHER_KINDS.get(
            compression if compression == ".zip" else suffix, f"rename it to one of: {' '.join(FORMATS)}"
        )
        raise DataError(f"{path}: unknown kind of file '{path.suffix}'", fix)
    if suffix != kind:
        say_once(f"{path}: read as text, because '{suffix}' is no known kind of file")
    if compression and not FORMATS[kind].has_lines:
        raise DataError(f"{path}: {suffix} files can't be read compressed", "decompress it first")


def _open_file(path: Path, layout: Layout, split: str) -> Dataset:
    _require_readable(path)
    layout = settled(path, layout)
    kind, compression = format_name(path), format_of(path)[1]
    settings = [getattr(layout, name) for name in FORMATS[kind].settings]
    key = digest_json([VERSION, kind, compression, settings, digest_file(path)])
    return cached(key, str(path), split, lambda: read_batches(path, layout))


def only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def type_name(dataset: Dataset, column: str) -> str:
    return _kind_of(dataset.features[column])


def _kind_of(feature: Any) -> str:
    if hasattr(feature, "names"):
        return f"classes {feature.names}"
    if isinstance(feature, dict):
        return "objects"
    inner = getattr(feature, "feature", None)
    return str(getattr(feature, "dtype", "objects")) if inner is None else f"list of {_kind_of(inner)}"


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(short, names))
