"""How a file is written is a fact of that file: what a run knows of its training data may not hold for another one."""

import json

import pytest

from hfkit.cli.main import main
from tiny_models import TEXT, make_bert

ROWS = [(text.replace(",", ""), "ab"[number % 2]) for number, text in enumerate(TEXT * 4)]


def trained(folder, monkeypatch, name, content, *options):
    monkeypatch.chdir(folder)
    make_bert(folder / "bert")
    (folder / name).write_bytes(content)
    command = ["finetune", "--model", "./bert", "--data", name, "--validation", name, "--max-length", "32", *options]
    assert main([*command, "--max-steps", "2", "-o", "run"]) == 0


def predicted(capsys, file):
    capsys.readouterr()
    assert main(["predict", "run", "--input", file, "--json"]) == 0
    said = capsys.readouterr()
    return [json.loads(line)["text"] for line in said.out.splitlines()], said.err


@pytest.fixture
def headless(tmp_path, monkeypatch):
    """A run on a table without a header, whose columns are known by their numbers."""
    content = "".join(f"{label}\t{text}\n" for text, label in ROWS).encode()
    trained(tmp_path, monkeypatch, "train.tsv", content, "--no-header", "--text-column", "1", "--label-column", "0")
    return tmp_path


@pytest.mark.parametrize("names", ["text,label", "label,text", "id,text,label", "Text,Label"])
def test_a_header_is_no_text(headless, names, capsys):
    columns = names.lower().split(",")
    rows = [{"id": "7", "text": text, "label": label} for text, label in ROWS[:3]]
    lines = [names, *(",".join(row[name] for name in columns) for row in rows)]
    (headless / "new.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts, said = predicted(capsys, "new.csv")
    assert texts == [row["text"] for row in rows]
    assert "new.csv: the first line names the columns, unlike in the training data (change with --no-header)" in said
    assert main(["evaluate", "run", "--data", "new.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"]["n"] == 3


def test_a_file_like_that_of_the_training_is_read_as_it_was(headless, capsys):
    assert predicted(capsys, "train.tsv")[0] == [text for text, _ in ROWS]
    assert main(["evaluate", "run", "--data", "train.tsv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"]["n"] == len(ROWS)


def test_what_is_typed_holds(headless, capsys):
    (headless / "new.tsv").write_text("label\ttext\na\thello\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "new.tsv", "--no-header"]) == 3
    assert "row 1: label 'label' is not a label of the model" in capsys.readouterr().err


def test_files_of_other_kinds_have_no_header(headless, capsys):
    (headless / "new.jsonl").write_text('{"text": "hello", "label": "a"}\n', encoding="utf-8")
    assert predicted(capsys, "new.jsonl")[0] == ["hello"]
    assert main(["evaluate", "run", "--data", "new.jsonl", "--json"]) == 0


def test_quotes_are_read_as_usual_for_another_kind_of_file(tmp_path, monkeypatch, capsys):
    content = "".join(f'{label}\t"{text}\n' for text, label in ROWS).encode()  # quotes are characters there
    trained(tmp_path, monkeypatch, "train.tsv", content, "--no-header", "--no-quoting")
    (tmp_path / "new.csv").write_text('text,label\n"hello, you",a\n', encoding="utf-8")
    assert predicted(capsys, "new.csv")[0] == ["hello, you"]
    assert main(["evaluate", "run", "--data", "new.csv", "--json"]) == 0
    assert predicted(capsys, "train.tsv")[0][0] == f'"{ROWS[0][0]}'


def test_text_is_utf_8_where_it_can_be(tmp_path, monkeypatch, capsys):
    content = ("text,label\n" + "".join(f"café {text},{label}\n" for text, label in ROWS if text.isascii())).encode(
        "cp1252"
    )
    trained(tmp_path, monkeypatch, "train.csv", content, "--encoding", "cp1252")
    (tmp_path / "new.csv").write_text("text\ncafé “au lait”\n", encoding="utf-8")
    (tmp_path / "old.csv").write_bytes("text\ncafé “au lait”\n".encode("cp1252"))
    assert predicted(capsys, "new.csv")[0] == predicted(capsys, "old.csv")[0] == ["café “au lait”"]


@pytest.mark.parametrize("encoding", ["iso2022_jp", "hz", "utf-7"])
def test_an_encoding_of_seven_bits_is_that_of_new_files(encoding, tmp_path, monkeypatch, capsys):
    content = ("text,label\n" + "".join(f"中文 {text},{label}\n" for text, label in ROWS if text.isascii())).encode(
        encoding
    )
    trained(tmp_path, monkeypatch, "train.csv", content, "--encoding", encoding)
    (tmp_path / "new.csv").write_bytes("text\n中文\n".encode(encoding))
    assert predicted(capsys, "new.csv")[0] == ["中文"]
