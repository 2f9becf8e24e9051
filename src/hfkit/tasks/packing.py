"""Documents as one stream of tokens in a memory map, cut into blocks: nothing is dropped, the last block is short."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.data.loading import ROWS_AT_ONCE, in_groups, text_batches
from hfkit.models.pieces import pieces, token_units
from hfkit.system.console import detail, say_once, warn
from hfkit.system.files import file_hash, locked, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_BLOCK = 256  # tokens, the default, if the model has as many positions

BATCH_CHARACTERS = 1_000_000  # of texts that are tokenized together; their tokens take some 100 times as many bytes

PIECE = 20_000  # characters of the pieces of a long text, which are tokenized side by side

STORE_VERSION = 1  # of the files of a token store


class TokenStore(NamedTuple):
    """All tokens of a corpus, document after document; memory-mapped where the corpus is a file."""

    tokens: np.ndarray  # uint16 or uint32, shape (tokens,)
    starts: np.ndarray  # int64, shape (documents,): where each document begins
    words: np.ndarray | None  # bool, shape (tokens,): whether a token begins a word; None if not asked for
    num_bytes: int  # of the documents in UTF-8


class Blocks:
    """The tokens of a store as blocks of `size`, each between `prefix` and `suffix`.

    A row holds `input_ids`; where documents are `apart` (they are, unless somebody turns that off) `starts`, the places
    in it where a document begins that is not the block's first; and `words` where the store has them. Without
    `packed`, no block holds more than one document.
    """

    apart = True

    def __init__(
        self, store: TokenStore, size: int, prefix: Sequence[int] = (), suffix: Sequence[int] = (), packed: bool = True
    ) -> None:
        import numpy as np

        self.store, self.num_bytes = store, store.num_bytes
        self.prefix, self.suffix = np.asarray(prefix, dtype=np.int64), np.asarray(suffix, dtype=np.int64)
        inner, end = size - len(prefix) - len(suffix), len(store.tokens)
        if packed:
            self.first = np.arange(0, end, inner)
        else:
            lengths = np.diff(store.starts, append=end)
            counts = -(-lengths // inner)  # blocks of each document; none of an empty one
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            self.first = np.repeat(store.starts, counts) + within * inner
        # a block ends where the next one begins: at `inner` tokens, or with its document
        self.lengths = np.diff(self.first, append=end) + len(prefix) + len(suffix)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np

        first = int(self.first[index])
        stop = first + int(self.lengths[index]) - len(self.prefix) - len(self.suffix)
        inner = self.store.tokens[first:stop].astype(np.int64)
        row = {"input_ids": np.concatenate([self.prefix, inner, self.suffix])}
        if self.apart:
            documents = self.store.starts[slice(*np.searchsorted(self.store.starts, (first + 1, stop)))]
            row["starts"] = np.unique(documents) - first + len(self.prefix)
        if self.store.words is not None:
            edges = np.ones(len(self.prefix), dtype=bool), np.ones(len(self.suffix), dtype=bool)
            row["words"] = np.concatenate([edges[0], self.store.words[first:stop], edges[1]])
        return row


def pack(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    block_size: int | None,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    end: int | None = None,
    packed: bool = True,
    words: bool = False,
) -> Blocks:
    """The column `text` as blocks of `block_size` tokens; `end` closes each document.

    Raises UsageError if the model has fewer positions, DataError if there is too little text.
    """
    from hfkit.errors import DataError, UsageError

    size = block_size_for(model, block_size)
    if size <= len(prefix) + len(suffix):
        raise UsageError(f"data.block_size {size} has no room for text", "--block-size 128")
    store = token_store(dataset, tokenizer, end=end, words=words)
    count = len(store.tokens)
    if count < 2:
        raise DataError("the text holds fewer than two tokens", "give more text with --data")
    blocks = Blocks(store, size, prefix, suffix, packed)
    if dataset.cache_files:  # not for every group of rows of a stream
        documents = "1 document" if len(dataset) == 1 else f"{len(dataset):,} documents"
        say_once(f"tokens: {count:,} of {documents}, none dropped, in {len(blocks):,} blocks of {size}")
        if packed and len(blocks) == 1 and blocks.lengths[0] < size:
            warn(f"that is less than one block of {size} tokens", f"--block-size {count // 2}, or give more text")
    return blocks


def fill(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which examples lie in one block of at most `size` tokens: the longest first, each where least room is left."""
    blocks: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # tokens left in a block, and its number, in order
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        fitting = bisect.bisect_left(rooms, (lengths[place], -1))
        room, number = rooms.pop(fitting) if fitting < len(rooms) else (size, len(blocks))
        if number == len(blocks):
            blocks.append([])
        blocks[number].append(place)
        bisect.insort(rooms, (room - lengths[place], number))
    return blocks


def block_size_for(model: PreTrainedModel, wanted: int | None) -> int:
    """`wanted` tokens, or the default; UsageError if the model has fewer positions."""
    from hfkit.errors import UsageError
    from hfkit.models.config import max_tokens

    limit = max_tokens(model)
    size = wanted or min(DEFAULT_BLOCK, limit or DEFAULT_BLOCK)
    if limit is not None and size > limit:
        raise UsageError(
            f"data.block_size {size} is longer than the model's {limit} positions", f"--block-size {limit}"
        )
    return size


