"""One function per kind of file: its rows, nothing lost or changed, and file and line of whatever is wrong.

The library's own readers don't do that: csv turns 'NA' into None and a short row into a float column, text rewrites
line ends, json makes dates of strings that look like one.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.lines import format_of, read_lines
from hfkit.errors import DataError, UsageError, first_line
from hfkit.system import console
from hfkit.system.console import short

if TYPE_CHECKING:
    from hfkit.settings import Recipe

# What a reader gives: the arrow schema, and for each row where it is ("line 3") and its values.
Rows = Iterator[tuple[str, dict[str, Any]]]

Reader = Callable[[Path, "Layout"], tuple[Any, Rows]]

VERSION = 1  # part of every cache key: raise it when a reader gives other rows for the same bytes

ROWS_PER_BATCH = 1000

BLANK = " \t\r\n"  # not str.strip(), which also eats form feeds and U+2028

KINDS = {str: "text", bool: "true/false", int: "number", float: "number", list: "list", dict: "object"}

# What columns are usually called, in lower case, the likeliest first.
TEXT_NAMES = (
    "text", "sentence", "review", "content", "document", "article", "body", "comment", "message", "tweet", "utterance",
    "query", "question", "description", "abstract",
)  # fmt: skip

LABEL_NAMES = (
    "label", "labels", "category", "class", "intent", "sentiment", "stars", "rating", "target", "topic", "emotion",
    "score",
)  # fmt: skip

ID_NAMES = ("id", "idx", "index", "guid", "uid", "unnamed: 0")

CSV_ERRORS = {
    "unexpected end of data": (
        "a double quote opens here and never closes",
        "write a quote inside quotes twice, or --no-quoting if a quote is a character like any other",
    ),
    "',' expected after '\"'": ("text after a closing double quote", "write a quote inside quotes twice"),
    "new-line character seen in unquoted field": (
        "a carriage return inside a field", "end lines with a line feed",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What files don't say of themselves; None is the habit of the kind of file, for `header` a guess."""

    documents: str = "row"  # of .txt: what one row is
    header: bool | None = None  # of .csv and .tsv: whether the first line holds names
    separator: str | None = None
    quoting: bool | None = None
    encoding: str = "utf-8"  # of text; several with commas: each line in the first one that fits


def settled(path: Path, layout: Layout) -> Layout:
    """The layout with `header` decided, and said aloud where that was a guess that there is none.

    Without a header line the first row is one of many: where one of its fields comes again below it, it is no name.
    """
    if layout.header is not None or format_of(path)[0] not in (".csv", ".tsv"):
        return layout
    rows = [fields for _, fields in itertools.islice(_split_fields(path, layout), ROWS_PER_BATCH)]
    first, others = (rows[0], rows[1:]) if rows else ([], [])
    usual = {*TEXT_NAMES, *LABEL_NAMES, *ID_NAMES} & {name.strip().lower() for name in first}
    again = [] if usual or first in others else [
        name for place, name in enumerate(first) if name and any(row[place : place + 1] == [name] for row in others)
    ]  # fmt: skip
    if again:
        console.say(
            f"{path}: no header line, as '{short(again[0])}' comes again below; columns are named 0, 1, ... "
            "(change with --header)"
        )
    return replace(layout, header=not again)


