"""Training, validation and test data, and input files, as `datasets` objects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hfkit.data.cache import digest_file, digest_json
from hfkit.data.columns import place_of, text_column
from hfkit.data.lines import read_stdin
from hfkit.data.readers import Layout, layout_of
from hfkit.data.sources import (
    SPLITS,
    join,
    listed,
    load_builtin,
    load_hub,
    local_files,
    open_sources,
    own_split,
    refuse_url,
    stream_rows,
)
from hfkit.errors import DataError, UsageError, first_line
from hfkit.system import compat

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    from hfkit.settings import Data

STREAM_SAMPLE = 1000  # first rows of a stream, from which its text column is found


def load_data(data: Data) -> DatasetDict:
    """The splits that `data` names, and the validation split of the training data set if none is named.

    The task holds out validation examples (`hold_out`). Raises DataError for the content of a file, UsageError for a
    setting, StorageError for the cache.
    """
    from datasets import DatasetDict

    named = {split: sources for split in SPLITS if (sources := getattr(data, split))}
    if not named:
        raise UsageError("no data given", "--data FILE")
    layout = layout_of(data)
    opened = {split: open_sources(sources, layout, split) for split, sources in named.items()}
    train = opened.get("train", [])
    if train and "validation" not in opened and all(own_split(part, "validation") for _, part in train):
        opened["validation"] = train
    return DatasetDict({split: join(parts, split) for split, parts in opened.items()})


def load_source(
    sources: Sequence[str], documents: str = "row", split: str = "train", *, layout: Layout | None = None
) -> Dataset:
    """All `sources` as one data set, in their order.

    `documents`: what a row of a .txt file is, the "file", a paragraph ("blank-line") or a line ("row"). `split`: which
    one to take of a source that has several (the Hub, builtin:NAME, a saved DatasetDict).
    """
    return join(open_sources(sources, replace(layout or Layout(), documents=documents), split), split)


def read_input(file: str, data: Data, documents: str = "row") -> tuple[Dataset, Callable[[int], str]]:
    """The rows of an input file, or of stdin (`-`: a text or a JSON object a line), and where a row is, for messages.

    A row of a .txt file is a line: one that is not blank ("row"), or any ("line"). Raises DataError, or UsageError for
    a setting of `data` that has no effect.
    """
    if file != "-":
        data = replace(data, train=[file], validation=[], test=[])
        place = (lambda row: f"{file}: line {row + 1}") if documents == "line" else partial(place_of, data, "train")
        return load_source([file], documents, layout=layout_of(data)), place
    lines, given = zip(*read_stdin(blank=documents == "line"), strict=True)
    rows = [{"text": row} if isinstance(row, str) else row for row in given]
    try:
        return _from_rows(rows), lambda row: f"stdin: line {lines[row]}"
    except (TypeError, ValueError, OverflowError) as error:  # those of pyarrow are kinds of these
        raise DataError(f"stdin: {first_line(error)}", "write one kind of value in a column") from None


def _from_rows(rows: Sequence[dict[str, Any]]) -> Dataset:
    """The rows as one data set; None where a row lacks a key of another one."""
    from datasets import Dataset

    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}, split="train")


def load_parts(data: Data) -> list[Dataset]:
    """The training rows of each entry of data.train, for `mix`; a folder or a pattern is one entry."""
    layout = layout_of(data)
    return [load_source([source], layout.documents, layout=layout) for source in data.train]


def stream_documents(data: Data) -> IterableDataset:
    """The texts of data.train in one column `text`, read when they are needed; nothing is loaded or cached.

    `text_column` finds and checks the column on the first rows. DataError at a later row without text.
    """
    import pyarrow as pa
    from datasets import IterableDataset

    layout, sources = layout_of(data), list(data.train)
    rows = [row for _, row in itertools.islice(stream_rows(sources, layout), STREAM_SAMPLE)]
    if not rows:
        raise DataError(f"{', '.join(sources)}: no rows", "give text with --data")
    try:
        sample = _from_rows(rows)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"{', '.join(sources)}: {first_line(error)}", "write one kind of value in a column") from None
    options = {"sources": sources, "layout": layout, "column": text_column(sample, data)}
    return IterableDataset.from_generator(_stream_texts, gen_kwargs=options)


def _stream_texts(sources: list[str], layout: Layout, column: str) -> Iterator[dict[str, str]]:
    for place, row in stream_rows(sources, layout):
        if column not in row:
            raise DataError(f"{place}: no column '{column}', found: {listed(row)}", "give all rows the same columns")
        if not isinstance(row[column], str):
            raise DataError(f"{place}: column '{column}' is empty", "fill it in, or delete the row")
        yield {"text": row[column]}


def fingerprint(sources: Sequence[str]) -> str:
    """xxh3_128 of the content of all `sources` in their order, without their names; of a Hub data set its commit."""
    import xxhash

    total = xxhash.xxh3_128()
    for source in sources:
        refuse_url(source)
        if source.startswith("builtin:"):
            total.update(digest_json(load_builtin(source)).encode())
        elif files := local_files(source):
            for file in files:
                total.update(digest_file(file).encode())
        else:
            for split, dataset in sorted(load_hub(source).items()):
                total.update(f"{split} {compat.fingerprint(dataset)}".encode())
    return str(total.hexdigest())


ROWS_AT_ONCE = 1000  # read from the data set: reading them one by one takes as long as tokenizing them


def text_batches(dataset: Dataset, most: int, column: str = "text") -> Iterator[list[str]]:
    """Texts in lists of about `most` characters, so that one tokenizer call stays small."""
    rows = dataset.select_columns([column]).iter(ROWS_AT_ONCE)
    return in_groups(itertools.chain.from_iterable(batch[column] for batch in rows), most)


def in_groups(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    """The texts in lists, each ended by the text that brings it to `most` characters."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= most:
            yield group
            group, characters = [], 0
    if group:
        yield group
