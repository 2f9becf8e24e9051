"""The same documents give the same token stream, whatever holds them: kinds of files, compression, folders, streams."""

# ruff: noqa: E501 - a table of whole messages

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from hfkit.cli.main import main
from hfkit.data.loading import load_parts, stream_documents
from hfkit.data.splits import mix
from hfkit.errors import DataError, UsageError
from hfkit.recipe.resolve import resolve
from hfkit.settings import Columns, Data, Recipe
from hfkit.tasks import TASKS
from hfkit.tasks.language_modeling import load_documents

# What a line of any file can hold, and beside it what only some can.
LINES = [
    "plain",
    "trailing blanks  ",
    " \tleading",
    "é 你好 😀 e\u0301",
    'a "quote", a comma; NA',
    "\f",
    "\u2028",
    "NA",
    "7",
]
LINES += ["same", "same", "\u00a0", "a mark\ufeff inside"]
PARAGRAPHS = [*LINES, "two\nlines", "Windows\r\nline", "a\rlone return", " blanks \n around "]
TEXTS = [*PARAGRAPHS, "an empty line\n\nbetween", "ends with a line feed\n", "\n", "", "   "]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def documents(*sources: str, streaming: bool = False, **settings: str) -> list[str]:
    """What training sees of `sources`."""
    data = Data(train=list(sources), validation_split=0, streaming=streaming, **settings)
    return [row["text"] for row in load_documents(Recipe(data=data))["train"]]


def write(name: str, content: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def jsonl(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def table(texts: Sequence[str], name: str, **dialect: object) -> str:
    """With a second column, since a line with nothing on it is no row."""
    with open(name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **dialect).writerows([["text", "n"], *([text, number] for number, text in enumerate(texts))])
    return name


def arrow(texts: Sequence[str], name: str, new: Callable[..., pa.RecordBatchStreamWriter]) -> str:
    rows = pa.table({"text": list(texts)})
    with new(name, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=5)
    return name


def saved(texts: Sequence[str]) -> str:
    datasets.Dataset.from_dict({"text": list(texts)}).save_to_disk("saved")
    return "saved"


def parquet(texts: Sequence[str]) -> str:
    datasets.Dataset.from_dict({"text": list(texts)}).to_parquet("a.parquet")
    return "a.parquet"


WAYS: dict[str, Callable[[Sequence[str]], str]] = {
    "jsonl": lambda texts: write("a.jsonl", jsonl(texts)),
    "jsonl, Windows": lambda texts: write("a.jsonl", jsonl(texts).replace(b"\n", b"\r\n")),
    "jsonl, UTF-8 as it is": lambda texts: write(
        "a.jsonl", "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    ),
    "json": lambda texts: write("a.json", json.dumps([{"text": text} for text in texts], indent=1)),
    "csv": lambda texts: table(texts, "a.csv", lineterminator="\n", quoting=csv.QUOTE_ALL),
    "csv, Windows": lambda texts: table(texts, "a.csv", lineterminator="\r\n", quoting=csv.QUOTE_ALL),
    "parquet": parquet,
    "arrow stream": lambda texts: arrow(texts, "a.arrow", pa.ipc.new_stream),
    "arrow file": lambda texts: arrow(texts, "a.arrow", pa.ipc.new_file),
    "saved": saved,
    "jsonl.gz": lambda texts: write("a.jsonl.gz", gzip.compress(jsonl(texts))),
    "jsonl.bz2": lambda texts: write("a.jsonl.bz2", bz2.compress(jsonl(texts))),
    "jsonl.xz": lambda texts: write("a.jsonl.xz", lzma.compress(jsonl(texts))),
    "json.gz": lambda texts: write("a.json.gz", gzip.compress(json.dumps([{"text": text} for text in texts]).encode())),
}

both = pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])


@both
@pytest.mark.parametrize("way", WAYS)
def test_a_text_is_the_same_in_every_table(way: str, streaming: bool) -> None:
    assert documents(WAYS[way](TEXTS), streaming=streaming) == TEXTS


@both
def test_a_tsv_holds_texts_of_one_line(streaming: bool) -> None:
    texts = [text for text in [*LINES, ""] if "\t" not in text]
    plain = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
    for end in ("\n", "\r\n"):
        assert documents(table(texts, "a.tsv", lineterminator=end, **plain), streaming=streaming) == texts


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes,
    ".txt.gz": gzip.compress,
    ".txt.bz2": bz2.compress,
    ".txt.xz": lzma.compress,
}


