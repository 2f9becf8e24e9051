"""CoNLL files: a word and its tags on each line, a blank line after each sentence."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hfkit.data.lines import read_lines
from hfkit.data.tags import TAG
from hfkit.errors import DataError
from hfkit.system.console import short

DOCUMENT = "-DOCSTART-"  # the word of a line between documents in the files of CoNLL-2003

SNIFFED, FEWEST = 50, 3  # lines that are looked at, and that make a file of words with tags

BLANK = " \t\r\n"  # not str.strip(), which also takes no-break spaces: they may be a word, or in one


class Columns(NamedTuple):
    """What is on a line: the separator (a tab, or blanks), and the names of its fields."""

    separator: str
    names: list[str]
    line: int  # the first one with these fields
    is_bio: bool  # whether the tags are

    @property
    def tags(self) -> int:
        return self.names.index("tags")


def read_conll(path: Path, encoding: str | None) -> tuple[Any, Iterator[tuple[str, dict[str, Any]]]]:
    """A row for each sentence: lists of text in the columns `tokens` and `tags`; other columns have their number.

    Fields are divided by tabs, else by blanks. The tags are the last column that holds BIO tags, else the last one; the
    words are the first of the others that does not number them. A line that begins with # is a comment unless it has
    the fields of a word, with a BIO tag where there are such.
    """
    import pyarrow as pa

    columns = _columns(path, encoding)
    return pa.schema([(name, pa.list_(pa.string())) for name in columns.names]), _sentences(path, encoding, columns)


def is_conll(path: Path, encoding: str | None) -> bool:
    """Whether the first lines, three at least, have the same fields each, one of them always a BIO tag."""
    lines = [line.strip(BLANK) for _, line in itertools.islice(read_lines(path, encoding), SNIFFED)]
    separator = "\t" if "\t" in next(filter(None, lines), "") else " "
    rows = [_fields_of(line, separator) for line in lines if line]
    if len(rows) < FEWEST or len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
        return False
    columns = [set(column) for column in zip(*rows, strict=True)]
    return any(all(map(TAG.fullmatch, column)) and any(tag[0] in "OB" for tag in column) for column in columns)


def _columns(path: Path, encoding: str | None) -> Columns:
    separator, size, first = " ", 0, 0
    tagged: list[int] = []
    numbered: list[int] = []
    num_words = 0
    for number, line in read_lines(path, encoding):
        text = line.strip(BLANK)
        if not text or (text.startswith("#") and not num_words):
            continue
        if not num_words:
            separator = "\t" if "\t" in text else " "
            first, size = number, len(_fields_of(text, separator))
            tagged, numbered = [0] * size, [0] * size
        fields = _fields_of(text, separator)
        if len(fields) != size or fields[0] == DOCUMENT:
            continue  # counted, and refused, when the rows are read
        num_words += 1
        for place, field in enumerate(fields):
            tagged[place] += TAG.fullmatch(field) is not None
            numbered[place] += field.isdecimal()
    if not num_words:
        raise DataError(f"{path}: no rows, no line holds a word", "give a file with a word and its tag on each line")
    names = list(map(str, range(size)))
    if size > 1:
        tags = max((place for place in range(size) if 2 * tagged[place] > num_words), default=size - 1)
        words = next(
            (place for place in range(size) if place != tags and 2 * numbered[place] <= num_words), 0 if tags else 1
        )
        names[tags] = "tags"
        names[words] = "tokens"
    else:
        names = ["tokens"]
    is_bio = size > 1 and 2 * tagged[names.index("tags")] > num_words
    return Columns(separator, names, first, is_bio)


def _sentences(path: Path, encoding: str | None, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    rows: list[list[str]] = []
    start = 0
    for number, line in itertools.chain(read_lines(path, encoding), [(0, "")]):
        text = line.strip(BLANK)
        fields = _fields_of(text, columns.separator)
        if text.startswith("#") and not _is_word(fields, columns):
            continue
        if not fields or fields[0] == DOCUMENT:
            if rows:
                yield f"line {start}", dict(zip(columns.names, map(list, zip(*rows, strict=True)), strict=True))
            rows = []
            continue
        if len(fields) != len(columns.names):
            divided = "tab" if columns.separator == "\t" else "blank"
            problem = f"{path}: line {number}: {_fields(len(fields))}, but {len(columns.names)} in line {columns.line}"
            raise DataError(f"{problem}: '{short(text)}'", f"write the same fields on each line, a {divided} between")
        if not rows:
            start = number
        rows.append(fields)


def _is_word(fields: list[str], columns: Columns) -> bool:
    """Whether a line that begins with # has the fields of a word."""
    if len(fields) != len(columns.names):
        return False
    return not columns.is_bio or columns.separator == "\t" or TAG.fullmatch(fields[columns.tags]) is not None


def _fields_of(text: str, separator: str) -> list[str]:
    """The fields of a line; several blanks are one separator, several tabs are not."""
    if separator == "\t" and text:
        return text.split("\t")
    return [field for field in re.split("[ \t]+", text) if field]


def _fields(count: int) -> str:
    return f"{count} field{'s' * (count != 1)}"
