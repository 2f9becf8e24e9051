"""--num-processes: the same numbers from one process and from two, and nothing is started that can't be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_models
from hfkit.cli.main import main

TRAIN = ["pretrain", "--model", "anything", "--data", "text.txt", "--output-dir", "never-made"]


@pytest.mark.parametrize(
    ("options", "problem", "fix"),
    [
        (["--num-processes", "0"], "--num-processes 0: must be at least 1", "--num-processes 2"),
        (["--num-processes", "two"], "--num-processes two: not a number", "--num-processes 2"),
        (["--num-processes", "2,4"], "several numbers of processes are for --plan", "--num-processes 2"),
        (["--num-machines", "2"], "--num-machines has no effect in one process", "--num-processes N"),
        (["--parallel", "ddp"], "--parallel has no effect in one process", "--num-processes N"),
        (["--", "--debug"], "-- --debug has no effect in one process", "--num-processes N"),
        (["--num-processes", "2", "--parallel", "dp"], "--parallel dp: unknown", "ddp or fsdp2"),
        (["--num-processes", "2", "--main-process-ip", "::1"], "no effect on one machine", "--num-machines M"),
        (
            ["--num-processes", "2", "--parallel", "ddp", "--", "--config_file", "zero3.yaml"],
            "--parallel and --config_file both decide how the work is divided",
            "leave one of them out",
        ),
        (
            ["--num-processes", "3", "--num-machines", "2", "--machine-rank", "0", "--main-process-ip", "10.0.0.1"],
            "3 processes can't be divided evenly among 2 machines",
            "--num-processes 2",
        ),
        (
            ["--num-processes", "4", "--num-machines", "2", "--machine-rank", "2", "--main-process-ip", "10.0.0.1"],
            "--machine-rank 2: there are 2 machines",
            "0 on the first machine, 1 on the last",
        ),
        (
            ["--num-processes", "4", "--num-machines", "2"],
            "each of the 2 machines needs its rank and the address of the first one",
            "--machine-rank R --main-process-ip ADDRESS",
        ),
    ],
)
def test_what_can_not_be_started(
    options: list[str], problem: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("hello world\n" * 40, encoding="utf-8")
    assert main([*TRAIN, *options]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert problem in error
    assert f"(fix: {fix}" in error
    assert not (tmp_path / "never-made").exists()


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A classifier of two labels, not trained, whose answers differ from text to text."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    directory = tiny_models.make_bert(tmp_path / "bert")
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = tiny_models.spread(BertForSequenceClassification.from_pretrained(directory, **names))
    model.save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(directory).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_fsdp2_is_refused_without_gpus(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.accelerator.device_count() > 1:
        pytest.skip("this machine has GPUs")
    command = ["predict", str(classifier), "--text", "a", "--num-processes", "2", "--parallel", "fsdp2"]
    assert main(command) == 2
    assert "FSDP2 needs several GPUs" in capsys.readouterr().err


def test_port_in_use(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = ["predict", str(classifier), "--text", "a", "--num-processes", "2", "--main-process-port", port]
        assert main(command) == 2
    assert f"error: port {port} can't be used: Address already in use (fix: " in capsys.readouterr().err


def test_stdin_and_files_of_predictions_are_for_one_process(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(classifier), "--input", "-", "--num-processes", "2"]) == 2
    assert "stdin can't be read by several processes" in capsys.readouterr().err
    texts = tmp_path / "texts.txt"
    texts.write_text("a\n", encoding="utf-8")
    files = ["--predictions", str(texts), "--references", str(texts)]
    assert main(["evaluate", *files, "--num-processes", "2"]) == 2
    assert "--num-processes has no effect on files" in capsys.readouterr().err


def test_a_rank_knows_how_many_there_should_be(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "HFKIT_PROCESSES": "4"}.items():
        monkeypatch.setenv(name, value)
    assert main(["predict", str(classifier), "--text", "a", "--num-processes", "4"]) == 2
    assert "this machine expects 4 processes, but 3 take part" in capsys.readouterr().err
    monkeypatch.delenv("HFKIT_PROCESSES")
    assert main(["predict", str(classifier), "--text", "a", "--num-processes", "4"]) == 2
    assert "a launcher started this process" in capsys.readouterr().err


def hfkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hfkit", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.portable
def test_two_processes_answer_as_one(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [text for text in tiny_models.TEXT[:3] for _ in range(2)] + ["fox"]  # seven rows in batches of two
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = ["predict", str(classifier), "--input", str(tmp_path / "texts.jsonl"), "--json"]
    command += ["--set", "evaluation.batch_size=2"]
    assert main(command) == 0
    alone = capsys.readouterr().out
    several = hfkit(
        *command, "--num-processes", "2", "--", "--num_cpu_threads_per_process", os.environ["OMP_NUM_THREADS"]
    )
    assert several.returncode == 0, several.stderr
    assert several.stdout == alone
    assert [json.loads(line)["text"] for line in alone.splitlines()] == texts


def test_a_rank_that_fails_speaks_once(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("words\nfox\n", encoding="utf-8")
    failed = hfkit("predict", str(classifier), "--input", str(tmp_path / "none.csv"), "--num-processes", "2")
    assert failed.returncode == 3
    errors = failed.stderr.splitlines()
    assert len(errors) == 1, failed.stderr
    assert errors[0].startswith(f"error: {tmp_path / 'none.csv'}")
    wrong = hfkit("predict", str(classifier), "--text", "a", "--num-processes", "2", "--", "--no_such_option")
    assert wrong.returncode == 2
    assert "--no_such_option" in wrong.stderr
