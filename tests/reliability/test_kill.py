"""A run that is killed ends, once resumed, in the very tensors of a run that was not."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import EVERY, STREAMING, Ended, Material, SignalAt, at_step, committed, hfkit, state_hash, status

Resumed = Callable[..., Ended]
Unbroken = Callable[..., str]

WAYS = [
    pytest.param("clm", [], 1, id="clm"),
    pytest.param("mlm", [], 1, id="mlm"),
    pytest.param("classification", [], 1, id="classification"),
    pytest.param("tags", [], 1, id="tags"),
    pytest.param("questions", [], 1, id="questions"),
    pytest.param("completion", [], 1, id="completion"),
    pytest.param("chat", [], 1, id="chat"),
    pytest.param("chat", ["--lora", "--packing"], 1, id="chat-lora-packed"),
    pytest.param("mlm", ["--dataloader-num-workers", "2"], 1, id="mlm-2-workers"),
    pytest.param("clm", ["--gradient-accumulation-steps", "3"], 1, id="clm-accumulated"),
    pytest.param("classification", ["--gradient-accumulation-steps", "2"], 2, id="classification-2-ranks-accumulated"),
    pytest.param("mlm", [], 2, id="mlm-2-ranks"),
    pytest.param("clm", [*STREAMING, "--batch-size", "24"], 1, id="streaming-pass-2"),
    pytest.param("clm", ["--dataloader-num-workers", "2"], 2, id="clm-2-ranks-2-workers"),
]


@pytest.mark.parametrize(("task", "more", "ranks"), WAYS)
@pytest.mark.portable
def test_killed_run_resumes_to_the_same_tensors(
    task: str, more: list[str], ranks: int, material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = hfkit(material.command(task, run, *more), tmp_path / "said", ranks=ranks, faults=[at_step(8)])
    assert ended.code == -signal.SIGKILL
    assert all(code != 0 for code in ended.codes)
    assert ended.seconds < 20
    assert status(run)["state"] == "running"
    again = resumed(task, run, *more, ranks=ranks)
    assert again.codes == [0] * ranks, again.err
    assert f"resuming from step 5 ({run / 'checkpoint-5'})" in again.err
    assert state_hash(run) == unbroken(task, *more, ranks=ranks)
    assert status(run)["state"] == "finished"


@pytest.mark.parametrize("steps", [(1,), (5,), (6, 9, 13), (15, 16, 20)], ids=str)
def test_killed_again_and_again(
    steps: tuple[int, ...], material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path
) -> None:
    """Before the first save, when a save is due, in later epochs, and in the last step."""
    run = tmp_path / "run"
    first = 1
    for step in steps:
        arguments = [*material.command("mlm", run), "--resume", "auto"]
        logged = step - first + 1 + (step - 1) // EVERY - (first - 1) // EVERY
        ended = hfkit(arguments, tmp_path / "said", faults=[SignalAt(signal.SIGKILL, "metrics.jsonl", logged)])
        assert ended.code == -signal.SIGKILL, ended.err
        first = max(committed(run), default=0) + 1
    assert resumed("mlm", run).code == 0
    assert state_hash(run) == unbroken("mlm")
