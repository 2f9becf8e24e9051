"""Bad input of every kind: one clear line that says what to type, its exit code, and nothing written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hfkit.cli.main import main
from tiny_models import make_bert, make_gpt2

FILES: dict[str, str | bytes] = {
    "good.csv": "text,label\nhello world,good\nthe dog,bad\na fox,good\nthe fox,bad\n",
    "book.txt": "the quick brown fox jumps over the lazy dog\n" * 20,
    "empty.csv": "",
    "header.csv": "text,label\n",
    "empty.jsonl": "",
    "empty.txt": "",
    "blank.txt": "\n \n\n",
    "one-label.csv": "text,label\na fox,x\nthe dog,x\nhello,x\n",
    "other-columns.csv": "sentence,stars\na fox,1\nthe dog,2\n",
    "other-label.csv": "text,stars\na fox,1\nthe dog,2\n",
    "two-texts.csv": "a,b,label\nx y,z w,0\nz,w,1\n",
    "latin1.csv": b"text,label\ncaf\xe9,x\n",
    "latin1.txt": b"the fox\ncaf\xe9\n",
    "utf16.txt": "the fox".encode("utf-16"),
    "nul.txt": b"the fox\n\0\n",
    "unseen.csv": "text,label\na fox,good\nthe dog,meh\n",
    "unlabelled.csv": "text,label\na fox,good\nthe dog,\n",
    "short.csv": "text,label\na fox\n",
    "long.csv": "text,label\na fox,good,really\n",
    "semicolons.csv": "text;label\na fox;good\n",
    "broken.jsonl": '{"text": "a", "label": "x"}\n{"text": \n',
    "mixed.jsonl": '{"text": "a", "label": "x"}\n{"text": 3, "label": "x"}\n',
    "table.numbers": b"PK\x03\x04",
    "bad.yaml": "train:\n  learning_rat: 1\n  max_steps: many\n",
    "in-use/notes.txt": "mine",
    "a-file": "x",
    "no-model/readme.txt": "x",
    "broken-config/config.json": "{",
    "pickled/config.json": '{"model_type": "gpt2"}',
    "pickled/pytorch_model.bin": b"PK",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of FILES, tiny models `bert`, `gpt2` and `codegen` (a type without a classifier), and one cut short."""
    from transformers import AutoTokenizer, CodeGenConfig, CodeGenForCausalLM

    folder = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    make_bert(folder / "bert")
    make_gpt2(folder / "gpt2")
    make_gpt2(folder / "cut-short")
    weights = folder / "cut-short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    sizes = {"n_positions": 64, "n_ctx": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}
    CodeGenForCausalLM(CodeGenConfig(vocab_size=300, bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(
        folder / "codegen"
    )
    AutoTokenizer.from_pretrained(folder / "gpt2").save_pretrained(folder / "codegen")
    return folder


def tree(folder: Path) -> list[tuple[str, int, int]]:
    """Everything in a folder: name, size and time of the last change."""
    paths = [(path, path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(str(path), stat.st_size if path.is_file() else 0, stat.st_mtime_ns) for path, stat in paths]


TUNE = "finetune --model ./bert --data"
CASES = {
    "unknown key": (f"{TUNE} good.csv --set train.learning_rat=1", 2,
        "--set train.learning_rat: unknown setting (fix: did you mean 'train.learning_rate'?)"),
    "wrong type": (f"{TUNE} good.csv --lr abc", 2, "--learning-rate: must be a number, not 'abc' (fix: e.g. 5e-5)"),
    "recipe": ("finetune bad.yaml --model ./bert --data good.csv", 2,
        "bad.yaml: line 2: train.learning_rat: unknown setting (fix: did you mean 'train.learning_rate'?)",
        "bad.yaml: line 3: train.max_steps: must be a whole number, not 'many' (fix: e.g. 8)"),
    "missing recipe": ("finetune nothing.yaml --model ./bert", 2,
        "nothing.yaml: no such recipe (fix: hfkit recipes list)"),
    "no steps": (f"{TUNE} good.csv --max-steps 0", 2, "--max-steps: must be at least 1, not '0' (fix: e.g. 8)"),
    "unknown metric": (f"{TUNE} good.csv --metrics bleu", 2, None),
    # Files.
    "missing file": (f"{TUNE} godo.csv", 3, "godo.csv: no such file (fix: did you mean 'good.csv'?)"),
    "missing validation file": (f"{TUNE} good.csv --validation godo.csv", 3,
        "godo.csv: no such file (fix: did you mean 'good.csv'?)"),
    "missing pattern": (f"{TUNE} 'x*.csv'", 3,
        "x*.csv: no file matches this pattern (fix: put the pattern in quotes, check the folder)"),
    "empty csv": (f"{TUNE} empty.csv", 3,
        "empty.csv: no rows (fix: give a file with a header line and at least one row)"),
    "header alone": (f"{TUNE} header.csv", 3,
        "header.csv: no rows, only a header line (fix: give a file with at least one row)"),
    "empty jsonl": (f"{TUNE} empty.jsonl", 3, "empty.jsonl: no rows (fix: give a file with at least one row)"),
    "empty text": ("pretrain --data empty.txt", 3,
        "empty.txt: no rows, the file is empty (fix: give a file with text)"),
    "blank text": ("pretrain --data blank.txt", 3, "blank.txt: no rows, only blank lines (fix: give a file with text)"),
    "unknown kind": (f"{TUNE} table.numbers", 3,
        "table.numbers: unknown kind of file '.numbers' (fix: save the sheet as CSV, and give that file)"),
    "url": (f"{TUNE} http://example.org/a.csv", 2,
        "http://example.org/a.csv: data can't be read from a URL (fix: download it, and give that file)"),
    # Columns.
    "missing text column": (f"{TUNE} other-columns.csv --text-column txt", 3,
        "other-columns.csv has no column 'txt', found: sentence, stars (fix: --text-column sentence)"),
    "missing label column": (f"{TUNE} other-columns.csv --label-column star", 3,
        "other-columns.csv has no column 'star', found: sentence, stars (fix: --label-column stars)"),
    "no clear text": (f"{TUNE} two-texts.csv", 3,
        "two-texts.csv: no column is clearly the text, found: a, b, label (fix: --text-column a)"),
    "other columns in validation": (f"{TUNE} good.csv --validation other-columns.csv", 3,
        "good.csv: no column is clearly the text, found: text, label (train), sentence, stars (validation)"
        " (fix: give all the same columns)"),
    "other label in validation": (f"{TUNE} good.csv --validation other-label.csv", 3,
        "good.csv: no column is clearly the label, found: text, label (train), text, stars (validation)"
        " (fix: give all the same columns)"),
    "two sources differ": (f"{TUNE} good.csv --data other-columns.csv", 3,
        "other-columns.csv has the columns sentence, stars, but good.csv has text, label (fix: give both the same)"),
    # Rows.
    "latin1 csv": (f"{TUNE} latin1.csv", 3, "latin1.csv: line 2, byte 4: 0xe9 is not UTF-8"
        " (fix: --encoding latin-1 if it is that, or iconv -f latin1 -t utf-8 latin1.csv > latin1.utf8.csv)"),
    "latin1 text": ("pretrain --data latin1.txt", 3, "latin1.txt: line 2, byte 4: 0xe9 is not UTF-8"
        " (fix: --encoding latin-1 if it is that, or iconv -f latin1 -t utf-8 latin1.txt > latin1.utf8.txt)"),
    "utf16": ("pretrain --data utf16.txt", 3,
        "utf16.txt: UTF-16, not UTF-8 (fix: iconv -f utf-16 -t utf-8 utf16.txt > utf16.utf8.txt)"),
    "nul": ("pretrain --data nul.txt", 3, "nul.txt: line 2, byte 1: a NUL byte, so probably not a text file"
        " (fix: tr -d '\\0' < nul.txt > NEW)"),
    "short row": (f"{TUNE} short.csv", 3, "short.csv: line 2: expected 2 fields, saw 1, 'label' is missing"
        " (fix: add it, or delete the row)"),
    "long row": (f"{TUNE} long.csv", 3,
        "long.csv: line 2: expected 2 fields, saw 3 (fix: put double quotes around a field with a comma)"),
    "semicolons": (f"{TUNE} semicolons.csv", 3, "semicolons.csv: line 1: one column 'text;label', no comma but ';'"
        " between names (fix: --separator ';')"),
    "broken jsonl": (f"{TUNE} broken.jsonl", 3, "broken.jsonl: line 2, column 9: not JSON: Expecting value"
        " (fix: write one whole JSON object on each line, or one list of objects)"),
    "mixed jsonl": (f"{TUNE} mixed.jsonl", 3, "mixed.jsonl: line 2: column 'text' holds number, but text in line 1"
        " (fix: write one kind of value in a column)"),
    # Labels.
    "one label": (f"{TUNE} one-label.csv", 3, "the training data has one label only: 'x'"
        " (fix: name the right column with --label-column, or add rows of another class)"),
    "unlabelled row": (f"{TUNE} unlabelled.csv", 3,
        "unlabelled.csv: line 3: column 'label' is empty (fix: fill it in, or delete the row)"),
    "unlabelled validation row": (f"{TUNE} good.csv --validation unlabelled.csv", 3,
        "unlabelled.csv: line 3: column 'label' is empty (fix: fill it in, or delete the row)"),
    "unseen label": (f"{TUNE} good.csv --validation unseen.csv", 3,
        "validation data, row 2: label 'meh' is not a label of the training data: bad, good"
        " (fix: correct the label, or add training rows with it)"),
    # Models.
    "no model": ("finetune --data good.csv", 2, "no model is named (fix: --model bert-base-uncased, or a directory)"),
    "missing directory": ("finetune --model ./brt --data good.csv", 5,
        "./brt: no such directory (fix: did you mean './bert'?)"),
    "not on the Hub": ("finetune --model bert-nothing --data good.csv", 5,
        "HF_HUB_OFFLINE is set, and bert-nothing is not in the cache (fix: once, with a connection: HF_HUB_OFFLINE=0"
        " hfkit ..., or give a directory instead of bert-nothing)"),
    "generate with no such model": ("generate ./gtp2 --prompt x", 5,
        "./gtp2: no such directory (fix: did you mean './gpt2'?)"),
    "evaluate with no such model": ("evaluate ./gtp2 --data book.txt", 5,
        "./gtp2: no such directory (fix: did you mean './gpt2'?)"),
    "no config": ("generate ./no-model --prompt x", 5,
        "./no-model has no config.json (fix: give a directory that hfkit or save_pretrained wrote)"),
    "broken config": ("pretrain --from-scratch --model ./broken-config --data book.txt", 5, None),
    "pickled weights": ("generate ./pickled --prompt x", 5, None),
    "weights cut short": ("generate ./cut-short --prompt x", 5, None),
    "no classifier": ("predict ./bert --text x", 5,
        "./bert is no classifier, it is a BertForMaskedLM (fix: train one: hfkit finetune)"),
    "no writer": ("generate ./bert --prompt x", 5,
        "./bert makes no text, it is a BertForMaskedLM (fix: choose a model such as gpt2)"),
    # Models that don't fit the job.
    "type without a classifier": ("finetune --model ./codegen --data good.csv", 2,
        "codegen models have no SequenceClassification head (fix: choose another --model or --task)"),
    "mlm with a decoder": ("pretrain --objective mlm --model ./gpt2 --data book.txt", 2,
        "gpt2 models have no MaskedLM head (fix: --task clm)"),
    "clm with an encoder": ("pretrain --model ./bert --data book.txt", 2,
        "bert reads in both directions, it can't learn clm (fix: --objective mlm)"),
    "block beyond positions": ("pretrain --model ./gpt2 --data book.txt --block-size 65", 2,
        "data.block_size 65 is longer than the model's 64 positions (fix: --block-size 64)"),
    "mlm block beyond positions": ("pretrain --objective mlm --model ./bert --data book.txt --block-size 65", 2,
        "data.block_size 65 is longer than the model's 64 positions (fix: --block-size 64)"),
    "row beyond positions": (f"{TUNE} good.csv --max-length 65", 2,
        "data.max_length 65 is longer than the model's 64 tokens (fix: --max-length 64)"),
    "text beyond positions": ("generate ./gpt2 --prompt x --max-new-tokens 64", 2,
        "prompt 1 + new 64 > 64 positions of the model (fix: --max-new-tokens 63)"),
    "context beyond positions": ("evaluate ./gpt2 --data book.txt --context 65", 2,
        "evaluation.context 65 is longer than the model's 64 positions (fix: --context 64)"),
    "unknown key of the config": (f"{TUNE} good.csv --set model.config.num_layerz=3", 2,
        "model.config.num_layerz: bert has no such setting (fix: did you mean 'num_hidden_layers'?)"),
    "unknown type": ("pretrain --model-type gpt22 --data book.txt", 2,
        "model.type 'gpt22' is unknown (fix: did you mean 'gpt2'?)"),
    "revision of a directory": (f"{TUNE} good.csv --revision main", 2,
        "model.revision acts on Hub models only, and ./bert is a directory (fix: leave it out)"),
    # Output.
    "output directory in use": (f"{TUNE} good.csv --output-dir in-use", 2,
        "in-use: not empty (fix: --resume auto, --overwrite, or --output-dir NEW)"),
    "output directory of another": (f"{TUNE} good.csv --output-dir in-use --overwrite", 2,
        "in-use: not empty and not made by hfkit (fix: --output-dir NEW)"),
    "output directory is a file": (f"{TUNE} good.csv --output-dir a-file", 6,
        "a-file: is a file (fix: --output-dir NEW)"),
    "no such checkpoint": (f"{TUNE} good.csv --resume runs/x/checkpoint-3", 5,
        "runs/x/checkpoint-3: no such checkpoint (fix: leave out --resume: runs/x has no whole checkpoint)"),
    "resume and overwrite": (f"{TUNE} good.csv --resume auto --overwrite", 2,
        "--resume and --overwrite exclude each other (fix: choose one)"),
    # Nothing to do.
    "nothing to measure on": ("evaluate ./gpt2", 2, "no data given (fix: --data FILE)"),
    "missing predictions": ("evaluate --predictions nothing.txt --references book.txt", 3, None),
    "files that don't match": ("evaluate --predictions good.csv --references book.txt", 3,
        "good.csv has 4 lines, book.txt has 20 (fix: give one reference per prediction, in the same order)"),
}  # fmt: skip
STARTS = {  # the rest is a list or a library's own words
    "unknown metric": "--metrics: unknown metric 'bleu', this task has: accuracy, ",
    "broken config": "./broken-config: can't be read: ",
    "pickled weights": "./pickled has no model.safetensors, the one format that hfkit reads since it can't hold code "
    "(found: pytorch_model.bin) (fix: --allow-pickle, or convert it: python -c ",
    "weights cut short": "./cut-short: can't be read: ",
    "missing predictions": "nothing.txt: can't be read: No such file or directory",
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_line_and_nothing_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    line, code, *errors = CASES[case]
    monkeypatch.chdir(folder)
    before = tree(folder)
    assert main(shlex.split(line)) == code
    said = capsys.readouterr()
    lines = [line.removeprefix("error: ") for line in said.err.splitlines() if line.startswith("error: ")]
    if case in STARTS:
        assert [line.startswith(STARTS[case]) for line in lines] == [True], lines
    else:
        assert lines == errors
    assert said.err.splitlines()[-len(lines)].startswith("error: ")  # the last words
    assert "Traceback" not in said.err
    assert said.out == ""
    assert tree(folder) == before


def test_directory_that_another_process_works_in_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    script = (
        "from pathlib import Path; from hfkit.system.files import lock_directory; "
        "held = lock_directory(Path('busy')); print('held'); input()"
    )
    (folder / "busy").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        before = tree(folder)
        assert main(shlex.split(f"{TUNE} good.csv --output-dir busy")) == 75
        assert tree(folder) == before
        owner.communicate("\n")
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"error: busy: in use by pid {owner.pid} on host {os.uname().nodename} (fix: wait for it, or --output-dir NEW)"
    )
