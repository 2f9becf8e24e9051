"""The kinds of files: a reader for each, which loses and changes nothing and names file and line of what is wrong.

The readers of `datasets` don't do that: csv turns 'NA' into None and a short row into a float column, text rewrites
line ends, json turns strings that look like a date into dates. pyarrow.csv accepts text after a closing quote.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.conll import is_conll, read_conll
from hfkit.data.json_rows import KINDS, has_nested_messages, json_rows
from hfkit.data.lines import format_of, is_text, read_lines
from hfkit.data.sheets import SHEETS, sheet_fields
from hfkit.errors import DataError, UsageError, first_line
from hfkit.system.console import say, say_once, short

if TYPE_CHECKING:
    from hfkit.settings import Data

Rows = Iterator[tuple[str, dict[str, Any]]]  # where each row is ("line 3"), and its values

Fields = Iterator[tuple[str, list[str]]]  # the same of a table without names

VERSION = 5  # part of every cache key: raise it when a reader gives other rows for the same bytes

ROWS_PER_BATCH = 1000

BLANK = " \t\r\n"  # not str.strip(), which also eats form feeds and U+2028

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

KNOWN_NAMES = {*TEXT_NAMES, *LABEL_NAMES, *ID_NAMES}

UNLESS_NAMED = "unless named"  # no header as in other files, but for a first line with one of KNOWN_NAMES

TOLD_SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)

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
    """What a file does not say about itself. None: as usual for its kind, and for `header` a guess."""

    documents: str = "row"  # of .txt: what one row is ("file", "blank-line", "row", or "line": a row, though blank)
    header: bool | str | None = None  # of .csv and .tsv: whether the first line holds the names; or UNLESS_NAMED
    separator: str | None = None
    quoting: bool | None = None
    encoding: str = "utf-8"  # of text; several separated by commas: each line in the first one that fits
    is_fixed: bool = False  # whether no option of the command changes it, so that no error may advise one

    @property
    def given_encoding(self) -> str | None:
        """The encoding as `read_lines` takes it."""
        return None if self.is_fixed else self.encoding


FIXED = Layout(is_fixed=True)


@dataclass(frozen=True)
class Format:
    """A kind of file.

    `read` gives the arrow schema and then each row with its place, or record batches if `is_columnar`. `settings` are
    the fields of Layout that change what is read. `separator` and `quoting` are those of a table if Layout has none.
    A file that `has_lines` is read line by line and can be compressed.
    """

    read: Callable[[Path, Layout], tuple[Any, Iterator[Any]]]
    settings: tuple[str, ...] = ()
    is_columnar: bool = False
    has_lines: bool = True
    separator: str = ","
    quoting: bool = True


def format_name(path: Path) -> str:
    """The kind of a file, a key of FORMATS: its suffix, or .txt if that is unknown and its content is text; else ""."""
    suffix = format_of(path)[0]
    if suffix in FORMATS:
        return suffix
    return TEXT if is_text(path) else ""


def read_batches(path: Path, layout: Layout) -> tuple[Any, Iterator[Any]]:
    """The arrow schema of a file, and its rows as record batches; the header must be `settled`."""
    file_format = FORMATS[format_name(path)]
    schema, found = file_format.read(path, layout)
    return schema, found if file_format.is_columnar else _batches(path, schema, found)


def _batches(path: Path, schema: Any, rows: Rows) -> Iterator[Any]:
    import pyarrow as pa

    as_json = [field.name for field in schema if isinstance(field.type, pa.JsonType)]
    while some := list(itertools.islice(rows, ROWS_PER_BATCH)):
        try:
            yield pa.RecordBatch.from_pylist([_with_json(row, as_json) for _, row in some], schema=schema)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"{path}: {some[0][0]} or later: {first_line(error)}") from None


def _with_json(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """The row with these columns as JSON texts."""
    return {**row, **{name: json.dumps(row[name]) for name in columns if row.get(name) is not None}}


def read_rows(path: Path, layout: Layout) -> Rows:
    """The rows of a file one by one, each with its place in it."""
    file_format = FORMATS[format_name(path)]
    found = file_format.read(path, settled(path, layout))[1]
    if not file_format.is_columnar:
        return found
    rows = (row for batch in found for row in batch.to_pylist())
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def has_effect(setting: str, source: str | Path) -> bool:
    """Whether the field `setting` of Layout changes what is read from a file of this name."""
    file_format = FORMATS.get(format_name(Path(source)))
    return file_format is not None and setting in file_format.settings


def is_inherited(header: object) -> bool:
    """Whether that there is no header is only known of other files."""
    return header == UNLESS_NAMED


def settled(path: Path, layout: Layout) -> Layout:
    """The layout with `header` decided; a guess that there is none is printed.

    If a field of the first row comes again below it, in the same column, the first row holds no names.
    """
    if is_inherited(layout.header) and has_effect("header", path):
        _, first = next(_fields(path, layout), ("", []))
        holds_names = any(field.strip().lower() in KNOWN_NAMES for field in first)
        if holds_names:
            say_once(f"{path}: the first line names the columns, unlike in the training data (change with --no-header)")
        return replace(layout, header=holds_names)
    if layout.header is not None or not has_effect("header", path):
        return layout
    rows = [fields for _, fields in itertools.islice(_fields(path, layout), ROWS_PER_BATCH)]
    first, others = (rows[0], rows[1:]) if rows else ([], [])
    usual = KNOWN_NAMES & {name.strip().lower() for name in first}
    again = [] if usual or first in others else [
        name for place, name in enumerate(first) if name and any(row[place : place + 1] == [name] for row in others)
    ]  # fmt: skip
    if again:
        say(
            f"{path}: no header line, because '{short(again[0])}' appears again below; columns are named 0, 1, ..."
            + " (change with --header)" * (not layout.is_fixed)
        )
    return replace(layout, header=not again)


def read_table(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """A .csv or .tsv file; every value stays text."""
    separator, is_quoted, is_told = _dialect(path, layout)
    if is_told and layout.separator is None:
        say_once(f"{path}: separator '{separator}', as its first line says")
    wanted = {"\t": "tab", ",": "comma"}.get(separator, f"'{separator}'")
    lines = _split_fields(path, layout)
    place, first = next(lines, ("", []))
    if len(first) == 1 and (found := [other for other in ",;\t|" if other in first[0]]):
        message = f"{path}: {place}: one column '{short(first[0])}', no {wanted} but '{found[0]}' between names"
        fix = f"--separator {'tab' if found[0] == chr(9) else shlex.quote(found[0])}"
        if layout.is_fixed:
            fix = "rename it to .tsv" if found[0] == "\t" else f"write sep={found[0]} in a first line of its own"
        raise DataError(message, fix)
    names, lines = _names(path, layout, itertools.chain([(place, first)], lines))
    quote, remove = f"put double quotes around a field with a {wanted}", f"remove a {wanted}"
    return _texts(names), _rows(path, names, _whole(path, names, lines, quote if is_quoted else remove))


def read_sheet(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """The first sheet of a spreadsheet; every value becomes text."""
    names, lines = _names(path, layout, sheet_fields(path))
    return _texts(names), _rows(path, names, lines)


def _rows(path: Path, names: Sequence[str], lines: Fields) -> Rows:
    """The rows of a table by name; DataError if there are none."""
    place = ""
    for place, fields in lines:
        yield place, dict(zip(names, fields, strict=True))
    if not place:
        raise DataError(f"{path}: no rows, only a header line", "give a file with at least one row")


def _whole(path: Path, names: Sequence[str], lines: Fields, fix: str) -> Fields:
    """The lines, each with as many fields as there are names; DataError, with the `fix` for too many, at another."""
    for place, fields in lines:
        if len(fields) != len(names):
            problem = f"{path}: {place}: expected {len(names)} fields, saw {len(fields)}"
            if len(fields) < len(names):
                raise DataError(f"{problem}, '{short(names[len(fields)])}' is missing", "add it, or delete the row")
            raise DataError(problem, fix)
        yield place, fields


def _names(path: Path, layout: Layout, lines: Fields) -> tuple[list[str], Fields]:
    """The names of the columns of a table, and its rows without them."""
    place, header = next(lines, ("", []))
    if not header:
        raise DataError(f"{path}: no rows", "give a file with a header line and at least one row")
    if layout.header is False:
        lines = itertools.chain([(place, header)], lines)
        header = [str(number) for number in range(len(header))]
    header = [name or f"Unnamed: {number}" for number, name in enumerate(header)]
    if twice := [name for number, name in enumerate(header) if name in header[:number]]:
        fix = "rename one of them" + (", or --no-header if the first line is a row" if not layout.is_fixed else "")
        raise DataError(f"{path}: {place}: column '{twice[0]}' appears twice", fix)
    return header, lines


def _texts(names: Iterable[str]) -> Any:
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in names])


def _fields(path: Path, layout: Layout) -> Fields:
    """The fields of each row of a table that is not blank, with its place."""
    return sheet_fields(path) if format_of(path)[0] in SHEETS else _split_fields(path, layout)


def _dialect(path: Path, layout: Layout) -> tuple[str, bool, bool]:
    """The separator of a table, whether double quotes enclose fields, and whether the first line only names the
    separator, as Excel writes it: `sep=;`."""
    usual = FORMATS[format_of(path)[0]]
    _, first = next(read_lines(path, layout.given_encoding), (0, ""))
    told = TOLD_SEPARATOR.fullmatch(first)
    separator = layout.separator or (told[1] if told else usual.separator)
    return separator, usual.quoting if layout.quoting is None else layout.quoting, told is not None


def _split_fields(path: Path, layout: Layout) -> Fields:
    """The fields of each row that is not blank, with its first line."""
    csv.field_size_limit(2**31 - 1)  # 131,072 characters otherwise
    separator, is_quoted, is_told = _dialect(path, layout)
    skipped = int(is_told)
    lines = (line for _, line in itertools.islice(read_lines(path, layout.given_encoding), skipped, None))
    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    dialect: dict[str, Any] = {"delimiter": separator, "quoting": quoting}
    reader = csv.reader(lines, strict=True, **dialect)
    while True:
        place = f"line {reader.line_num + 1 + skipped}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            known = (said for start, said in CSV_ERRORS.items() if str(error).startswith(start))
            problem, fix = next(known, (str(error), ""))
            fix = fix.partition(", or --")[0] if layout.is_fixed else fix
            raise DataError(f"{path}: {place}: {problem}", fix) from None
        if fields:
            yield place, fields


def read_json(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """The rows of `json_rows`: types are kept, a missing key is None."""
    return _infer_schema(path, json_rows(path)), json_rows(path)


def _infer_schema(path: Path, rows: Rows) -> Any:
    """The arrow schema of all rows; one column holds one kind of value, whole and broken numbers go together.

    Messages that hold more than texts, such as the arguments of tool calls, stay JSON: an arrow column would give all
    of them the same keys, and numbers another type.
    """
    import pyarrow as pa

    schema, as_json = pa.schema([]), set()
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
            if column in as_json or any(has_nested_messages(row.get(column)) for _, row in batch):
                as_json.add(column)
                continue
            try:
                field = pa.field(column, pa.array([row.get(column) for _, row in batch]).type)
                schema = pa.unify_schemas([schema, pa.schema([field])], promote_options="permissive")
            except (pa.ArrowException, OverflowError) as error:
                raise DataError(f"{path}: {batch[0][0]} or later: column '{column}': {first_line(error)}") from None
    names = [*schema.names, *sorted(as_json - set(schema.names))]
    return pa.schema([(name, pa.json_() if name in as_json else schema.field(name).type) for name in names])


def read_text(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """Plain text: the file as it is, its paragraphs, or its lines without their ends; blank lines only divide, but for
    documents "line", where each is a row.

    Lines that all hold a word and its BIO tag are read as a CoNLL file.
    """
    import pyarrow as pa

    if layout.documents == "row" and is_conll(path, layout.given_encoding):
        say(f"{path}: read as CoNLL, because each line holds a word and its tag")
        return read_tagged(path, layout)
    return pa.schema([("text", pa.string())]), _text_rows(path, layout)


def _text_rows(path: Path, layout: Layout) -> Rows:
    documents = layout.documents
    if documents == "line":
        yield from _every_line(path, layout)
        return
    num_rows = num_blank = 0
    paragraph: list[str] = []
    start = 1
    for number, line in itertools.chain(read_lines(path, layout.given_encoding), [(0, "")]):
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
        say(f"{path}: {num_blank:,} blank lines skipped")


def _every_line(path: Path, layout: Layout) -> Rows:
    number = 0
    for number, line in read_lines(path, layout.given_encoding):
        yield f"line {number}", {"text": line.removesuffix("\n").removesuffix("\r")}
    if not number:
        raise DataError(f"{path}: no rows, the file is empty", "give a file with text")


def read_tagged(path: Path, layout: Layout) -> tuple[Any, Rows]:
    """A CoNLL file: a word and its tags on each line, a blank line after each sentence."""
    return read_conll(path, layout.given_encoding)


def read_parquet(path: Path, layout: Layout) -> tuple[Any, Iterator[Any]]:
    """A parquet file, types and class names kept."""
    import pyarrow.parquet

    with _table_errors(path):
        file = pyarrow.parquet.ParquetFile(path)
        schema = _plain_strings(file.schema_arrow)
    return schema, _cast(path, schema, file.iter_batches(ROWS_PER_BATCH))


def read_arrow(path: Path, layout: Layout) -> tuple[Any, Iterator[Any]]:
    """An arrow file, streaming or random-access format, types and class names kept."""
    import pyarrow as pa

    with _table_errors(path):
        source = pa.memory_map(str(path))
        try:
            file = pa.ipc.open_stream(source)
            batches = iter(file)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        schema = _plain_strings(file.schema)
    return schema, _cast(path, schema, batches)


def _cast(path: Path, schema: Any, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches with the types of `schema`, in parts of at most ROWS_PER_BATCH rows."""
    with _table_errors(path):
        for batch in batches:
            for start in range(0, len(batch), ROWS_PER_BATCH):
                yield batch.slice(start, ROWS_PER_BATCH).cast(schema)


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
    """The schema with the other string types of pandas as plain strings, unless `datasets` wrote it."""
    import pyarrow as pa

    if b"huggingface" in (schema.metadata or {}):
        return schema

    def plain(kind: Any) -> Any:
        if pa.types.is_dictionary(kind):
            return plain(kind.value_type)
        return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind

    return pa.schema([(field.name, plain(field.type)) for field in schema])


