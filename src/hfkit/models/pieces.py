"""Long texts in pieces that a tokenizer treats as the whole: cut between words, and only where it agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

Units = Callable[[str], list[tuple[Any, int]]]
"""What a tokenizer makes of a text, word after word: a word's tokens (or its text), and the character it begins at."""

REACHES = (256, 1024, 4096)  # characters on each side of a cut that are looked at

TRIES = 6  # places that are tried for a cut, the nearest first

PATIENCE = 4  # cuts that were not found, after which what is left of a text stays whole

MARGIN = 3  # words between a cut and the ends of what is looked at, where words may be incomplete


def pieces(text: str, units: Units, characters: int) -> Iterator[str]:
    """Pieces of about `characters`, one after the other, whose units are those of the whole text.

    A cut is made at the beginning of a word, where the words on both sides are the same with and without it. A text
    without such a place stays in one piece.
    """
    start, target, failures = 0, characters, 0
    while target < len(text):
        cut = next((cut for reach in REACHES if (cut := _cut(text, units, start, target, reach)) is not None), None)
        if cut is None:
            target, failures = target + characters, failures + 1
            if failures == PATIENCE:
                break
            continue
        yield text[start:cut]
        start, target = cut, cut + characters
    yield text[start:]


def _cut(text: str, units: Units, start: int, target: int, reach: int) -> int | None:
    """The place nearest to `target` where the text can be cut; None if there is none within half of `reach`."""
    begin = max(start, target - reach)
    window = text[begin : target + reach]
    words = units(window)
    places = sorted({place for _, place in words[MARGIN:-MARGIN]}, key=lambda place: abs(begin + place - target))
    for place in places[:TRIES]:
        if abs(begin + place - target) > reach // 2:
            return None
        blank = len(window[:place].rstrip())  # a blank belongs to the word behind it, or to none
        for cut in dict.fromkeys((place, place - 1, blank)):
            if not 0 < cut < len(window):
                continue
            if window[cut - 1].isnumeric() and window[cut].isnumeric():
                continue  # some tokenizers count the digits of a number by threes from its beginning
            if _words(units(window[:cut])) + _words(units(window[cut:])) == _words(words):
                return begin + cut
    return None


def _words(units: list[tuple[Any, int]]) -> list[Any]:
    return [word for word, _ in units]


def token_units(backend: Any) -> Units:
    """The units of a tokenizer: the ids of each word, as it divides the text before it looks for tokens."""

    def units(text: str) -> list[tuple[Any, int]]:
        encoding = backend.encode(text, add_special_tokens=False)
        ids, words, offsets = encoding.ids, encoding.word_ids, encoding.offsets
        firsts = [at for at in range(len(ids)) if at == 0 or words[at] is None or words[at] != words[at - 1]]
        return [(tuple(ids[first:end]), offsets[first][0]) for first, end in pairwise([*firsts, len(ids)])]

    return units


def word_units(backend: Any) -> Units:
    """The units of a tokenizer that is not trained yet: the words that it divides the text into."""

    def units(text: str) -> list[tuple[Any, int]]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        found = (
            [(text, (0, len(text)))] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(text)
        )
        return [(word, start) for word, (start, _) in found]

    return units