def untruncated(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The backend of the tokenizer, which gives all tokens of a text and no padding from here on."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json can hold a limit of its own
    backend.no_padding()
    return backend


def token_store(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str = "text",
    end: int | None = None,
    words: bool = False,
) -> TokenStore:
    """The tokens of `column` without special tokens, each document closed by `end`.

    Where the data set is a file, its tokens are one, too: <HF_DATASETS_CACHE>/hfkit/tokens-<hash of the texts and the
    tokenizer>, made once, checked by hash at every use, and mapped into memory rather than read.
    """
    untruncated(tokenizer)
    if not dataset.cache_files:
        return _encode(dataset, tokenizer, column, end, words)
    import datasets

    folder = (
        Path(datasets.config.HF_DATASETS_CACHE) / "hfkit" / f"tokens-{_key(dataset, tokenizer, column, end, words)}"
    )
    try:
        if (folder / "store.json").exists():
            return _read(folder)
    except (OSError, ValueError):
        warn(f"{folder}: these cached tokens are damaged and are made again")
    with ExitStack() as stack:
        with suppress(OSError):  # the cache can't be written; the warning comes below
            stack.enter_context(locked(folder))
        with suppress(OSError, ValueError):
            return _read(folder)  # another process has made them in the meantime
        begin = time.monotonic()
        store = _encode(dataset, tokenizer, column, end, words)
        seconds = time.monotonic() - begin
        detail(f"tokenized {store.num_bytes / 1e6:,.1f} MB at {store.num_bytes / 1e6 / max(seconds, 1e-9):,.1f} MB/s")
        try:
            _write(folder, store)
            return _read(folder)
        except OSError as error:  # they fit in memory, so the run can do without
            warn(f"{folder}: the tokens can't be kept: {error.strerror or error}", "make room there, or set HF_HOME")
            return store


def _encode(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, column: str, end: int | None, words: bool
) -> TokenStore:
    import numpy as np

    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    closing = np.array([] if end is None else [end], dtype=dtype)
    backend = tokenizer.backend_tokenizer
    encode = backend.encode_batch if words else backend.encode_batch_fast  # the fast one knows no words
    tokens: list[np.ndarray] = [np.zeros(0, dtype=dtype)]
    first_of_word: list[np.ndarray] = [np.zeros(0, dtype=bool)]
    lengths: list[int] = []
    num_bytes = 0
    units = token_units(backend)
    for texts in text_batches(dataset, BATCH_CHARACTERS, column):
        parts = [list(pieces(text, units, PIECE)) for text in texts]
        encodings = (
            encoding
            for group in in_groups(itertools.chain.from_iterable(parts), BATCH_CHARACTERS)
            for encoding in encode(group, add_special_tokens=False)
        )
        for text, own in zip(texts, parts, strict=True):
            count = len(closing)
            for encoding in itertools.islice(encodings, len(own)):
                tokens.append(np.asarray(encoding.ids, dtype=dtype))
                count += len(encoding)
                if words:
                    first_of_word.append(begins_word(encoding.word_ids))
            tokens.append(closing)
            if words:
                first_of_word.append(np.ones(len(closing), dtype=bool))
            lengths.append(count)
            num_bytes += len(text.encode())
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(lengths)]
    return TokenStore(np.concatenate(tokens), starts, np.concatenate(first_of_word) if words else None, num_bytes)


def begins_word(word_ids: Sequence[int | None]) -> np.ndarray:
    """Whether each token is of another word than the one before it, shape (tokens,); a token of no word is its own."""
    import numpy as np

    ids = np.array([-1 if word is None else word for word in word_ids], dtype=np.int64)
    changes = np.ones(len(ids), dtype=bool)
    changes[1:] = (ids[1:] != ids[:-1]) | (ids[1:] < 0)
    return changes


def _key(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, column: str, end: int | None, words: bool) -> str:
    """Hash of all that decides the tokens: the texts themselves, the tokenizer and the options."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import xxhash

    texts, lengths = xxhash.xxh3_128(), xxhash.xxh3_128()
    for rows in dataset.select_columns([column]).with_format("arrow").iter(ROWS_AT_ONCE):
        for chunk in filter(len, rows[column].chunks):
            array = chunk.cast(pa.large_string())
            lengths.update(np.asarray(pc.binary_length(array)).tobytes())
            _, places, content = array.buffers()
            first, *_, last = np.frombuffer(places, dtype=np.int64)[array.offset :][: len(array) + 1]
            texts.update(memoryview(content)[first:last])  # as the bytes lie in the file
    facts = [STORE_VERSION, end, words, tokenizer.backend_tokenizer.to_str(), texts.hexdigest(), lengths.hexdigest()]
    return str(xxhash.xxh3_128_hexdigest(json.dumps(facts).encode()))


def _write(folder: Path, store: TokenStore) -> None:
    """Writes the arrays, then `store.json` with their hashes, so that a store is whole or not there."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, array in (("tokens", store.tokens), ("starts", store.starts), ("words", store.words)):
        if array is not None:
            path, new = folder / f"{name}.npy", folder / f".{name}.{os.getpid()}.npy"
            try:
                np.save(new, array)
                hashes[path.name] = file_hash(new)
                os.replace(new, path)
            finally:
                new.unlink(missing_ok=True)
    write_atomically(folder / "store.json", json.dumps({"num_bytes": store.num_bytes, "files": hashes}))


def _read(folder: Path) -> TokenStore:
    """The store in `folder`; OSError or ValueError where it is not as it was written."""
    import numpy as np

    facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    arrays = {}
    for name, digest in facts["files"].items():
        if file_hash(folder / name) != digest:
            raise ValueError(f"{name} is damaged")
        arrays[name.removesuffix(".npy")] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    return TokenStore(arrays["tokens"], arrays["starts"], arrays.get("words"), int(facts["num_bytes"]))