@both
@pytest.mark.parametrize("suffix", PACKED)
def test_a_text_file_holds_lines_paragraphs_or_one_document(suffix: str, streaming: bool) -> None:
    def read(content: str, unit: str) -> list[str]:
        return documents(write(f"a{suffix}", PACKED[suffix](content.encode())), streaming=streaming, documents=unit)

    assert read("\n".join(LINES), "row") == LINES
    assert read("\n".join(LINES) + "\n", "row") == LINES
    assert read("\r\n".join(LINES) + "\r\n", "row") == LINES
    assert read("\ufeff" + "\n\n \n".join(LINES), "row") == LINES
    assert read("\n\n".join(PARAGRAPHS) + "\n", "blank-line") == PARAGRAPHS
    assert read("\n \t\n\r\n".join(PARAGRAPHS), "blank-line") == PARAGRAPHS
    for text in TEXTS:
        if text.strip(" \n"):
            assert read(text, "file") == [text]


def test_line_ends_of_a_text_file_are_kept_inside_a_document_and_dropped_at_its_end() -> None:
    write("a.txt", b"a \r\nb\n\r\nc\rd\r\n\n\n e\r\n")
    assert documents("a.txt", documents="row") == ["a ", "b", "c\rd", " e"]
    assert documents("a.txt", documents="blank-line") == ["a \r\nb", "c\rd", " e"]
    assert documents("a.txt", documents="file") == ["a \r\nb\n\r\nc\rd\r\n\n\n e\r\n"]


@both
def test_folder_pattern_and_several_sources_hold_the_same(streaming: bool) -> None:
    half = len(PARAGRAPHS) // 2
    for number, part in enumerate((PARAGRAPHS[:half], PARAGRAPHS[half:])):
        write(f"tables/{number}.jsonl", jsonl(part))
        write(f"texts/{number}.txt", "\n\n".join(part))
        write(f"mixed/{number}.txt", "\n\n".join(part)) if number else write("mixed/0.jsonl", jsonl(part))
    for number, text in enumerate(PARAGRAPHS):
        write(f"files/{number:02}.txt", text)

    def read(*sources: str) -> bool:
        return documents(*sources, streaming=streaming, documents="blank-line") == PARAGRAPHS

    for name, suffix in (("tables", "jsonl"), ("texts", "txt")):
        assert read(f"./{name}")
        assert read(f"{name}/*.{suffix}")
        assert read(f"{name}/0.{suffix}", f"{name}/1.{suffix}")
    assert read("./mixed")
    assert read("mixed/0.jsonl", "mixed/1.txt")
    for source in ("./files", "files/*"):
        assert documents(source, streaming=streaming, documents="file") == PARAGRAPHS


def test_zst() -> None:
    import zstandard

    assert documents(write("a.jsonl.zst", zstandard.compress(jsonl(TEXTS)))) == TEXTS


# --- what a document is -----------------------------------------------------------------------------------------------


def test_a_document_is_a_file_for_clm_and_a_paragraph_for_the_other_objectives() -> None:
    write("a.txt", "one\ntwo\n\nthree\n")
    write("a.jsonl", jsonl(["one\ntwo", "three"]))
    for task in (name for name, task in TASKS.items() if task.command == "pretrain"):
        recipe = resolve("pretrain", flags={"task": task, "data.train": ["a.txt"], "data.validation_split": "0"})
        expected = ["one\ntwo\n\nthree\n"] if task == "clm" else ["one\ntwo", "three"]
        assert documents("a.txt", documents=recipe.data.documents) == expected, task
        assert documents("a.jsonl", documents=recipe.data.documents) == ["one\ntwo", "three"], task


