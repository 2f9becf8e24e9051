"""How often, and on how much of the validation data, a run is evaluated while it trains."""

import json
from pathlib import Path

import pytest

from hfkit.cli.main import main
from hfkit.training import callbacks
from tiny_models import make_bert

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
    steps = [entry["step"] for entry in log if "eval_loss" in entry and entry["step"] < 10]
    return steps, said, json.loads(printed.out)["metrics"]["accuracy"]["n"]


@pytest.mark.parametrize(
    ("validation", "options", "steps", "on"),
    [
        ("few.csv", [], [4, 8], "every 4 steps, "),  # 12 examples of training can pay 0.1 x 3 x 40 / 8 = 1.5 passes
        ("many.csv", [], [4, 8], "every 4 steps on 8 examples of 200, "),
        ("many.csv", ["--eval-steps", "3"], [3, 6, 9], None),
        ("many.csv", ["--best", "accuracy"], [2, 4, 6, 8], None),
        ("many.csv", ["--early-stopping", "9"], [2, 4, 6, 8], None),
    ],
)
def test_evaluations_cost_a_tenth_of_training_unless_asked_for(folder, capsys, validation, options, steps, on):
    found, said, num_rows = evaluated(capsys, validation, "--set", "train.per_device_eval_batch_size=8", *options)
    assert found == steps
    assert num_rows == {"few.csv": 8, "many.csv": 200}[validation]
    expected = f"validation while training: {on}to take at most 10% of the time (change with --eval-steps)"
    assert said == ([] if on is None else [expected])


def test_a_long_run_has_five_evaluations_and_repeats_its_sample(folder, capsys):
    assert evaluated(capsys, "few.csv", steps=200)[1] == []
    logs = []
    for _ in range(2):
        evaluated(capsys, "many.csv", "--set", "train.per_device_eval_batch_size=8")
        logs.append([entry["eval_loss"] for entry in entries() if "eval_loss" in entry])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2


def test_expected_time_is_told_once_from_real_steps(folder, capsys, monkeypatch):
    monkeypatch.setattr(callbacks, "SECONDS_TO_PACE", 0.0)
    command = ["finetune", "--model", "./bert", "--data", "train.csv", "--validation", "few.csv", "-o", "timed"]
    assert main([*command, "--max-steps", "6", "--batch-size", "4"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("expected time: ")]
    assert said == ["expected time: 0:00 for training, at the pace of 1 step"]
