"""How often, and on how much of the validation data, a run is evaluated while it trains."""

import json
import re
from pathlib import Path

import pytest

from hfkit.cli.main import main
from hfkit.training import callbacks
from tiny_models import make_bert, make_gpt2

ROWS = [f"{'hello world' if number % 2 else 'the quick brown fox'},{'ab'[number % 2]}" for number in range(200)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_bert(tmp_path / "bert")
    for name, number in (("train.csv", 40), ("few.csv", 8), ("many.csv", 200)):
        (tmp_path / name).write_text("\n".join(["text,label", *ROWS[:number]]) + "\n")
    return tmp_path


def entries():
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def evaluated(capsys, validation, *options, steps=10):
    """The steps that were evaluated, what was said of it, and the number of rows that the final score is of."""
    command = ["finetune", "--model", "./bert", "--data", "train.csv", "--validation", validation, "-o", "run"]
    assert main([*command, "--max-steps", str(steps), "--batch-size", "4", "--json", "--overwrite", *options]) == 0
    printed = capsys.readouterr()
    log = entries()
    said = [line for line in printed.err.splitlines() if line.startswith("validation while training: ")]
    found = [entry["step"] for entry in log if "eval_loss" in entry and entry["step"] < steps]
    return found, said, json.loads(printed.out)["metrics"]["accuracy"]["n"]


@pytest.mark.parametrize(
    ("validation", "options", "steps", "on"),
    [
        # 40 examples of training pay for 0.1 x 3 x 40 / 2 = 6 of validation in each of two evaluations
        ("few.csv", [], [4, 8], "every 4 steps on 6 examples of 8, to take about 10% of the time"),
        ("many.csv", [], [4, 8], "every 4 steps on 5 examples of 200, to take about 9% of the time"),
        ("many.csv", ["--eval-steps", "3"], [3, 6, 9], None),
        ("many.csv", ["--best", "accuracy"], [2, 4, 6, 8], None),
        ("many.csv", ["--early-stopping", "9"], [2, 4, 6, 8], None),
    ],
)
def test_evaluations_cost_a_tenth_of_training_unless_asked_for(folder, capsys, validation, options, steps, on):
    found, said, num_rows = evaluated(capsys, validation, *options)
    assert found == steps
    assert num_rows == {"few.csv": 8, "many.csv": 200}[validation]
    expected = f"validation while training: {on} (change with --eval-steps)"
    assert said == ([] if on is None else [expected])


def test_a_long_run_has_five_evaluations_and_repeats_its_sample(folder, capsys):
    assert evaluated(capsys, "few.csv", steps=200)[1] == []
    logs = []
    for _ in range(2):
        evaluated(capsys, "many.csv")
        logs.append([entry["eval_loss"] for entry in entries() if "eval_loss" in entry])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2


def test_expected_time_is_told_once_from_real_steps(folder, capsys, monkeypatch):
    monkeypatch.setattr(callbacks, "SECONDS_TO_PACE", 0.0)
    command = ["finetune", "--model", "./bert", "--data", "train.csv", "--validation", "few.csv", "-o", "timed"]
    assert main([*command, "--max-steps", "6", "--batch-size", "4"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("expected time: ")]
    assert len(said) == 1
    assert said[0].endswith(" for training, at the pace of 1 step")


def test_a_metric_that_a_sample_cannot_have_is_said_and_the_run_goes_on(folder, capsys):
    rows = [f"hello world,{'ab'[number == 7]}" for number in range(200)]
    (folder / "rare.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    command = ["finetune", "--model", "./bert", "--data", "train.csv", "--validation", "rare.csv", "-o", "run"]
    assert main([*command, "--max-steps", "10", "--batch-size", "4", "--metrics", "roc_auc"]) == 0
    assert "warning: not measured while training, on a sample: " in capsys.readouterr().err
    assert "eval_roc_auc" in json.loads(Path("run/all_results.json").read_text())


def test_a_checkpoint_is_saved_five_times_however_often_a_run_is_evaluated(folder, capsys):
    evaluated(capsys, "many.csv", "--set", "train.save_total_limit=100", steps=20)
    saved = sorted(int(path.name.rpartition("-")[2]) for path in Path("run").glob("checkpoint-*"))
    assert saved == [4, 8, 12, 16, 20]


def test_one_long_document_is_not_evaluated_while_a_short_run_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_gpt2(tmp_path / "gpt2")
    Path("long.txt").write_text("the quick brown fox jumps over the lazy dog " * 500)
    Path("short.txt").write_text("hello world\n\n" * 40)
    command = ["pretrain", "--model", "./gpt2", "--data", "short.txt", "--validation", "long.txt", "-o", "run"]
    assert main([*command, "--max-steps", "5", "--block-size", "16", "--batch-size", "2", "--documents", "file"]) == 0
    said = capsys.readouterr().err
    assert re.search(
        r"validation while training: none, it would take [\d,]+% of the time \(change with --eval-st", said
    )
    assert not [entry for entry in entries() if "eval_loss" in entry]
    assert "eval_perplexity" in json.loads(Path("run/all_results.json").read_text())
