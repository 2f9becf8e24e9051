"""Lines of text files: encodings, compression, errors that name the line."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import json
import lzma
import shlex
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from hfkit.errors import DataError, first_line


@contextlib.contextmanager
def _open_zst(path: Path) -> Iterator[IO[bytes]]:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path}: reading .zst needs the package zstandard", 'pip install "hfkit[zst]"') from None
    try:
        with zstandard.open(path, "rb") as file:
            yield io.BufferedReader(file)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[IO[bytes]]:
    """The one file in an archive."""
    with zipfile.ZipFile(path) as archive:
        (member,) = _members(archive)
        try:
            file = archive.open(member)
        except (RuntimeError, NotImplementedError):
            problem = f"{path}: encrypted, or compressed in a way that Python can't read"
            raise DataError(problem, "unpack it, and give the file in it") from None
        with file:
            yield file


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files in an archive without those that macOS adds."""
    return [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]


OPENERS: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
    ".zip": _open_zip,
}

COMPRESSED = [suffix for suffix in OPENERS if suffix]

DAMAGED = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,
)  # what a compressed file can raise


UTF16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks

GREP = {"": "grep", ".gz": "zgrep", ".bz2": "bzgrep", ".xz": "xzgrep", ".zst": "zstdgrep", ".zip": "zipgrep"}


def format_of(path: Path) -> tuple[str, str]:
    """('.csv', '.gz') of x.csv.gz; a .zip has the suffix of the one file in it, else that of its own."""
    suffix, compression = path.suffix.lower(), ""
    if suffix == ".zip":
        with contextlib.suppress(OSError, zipfile.BadZipFile, NotImplementedError), zipfile.ZipFile(path) as archive:
            if len(members := _members(archive)) == 1:
                return Path(members[0].filename).suffix.lower(), suffix
    elif suffix in COMPRESSED:
        suffix, compression = path.with_suffix("").suffix.lower(), suffix
    return suffix, compression


SAMPLE_BYTES = 65_536  # of a file, from which it is told whether it is text

# Bytes that no text holds in UTF-8 or a single-byte encoding: all control characters but tab, ends of lines and
# pages, and escape.
CONTROL = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")


def is_text(path: Path) -> bool:
    """Whether the file is text, whatever its suffix; reading tells more of one that is damaged or in UTF-16."""
    if not path.is_file():
        return False
    try:
        with OPENERS[format_of(path)[1]](path) as file:
            begin: bytes = file.read(SAMPLE_BYTES)
    except DAMAGED as error:
        return not (isinstance(error, OSError) and error.errno)
    return begin.startswith(UTF16) or CONTROL.isdisjoint(begin)


def read_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its end. A byte order mark is dropped; NUL bytes and bytes of another
    encoding are a DataError. None: the file has to be UTF-8, and no setting changes that."""
    compression, number, beyond_ascii = format_of(path)[1], 0, 0
    try:
        with OPENERS[compression](path) as file:
            for number, raw in enumerate(file, 1):
                yield number, _decode(path, number, raw, beyond_ascii, encoding)
                beyond_ascii = beyond_ascii or (0 if raw.isascii() else number)
    except DAMAGED as error:
        if compression and not (isinstance(error, OSError) and error.errno):
            raise DataError(
                f"{path}: a damaged {compression} file, after line {number}", "make or fetch it again"
            ) from None
        raise DataError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None


@contextlib.contextmanager
def utf8_stdin() -> Iterator[None]:
    """Inside, DataError if stdin is closed or not UTF-8."""
    if sys.stdin is None:
        raise DataError("stdin: closed", "pipe text into it, or name a file")
    try:
        yield
    except UnicodeDecodeError:
        raise DataError("stdin: not UTF-8", "give UTF-8, as iconv -f latin1 -t utf-8 makes it") from None


def read_stdin(*, blank: bool = False) -> Iterator[tuple[int, str | dict[str, Any]]]:
    """Number and text of each line of stdin that is not blank, or with `blank` of every line; if the first of them
    begins with a brace, each is a JSON object instead. DataError if there is none."""
    with utf8_stdin():
        numbered = (
            (number, line.rstrip("\r\n")) for number, line in enumerate(sys.stdin, start=1) if blank or line.strip()
        )
        first = next(numbered, None)
        if first is None:
            raise DataError("stdin: no rows", "write one text per line")
        are_objects = first[1].lstrip().startswith("{")
        for number, line in itertools.chain([first], numbered):
            yield number, _parse_line(number, line) if are_objects else line


class RepeatedKeyError(ValueError):
    """A JSON object in which a key stands twice; Python's reader would keep the last value and drop the others."""


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError if it is none, RepeatedKeyError if a key stands twice in an object."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKeyError(
            f"the key '{next(key for key in keys if keys.count(key) > 1)}' stands twice in an object"
        )
    return found


def _parse_line(number: int, line: str) -> dict[str, Any]:
    try:
        return dict(parse_json(line))
    except RepeatedKeyError as error:
        raise DataError(f"stdin: line {number}: {error}", "delete or rename one") from None
    except (ValueError, TypeError) as error:
        problem = f"stdin: line {number}: not a JSON object: {first_line(error)}"
        raise DataError(problem, "write one whole JSON object a line") from None


def _decode(path: Path, number: int, raw: bytes, beyond_ascii: int, given: str | None) -> str:
    """`raw` as text; `beyond_ascii` is the first line before it that is UTF-8 beyond ASCII, or 0."""
    encoding = given or "utf-8"
    if number == 1 and raw.startswith(UTF16):
        raise DataError(f"{path}: UTF-16, not UTF-8", _iconv(path, "utf-16"))
    if b"\0" in raw:
        place = f"line {number}, byte {raw.index(0) + 1}"
        fix = f"tr -d '\\0' < {shlex.quote(str(path))} > NEW"
        raise DataError(f"{path}: {place}: a NUL byte, so probably not a text file", fix)
    *others, last = encoding.split(",")
    for other in others:
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(other).removeprefix("\ufeff" if number == 1 else "")
    try:
        text = raw.decode(last)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8" else encoding
        problem = f"{path}: line {number}, byte {error.start + 1}: {raw[error.start]:#04x} is not {name}"
        if encoding != "utf-8":
            raise DataError(problem, "name another --encoding") from None
        likely = _single_byte(raw)
        if beyond_ascii:  # converting the whole file would spoil that line
            grep = GREP[format_of(path)[1]]
            fix = f"correct the lines that this lists: {grep} -naxv '.*' {shlex.quote(str(path))}"
            if given is not None:
                fix = f"--encoding utf-8,{likely} if the others are that, or {fix}"
            raise DataError(f"{problem}, but line {beyond_ascii} is", fix) from None
        fix = _iconv(path, likely.replace("-", ""))  # as iconv names them
        if given is not None:
            fix = f"--encoding {likely} if it is that, or {fix}"
        raise DataError(problem, fix) from None
    return text.removeprefix("\ufeff") if number == 1 else text


def _single_byte(raw: bytes) -> str:
    """The likelier encoding of text that is no UTF-8: in Latin-1 the bytes 0x80 to 0x9f are control characters, which
    no text has, in Windows-1252 quotes, dashes and the euro sign."""
    return "cp1252" if any(0x80 <= byte <= 0x9F for byte in raw) else "latin-1"


def _iconv(path: Path, encoding: str) -> str:
    new = path.with_name(f"{path.stem}.utf8{path.suffix}")
    convert = f"iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
    return f"decompress it, then {convert}" if format_of(path)[1] else convert