TAGGED = (".conll", ".bio", ".iob", ".iob2")

_DIALECT = ("header", "separator", "quoting", "encoding")

TEXT = ".txt"

# By suffix. All but sheets and columnar files can also end in .gz, .bz2, .xz, .zst or .zip.
FORMATS = {
    ".csv": Format(read_table, _DIALECT),
    ".tsv": Format(read_table, _DIALECT, separator="\t", quoting=False),  # as the files of GLUE
    ".json": Format(read_json),
    ".jsonl": Format(read_json),
    TEXT: Format(read_text, ("documents", "encoding")),
    **dict.fromkeys(TAGGED, Format(read_tagged, ("encoding",))),
    **dict.fromkeys(SHEETS, Format(read_sheet, ("header",), has_lines=False)),
    ".parquet": Format(read_parquet, is_columnar=True, has_lines=False),
    ".arrow": Format(read_arrow, is_columnar=True, has_lines=False),
}


def is_table(source: str) -> bool:
    """Whether the name is that of a file whose rows are the documents, whatever data.documents says."""
    return format_name(Path(source)) in FORMATS and not has_effect("documents", source)


def are_alike(files: Iterable[str], others: Iterable[str]) -> bool:
    """Whether all these files are of one kind, so that what is known of some may hold for the others."""
    return len({format_of(Path(file))[0] for file in (*files, *others)}) == 1


def layout_of(data: Data) -> Layout:
    """How the files that `data` names are read; UsageError for a setting that is wrong or has no effect."""
    given = {"header": data.header, "csv.separator": data.csv.separator, "csv.quoting": data.csv.quoting}
    typed = [name for name, value in given.items() if value not in (None, UNLESS_NAMED)]
    sources = [*data.train, *data.validation, *data.test]
    known = all(format_name(Path(source)) in FORMATS for source in sources)
    for name in typed if sources and known else ():
        if not any(has_effect(name.removeprefix("csv."), source) for source in sources):
            kinds = "a .csv or .tsv file" + " or a sheet" * (name == "header")
            raise UsageError(f"data.{name} has no effect: no source is {kinds}", "leave it out")
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
