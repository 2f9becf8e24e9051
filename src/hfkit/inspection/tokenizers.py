"""A comparison of tokenizers on the same text: bytes per token, unknown tokens, split words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hfkit.data.loading import text_batches
from hfkit.data.sources import offline_if_local
from hfkit.errors import DataError
from hfkit.models.config import quiet_libraries
from hfkit.models.new_tokenizer import BATCH_CHARACTERS, texts_of
from hfkit.models.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Inspection:
    """How one tokenizer encodes a text. Special tokens around each document are not counted.

    entries: of the vocabulary, special tokens included. bytes_per_token: UTF-8 bytes of the text per token. unknown:
    unknown tokens, and their share of all tokens. words: separated by white space, punctuation included; words_split:
    the share of them that is divided among several tokens. round_trip_failures: documents for which
    decode(encode(text)) is not the text, their share, and the first difference. longest: tokens of the longest
    document. special_tokens: by role; other_special_tokens: the number of those without a role, such as T5's sentinels.
    """

    tokenizer: str
    entries: int
    documents: int
    tokens: int
    bytes_per_token: float
    characters_per_token: float
    unknown: int
    unknown_share: float
    words: int
    words_split: float
    round_trip_failures: int
    round_trip_failure_share: float
    first_difference: str | None
    longest: int
    special_tokens: dict[str, str]
    other_special_tokens: int


def inspect(names: Sequence[str], sources: Sequence[str], text_column: str | None = None) -> list[Inspection]:
    """An inspection of each tokenizer, a directory or a name on the Hub, on the same text.

    In .txt files a paragraph is a document. Only one batch of documents is in memory. Raises DataError for a text that
    gives no tokens, ModelError for a tokenizer that can't be read.
    """
    quiet_libraries()
    with offline_if_local(names, sources):
        tokenizers = [open_tokenizer(name) for name in names]
        dataset, column = texts_of(sources, "blank-line", text_column)
    return [_inspect(name, tokenizer, dataset, column) for name, tokenizer in zip(names, tokenizers, strict=True)]


def _inspect(name: str, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, column: str) -> Inspection:
    num: Counter[str] = Counter()
    longest, difference = 0, None
    for texts in text_batches(dataset, BATCH_CHARACTERS, column):
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            words, split = _count_split(text, offsets)
            num.update(documents=1, tokens=len(ids), bytes=len(text.encode()), characters=len(text))
            num.update(words=words, split=split, unknown=ids.count(tokenizer.unk_token_id))
            longest = max(longest, len(ids))
            if (back := tokenizer.decode(ids)) != text:
                num["failures"] += 1
                difference = difference or _difference(num["documents"], text, back)

    if not num["words"] or not num["tokens"]:
        raise DataError(f"{name} finds no tokens in this text", "--data FILE with text")
    special = {role.removesuffix("_token"): token for role, token in tokenizer.special_tokens_map.items()}
    return Inspection(
        tokenizer=name,
        entries=len(tokenizer),
        documents=num["documents"],
        tokens=num["tokens"],
        bytes_per_token=num["bytes"] / num["tokens"],
        characters_per_token=num["characters"] / num["tokens"],
        unknown=num["unknown"],
        unknown_share=num["unknown"] / num["tokens"],
        words=num["words"],
        words_split=num["split"] / num["words"],
        round_trip_failures=num["failures"],
        round_trip_failure_share=num["failures"] / num["documents"],
        first_difference=difference,
        longest=longest,
        special_tokens=special,
        other_special_tokens=len(set(tokenizer.all_special_tokens) - set(special.values())),
    )


def _count_split(text: str, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The number of words, and the number of words that more than one token overlaps."""
    words = np.array([match.span() for match in re.finditer(r"\S+", text)]).reshape(-1, 2)
    tokens = np.array([(start, end) for start, end in offsets if start < end]).reshape(-1, 2)
    begun = np.searchsorted(tokens[:, 0], words[:, 1], "left")
    ended = np.searchsorted(tokens[:, 1], words[:, 0], "right")
    return len(words), int((begun - ended > 1).sum())


def _difference(document: int, text: str, back: str, characters: int = 12) -> str:
    """The first place where the decoded text differs, and how."""
    pairs = enumerate(zip(text, back, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(text), len(back)))
    ours, theirs = (one[same : same + characters] for one in (text, back))
    return f"document {document}, character {same + 1}: {ours!r} became {theirs!r}"
