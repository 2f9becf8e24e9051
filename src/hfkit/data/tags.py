"""Tags of words: BIO schemes, the entities in them, and the words of a text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

TAG = re.compile(r"O|[BIESLU]-.+")

# Scripts that write no blanks between words: each character is a word of its own.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


class Entity(NamedTuple):
    """Some words of a type: the first one, and the one after the last; or characters in the same way."""

    kind: str
    start: int
    end: int


class Words(NamedTuple):
    """A text, and where each of its words begins and ends in it, in characters."""

    text: str
    starts: list[int]
    ends: list[int]

    @classmethod
    def of_text(cls, text: str) -> Words:
        """Runs of letters, marks and digits; every other character, and every one of UNSPACED, is a word of its own."""
        places = [found.span() for found in _word_pattern()[0].finditer(text)]
        return cls(text, [start for start, _ in places], [end for _, end in places])

    @classmethod
    def of_tokens(cls, tokens: Iterable[str]) -> Words:
        """The text that the tokens make with blanks between."""
        starts, ends, place = [], [], 0
        for token in (tokens := list(tokens)):
            starts.append(place)
            ends.append(place + len(token))
            place += len(token) + 1
        return cls(" ".join(tokens), starts, ends)

    def entities(self, tags: Sequence[str]) -> list[Entity]:
        """The entities in the words' tags, in order.

        Those of one type that touch, as the parts of john@example.com, are one: a model that learned from words between
        blanks begins an entity at each. In scripts without blanks they stay apart.
        """
        found: list[Entity] = []
        for one in sorted(entities(tags), key=lambda entity: entity.start):
            if found and found[-1].kind == one.kind and self._touches(one.start):
                found[-1] = found[-1]._replace(end=one.end)
            else:
                found.append(one)
        return found

    def _touches(self, word: int) -> bool:
        """Whether there is nothing between this word and the one before it, and blanks are usual there."""
        place = self.starts[word]
        pattern = _word_pattern()[1]
        return place == self.ends[word - 1] and not pattern.search(self.text[place - 1 : place + 1])

    def spans(self, tags: Sequence[str]) -> list[Entity]:
        """The entities in the words' tags by their characters, in order."""
        return [Entity(kind, self.starts[start], self.ends[end - 1]) for kind, start, end in self.entities(tags)]


@functools.cache
def _word_pattern() -> tuple[Any, Any]:
    """What is a word of a text, and what is a character of UNSPACED."""
    import regex  # unlike re, it has the marks of Indic scripts among letters, and whole emoji

    return regex.compile(rf"(?V1)[\w--{UNSPACED}]+|(?=\S)\X"), regex.compile(UNSPACED)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities in BIO, IOB1, BIOES or BILOU tags, as conlleval and seqeval find them.

    A tag that continues nothing, such as an I- after O or after another type, begins an entity.
    """
    found, current, start, is_closed = set(), "", 0, False
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if current and not (kind == current and prefix in ("I", "E", "L") and not is_closed):
            found.add(Entity(current, start, place))
            current = ""
        if kind and not current:
            current, start = kind, place
        is_closed = prefix in ("E", "L", "S", "U")
    return found


def strict_entities(tags: Sequence[str]) -> set[Entity]:
    """The entities in IOB2 tags that begin with B-; a tag that continues nothing is none (seqeval's strict mode)."""
    return {entity for entity in entities(tags) if tags[entity.start].startswith("B-")}


def iob2(size: int, found: Iterable[Entity]) -> list[str]:
    """The tags of `size` words that hold these entities."""
    tags = ["O"] * size
    for kind, start, end in found:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags


class Scheme(NamedTuple):
    """How tags mark entities: IOB2, IOB1 or BIOES; None: each tag stands for itself, as part-of-speech tags do."""

    name: str | None
    num_invalid: int = 0  # I- tags of IOB2 that continue nothing

    @classmethod
    def of(cls, rows: Iterable[Sequence[str]]) -> Scheme:
        """The scheme that all `rows` follow.

        In IOB1 a B- only divides two entities of one type that touch; so without any other B-, an I- may begin one.
        """
        prefixes, begun_by_i, begun_by_b, marks = set(), 0, 0, False
        for tags in rows:
            marks = marks or any(tag != "O" and TAG.fullmatch(tag) for tag in tags)
            found = entities(tags)
            ends = {(kind, end) for kind, _, end in found}
            for kind, start, _ in found:
                begun_by_i += tags[start].startswith("I-")
                begun_by_b += tags[start].startswith("B-") and (kind, start) not in ends
            prefixes |= {tag[0] for tag in tags if TAG.fullmatch(tag)}
        if not marks:
            return cls(None)
        if prefixes & set("ESLU"):
            return cls("BIOES")
        return cls("IOB1") if begun_by_i and not begun_by_b else cls("IOB2", begun_by_i)


def pairs_of_types(tags: Iterable[str]) -> list[str]:
    """The labels of a model for IOB2 tags: O, then B- and I- of every type in them, types in order."""
    kinds = sorted({tag.partition("-")[2] for tag in tags if tag != "O"})
    return ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def tags_of_spans(words: Words, spans: Sequence[Entity]) -> tuple[list[str], int]:
    """IOB2 tags of the words that the spans of characters touch, and how many spans are left out.

    Of spans that share a word the longest one counts.
    """
    taken: set[int] = set()
    kept, num_left_out = [], 0
    for kind, start, end in sorted(spans, key=lambda span: (span.start - span.end, span.start)):
        inside = [
            place
            for place, (begin, stop) in enumerate(zip(words.starts, words.ends, strict=True))
            if begin < end and stop > start
        ]
        if not inside or taken.intersection(inside):
            num_left_out += 1
            continue
        taken.update(inside)
        kept.append(Entity(kind, inside[0], inside[-1] + 1))
    return iob2(len(words.starts), kept), num_left_out


def of_dicts(spans: Iterable[dict[str, Any]]) -> Iterator[Entity]:
    """Entities that are written as {"start", "end", "label"}."""
    for span in spans:
        yield Entity(str(span["label"]), int(span["start"]), int(span["end"]))