@pytest.mark.parametrize(
    ("line", "idle"),
    [
        ("--data a.csv --documents file", True),
        ("--data a.jsonl.gz --validation b.parquet --set data.documents=row", True),
        ("--data a.csv --validation b.txt --documents file", False),
        ("--data a.txt.gz --documents row", False),
        ("--data ./folder --documents row", False),
        ("--data a.csv", False),
    ],
)
def test_documents_of_tables_alone_is_said_to_have_no_effect(
    line: str, idle: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *line.split(), "--dry-run"]) == 0
    flag = "--documents" if "--documents" in line else "--set data.documents"
    said = f"warning: {flag} has no effect: no source is a .txt file, and a row of a table is one document"
    assert capsys.readouterr().err == (f"{said} (fix: leave it out)\n" if idle else "")


# --- what can't be read -----------------------------------------------------------------------------------------------


def test_one_line_of_ten_megabytes() -> None:
    line = "word " * 2_000_000
    write("a.txt", line)
    for unit in ("row", "blank-line", "file"):
        assert documents("a.txt", documents=unit) == [line]
        assert documents("a.txt", documents=unit, streaming=True) == [line]


UNREADABLE = [
    ("elf.txt", b"\x7fELF\x02\x01\x01\0\0", "line 1, byte 8: a NUL byte, so probably not a text file"),
    ("png.txt", b"\x89PNG\r\n", "line 1, byte 1: 0x89 is not UTF-8"),
    ("mixed.txt", b"a\ncaf\xc3\xa9\ncaf\xe9\n", "line 3, byte 4: 0xe9 is not UTF-8, but line 2 is"),
    ("mixed.jsonl.gz", gzip.compress(b'{"text": "\xc3\xa9"}\n{"text": "\xe9"}\n'), "line 2, byte 11: 0xe9 is not UTF-8, but line 1 is"),
    ("none.txt", b"", "no rows, the file is empty"),
    ("blank.txt.gz", gzip.compress(b"\n \n"), "no rows, only blank lines"),
    ("a.numbers", b"PK\x03\x04", "unknown kind of file '.numbers'"),
    ("a.parquet.gz", b"PK", ".parquet files can't be read compressed"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE, ids=[name for name, *_ in UNREADABLE])
def test_what_cannot_be_read_is_one_line_with_a_fix(name: str, content: bytes, message: str, streaming: bool) -> None:
    write(name, content)
    with pytest.raises(DataError) as caught:
        documents(name, streaming=streaming)
    assert str(caught.value).startswith(f"{name}: {message} (fix: ")
    assert (len(str(caught.value).splitlines()), caught.value.exit_code) == (1, 3)


def stream(*sources: str, **columns: str) -> list[str]:
    data = Data(train=list(sources), columns=Columns(**columns))
    return [row["text"] for row in stream_documents(data)]


def test_a_stream_finds_its_text_as_loaded_data_does(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", "id,content\n1,first\n2,second\n")
    assert stream("a.csv") == documents("a.csv") == ["first", "second"]
    assert capsys.readouterr().err == "text column: content (change with --text-column)\n" * 2
    assert stream("a.csv", text="id") == ["1", "2"]
    assert stream("a.csv", "a.csv") == ["first", "second"] * 2
    for way in ("jsonl", "parquet", "saved"):
        assert stream(WAYS[way](TEXTS)) == TEXTS


GOOD_ROWS = '{"text": "good"}\n' * 1000
BAD_ROWS = [
    ('{"text": null}\n', "a.jsonl: line 1: column 'text' is empty (fix: fill it in, or delete the row)"),
    (GOOD_ROWS + '{"text": null}\n', "a.jsonl: line 1001: column 'text' is empty (fix: fill it in, or delete the row)"),
    (GOOD_ROWS + '{"txt": "x"}\n', "a.jsonl: line 1001: no column 'text', found: txt (fix: give all rows the same columns)"),
    ('{"text": "x"}\n{"text": 1}\n', "a.jsonl: "),
    ('{"foo": "x", "bar": "y"}\n', "a.jsonl: no column is clearly the text, found: foo, bar (fix: --text-column foo)"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD_ROWS)
def test_a_bad_row_of_a_stream_is_named(content: str, message: str) -> None:
    write("a.jsonl", content)
    with pytest.raises(DataError) as caught:
        stream("a.jsonl")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_folder_and_a_pattern_without_files() -> None:
    os.mkdir("empty")
    for source in ("./empty", "*.txt"):
        with pytest.raises(DataError, match=r"no data files in this folder|no file matches this pattern"):
            documents(source)


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_parts_are_the_entries_of_the_recipe() -> None:
    for name in ("a/0.txt", "a/1.txt", "b.jsonl"):
        write(name, "first\nsecond\n" if name.endswith("txt") else jsonl(["third"]))
    parts = load_parts(Data(train=["./a", "b.jsonl", "a/*.txt"], documents="file"))
    two = ["first\nsecond\n"] * 2
    assert [list(part["text"]) for part in parts] == [two, ["third"], two]


def make_parts() -> list[datasets.Dataset]:
    return [
        datasets.Dataset.from_dict({"text": [f"{name}{number}" for number in range(rows)]})
        for name, rows in (("a", 1000), ("b", 100), ("c", 3))
    ]


def test_mixture_draws_the_shares_and_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    parts = make_parts()
    mixed = list(mix(parts, [6, 3, 1], seed=5)["text"])
    counts = [sum(text[0] == name for text in mixed) for name in "abc"]
    for count, share in zip(counts, (0.6, 0.3, 0.1), strict=True):
        assert abs(count - share * len(mixed)) < 4 * (share * (1 - share) * len(mixed)) ** 0.5
    assert set(mixed) == {text for part in parts for text in part["text"]}
    # each part in its own order, again and again
    for part, name in zip(parts, "abc", strict=True):
        own = [text for text in mixed if text[0] == name]
        assert own == [part["text"][index % len(part)] for index in range(len(own))]
    total = f"{len(mixed):,}"
    assert capsys.readouterr().err == (
        f"mixture: source 1: 60.0% wanted, {counts[0]:,} of {total} rows drawn from 1,000 rows, "
        f"each {counts[0] / 1000:.2f} times\n"
        f"mixture: source 2: 30.0% wanted, {counts[1]:,} of {total} rows drawn from 100 rows, "
        f"each {counts[1] / 100:.2f} times\n"
        f"mixture: source 3: 10.0% wanted, {counts[2]:,} of {total} rows drawn from 3 rows, "
        f"each {counts[2] / 3:.2f} times\n"
    )


def test_mixture_is_a_function_of_its_seed_and_counts_only_ratios() -> None:
    first, again, other, scaled = (
        list(mix(make_parts(), weights, seed=seed)["text"])
        for weights, seed in (([6, 3, 1], 5), ([6, 3, 1], 5), ([6, 3, 1], 6), ([0.6, 0.3, 0.1], 5))
    )
    assert first == again == scaled != other


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ([1], "data.mixture 1: 1 for 3 sources"),
        ([1, 2, 3, 4], "data.mixture 1, 2, 3, 4: 4 for 3 sources"),
        ([1, 0, 0.5], "data.mixture 1, 0, 0.5: all must be above 0"),
        ([1, 2, -1], "data.mixture 1, 2, -1: all must be above 0"),
    ],
)
def test_wrong_weights_name_the_setting_and_what_to_type(weights: list[float], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        mix(make_parts(), weights, seed=1)
    assert str(caught.value) == f"{problem} (fix: --set 'data.mixture=[1, 1, 1]')"
