"""Every kind of source, every way a file can be wrong, the cache, and which column plays which part."""

# ruff: noqa: E501 - tables of whole messages

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from hfkit.data.columns import classification_columns, text_column
from hfkit.data.loading import fingerprint, load_data, load_source
from hfkit.data.sources import is_local
from hfkit.data.splits import hold_out, hold_out_end
from hfkit.errors import DataError, StorageError, UsageError
from hfkit.settings import Columns, Data

REAL = Path(__file__).parents[3] / "shared" / "data"
TWO_ROWS = "text,label\na,0\nb,1\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and an empty current directory."""
    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def write(name: str, content: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def load(*sources: str, documents: str = "row") -> dict[str, list[Any]]:
    return load_source(sources, documents)[:]


def problem(*sources: str, documents: str = "row") -> str:
    with pytest.raises(DataError) as caught:
        load_source(sources, documents)
    assert caught.value.exit_code == 3
    return str(caught.value)


def data_of(*train: str, validation: list[str] | None = None, test: list[str] | None = None, **columns: str) -> Data:
    return Data(train=list(train), validation=validation or [], test=test or [], columns=Columns(**columns))


# --- kinds of files ---------------------------------------------------------------------------------------------------


def test_csv_values_stay_text() -> None:
    write("a.csv", 'text,label\nNA,1\nnull,0\nNone,1\n"x, ""y""\r\nz",007\n,2.50\n')
    dataset = load_source(["a.csv"])
    assert dataset.features == {"text": datasets.Value("string"), "label": datasets.Value("string")}
    assert dataset["text"][:] == ["NA", "null", "None", 'x, "y"\r\nz', ""]
    assert dataset["label"][:] == ["1", "0", "1", "007", "2.50"]


def test_tsv_takes_a_quote_as_any_character() -> None:
    write("a.tsv", 'text\tlabel\n"open\t1\nsay "hi"\t0\n')
    assert load("a.tsv") == {"text": ['"open', 'say "hi"'], "label": ["1", "0"]}


def test_byte_order_mark_is_dropped_and_windows_line_ends_are_understood() -> None:
    assert load(write("a.csv", b"\xef\xbb\xbftext,label\r\na,1\r\n")) == {"text": ["a"], "label": ["1"]}


def test_unnamed_and_blank() -> None:
    assert load(write("a.csv", ",text\n0,a\n\n1,b\n")) == {"Unnamed: 0": ["0", "1"], "text": ["a", "b"]}


def test_a_field_longer_than_the_csv_limit_of_python() -> None:
    assert load(write("a.csv", "text,label\n" + "x" * 200_000 + ",1\n"))["text"] == ["x" * 200_000]


def test_jsonl_keeps_types_and_text_that_looks_like_a_date() -> None:
    rows = [
        {"text": "2020-01-01", "n": 1, "x": 1, "tags": [], "more": {"a": 1}, "yes": True},
        {"text": "b", "n": 2, "x": 1.5, "tags": ["t"], "more": {"a": 2}, "yes": False},
        {"text": "c"},
    ]
    write("a.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    dataset = load_source(["a.jsonl"])
    assert {name: str(kind) for name, kind in dataset.features.items()} == {
        "text": "Value('string')",
        "n": "Value('int64')",
        "x": "Value('float64')",
        "tags": "List(Value('string'))",
        "more": "{'a': Value('int64')}",
        "yes": "Value('bool')",
    }
    assert dataset[1] == rows[1]
    assert dataset[2] == {"text": "c", "n": None, "x": None, "tags": None, "more": None, "yes": None}


def test_types_are_found_beyond_the_first_batch() -> None:
    write("a.jsonl", '{"text": null, "n": 1}\n' * 1500 + '{"text": "late", "n": 0.5}\n')
    dataset = load_source(["a.jsonl"])
    assert dataset[1500] == {"text": "late", "n": 0.5}
    assert dataset[0] == {"text": None, "n": 1.0}


def test_json_can_be_a_list() -> None:
    assert load(write("a.json", '[\n  {"text": "a"},\n  {"text": "b"}\n]\n')) == {"text": ["a", "b"]}
    assert load(write("b.json", '{"text": "é \\u00e9 \\ud83d\\ude00"}')) == {"text": ["é é 😀"]}


TEXT = "a\r\nb \n\r\n \nc\f\u2028d\n\f\nlast"


@pytest.mark.parametrize(
    ("documents", "rows"),
    [
        ("file", [TEXT]),
        ("blank-line", ["a\r\nb ", "c\f\u2028d\n\f\nlast"]),
        ("row", ["a", "b ", "c\f\u2028d", "\f", "last"]),
    ],
)
def test_text_loses_no_character(documents: str, rows: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert load(write("a.txt", TEXT), documents=documents) == {"text": rows}
    assert capsys.readouterr().err == ("a.txt: 2 blank lines skipped\n" if documents == "row" else "")


def test_parquet_and_arrow_keep_types_and_class_names() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    made.to_parquet("a.parquet")
    for kind, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with new(f"{kind}.arrow", made.data.table.schema) as writer:
            writer.write_table(made.data.table)
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        dataset = load_source([name])
        assert dataset.features == features
        assert dataset[:] == {"text": ["a", "b"], "label": [1, 0]}


def test_other_string_types_of_pandas_become_plain_text() -> None:
    table = pa.table({"text": pa.array(["a"], pa.large_string()), "label": pa.array(["x"]).dictionary_encode()})
    pyarrow.parquet.write_table(table, "a.parquet")
    assert load("a.parquet", write("b.csv", "label,text\ny,b\n")) == {"text": ["a", "b"], "label": ["x", "y"]}


@pytest.mark.parametrize(("suffix", "module"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_compressed_files(suffix: str, module: Any) -> None:
    whole = module.compress(TWO_ROWS.encode())
    assert load(write(f"a.csv.{suffix}", whole)) == {"text": ["a", "b"], "label": ["0", "1"]}
    fix = "(fix: make or fetch it again)"
    message = problem(write(f"b.csv.{suffix}", whole[:-9]))
    assert message.startswith(f"b.csv.{suffix}: a damaged .{suffix} file, after line ")
    assert message.endswith(fix)
    assert (
        problem(write(f"c.csv.{suffix}", b"hello")) == f"c.csv.{suffix}: a damaged .{suffix} file, after line 0 {fix}"
    )


def test_zst_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    expected = 'a.txt.zst: reading .zst needs the package zstandard (fix: pip install "hfkit[zst]")'
    assert problem(write("a.txt.zst", b"x")) == expected


def test_a_zip_of_one_file() -> None:
    def archive(name: str, files: dict[str, str]) -> str:
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as file:
            for member, content in files.items():
                file.writestr(member, content)
        return name

    rows = {"text": ["a", "b"], "label": ["0", "1"]}
    assert load(archive("a.csv.zip", {"a.csv": TWO_ROWS})) == rows
    assert load(archive("download.zip", {"folder/": "", "folder/b.csv": TWO_ROWS, "__MACOSX/._b.csv": "x"})) == rows
    assert load(archive("c.zip", {"README": "one\n\ntwo\n"}))["text"] == ["one", "two"]
    fix = "(fix: unpack it; a .zip of one file is read as it is)"
    for name, files in (("two.csv.zip", {"a.csv": TWO_ROWS, "b.csv": TWO_ROWS}), ("none.zip", {})):
        assert problem(archive(name, files)) == f"{name}: unknown kind of file '.zip' {fix}"
    whole = Path(archive("d.zip", {"d.csv": TWO_ROWS})).read_bytes()
    assert problem(write("cut.zip", whole[:-5])) == f"cut.zip: unknown kind of file '.zip' {fix}"
    flipped = bytearray(whole)
    flipped[45] ^= 255
    message = problem(write("flipped.zip", bytes(flipped)))
    assert message.startswith("flipped.zip: a damaged .zip file, after line ")
    (version := bytearray(whole))[whole.index(b"PK\1\2") + 6] = 248  # needs a program of this version
    assert problem(write("new.zip", bytes(version))) == f"new.zip: unknown kind of file '.zip' {fix}"
    inner = archive("inner.zip", {"a.bin": "\0\1\2"})
    assert problem(inner) == f"inner.zip: unknown kind of file '.zip' {fix}"
    locked = bytearray(whole)
    locked[6] |= 1  # the flag of encryption, here and in the directory
    locked[whole.index(b"PK\1\2") + 8] |= 1
    expected = (
        "locked.zip: encrypted, or compressed in a way that Python can't read (fix: unpack it, and give the file in it)"
    )
    assert problem(write("locked.zip", bytes(locked))) == expected


# --- spreadsheets -----------------------------------------------------------------------------------------------------

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
DOCUMENT = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
DATE = 'r="D4" s="1"'


def sheet(name: str, cells: Sequence[str], sheets: Sequence[str] = ("Data",)) -> str:
    """A workbook whose sheets all hold `cells`, one XML text for each row."""
    rows = "".join(f'<row r="{number}">{row}</row>' for number, row in enumerate(cells, 1))
    listed = "".join(f'<sheet name="{one}" sheetId="{n}" r:id="r{n}"/>' for n, one in enumerate(sheets, 1))
    related = "".join(
        f'<Relationship Id="r{n}" Type="{DOCUMENT}/worksheet" Target="worksheets/sheet{n}.xml"/>'
        for n, _ in enumerate(sheets, 1)
    )
    styles = '<cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs>'
    with zipfile.ZipFile(name, "w") as file:
        file.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{MAIN}" xmlns:r="{DOCUMENT}"><sheets>{listed}</sheets></workbook>'
        )
        file.writestr("xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{PACKAGE}">{related}</Relationships>')
        root = f'<Relationship Id="r0" Type="{DOCUMENT}/officeDocument" Target="xl/workbook.xml"/>'
        file.writestr("_rels/.rels", f'<Relationships xmlns="{PACKAGE}">{root}</Relationships>')
        file.writestr("xl/styles.xml", f'<styleSheet xmlns="{MAIN}">{styles}</styleSheet>')
        for number, _ in enumerate(sheets, 1):
            content = f'<worksheet xmlns="{MAIN}"><sheetData>{rows}</sheetData></worksheet>'
            file.writestr(f"xl/worksheets/sheet{number}.xml", content)
    return name


def text(place: str, value: str) -> str:
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{value}</t></is></c>'


ROWS = [
    "",
    text("B2", "text") + text("C2", "label") + text("D2", "when"),
    text("B3", "NA") + '<c r="C3"><v>1</v></c><c r="D3"><v>1.5</v></c>',
    text("B4", " é&#10;b ") + '<c r="C4" t="b"><v>1</v></c>' + f"<c {DATE}><v>43832</v></c>",
    "",
    text("B6", "001") + '<c r="C6"><v>12345678901</v></c>',
]


def test_the_first_sheet_of_a_workbook_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "text": ["NA", " é\nb ", "001"],
        "label": ["1", "true", "12345678901"],
        "when": ["1.5", "2020-01-02", ""],
    }
    assert load(sheet("a.xlsx", ROWS)) == found
    assert capsys.readouterr().err == ""
    assert load(sheet("b.xlsx", ROWS, ("One", "Two"))) == found
    said = "b.xlsx: sheet 'One' of 2 (save another one as CSV to read it)\n"
    assert capsys.readouterr().err == said


def test_what_is_wrong_with_a_sheet_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    header = "(fix: give a file with a header line and at least one row)"
    assert problem(sheet("none.xlsx", [])) == f"none.xlsx: no rows {header}"
    assert problem(sheet("one.xlsx", ROWS[:2])) == f"one.xlsx: no rows, only a header line {ONE_ROW}"
    twice = [text("A1", "text") + text("B1", "text"), text("A2", "a") + text("B2", "b")]
    expected = "twice.xlsx: row 1: column 'text' appears twice (fix: rename one of them, or --no-header if the first line is a row)"
    assert problem(sheet("twice.xlsx", twice)) == expected
    damaged = problem(write("bad.xlsx", b"PK\3\4"))
    assert damaged.startswith("bad.xlsx: not a whole .xlsx file: ")
    assert damaged.endswith(" (fix: open it in a spreadsheet program, and save it as CSV)")
    far = [ROWS[1], ROWS[2], '<c r="XFD3"><v>1</v></c>', *[""] * 5000, '<c r="A5004"><v>1</v></c>']
    assert problem(sheet("far.xlsx", far)).startswith("far.xlsx: its cells reach row ")
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    expected = 'a.xlsx: reading .xlsx needs the package python-calamine (fix: pip install "hfkit[sheets]", or save the sheet as CSV)'
    assert problem(sheet("a.xlsx", ROWS)) == expected


# --- what can be wrong in a file --------------------------------------------------------------------------------------

NOT_JSON = "(fix: write one whole JSON object on each line, or one list of objects)"
ONE_ROW = "(fix: give a file with at least one row)"
WRONG = [
    # F21, F22
    ("many.csv", "text,label\na,1\nb,2,3,4\n", "line 3: expected 2 fields, saw 4 (fix: put double quotes around a field with a comma)"),
    ("many.tsv", "text\tlabel\na\t1\tx\n", "line 2: expected 2 fields, saw 3 (fix: remove a tab)"),
    ("few.csv", 'text,label\n"a\nb",1\nc\n', "line 4: expected 2 fields, saw 1, 'label' is missing (fix: add it, or delete the row)"),
    ("few.tsv", "text\tlabel\na\n", "line 2: expected 2 fields, saw 1, 'label' is missing (fix: add it, or delete the row)"),
    # F24
    ("0.csv", "", "no rows (fix: give a file with a header line and at least one row)"),
    ("header.csv", "text,label\n", f"no rows, only a header line {ONE_ROW}"),
    ("0.jsonl", "", f"no rows {ONE_ROW}"),
    ("0.json", "[]", f"no rows {ONE_ROW}"),
    ("0.txt", "", "no rows, the file is empty (fix: give a file with text)"),
    ("blank.txt", "\n \n\t\r\n", "no rows, only blank lines (fix: give a file with text)"),
    # F27
    ("latin.csv", b"text,label\na,1\nab\xe9,0\n", "line 3, byte 3: 0xe9 is not UTF-8 (fix: --encoding latin-1 if it is that, or iconv -f latin1 -t utf-8 latin.csv > latin.utf8.csv)"),
    ("latin.txt", b"a\n\xe9", "line 2, byte 1: 0xe9 is not UTF-8 (fix: --encoding latin-1 if it is that, or iconv -f latin1 -t utf-8 latin.txt > latin.utf8.txt)"),
    ("nul.txt", b"ok\na\0b\n", "line 2, byte 2: a NUL byte, so probably not a text file (fix: tr -d '\\0' < nul.txt > NEW)"),
    ("utf16.txt", "hello".encode("utf-16"), "UTF-16, not UTF-8 (fix: iconv -f utf-16 -t utf-8 utf16.txt > utf16.utf8.txt)"),
    ("half.jsonl", '{"text": "a"}\n{"text": "é\\uD800"}\n', "line 2, byte 13: \\ud800 is half a character, not UTF-8 (fix: delete it, or write both halves)"),
    # F28
    ("cut.jsonl", '{"text": "a"}\n\n{"text":\n', f"line 3, column 9: not JSON: Expecting value {NOT_JSON}"),
    ("cut.json", '[\n {"text": "a"},\n {"text": b"}\n]\n', f"line 3, column 11: not JSON: Expecting value {NOT_JSON}"),
    ("mixed.jsonl", '{"label": 1}\n{"label": null}\n{"label": "one"}\n', "line 3: column 'label' holds text, but number in line 1 (fix: write one kind of value in a column)"),
    ("mixed.json", '[{"label": 1}, {"label": true}]', "row 2: column 'label' holds true/false, but number in row 1 (fix: write one kind of value in a column)"),
    ("list.jsonl", '{"t": [1]}\n{"t": ["x"]}\n', "line 1 or later: column 't': Could not convert 'x' with type str: tried to convert to int64"),
    ("text.jsonl", '"a"\n', 'line 1: text instead of an object (fix: write {"text": "..."} on each line)'),
    # layouts
    ("semicolon.csv", "text;label\na;1\n", "line 1: one column 'text;label', no comma but ';' between names (fix: --separator ';')"),
    ("tab.csv", "text\tlabel\na\t1\n", "line 1: one column 'text\tlabel', no comma but '\t' between names (fix: --separator tab)"),
    ("comma.tsv", "text,label\na,1\n", "line 1: one column 'text,label', no tab but ',' between names (fix: --separator ,)"),
    ("twice.csv", "text,text\na,1\n", "line 1: column 'text' appears twice (fix: rename one of them, or --no-header if the first line is a row)"),
    ("open.csv", 'text,label\na,1\n"open,2\nc,3\n', "line 3: a double quote opens here and never closes (fix: write a quote inside quotes twice, or --no-quoting if a quote is a character like any other)"),
    ("after.csv", 'text,label\n"a" said,1\n', "line 2: text after a closing double quote (fix: write a quote inside quotes twice)"),
    ("return.csv", "text,label\ra,1\r", "line 1: a carriage return inside a field (fix: end lines with a line feed)"),
    # binary
    ("a.parquet", b"PAR1 is not enough", "a damaged .parquet file: Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file. (fix: make or fetch it again)"),
    ("a.arrow", b"xxx", "a damaged .arrow file: File is too small: 3 (fix: make or fetch it again)"),
    ("a.parquet.gz", b"x", ".parquet files can't be read compressed (fix: decompress it first)"),
    ("a.xlsx.gz", b"x", ".xlsx files can't be read compressed (fix: decompress it first)"),
    ("a.numbers", b"PK\x03\x04", "unknown kind of file '.numbers' (fix: save the sheet as CSV, and give that file)"),
    ("a.abc", b"PK\x03\x04", "unknown kind of file '.abc' (fix: rename it to one of: .csv .tsv .json .jsonl .txt .conll .bio .iob .iob2 .xlsx .xls .ods .parquet .arrow)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[name for name, *_ in WRONG])
def test_one_line_names_file_line_and_fix(name: str, content: str | bytes, message: str, cache: Path) -> None:
    assert problem(write(name, content)) == f"{name}: {message}"
    assert all(path.suffix == ".lock" for path in cache.glob("hfkit/*"))


def test_error_after_many_rows_names_its_line() -> None:
    write("a.csv", "text,label\n" + "a,1\n" * 5000 + "b\n")
    assert problem("a.csv").startswith("a.csv: line 5002: expected 2 fields, saw 1")


def test_latin1_in_a_compressed_file() -> None:
    write("a b.txt.gz", gzip.compress(b"\xe9\n"))
    fix = "--encoding latin-1 if it is that, or decompress it, then iconv -f latin1 -t utf-8 'a b.txt.gz' > 'a b.txt.utf8.gz'"
    assert problem("a b.txt.gz") == f"a b.txt.gz: line 1, byte 1: 0xe9 is not UTF-8 (fix: {fix})"


# --- which files ------------------------------------------------------------------------------------------------------


def test_lists_patterns_and_folders_keep_their_order() -> None:
    for name in ("f/b.txt", "f/a.txt", "f/README.md", "f/sub/c.txt"):
        write(name, name)
    assert load("f/b.txt", "f/a.txt")["text"] == ["f/b.txt", "f/a.txt"]
    assert load("f/*.txt")["text"] == ["f/a.txt", "f/b.txt"]
    assert load("f/**/*.txt")["text"] == ["f/a.txt", "f/b.txt", "f/sub/c.txt"]
    assert load("./f")["text"] == ["f/a.txt", "f/b.txt"]


def test_a_folder_that_shadows_a_hub_name_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    write("imdb/a.txt", "x")
    assert load("imdb")["text"] == ["x"]
    assert capsys.readouterr().err == "using local directory ./imdb, not the Hub's imdb (fix: hf:imdb is the Hub's)\n"


def test_a_folder_of_splits_is_refused() -> None:
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        write(f"sst/{name}", "text\na\n")
    fix = "--data sst/train.tsv --validation sst/dev.tsv --test sst/test.tsv"
    assert problem("sst") == f"sst: a folder with several splits (fix: {fix})"


def test_missing_files() -> None:
    write("d/train.csv", TWO_ROWS)
    os.mkdir("empty")
    assert problem("d/trian.csv") == "d/trian.csv: no such file (fix: did you mean 'd/train.csv'?)"
    assert problem("zzz.csv") == "zzz.csv: no such file"
    assert problem("d/train") == "d/train: no such file (fix: did you mean 'd/train.csv'?)"
    assert problem("/no/where") == "/no/where: no such file"
    assert problem("nothing.xlsx") == "nothing.xlsx: no such file"
    assert problem("x" * 5000 + ".txt").endswith(".txt: no such file")
    expected = "*.nope: no file matches this pattern (fix: put the pattern in quotes, check the folder)"
    assert problem("*.nope") == expected
    kinds = ".csv .tsv .json .jsonl .txt .conll .bio .iob .iob2 .xlsx .xls .ods .parquet .arrow"
    assert problem("./empty") == f"./empty: no data files in this folder (fix: known kinds: {kinds})"


def test_different_columns_are_named() -> None:
    write("a.csv", TWO_ROWS)
    write("b.csv", "text,lable\nc,1\n")
    write("c.jsonl", '{"text": "d", "label": 1}\n')
    expected = "b.csv has the columns text, lable, but a.csv has text, label (fix: give both the same)"
    assert problem("a.csv", "b.csv") == expected
    assert problem("a.csv", "c.jsonl") == "c.jsonl: column 'label' holds int64, but string in a.csv"


def test_a_column_without_values_goes_with_any_other() -> None:
    write("a.jsonl", '{"text": "a", "label": null}\n')
    write("b.jsonl", '{"text": "b", "label": "x"}\n')
    assert load("a.jsonl", "b.jsonl")["label"] == [None, "x"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.csv", "file:///etc/passwd", "s3://b/x", "hf://datasets/x", "zip::x"]
)
def test_urls_are_refused_without_network(url: str) -> None:
    for call in (load_source, fingerprint):
        with pytest.raises(UsageError) as caught:
            call([url])
        assert str(caught.value) == f"{url}: data can't be read from a URL (fix: download it, and give that file)"


def test_is_local_means_without_the_hub() -> None:
    write("a.csv", TWO_ROWS)
    assert is_local("a.csv")
    assert is_local("builtin:python-docs")
    assert not is_local("someone/reviews")
    assert not is_local("hf:a.csv")
    with pytest.raises(UsageError):
        is_local("http://127.0.0.1:9/x.csv")


NO_NETWORK = """
import sys
def audit(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise SystemExit(f"network: {event} {args}")
sys.addaudithook(audit)
from hfkit.data.loading import load_source, fingerprint
from hfkit.errors import HfkitError
for source in sys.argv[1:]:
    try:
        print(source, len(load_source([source])), len(fingerprint([source])))
    except HfkitError as error:
        print(source, error.exit_code)
"""


def test_local_sources_never_touch_the_network(tmp_path: Path) -> None:
    write("a.csv", TWO_ROWS)
    write("a.txt", "x")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk("saved")
    pyarrow.parquet.write_table(pa.table({"text": ["a"]}), "a.parquet")
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    python_path = os.pathsep.join(sys.path)
    sources = ["a.csv", "a.txt", "saved", "a.parquet", "missing.csv", "http://127.0.0.1:9/x"]
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *sources],
        capture_output=True,
        text=True,
        env={**online, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": python_path},
    )
    assert done.returncode == 0, done.stderr
    expected = "a.csv 2 32\na.txt 1 32\nsaved 1 32\na.parquet 1 32\nmissing.csv 3\nhttp://127.0.0.1:9/x 2\n"
    assert done.stdout == expected


# --- saved, built-in and Hub data sets --------------------------------------------------------------------------------


def test_saved_data_sets() -> None:
    one = datasets.Dataset.from_dict({"text": ["a"], "label": [1]})
    one.save_to_disk("one")
    datasets.DatasetDict(train=one, dev=one.map(lambda row: {"text": "v"})).save_to_disk("both")
    assert load("one") == {"text": ["a"], "label": [1]}
    splits = load_data(data_of("both"))
    assert {name: split["text"][:] for name, split in splits.items()} == {"train": ["a"], "validation": ["v"]}
    with pytest.raises(DataError, match="both has no test split, found: train, dev"):
        load_data(data_of("both", test=["both"]))
    before = fingerprint(["one"])
    load_source(["one"]).map(lambda row: {"n": 1})
    assert fingerprint(["one"]) == before
    data = next(Path("one").glob("data-*.arrow"))
    data.write_bytes(data.read_bytes()[:100])
    message = problem("one")
    assert message.startswith("one: a damaged saved data set: ")
    assert message.endswith(" (fix: save it again with save_to_disk)")


def test_builtin_data_comes_with_its_validation_split() -> None:
    splits = load_data(data_of("builtin:python-docstrings"))
    assert list(splits) == ["train", "validation"]
    assert splits["train"].column_names == ["text", "label"]
    assert len(splits["train"]) > len(splits["validation"]) > 100
    named = load_data(data_of("builtin:python-docstrings", test=["builtin:python-docstrings"]))
    assert list(named) == ["train", "test", "validation"]
    assert named["test"]["text"][0] not in splits["train"]["text"][:]
    assert fingerprint(["builtin:python-docstrings"]) == fingerprint(["builtin:python-docstrings"])
    with pytest.raises(UsageError, match="did you mean 'builtin:python-docs'"):
        load_source(["builtin:python-doc"])


# The time-outs are real; only the pauses between two tries are left out.
ON_HUB = """
import sys, time
time.sleep = lambda seconds: None
from hfkit.data.loading import load_data, fingerprint
from hfkit.errors import HfkitError
from hfkit.settings import Data
for source in sys.argv[1:]:
    try:
        splits = load_data(Data(train=[source]))
        print({name: split["text"][:] for name, split in splits.items()}, len(fingerprint([source])))
    except HfkitError as error:
        print(error.exit_code, error)
"""
CONFIGS = """---
configs:
- config_name: small
  data_files: train.csv
- config_name: large
  data_files: validation.csv
---
"""


def on_hub(hub: Any, home: Path, *sources: str, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ON_HUB, *sources], capture_output=True, text=True, env=hub.env(home, **variables)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_hub_data_sets(hub: Any, tmp_path: Path) -> None:
    for folder in ("served", "several"):
        write(f"{folder}/train.csv", "text,label\na,0\n")
        write(f"{folder}/validation.csv", "text,label\nv,0\n")
    write("several/README.md", CONFIGS)
    hub.add("someone/reviews", Path("served"), kind="datasets")
    hub.add("someone/closed", Path("served"), kind="datasets", access="private")
    hub.add("someone/several", Path("several"), kind="datasets")
    several = ["someone/several", "someone/several:large", "someone/several:huge"]
    assert on_hub(hub, tmp_path, "someone/reviews", "someone/closed", *several) == [
        "{'train': ['a'], 'validation': ['v']} 32",
        "3 someone/closed: no such file, and the Hub has no data set of this name that you can read "
        "(fix: check the name; for a private or gated one: `hf auth login`)",
        "3 someone/several has several configurations, found: small, large (fix: give someone/several:small)",
        "{'train': ['v']} 32",
        "3 someone/several has no configuration 'huge', found: small, large (fix: give someone/several:small)",
    ]
    assert on_hub(hub, tmp_path, "hf:someone/reviews", "someone/else", HF_HUB_OFFLINE="1") == [
        "{'train': ['a'], 'validation': ['v']} 32",
        "3 someone/else: no such file, and HF_HUB_OFFLINE is set, and someone/else is not in the cache "
        "(fix: once, with a connection: HF_HUB_OFFLINE=0 hfkit ..., or give a file)",
    ]


STREAMED = """
import sys
from hfkit.data.loading import stream_documents
from hfkit.errors import HfkitError
from hfkit.settings import Data
for source in sys.argv[1:]:
    try:
        print([row["text"] for row in stream_documents(Data(train=[source]))])
    except HfkitError as error:
        print(error.exit_code, error)
"""


def test_a_configuration_on_the_hub_can_be_streamed(hub: Any, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        write(f"several/{name}.csv", f"text,label\n{name},0\n")
    write("several/README.md", CONFIGS)
    hub.add("someone/several", Path("several"), kind="datasets")
    sources = ["someone/several:large", "hf:someone/several:huge"]
    script = [sys.executable, "-c", STREAMED, *sources]
    done = subprocess.run(script, capture_output=True, text=True, env=hub.env(tmp_path))
    assert done.stdout.splitlines() == [
        "['validation']",
        "3 someone/several has no configuration 'huge', found: small, large (fix: give someone/several:small)",
    ], done.stderr


def test_a_hub_that_cannot_be_reached(hub: Any, tmp_path: Path) -> None:
    (answer,) = on_hub(hub, tmp_path, "someone/far", HF_ENDPOINT="http://127.0.0.1:9")
    assert answer.startswith("3 someone/far: no such file, and someone/far can't be fetched from the Hub: ")
    assert answer.endswith("(fix: check the network and the proxy, or give a file)")


# --- the cache --------------------------------------------------------------------------------------------------------


def test_same_size_and_time_but_other_content_is_read_anew() -> None:
    write("a.csv", "text,label\nold,0\n")
    os.utime("a.csv", (1, 1))
    old, old_print = load_source(["a.csv"]), fingerprint(["a.csv"])
    write("a.csv", "text,label\nnew,0\n")
    os.utime("a.csv", (1, 1))
    new = load_source(["a.csv"])
    assert new["text"][:] == ["new"]
    assert old["text"][:] == ["old"]
    assert new._fingerprint != old._fingerprint
    assert fingerprint(["a.csv"]) != old_print


def test_content_is_the_key_not_the_name(cache: Path) -> None:
    write("a.txt", "x\n\ny")
    write("b.txt", "x\n\ny")
    assert load_source(["a.txt"])._fingerprint == load_source(["b.txt"])._fingerprint
    assert len(list(cache.rglob("data.arrow"))) == 1
    assert load_source(["a.txt"], "file")._fingerprint != load_source(["a.txt"])._fingerprint
    assert fingerprint(["a.txt"]) == fingerprint(["b.txt"]) != fingerprint(["a.txt", "b.txt"])
    write("c.txt", "x\n")
    write("d.txt", "\ny")
    assert fingerprint(["c.txt", "d.txt"]) != fingerprint(["d.txt", "c.txt"])
    assert fingerprint(["c.txt", "d.txt"]) != fingerprint(["a.txt"])


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "gone"])
def test_damaged_cache_is_built_again_with_a_warning(
    damage: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.csv", TWO_ROWS)
    load_source(["a.csv"]).map(lambda row: {"n": 1})
    (arrow,) = cache.rglob("data.arrow")
    whole = arrow.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    arrow.unlink() if damage == "gone" else arrow.write_bytes(
        {"cut": whole[:-100], "empty": b"", "flip": bytes(flipped)}[damage]
    )
    capsys.readouterr()
    assert load("a.csv") == {"text": ["a", "b"], "label": ["0", "1"]}
    assert capsys.readouterr().err == f"warning: {arrow}: this cache of a.csv is damaged and is built again\n"
    assert arrow.read_bytes() == whole
    assert [file.name for file in sorted(arrow.parent.iterdir())] == ["data.arrow", "data.xxh3"]
    assert load("a.csv")["text"] == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_cache_that_cannot_be_written() -> None:
    write("file", "")
    datasets.config.HF_DATASETS_CACHE = Path("file")
    write("a.csv", TWO_ROWS)
    with pytest.raises(StorageError) as caught:
        load_source(["a.csv"])
    assert caught.value.exit_code == 6
    assert "the data cache can't be used: Not a directory (fix: set HF_DATASETS_CACHE=FOLDER)" in str(caught.value)


FULL = """
import resource
from hfkit.data.loading import load_source
from hfkit.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    load_source(["a.txt"])
except StorageError as error:
    print(error.exit_code, error)
"""


def test_disk_that_takes_no_more_is_a_storage_error(cache: Path) -> None:
    write("a.txt", "x" * 100_000)
    env = {**os.environ, "HF_DATASETS_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, env=env)
    assert done.stderr == ""
    assert done.stdout.startswith(f"6 {cache}/hfkit/")
    assert done.stdout.endswith(": the data cache can't be used: File too large (fix: set HF_DATASETS_CACHE=FOLDER)\n")
    assert [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"] == []
    assert load("a.txt")["text"] == ["x" * 100_000]


def test_four_processes_at_once_agree(cache: Path) -> None:
    write("a.csv", "text,label\n" + "a,1\n" * 20_000)
    code = "from hfkit.data.loading import load_source; d = load_source(['a.csv']); print(len(d), d._fingerprint)"
    env = {**os.environ, "HF_DATASETS_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    outputs = [process.communicate() for process in running]
    assert len({out for out, _ in outputs}) == 1
    assert outputs[0][0].startswith("20000 ")
    assert {err for _, err in outputs} == {""}
    assert sorted(file.name for file in cache.rglob("data.*") if file.is_file()) == ["data.arrow", "data.xxh3"]


# --- splits -----------------------------------------------------------------------------------------------------------


def test_load_data_gives_the_named_splits_as_ordinary_data_sets() -> None:
    write("a.csv", TWO_ROWS)
    write("v.csv", "text,label\nv,0\n")
    splits = load_data(data_of("a.csv", "a.csv", validation=["v.csv"], test=["v.csv"]))
    assert type(splits) is datasets.DatasetDict
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "validation": 1, "test": 1}
    assert type(splits["train"]) is datasets.Dataset
    assert list(load_data(data_of("a.csv"))) == ["train"]
    with pytest.raises(UsageError, match=r"no data given \(fix: --data FILE\)"):
        load_data(data_of())


def test_hold_out_is_seeded_shuffled_and_complete() -> None:
    dataset = datasets.Dataset.from_dict({"text": [str(number) for number in range(100)]})
    train, validation = hold_out(dataset, 0.1, seed=1)
    again, other = hold_out(dataset, 0.1, seed=1)[1], hold_out(dataset, 0.1, seed=2)[1]
    assert (len(train), len(validation)) == (90, 10)
    assert sorted([*train["text"], *validation["text"]]) == sorted(dataset["text"])
    assert validation["text"][:] == again["text"][:] != other["text"][:]
    assert validation["text"][:] not in (dataset["text"][:10], dataset["text"][90:])


def test_hold_out_leaves_a_row_on_each_side() -> None:
    two = datasets.Dataset.from_dict({"text": ["a", "b"]})
    for share in (0.0001, 0.99):
        assert [len(part) for part in hold_out(two, share, seed=0)] == [1, 1]
    with pytest.raises(DataError, match="1 row can't be split into training and validation data"):
        hold_out(two.select([0]), 0.5, seed=0)


def test_hold_out_end_cuts_one_document_by_position(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.txt", "0123456789")
    train, validation = hold_out_end(load_source(["a.txt"], "file"), 0.2)
    assert (train["text"][:], validation["text"][:]) == (["01234567"], ["89"])
    assert capsys.readouterr().err == "validation: the last 2 of 10 characters of the one document\n"
    with pytest.raises(DataError, match="one document of 1 characters can't be split"):
        hold_out_end(datasets.Dataset.from_dict({"text": ["a"]}), 0.2)


# --- columns ----------------------------------------------------------------------------------------------------------

GUESSES = [
    ("text,label", ("text", None, "label"), "text column: text, label column: label"),
    ("review,stars", ("review", None, "stars"), "text column: review, label column: stars"),
    ("label,review", ("review", None, "label"), "text column: review, label column: label"),
    ("text,category", ("text", None, "category"), "text column: text, label column: category"),
    ("Sentence,Class", ("Sentence", None, "Class"), "text column: Sentence, label column: Class"),
    ("text,verdict,id", ("text", None, "verdict"), "text column: text, label column: verdict"),
    ("id,words,label", ("words", None, "label"), "text column: words, label column: label"),
    ("index,question,sentence,label", ("question", "sentence", "label"), "text columns: question + sentence, label column: label"),
    ("sentence1,sentence2,label,idx", ("sentence1", "sentence2", "label"), "text columns: sentence1 + sentence2, label column: label"),
    ("text,label,intent", ("text", None, "label"), "text column: text, label column: label"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "columns", "said"), GUESSES, ids=[header for header, *_ in GUESSES])
def test_columns_are_guessed_aloud(
    header: str, columns: tuple[str, str | None, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.csv", f"{header}\n" + ",".join("x" for _ in header.split(",")) + "\n")
    made = data_of("a.csv")
    assert classification_columns(load_data(made), made) == columns
    pair = "--text-pair-column, " if columns[1] else ""
    assert capsys.readouterr().err == f"{said} (change with --text-column, {pair}--label-column)\n"


def test_a_guess_is_said_once_where_splits_are_asked_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", TWO_ROWS)
    made = data_of("a.csv", validation=["a.csv"])
    for dataset in load_data(made).values():
        assert classification_columns(dataset, made) == ("text", None, "label")
    assert len(capsys.readouterr().err.splitlines()) == 1


UNCLEAR = [
    ("foo,bar", {}, "a.csv: no column is clearly the text, found: foo, bar (fix: --text-column foo, or --no-header if these are values of a first row)"),
    ("text,foo,bar", {}, "a.csv: no column is clearly the label, found: text, foo, bar (fix: --label-column foo)"),
    ("text,topic,intent", {}, "a.csv: no column is clearly the label, found: text, topic, intent (fix: --label-column topic)"),
    ("text", {}, "a.csv: no column is clearly the label, found: text (fix: give data with a column for the label)"),
    ("text,stars", {"label": "label"}, "a.csv has no column 'label', found: text, stars (fix: --label-column stars)"),
    ("text,label", {"text": "txt"}, "a.csv has no column 'txt', found: text, label (fix: --text-column text)"),
    ("a,b,c", {"text_pair": "zz"}, "a.csv has no column 'zz', found: a, b, c (fix: --text-pair-column NAME)"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "named", "message"), UNCLEAR)
def test_unclear_and_missing_columns_are_listed(header: str, named: dict[str, str], message: str) -> None:
    write("a.csv", f"{header}\n" + ",".join("x" for _ in header.split(",")) + "\n")
    made = data_of("a.csv", **named)
    with pytest.raises(DataError) as caught:
        classification_columns(load_data(made), made)
    assert str(caught.value) == message


def test_named_columns_are_taken_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", "foo,bar,baz\nx,y,z\n")
    made = data_of("a.csv", text="foo", text_pair="bar", label="baz")
    assert classification_columns(load_data(made), made) == ("foo", "bar", "baz")
    assert capsys.readouterr().err == ""


def test_a_missing_column_of_the_validation_file_names_that_file() -> None:
    write("a.csv", TWO_ROWS)
    write("v.csv", "text,lable\nv,0\n")
    made = data_of("a.csv", validation=["v.csv"], label="label")
    with pytest.raises(DataError) as caught:
        classification_columns(load_data(made), made)
    assert str(caught.value) == "v.csv has no column 'label', found: text, lable (fix: --label-column lable)"


def test_text_column(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.txt", "x")
    write("b.csv", "content,year\nx,1\n")
    write("c.jsonl", '{"n": 1, "words": "x"}\n')
    assert text_column(load_data(data_of("a.txt")), data_of("a.txt")) == "text"
    assert capsys.readouterr().err == ""
    assert text_column(load_data(data_of("b.csv")), data_of("b.csv")) == "content"
    assert text_column(load_source(["c.jsonl"]), data_of("c.jsonl")) == "words"
    said = "text column: content (change with --text-column)\ntext column: words (change with --text-column)\n"
    assert capsys.readouterr().err == said
    made = data_of("c.jsonl", text="n")
    with pytest.raises(DataError) as caught:
        text_column(load_data(made), made)
    assert str(caught.value) == "c.jsonl: column 'n' holds int64, not text"


EMPTY = "is empty (fix: fill it in, or delete the row)"


def test_rows_without_a_value_are_found_with_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", 'text,label\n"x\ny",1\nz,\n')  # F22
    write("b.jsonl", '{"text": "a", "label": 1}\n\n{"text": null, "label": 0}\n')
    write("c.csv", TWO_ROWS)
    write("d.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n')
    for sources, message in (
        (["a.csv"], f"a.csv: line 4: column 'label' {EMPTY}"),
        (["c.csv", "a.csv"], f"a.csv: line 4: column 'label' {EMPTY}"),
        (["b.jsonl"], f"b.jsonl: line 3: column 'text' {EMPTY}"),
        (["d.jsonl"], f"d.jsonl: line 2: column 'label' {EMPTY}"),
    ):
        made = data_of(*sources)
        with pytest.raises(DataError) as caught:
            classification_columns(load_data(made), made)
        assert str(caught.value) == message
    datasets.Dataset.from_dict({"text": ["a", None]}).save_to_disk("saved")
    with pytest.raises(DataError) as caught:
        text_column(load_data(data_of("saved")), data_of("saved"))
    assert str(caught.value) == f"saved: train row 2: column 'text' {EMPTY}"


def test_empty_texts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", "text,label\na,1\n,0\n  ,1\n")
    made = data_of("a.csv", text="text", label="label")
    assert classification_columns(load_data(made), made) == ("text", None, "label")
    assert capsys.readouterr().err == "warning: a.csv: 2 of 3 rows have an empty text (fix: delete them)\n"


# --- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here")
class TestRealFiles:
    @pytest.mark.parametrize(
        ("name", "rows", "columns"),
        [
            ("sst2/train.tsv", 60_614, ("sentence", None, "label")),
            ("sst2/test.tsv", 872, ("sentence", None, "label")),
            ("banking77/train.csv", 10_003, ("text", None, "category")),
            ("banking77/test.csv", 3_080, ("text", None, "category")),
            ("waimai_10k/waimai_10k.csv", 11_987, ("review", None, "label")),
            ("rte/train.tsv", 2_490, ("sentence1", "sentence2", "label")),
        ],
    )
    def test_tables(self, name: str, rows: int, columns: tuple[str, str | None, str]) -> None:
        made = data_of(str(REAL / name))
        splits = load_data(made)
        assert len(splits["train"]) == rows
        assert classification_columns(splits, made) == columns

    def test_a_text_of_banking77_holds_a_line_break(self) -> None:
        texts = load_source([str(REAL / "banking77/train.csv")])["text"][:]
        assert sum("\n" in text for text in texts) >= 1

    def test_tinyshakespeare_is_one_document(self) -> None:
        source = str(REAL / "tinyshakespeare/input.txt")
        (text,) = load_source([source], "file")["text"][:]
        assert len(text) == 1_115_394
        assert text.encode() == Path(source).read_bytes()

    def test_wikitext2_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        source = str(REAL / "wikitext2/valid.txt")
        lines = load_source([source])["text"][:]
        blank = int(capsys.readouterr().err.split(": ")[1].split()[0].replace(",", ""))
        assert len(lines) + blank == 3_760

    def test_folders_of_splits_are_refused(self) -> None:
        assert "a folder with several splits" in problem(str(REAL / "sst2"))

    def test_text_with_another_suffix_is_read_as_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        file = REAL / "sst5/stsa.fine.train"
        assert load_source([str(file)])["text"][:] == file.read_text().splitlines()
        assert f"{file}: read as text, because '.train' is no known kind of file" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["scitldr_a/train.jsonl", "self_instruct/seed_tasks.jsonl"])
    def test_jsonl(self, name: str) -> None:
        lines = [json.loads(line) for line in (REAL / name).read_text().splitlines() if line.strip()]
        dataset = load_source([str(REAL / name)])
        assert len(dataset) == len(lines)
        assert all(dataset[0][key] == value for key, value in lines[0].items())

    @pytest.mark.parametrize(("name", "rows"), [("alpaca_en_demo.json", 999), ("identity.json", 91)])
    def test_json_lists(self, name: str, rows: int) -> None:
        assert len(load_source([str(REAL / "llamafactory" / name)])) == rows
