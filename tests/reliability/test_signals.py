"""SIGTERM and Ctrl-C at any moment: the step is saved, the state is told, the run goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Ended, Material, SignalAt, at_step, committed, contents, hfkit, launch, state_hash, status

from hfkit.system.signals import stop_signals

Resumed = Callable[..., Ended]
Unbroken = Callable[..., str]
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def assert_stopped(ended: Ended, run: Path, number: int = signal.SIGTERM) -> None:
    """One line of error, the exit code, a state that agrees, and no checkpoint that isn't whole."""
    assert ended.code == CODES[number], ended.err
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.err
    assert signal.Signals(number).name in errors[0]
    assert "Traceback" not in ended.err
    assert status(run)["state"] == "stopped"
    assert status(run)["step"] == max(committed(run), default=0)
    assert [path.name for path in sorted(run.glob("checkpoint-*"))] == sorted(
        f"checkpoint-{step}" for step in committed(run)
    )


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("clm", []),
        ("mlm", ["--gradient-accumulation-steps", "3"]),
        ("classification", ["--dataloader-num-workers", "2"]),
    ],
    ids=["clm", "mlm-accumulated", "classification-2-workers"],
)
def test_stopped_while_training(
    number: int, task: str, more: list[str], material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path
) -> None:
    """The signal goes to all processes of the run, as from a terminal or a scheduler."""
    run = tmp_path / "run"
    launched = launch(material.command(task, run, *more), tmp_path / "said")
    launched.wait_until(lambda: 5 in committed(run))
    start = time.monotonic()
    os.killpg(launched.processes[0].pid, number)
    ended = launched.wait()
    assert time.monotonic() - start < 10
    assert_stopped(ended, run, number)
    assert not (run / "model.safetensors").exists()
    assert not (run / "all_results.json").exists()
    assert resumed(task, run, *more).code == 0
    assert state_hash(run) == unbroken(task, *more)


