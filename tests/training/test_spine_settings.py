"""Settings that act in the spine, whatever the task: a sample of the rows, and who else gets the numbers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hfkit import load_recipe
from hfkit.cli.main import main
from hfkit.recipe.upstream import TRACKERS
from hfkit.tasks import TASKS
from hfkit.training.arguments import training_arguments
from hfkit.training.prepare import load_splits
from tiny_models import make_bert


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{n},{'abc'[n % 3]}\n" for n in range(40)))
    return tmp_path


def splits_of(**settings: object) -> dict[str, list[str]]:
    given = {"data.train": ["train.csv"], "model.name": "./bert", "data.validation_split": 0.25, **settings}
    recipe = load_recipe("finetune", **given)
    return {name: split["text"][:] for name, split in load_splits(TASKS["text-classification"], recipe).items()}


def test_max_train_samples_takes_a_seeded_sample_beside_the_same_validation_data(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = splits_of()
    assert (len(whole["train"]), len(whole["validation"])) == (30, 10)
    capsys.readouterr()
    sample = splits_of(**{"data.max_train_samples": 7})
    assert "training on 7 of 30 examples, sampled with seed 42\n" in capsys.readouterr().err
    chosen = sorted(random.Random(42).sample(range(30), 7))
    assert sample == {"train": [whole["train"][place] for place in chosen], "validation": whole["validation"]}
    assert splits_of(**{"data.max_train_samples": 7}) == sample
    capsys.readouterr()
    assert splits_of(**{"data.max_train_samples": 31}) == whole
    assert (
        "warning: data.max_train_samples 31 has no effect: the training data has 30 examples\n"
        in capsys.readouterr().err
    )


def test_max_train_samples_trains_on_as_many_rows(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bert(data / "bert")
    line = "finetune --model ./bert --data train.csv --validation-split 0.25 --epochs 2 --batch-size 4 --no-interval"
    assert main([*line.split(), "--max-train-samples", "8", "--class-weights", "balanced", "-o", "run"]) == 0
    assert "training: 8 examples, 10 validation examples, 4 steps of 4 examples (2 epochs)" in capsys.readouterr().err


def test_a_stream_has_no_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--streaming", "--max-steps", "1", "--max-train-samples", "5", "--dry-run"]) == 2
    assert capsys.readouterr().err == (
        "error: --max-train-samples: has no effect with data.streaming (fix: leave one of them out)\n"
    )


def test_no_tracker_is_told_unless_it_is_named(tmp_path: Path) -> None:
    assert load_recipe("finetune").train.report_to == []
    assert load_recipe("finetune", **{"train.report_to": "none"}).train.report_to == []
    assert training_arguments(load_recipe("finetune"), tmp_path).report_to == []


def test_a_tracker_whose_package_is_missing_or_that_nobody_knows_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["finetune", "--model", "./nothing", "--data", "missing.csv", "--report-to", "wandbb,comet_ml"]
    assert main([*line, "--report-to", "tensorboard"]) == 2
    assert capsys.readouterr().err == (
        "error: --report-to: unknown tracker 'wandbb' (fix: did you mean 'wandb'?)\n"
        "error: --report-to: comet_ml needs the package comet-ml, which is not installed (fix: pip install comet-ml)\n"
        "error: --report-to: tensorboard needs the package tensorboard, which is not installed "
        "(fix: pip install tensorboard)\n"
    )
    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)
