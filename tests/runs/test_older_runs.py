"""Run directories of commit b741963, before modules moved and settings got new places, can still be used.

older_runs.tar.xz holds the data and what these commands left of it; the checkpoints of finished runs are removed.

hfkit pretrain --data text.txt --documents blank-line --model-type gpt2 --set tokenizer.algorithm=char --block-size 32
    --set model.config.n_embd=8 --set model.config.n_layer=1 --set model.config.n_head=1 --max-steps 20 --batch-size 4
    --save-steps 8 --eval-steps 8 --logging-steps 4 --lr 1e-2 --output-dir stopped     (ended by SIGTERM in step 13)
hfkit finetune --model base --data train.csv --validation dev.csv --epochs 30 --lr 2e-2 --warmup-steps 0.1
    --batch-size 8 --logging-steps 30 --output-dir labels       (base: a BERT with hidden size 8 and one layer)
hfkit finetune (the same) --seed 7 --output-dir other           (its predictions only)

The numbers below were printed by the same commit; those of the stopped run come from one that was not stopped.
"""

import json
import tarfile
from pathlib import Path

import pytest

import hfkit
from hfkit.cli.main import main

pytestmark = pytest.mark.portable

PRETRAIN = (
    "pretrain --data text.txt --documents blank-line --model-type gpt2 --set tokenizer.algorithm=char --block-size 32 "
    "--set model.config.n_embd=8 --set model.config.n_layer=1 --set model.config.n_head=1 --max-steps 20 "
    "--batch-size 4 --save-steps 8 --eval-steps 8 --logging-steps 4 --lr 1e-2 --output-dir stopped"
)

PERPLEXITY = {"value": 29.327076526695055, "low": 28.20304208994138, "high": 30.63762651292786}

LAST = {"loss": 3.328695058822632, "grad_norm": 0.65644371509552}  # of the last four steps, and of the last

EVALUATION = {"eval_loss": 3.339626482192506, "eval_token_accuracy": 0.1978021978021978}  # at step 16


@pytest.fixture(autouse=True)
def older_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(Path(__file__).with_name("older_runs.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def close(expected: object) -> object:
    return pytest.approx(expected, rel=1e-5)


def test_a_stopped_run_resumes_and_ends_as_if_it_had_not_been_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PRETRAIN.split(), "--resume", "auto"]) == 0
    assert "resuming from step 13" in capsys.readouterr().err
    log = [json.loads(line) for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [4, 8, 8, 12, 13, 16, 16, 20, 20]
    assert {name: log[-2][name] for name in LAST} == close(LAST)
    assert {name: log[-3][name] for name in EVALUATION} == close(EVALUATION)
    scores = json.loads(Path("stopped/eval_results.json").read_text())["metrics"]
    assert scores["validation"]["perplexity"]["value"] == close(PERPLEXITY["value"])  # intervals are others since then
    assert scores["before training"]["perplexity"]["value"] == close(63.147300637157876)
    assert json.loads(Path("stopped/run.json").read_text())["steps"] == 20


def test_a_setting_that_differs_from_the_older_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PRETRAIN.replace("--lr 1e-2", "--lr 2e-2").split(), "--resume", "auto"]) == 2
    assert "train.learning_rate" in capsys.readouterr().err


def test_a_finished_run_is_not_trained_again(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "finetune --model base --data train.csv --validation dev.csv --epochs 30 --lr 2e-2 --warmup-steps 0.1 "
        "--batch-size 8 --output-dir labels --resume auto --json"
    )
    written = Path("labels/model.safetensors").stat().st_mtime
    assert main(arguments.split()) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"]["value"] == 1
    assert Path("labels/model.safetensors").stat().st_mtime == written


def test_a_run_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    kept = json.loads(Path("labels/eval_results.json").read_text())["metrics"]["validation"]
    assert main(["evaluate", "labels", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    for name, score in kept.items():
        definition = score.pop("definition")
        assert metrics[name].pop("definition") == definition
        assert list(metrics[name].values()) == [value if value is None else close(value) for value in score.values()]


def test_a_run_predicts() -> None:
    kept = [json.loads(line) for line in Path("labels/validation_predictions.jsonl").read_text().splitlines()]
    answers = hfkit.predict("labels", [row["text"] for row in kept])
    assert [answer["label"] for answer in answers] == [row["prediction"] for row in kept]
    assert {row["prediction"] for row in kept} == {"good", "bad"}
    for answer, row in zip(answers, kept, strict=True):
        assert answer["probabilities"] == close(row["probabilities"])


def test_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "labels", "other", "--metrics", "accuracy,log_loss", "--json"]) == 0
    accuracy, log_loss = json.loads(capsys.readouterr().out)["differences"]
    assert (accuracy["first"], accuracy["value"], accuracy["difference"], accuracy["p"]) == (1, 0.5, -0.5, 0.0625)
    assert (log_loss["first"], log_loss["value"]) == close((0.006303964636371728, 0.69314718))
