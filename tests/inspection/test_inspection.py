"""`hfkit data inspect`: exact counts, every finding with what to type, for people and as JSON."""

# ruff: noqa: E501 - whole lines of output

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from hfkit.cli.main import main
from hfkit.inspection.data import inspect
from hfkit.settings import Data
from tiny_models import make_bert, make_gpt2


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_bert(folder / "bert")
    make_gpt2(folder / "gpt2")
    return folder


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["data", "inspect", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def findings(found: dict[str, Any]) -> list[str]:
    return [f"{finding['problem']} (fix: {finding['fix']})" for finding in found["findings"]]


TRAIN = """text,label,id
a fine film,good,1
a bad film,bad,2
a fine film,good,3
a fine film,bad,4
été,good,5
"  ",good,6
a long and winding tale,good,7
"""
VALIDATION = """text,label,id
a fine film,good,1
unseen,meh,2
été,good,3
"""


def test_a_classification_table(capsys: pytest.CaptureFixture[str]) -> None:
    write("train.csv", TRAIN)
    write("dev.csv", VALIDATION)
    found = facts(capsys, "train.csv", "--validation", "dev.csv")
    assert found["task"] == "text-classification"
    assert found["documents"] is None
    assert found["columns"] == {
        "text": {"type": "string", "role": "text", "example": "a fine film"},
        "label": {"type": "string", "role": "label", "example": "good"},
        "id": {"type": "string", "role": None, "example": "1"},
    }
    assert found["splits"]["train"] == {
        "rows": 7,
        "bytes": 3 * 11 + 10 + 5 + 2 + 23,
        "empty": 1,
        "characters": {
            "sum": 3 * 11 + 10 + 3 + 2 + 23,
            "p50": 11,
            "p90": 23,
            "p99": 23,
            "max": 23,
            "histogram": {"2": 2, "4": 0, "8": 4, "16": 1},
        },
        "repeated": {
            "rows": 2,
            "examples": [{"text": "a fine film", "rows": 3}],
            "several_labels": {"texts": 1, "examples": ["a fine film"]},
        },
        "problem_type": "single_label_classification",
        "labels": {"good": 5, "bad": 2},
    }
    assert found["splits"]["validation"]["also_in_train"] == {"rows": 2, "examples": ["a fine film", "été"]}
    assert found["splits"]["validation"]["repeated"]["rows"] == 0
    assert findings(found) == [
        "train: 1 of 7 rows (14.3%) have an empty text (fix: delete them)",
        "train: 2 of 7 rows (28.6%) repeat an earlier text; most often 'a fine film', 3 times (fix: delete them, unless they are intended)",
        "train: 1 text has rows with different labels, e.g. 'a fine film' (fix: decide on one label for each)",
        "validation: 2 of 3 rows (66.7%) have a text that is also in train, so scores will be too good, e.g. 'a fine film' (fix: delete them from one of the two)",
        "validation: labels that are not in train: meh (fix: correct them, or add training rows)",
    ]


def test_what_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    write("train.csv", TRAIN)
    write("dev.csv", VALIDATION)
    assert main(["data", "inspect", "train.csv", "--validation", "dev.csv"]) == 0
    said = capsys.readouterr()
    assert (
        said.out
        == """\
columns (change with --text-column, --label-column)
  text   string  the text   e.g. a fine film
  label  string  the label  e.g. good
  id     string             e.g. 1

                               train  validation
rows                               7           3
bytes of text                     73          22
empty texts                1 (14.3%)           0
repeated texts             2 (28.6%)           0
texts with several labels          1           0
texts also in train                    2 (66.7%)
characters                        71          20
  half have at most               11           6
  90% have at most                23          11
  99% have at most                23          11
  the longest has                 23          11
(--model NAME also counts tokens)

characters in a row, train
  2 to 3    2  ####################
  4 to 7    0
  8 to 15   4  ########################################
  16 to 31  1  ##########

labels  2 in train  2 in validation
  good   5 (71.4%)        2 (66.7%)
  bad    2 (28.6%)                0
"""
    )
    assert said.err.splitlines()[-1] == (
        "warning: validation: labels that are not in train: meh (fix: correct them, or add training rows)"
    )
    assert len(said.err.splitlines()) == 5


LABELS = [
    ("x\n" * 3, ["train: all labels are 'x' (fix: --label-column NAME, or add other rows)"]),
    (
        "x\n" * 4 + "y\n",
        [
            "train: 80.0% of the rows have the label 'x', so accuracy says little (fix: hfkit finetune ... --metrics mcc,f1_macro --best f1_macro)",
            "train: seen only once: y (fix: add rows, or join rare labels)",
        ],
    ),
    ("x\n" * 3 + "y\n" * 2, []),
    (
        "".join(f"l{number}\n" for number in range(12)),
        [
            "train: 12 different labels in 12 rows (fix: --label-column NAME)",
            "train: seen only once: l0, l1, l2, l3, l4, l5, l6, l7, l8, l9 and 2 more (fix: add rows, or join rare labels)",
        ],
    ),
    (
        "x\ny\n\nx\ny\n \n",
        [
            "train: 2 of 6 rows (33.3%) have no value in column 'label', first a.tsv: line 4 (fix: fill it in, or delete the row)"
        ],
    ),
]


@pytest.mark.parametrize(
    ("labels", "expected"), LABELS, ids=["one", "lopsided", "balanced", "all different", "missing"]
)
def test_labels(labels: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"text {number}\t{label}" for number, label in enumerate(labels.split("\n")[:-1])]
    write("a.tsv", "\n".join(["text\tlabel", *rows]) + "\n")
    assert findings(facts(capsys, "a.tsv")) == expected


def test_class_names_and_missing_texts(capsys: pytest.CaptureFixture[str]) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": ["a", None, "c", "d"], "label": [1, 0, 1, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk("saved")
    found = facts(capsys, "saved")
    assert found["splits"]["train"]["labels"] == {"yes": 2, "no": 1}
    assert found["columns"]["label"]["type"] == "classes ['no', 'yes']"
    assert findings(found)[:2] == [
        "train: 1 of 4 rows (25.0%) have no value in column 'text', first saved: train row 2 (fix: fill it in, or delete the row)",
        "train: 1 of 4 rows (25.0%) have no value in column 'label', first saved: train row 4 (fix: fill it in, or delete the row)",
    ]


def test_several_labels_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", '{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n{"text": "c", "label": ["x"]}\n')
    train = facts(capsys, "a.jsonl")["splits"]["train"]
    assert (train["problem_type"], train["labels"]) == ("multi_label_classification", {"x": 2, "y": 1})
    write("b.csv", "text,toxic,rude\na,1,0\nb,0,0\nc,1,1\n")
    found = facts(capsys, "b.csv", "--label-column", "toxic,rude")
    assert found["splits"]["train"]["labels"] == {"toxic": 2, "rude": 1}
    assert [fact["role"] for fact in found["columns"].values()] == ["text", "label", "label"]
    write("c.csv", "text,score\na,0.5\nb,1\nc,3\n")
    train = facts(capsys, "c.csv")["splits"]["train"]
    assert train["problem_type"] == "regression"
    assert train["values"] == {"min": 0.5, "mean": 1.5, "max": 3.0}
    assert main(["data", "inspect", "c.csv"]) == 0
    assert "\nlabel   train\n  min     0.5\n  mean    1.5\n  max       3\n" in capsys.readouterr().out
    problem = facts(capsys, "c.csv", "--problem-type", "regression", "--text-column", "score", "--label-column", "text")
    assert findings(problem)[0].startswith("train data, row 1: label 'a' is not a number (fix: ")


def test_repeated_texts_with_numbers_are_no_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", "text,score\na,0.5\nb,1\na,3\n")
    assert findings(facts(capsys, "a.csv"))[0] == (
        "train: 1 of 3 rows (33.3%) repeat an earlier text, so held-out rows may be known from training; "
        "most often 'a', 2 times (fix: delete them, or give --validation FILE)"
    )


def test_pairs_are_repeated_where_both_texts_are(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.tsv", "premise\thypothesis\tlabel\na\tb\t0\na\tc\t1\na\tb\t0\nab\t\t1\n")
    found = facts(capsys, "a.tsv")
    assert {name: fact["role"] for name, fact in found["columns"].items()} == {
        "premise": "text",
        "hypothesis": "text_pair",
        "label": "label",
    }
    train = found["splits"]["train"]
    assert (train["repeated"]["rows"], train["empty"], train["bytes"]) == (1, 1, 8)
    assert train["repeated"]["examples"] == [{"text": "a + b", "rows": 2}]


def test_text_is_inspected_as_pretraining_sees_it(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.txt", "one\ntwo\n\nthree\n\none\ntwo\n")
    for arguments, unit, rows, repeated in (
        ([], "file", 1, 0),
        (["--task", "mlm"], "blank-line", 3, 1),
        (["--task", "mlm", "--documents", "row"], "row", 5, 2),
    ):
        found = facts(capsys, "a.txt", *arguments)
        assert (found["task"], found["documents"]) == (arguments[1] if arguments else "clm", unit)
        assert found["splits"]["train"]["rows"] == rows
        assert found["splits"]["train"]["repeated"]["rows"] == repeated
    assert findings(found) == [
        "train: 2 of 5 rows (40.0%) repeat an earlier text; most often 'one', 2 times (fix: hfkit pretrain ... --set data.clean.deduplicate=true)"
    ]
    assert main(["data", "inspect", "a.txt"]) == 0
    assert "\na row is a file (change with --documents)\n" in capsys.readouterr().out


def test_columns_beside_a_text_are_no_labels(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"text {number}", "url": f"page/{number}", "year": 2000} for number in range(4)]
    write("a.jsonl", "".join(json.dumps({key: row[key] for key in ("text", "url")}) + "\n" for row in rows))
    assert facts(capsys, "a.jsonl")["task"] == "clm"
    write("b.jsonl", "".join(json.dumps({key: row[key] for key in ("text", "year")}) + "\n" for row in rows))
    assert facts(capsys, "b.jsonl")["task"] == "text-classification"
    assert facts(capsys, "b.jsonl", "--task", "clm")["columns"]["year"]["role"] is None


def test_unclear_columns_are_listed_with_the_likely_flags(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", "stars,first,second\n" + "".join(f"{n % 2},a long text {n},short {n}\n" for n in range(6)))
    assert main(["data", "inspect", "a.csv"]) == 0
    said = capsys.readouterr()
    assert (
        said.out
        == """\
columns
  stars   string    e.g. 0
  first   string    e.g. a long text 0
  second  string    e.g. short 0

      train
rows      6
"""
    )
    problem = "no column is clearly the text, found: stars, first, second"
    assert said.err == f"warning: a.csv: {problem} (fix: --text-column first --label-column stars)\n"
    found = facts(capsys, "a.csv", "--text-column", "first", "--label-column", "stars")
    assert found["splits"]["train"]["labels"] == {"0": 3, "1": 3}


def test_tokens_of_a_classifier(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", "text,label\nhello world,x\nthe fox 7,y\nhello,x\nthe quick brown fox jumps over the lazy dog,y\n")
    found = facts(capsys, "a.csv", "--model", str(models / "bert"), "--max-length", "5")
    # [CLS] and [SEP] count: 2 + 2, 2 + 3 of which 7 is unknown, 2 + 1, 2 + 9
    assert found["splits"]["train"]["tokens"] == {
        "sum": 4 + 5 + 3 + 11,
        "p50": 4,
        "p90": 11,
        "p99": 11,
        "max": 11,
        "histogram": {"2": 1, "4": 2, "8": 1},
        "unknown": 1,
        "limit": 5,
        "cut": 1,
    }
    assert findings(found) == [
        "train: 1 of 4 rows (25.0%) are longer than 5 tokens and truncated (fix: --max-length 11)",
        "train: the tokenizer does not know 4.3% of the tokens (fix: a --model for this language or alphabet)",
    ]
    write("b.csv", "text,label\n" + "hello " * 100 + ",x\nfox,y\nhello,y\nworld,x\n")
    assert findings(facts(capsys, "b.csv", "--model", str(models / "bert"))) == [
        "train: 1 of 4 rows (25.0%) are longer than 64 tokens and truncated (fix: a --model for longer texts, or hfkit finetune ... --allow-truncation)"
    ]
    capsys.readouterr()
    assert main(["data", "inspect", "a.csv", "--model", str(models / "bert"), "--max-length", "65"]) == 2
    longer = "error: data.max_length 65 is longer than the model's 64 tokens (fix: --max-length 64)\n"
    assert capsys.readouterr().err == longer


def test_tokens_of_a_corpus_are_not_cut(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    write("a.txt", "hello world\n" * 200)
    tokenizer = AutoTokenizer.from_pretrained(models / "gpt2")
    for option in ("--model", "--tokenizer"):
        found = facts(capsys, "a.txt", option, str(models / "gpt2"))
        tokens = found["splits"]["train"]["tokens"]
        assert tokens["sum"] == tokens["max"] == len(tokenizer("hello world\n" * 200)["input_ids"]) > 64
        assert "cut" not in tokens
        assert found["findings"] == []


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("nope.txt", 3, "nope.txt: no such file"),
        ("a.txt --task clmm", 2, "unknown task 'clmm', hfkit has: "),
        ("a.csv --text-column txt", 3, "a.csv has no column 'txt', found: text, label (fix: --text-column text)"),
        ("a.csv --max-length 1", 2, "Invalid value for '--max-length': "),
        ("a.txt --documents page", 2, "Invalid value for '--documents': "),
        ("a.txt --model ./no-model", 5, "./no-model: no such directory"),
        ("nul.txt", 3, "nul.txt: line 1, byte 4: a NUL byte, so probably not a text file"),
        ("mixed.txt", 3, "mixed.txt: line 2, byte 1: 0xe9 is not UTF-8, but line 1 is"),
        ("empty.jsonl.gz", 3, "empty.jsonl.gz: no rows"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(line: str, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("a.csv", "text,label\na,0\nb,1\n")
    write("a.txt", "some text\n")
    write("nul.txt", b"ELF\0")
    write("mixed.txt", b"\xc3\xa9\n\xe9\n")
    write("empty.jsonl.gz", gzip.compress(b""))
    assert main(["data", "inspect", *line.split()]) == code
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {message}")
    assert (said.out, len(said.err.splitlines())) == ("", 1)


LIGHT = """
import sys
from hfkit.cli.main import main
from hfkit.inspection.data import inspect
from hfkit.settings import Data
code = main(["data", "inspect", "a.csv"])
print({"torch", "transformers", "accelerate"} & set(sys.modules), code)
"""


def test_without_a_model_no_model_library_is_imported() -> None:
    write("a.csv", "text,label\na,0\nb,1\na b,1\nb b,0\n")
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set() 0"


def test_python_gets_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    source = write("a.txt", "one\n\ntwo\n")
    found = inspect(Data(train=[source]), task="mlm")
    assert found == facts(capsys, source, "--task", "mlm")
    assert (found["task"], found["documents"], found["splits"]["train"]["rows"]) == ("mlm", "blank-line", 2)


def test_help_names_the_options_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", "--help"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "Usage: hfkit data inspect [OPTIONS] {FILE}..." in said.out
    for flag in (
        "--validation",
        "--test",
        "--text-column",
        "--label-column",
        "--documents",
        "--max-length",
        "--no-header",
    ):
        assert flag in said.out