def read_csv(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """Comma-separated, quoted, with a header line, but where `layout` says otherwise; every value stays text."""
    return _read_table(path, layout)


def read_tsv(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """Tab-separated, and a quote is a character like any other, as in GLUE's files, else as `read_csv`."""
    return _read_table(path, layout)


def _read_table(path: Path, layout: Layout) -> tuple[Any, Rows]:
    import pyarrow as pa

    separator = _separator(path, layout)
    wanted = {"\t": "tab", ",": "comma"}.get(separator, f"'{separator}'")
    lines = _split_fields(path, layout)
    place, header = next(lines, ("", []))
    if not header:
        raise DataError(f"{path}: no rows", "give a file with a header line and at least one row")
    if len(header) == 1 and (found := [other for other in ",;\t|" if other in header[0]]):
        message = f"{path}: {place}: one column '{short(header[0])}', no {wanted} but '{found[0]}' between names"
        raise DataError(message, f"--separator {'tab' if found[0] == chr(9) else shlex.quote(found[0])}")
    if layout.header is False:
        lines = itertools.chain([(place, header)], lines)
        header = [str(number) for number in range(len(header))]
    header = [name or f"Unnamed: {number}" for number, name in enumerate(header)]
    if twice := [name for number, name in enumerate(header) if name in header[:number]]:
        fix = "rename one of them, or --no-header if the first line is a row"
        raise DataError(f"{path}: {place}: column '{twice[0]}' comes twice", fix)

    def rows() -> Rows:
        place = ""
        for place, fields in lines:
            if len(fields) != len(header):
                problem = f"{path}: {place}: expected {len(header)} fields, saw {len(fields)}"
                if len(fields) < len(header):
                    raise DataError(
                        f"{problem}, '{short(header[len(fields)])}' is missing", "add it, or delete the row"
                    )
                fix = (
                    f"put double quotes around a field with a {wanted}"
                    if _quoted(path, layout)
                    else f"remove a {wanted}"
                )
                raise DataError(problem, fix)
            yield place, dict(zip(header, fields, strict=True))
        if not place:
            raise DataError(f"{path}: no rows, only a header line", "give a file with at least one row")

    return pa.schema([(name, pa.string()) for name in header]), rows()


def _separator(path: Path, layout: Layout) -> str:
    return layout.separator or ("\t" if format_of(path)[0] == ".tsv" else ",")


def _quoted(path: Path, layout: Layout) -> bool:
    return format_of(path)[0] != ".tsv" if layout.quoting is None else layout.quoting


def _split_fields(path: Path, layout: Layout) -> Iterator[tuple[str, list[str]]]:
    """The fields of each row that is not blank, with its first line."""
    csv.field_size_limit(2**31 - 1)  # 131,072 characters otherwise
    lines = (line for _, line in read_lines(path, layout.encoding))
    quoting = csv.QUOTE_MINIMAL if _quoted(path, layout) else csv.QUOTE_NONE
    dialect: dict[str, Any] = {"delimiter": _separator(path, layout), "quoting": quoting}
    reader = csv.reader(lines, strict=True, **dialect)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            known = (said for start, said in CSV_ERRORS.items() if str(error).startswith(start))
            problem, fix = next(known, (str(error), ""))
            raise DataError(f"{path}: {place}: {problem}", fix) from None
        if fields:
            yield place, fields


def read_json(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """One JSON object a line, or one list of objects; types are kept, a missing key is None."""
    return _infer_schema(path, _json_rows(path)), _json_rows(path)


def _json_rows(path: Path) -> Rows:
    lines: Iterator[tuple[int, str]] = ((number, line) for number, line in read_lines(path) if line.strip())
    number, first = next(lines, (0, ""))
    if first.lstrip().startswith("["):
        whole = "\n" * (number - 1) + first + "".join(line for _, line in lines)
        places: Iterable[tuple[str, Any]] = (
            (f"row {row}", value) for row, value in enumerate(_parse_json(path, 1, whole), 1)
        )
    else:
        lines = itertools.chain([(number, first)] if first else [], lines)
        places = ((f"line {number}", _parse_json(path, number, line.rstrip())) for number, line in lines)
    for place, row in places:
        if not isinstance(row, dict):
            kind = KINDS.get(type(row), "null")
            raise DataError(f"{path}: {place}: {kind} instead of an object", 'write {"text": "..."} on each line')
        yield place, row


def _parse_json(path: Path, number: int, text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        message = f"{path}: line {line}, column {error.colno}: not JSON: {error.msg}"
        raise DataError(message, "write one whole JSON object on each line, or one list of objects") from None
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            escape = f"\\u{ord(error.object[error.start]):04x}"
            before = text[: text.lower().index(escape)]
            line, byte = number + before.count("\n"), len(before[before.rfind("\n") + 1 :].encode()) + 1
            message = f"{path}: line {line}, byte {byte}: {escape} is half a character, not UTF-8"
            raise DataError(message, "delete it, or write both halves") from None
    return value


def _infer_schema(path: Path, rows: Rows) -> Any:
    """The arrow schema of all rows; one column holds one kind of value, whole and broken numbers go together."""
    import pyarrow as pa

    schema = pa.schema([])
    first_seen: dict[str, tuple[str, str]] = {}
    while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
        for place, row in batch:
            for column, value in row.items():
                if value is None:
                    continue
                kind = KINDS[type(value)]
                known, where = first_seen.setdefault(column, (kind, place))
                if kind != known:
                    message = f"{path}: {place}: column '{column}' holds {kind}, but {known} in {where}"
                    raise DataError(message, "write one kind of value in a column")
        for column in dict.fromkeys(column for _, row in batch for column in row):
            try:
                field = pa.field(column, pa.array([row.get(column) for _, row in batch]).type)
                schema = pa.unify_schemas([schema, pa.schema([field])], promote_options="permissive")
            except (pa.ArrowException, OverflowError) as error:
                raise DataError(f"{path}: {batch[0][0]} or later: column '{column}': {first_line(error)}") from None
    return schema


def read_text(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """Plain text: the file as it is, its paragraphs, or its lines without their ends; blank lines only divide."""
    import pyarrow as pa

    return pa.schema([("text", pa.string())]), _text_rows(path, layout)


def _text_rows(path: Path, layout: Layout) -> Rows:
    documents = layout.documents
    num_rows = num_blank = 0
    paragraph: list[str] = []
    start = 1
    for number, line in itertools.chain(read_lines(path, layout.encoding), [(0, "")]):
        is_blank = documents != "file" and not line.strip(BLANK)
        num_blank += is_blank and number > 0
        if paragraph and (is_blank or documents == "row" or number == 0):
            text = "".join(paragraph)
            if documents != "file":
                text = text.removesuffix("\n").removesuffix("\r")
            if text.strip(BLANK):
                num_rows += 1
                yield f"line {start}", {"text": text}
            paragraph = []
        if not is_blank and number > 0:
            start = start if paragraph else number
            paragraph.append(line)
    if not num_rows:
        reason = "only blank lines" if path.stat().st_size else "the file is empty"
        raise DataError(f"{path}: no rows, {reason}", "give a file with text")
    if num_blank and documents == "row":
        console.say(f"{path}: {num_blank:,} blank lines skipped")


def read_parquet(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """A parquet file, types and class names kept."""
    import pyarrow.parquet

    with _table_errors(path):
        file = pyarrow.parquet.ParquetFile(path)
        return _plain_strings(file.schema_arrow), _table_rows(path, file.iter_batches(ROWS_PER_BATCH))


def read_arrow(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """An arrow file, streaming or random-access format, types and class names kept."""
    import pyarrow as pa

    with _table_errors(path):
        source = pa.memory_map(str(path))
        try:
            stream = pa.ipc.open_stream(source)
            return _plain_strings(stream.schema), _table_rows(path, stream)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
            return _plain_strings(file.schema), _table_rows(path, batches)


def _table_rows(path: Path, batches: Iterable[Any]) -> Rows:
    with _table_errors(path):
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


@contextlib.contextmanager
def _table_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: a damaged {path.suffix} file: {first_line(error)}", "make or fetch it again"
        ) from None


def _plain_strings(schema: Any) -> Any:
    """The schema with pandas' other string types as plain strings, unless `datasets` wrote it and knows its types."""
    import pyarrow as pa

    if b"huggingface" in (schema.metadata or {}):
        return schema

    def plain(kind: Any) -> Any:
        if pa.types.is_dictionary(kind):
            return plain(kind.value_type)
        return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind

    return pa.schema([(field.name, plain(field.type)) for field in schema])


# Suffix -> reader. Text kinds can also end in .gz, .bz2, .xz or .zst.
SOURCES: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".json": read_json,
    ".jsonl": read_json,
    ".txt": read_text,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def is_table(source: str) -> bool:
    """True for the name of a file whose rows are documents whatever data.documents says."""
    return format_of(Path(source))[0] in SOURCES.keys() - {".txt"}


def layout_of(recipe: Recipe) -> Layout:
    """How the files of the recipe are to be read; UsageError for what can't be, or would have no effect."""
    import codecs

    data = recipe.data
    named = [*data.train, *data.validation, *data.test]
    kinds = {format_of(Path(source))[0] for source in named}
    given = [name for name, value in (("header", data.header), ("csv.separator", data.csv.separator),
                                      ("csv.quoting", data.csv.quoting)) if value is not None]  # fmt: skip
    if given and kinds and kinds <= SOURCES.keys() - {".csv", ".tsv"}:
        raise UsageError(f"data.{given[0]} has no effect: no source is a .csv or .tsv file", "leave it out")
    separator = {"tab": "\t", "\\t": "\t"}.get(data.csv.separator or "", data.csv.separator)
    if separator is not None and len(separator) != 1:
        raise UsageError(f"data.csv.separator '{separator}': must be one character", "--separator tab")
    for name in data.encoding.split(","):
        try:
            plain = "\n".encode(codecs.lookup(name).name) == b"\n"
        except (LookupError, TypeError):
            raise UsageError(f"data.encoding '{name}' is unknown", "utf-8, latin-1, cp1252, gb18030, ...") from None
        if not plain:
            raise UsageError(f"data.encoding '{name}' is not read line by line", f"iconv -f {name} -t utf-8 FILE > NEW")
    return Layout(data.documents or "row", data.header, separator, data.csv.quoting, data.encoding)