def test_the_very_step_is_saved(material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = hfkit(material.command("mlm", run), tmp_path / "said", faults=[at_step(4, signal.SIGTERM)])
    assert_stopped(ended, run)
    assert committed(run) == [5]  # step 4 was over, the next one is the first that can be saved
    assert "step 5 is saved" in ended.err
    assert resumed("mlm", run).code == 0
    assert state_hash(run) == unbroken("mlm")


MOMENTS = {
    "before step 1": SignalAt(signal.SIGTERM, ".recipe.yaml"),
    "saving": SignalAt(signal.SIGTERM, "checkpoint-10", event="os.mkdir"),
    "committing": SignalAt(signal.SIGTERM, "checkpoint-10/.committed.json"),
    "rotating": SignalAt(signal.SIGTERM, "checkpoint-5/config.json", event="os.remove"),
    "last step": at_step(20, signal.SIGTERM),
    "last commit": SignalAt(signal.SIGTERM, "checkpoint-20/.committed.json"),
    "exporting": SignalAt(signal.SIGTERM, ".staged", event="os.mkdir"),
    "moving the export": SignalAt(signal.SIGTERM, ".staged/model.safetensors", event="os.rename"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_at_any_moment(
    moment: str, material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = hfkit(material.command("clm", run), tmp_path / "said", faults=[MOMENTS[moment]])
    assert_stopped(ended, run)
    assert resumed("clm", run).code == 0
    assert state_hash(run) == unbroken("clm")


def test_finished_is_not_stopped(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = SignalAt(signal.SIGTERM, ".all_results.json")
    assert hfkit(material.command("clm", run), tmp_path / "said", faults=[fault]).code == 0
    assert status(run)["state"] == "finished"


def test_stopped_before_there_is_a_run(material: Material, killed: Path, tmp_path: Path) -> None:
    """While the data is read: no directory is made; one that is there says so and keeps what it has."""
    fault = SignalAt(signal.SIGTERM, "gpt2-tiny/config.json", event="open", reading=True)
    ended = hfkit(material.command("clm", tmp_path / "new"), tmp_path / "said", faults=[fault])
    assert ended.code == 143
    assert not (tmp_path / "new").exists()
    before = contents(killed / "checkpoint-10")
    ended = hfkit([*material.command("clm", killed), "--resume", "auto"], tmp_path / "said", faults=[fault])
    assert_stopped(ended, killed)
    assert contents(killed / "checkpoint-10") == before


def test_stopped_while_evaluating(material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path) -> None:
    """An evaluation of many batches ends after the one at hand."""
    run = tmp_path / "run"
    more = ("--eval-batch-size", "1", "--validation-split", "0.5")
    launched = launch(material.command("clm", run, *more), tmp_path / "said")
    launched.wait_until(lambda: 5 in committed(run))  # the step is saved, its evaluation begins
    launched.signal(signal.SIGTERM)
    ended = launched.wait()
    assert_stopped(ended, run)
    assert resumed("clm", run, *more).code == 0
    assert state_hash(run) == unbroken("clm", *more)


def test_second_sigterm_changes_nothing(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    faults = [
        SignalAt(signal.SIGTERM, "checkpoint-10", event="os.mkdir"),
        SignalAt(signal.SIGTERM, "checkpoint-10/.committed.json"),
    ]
    ended = hfkit(material.command("clm", run), tmp_path / "said", faults=faults)
    assert_stopped(ended, run)
    assert committed(run) == [5, 10]


def test_second_ctrl_c_aborts_at_once(material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    faults = [
        SignalAt(signal.SIGINT, "checkpoint-10", event="os.mkdir"),
        SignalAt(signal.SIGINT, "checkpoint-10/trainer_state.json"),
    ]
    ended = hfkit(material.command("clm", run), tmp_path / "said", faults=faults)
    assert_stopped(ended, run, signal.SIGINT)
    assert committed(run) == [5]
    assert resumed("clm", run).code == 0
    assert state_hash(run) == unbroken("clm")


@pytest.mark.parametrize("signalled", [(0,), (1,), (0, 1)], ids=str)
def test_all_ranks_stop_at_one_step(
    signalled: tuple[int, ...], material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    launched = launch(material.command("mlm", run), tmp_path / "said", ranks=2)
    launched.wait_until(lambda: 5 in committed(run))
    launched.signal(signal.SIGTERM, *signalled)
    ended = launched.wait()
    assert ended.codes == [143, 143], ended.err
    assert_stopped(ended, run)
    assert resumed("mlm", run, ranks=2).codes == [0, 0]
    assert state_hash(run) == unbroken("mlm", ranks=2)


@pytest.mark.parametrize("path", ["checkpoint-5/.committed.json", ".recipe.yaml"])
def test_signal_to_rank_0_between_steps(path: str, material: Material, tmp_path: Path) -> None:
    """Where the ranks have to agree whether an evaluation follows, and before the first step."""
    run = tmp_path / "run"
    ended = hfkit(material.command("clm", run), tmp_path / "said", ranks=2, faults=[SignalAt(signal.SIGTERM, path)])
    assert ended.codes == [143, 143], ended.err
    assert_stopped(ended, run)


def test_signal_to_rank_1_in_a_save(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = SignalAt(signal.SIGTERM, "checkpoint-5", event="os.mkdir")
    ended = hfkit(material.command("clm", run), tmp_path / "said", ranks=2, faults=[fault], faulty_rank=1)
    assert ended.codes == [143, 143], ended.err
    assert_stopped(ended, run)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_the_others(
    rank: int, material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    patient = ["--set", "train.extra.ddp_timeout=15"]  # gloo hears of a death at once, or now and then not at all
    launched = launch(material.command("mlm", run, *patient), tmp_path / "said", ranks=2)
    launched.wait_until(lambda: 10 in committed(run))
    launched.signal(signal.SIGKILL, rank)
    ended = launched.wait()
    assert all(code != 0 for code in ended.codes)
    assert ended.seconds < 30
    again = resumed("mlm", run, *patient, ranks=2)
    assert again.codes == [0, 0], again.err
    assert state_hash(run) == unbroken("mlm", ranks=2)


def ask_each_other(arguments: list[str]) -> int:
    """A rank whose fellow hears of a signal while the two ask each other; 0 where both know of it the next time."""
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState(cpu=True)
    pids: list[int] = [0, 0]
    dist.all_gather_object(pids, os.getpid())
    with stop_signals() as signals:
        signals.immediate = False
        if dist.get_rank() == 1:
            time.sleep(0.5)  # the other waits for this one by now
            os.kill(pids[0], signal.SIGTERM)
            time.sleep(0.1)
        signals.on_any_rank("cpu")
        known = signals.on_any_rank("cpu")
    return 0 if known and signals.caught == signal.SIGTERM else 1


def test_signal_while_ranks_ask_each_other(tmp_path: Path) -> None:
    launched = launch([], tmp_path / "said", ranks=2, program=ask_each_other)
    launched.wait()
    assert [process.exitcode for process in launched.processes] == [0, 0]


def test_every_signal_is_heeded_again_after_it_was_ignored() -> None:
    with stop_signals() as signals:
        signals.ignore()
        signals.heed()
        assert [signal.getsignal(number) for number in CODES] == [signals.handle] * 3
