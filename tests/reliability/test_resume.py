"""A run goes on as the run it was, or says what is different; a finished one stays as it is."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Ended, Material, SignalAt, at_step, contents, hfkit, launch, state_hash, status

Resumed = Callable[..., Ended]
Unbroken = Callable[..., str]


def test_finished_run_is_left_alone(finished: Path, resumed: Resumed) -> None:
    before = contents(finished)
    for more in ([], ["--extend"]):
        again = resumed("clm", finished, *more)
        assert again.code == 0
        assert "nothing to do" in again.err
        assert contents(finished) == {**before, "lock.json": contents(finished)["lock.json"]}


def test_finished_run_with_other_settings(finished: Path, resumed: Resumed) -> None:
    before = contents(finished)
    again = resumed("clm", finished, "--learning-rate", "0.5", "--seed", "7")
    assert again.code == 2
    assert "train.learning_rate: 0.001 -> 0.5" in again.err
    assert "train.seed: 42 -> 7" in again.err
    assert contents(finished) == before


def test_finished_run_extended(finished: Path, resumed: Resumed) -> None:
    refused = resumed("clm", finished, "--max-steps", "30")
    assert refused.code == 2
    assert "train.max_steps: 20 -> 30 (fix: --extend for a longer run" in refused.err
    longer = resumed("clm", finished, "--max-steps", "30", "--extend")
    assert longer.code == 0, longer.err
    assert "warning: extended from 20 to 30 steps" in longer.err
    assert "resuming from step 20 " in longer.err
    assert status(finished)["step"] == 30
    before = contents(finished)
    assert "nothing to do" in resumed("clm", finished, "--max-steps", "30").err
    assert contents(finished) == before


CHANGES = {
    "train.seed: 42 -> 1": ["--seed", "1"],
    "train.per_device_train_batch_size: 4 -> 8": ["--batch-size", "8"],
    "train.learning_rate: 0.001 -> 0.002": ["--learning-rate", "0.002"],
    "train.max_steps: 20 -> 40": ["--max-steps", "40"],
    "train.dropout: 0.1 -> 0.2": ["--dropout", "0.2"],
    "data.block_size: 16 -> 32": ["--block-size", "32"],
}


def test_changed_settings_are_all_named(killed: Path, resumed: Resumed, material: Material) -> None:
    before = contents(killed)
    others = resumed("clm", killed, *(word for words in CHANGES.values() for word in words))
    assert others.code == 2
    for change in CHANGES:
        assert change in others.err
    assert sum(line.startswith("error: ") for line in others.err.splitlines()) == len(CHANGES) + 1  # and architecture
    assert {**contents(killed), "lock.json": ""} == {**before, "lock.json": ""}


def test_changed_model_and_world(killed: Path, resumed: Resumed, material: Material) -> None:
    wider = resumed("clm", killed, "--set", "model.config.n_inner=48", "--from-scratch")
    assert wider.code == 2
    assert "model.from_scratch: False -> True" in wider.err
    assert "architecture" in wider.err
    ranks = resumed("clm", killed, ranks=2)
    assert ranks.codes == [2, 2]
    assert "processes: 1 -> 2" in ranks.err


def test_allowed_change_goes_on_with_one_warning(killed: Path, resumed: Resumed) -> None:
    again = resumed("clm", killed, "--learning-rate", "0.002", "--seed", "1", "--allow-changed")
    assert again.code == 0, again.err
    warnings = [line for line in again.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "train.learning_rate: 0.001 -> 0.002; train.seed: 42 -> 1" in warnings[0]


def test_longer_run(killed: Path, resumed: Resumed) -> None:
    refused = resumed("clm", killed, "--max-steps", "25")
    assert refused.code == 2
    assert "train.max_steps: 20 -> 25 (fix: --extend for a longer run)" in refused.err
    shorter = resumed("clm", killed, "--max-steps", "15", "--extend")
    assert shorter.code == 2
    longer = resumed("clm", killed, "--max-steps", "25", "--extend")
    assert longer.code == 0, longer.err
    assert status(killed)["step"] == 25


def test_edited_chat_template(material: Material, tmp_path: Path) -> None:
    template, run = tmp_path / "chat.jinja", tmp_path / "run"
    shutil.copy(material.template, template)
    command = [str(template) if word == str(material.template) else word for word in material.command("chat", run)]
    hfkit(command, tmp_path / "said", faults=[at_step(12)])
    template.write_text(template.read_text().replace("eos_token }}{% endfor %}", "eos_token + 'x' }}{% endfor %}"))
    again = hfkit([*command, "--resume", "auto"], tmp_path / "again")
    assert again.code == 2
    assert "checkpoint-10 is of another run: chat template: " in again.err


def test_edited_data_of_the_same_size_and_time(material: Material, tmp_path: Path) -> None:
    data, run = tmp_path / "text.txt", tmp_path / "run"
    shutil.copy(material.text, data)
    command = material.command("clm", run, "--data", str(data))
    command.remove(str(material.text))
    command.remove("--data")
    hfkit(command, tmp_path / "said", faults=[at_step(12)])
    held, times = data.read_text(encoding="utf-8"), data.stat()
    data.write_text(held.replace("fox", "cat", 1), encoding="utf-8")
    os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = hfkit([*command, "--resume", "auto"], tmp_path / "again")
    assert again.code == 2
    assert "training data changed since step 10" in again.err
    moved = tmp_path / "moved.txt"
    moved.write_text(held, encoding="utf-8")
    command[command.index(str(data))] = str(moved)
    assert hfkit([*command, "--resume", "auto"], tmp_path / "again").code == 0


def test_start_in_a_directory_in_use(killed: Path, material: Material, tmp_path: Path) -> None:
    before = contents(killed)
    ended = hfkit(material.command("clm", killed), tmp_path / "said")
    assert ended.code == 2
    assert "not empty" in ended.err
    assert contents(killed) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine", encoding="utf-8")
    for more in ([], ["--resume", "auto"], ["--overwrite"]):
        ended = hfkit([*material.command("clm", foreign), *more], tmp_path / "said")
        assert ended.code == 2
        assert "not empty" in ended.err
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("more", [[], ["--resume", "auto"], ["--overwrite"]], ids=" ".join)
def test_two_runs_in_one_directory(more: list[str], material: Material, unbroken: Unbroken, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = launch(material.command("clm", run), tmp_path / "first")
    first.wait_until(lambda: (run / "checkpoint-5").exists())
    second = hfkit([*material.command("clm", run, "--seed", "1"), *more], tmp_path / "second")
    assert second.code == 75
    assert re.search(r"in use by pid \d+ on host \S+", second.err)
    assert str(first.processes[0].pid) in second.err
    assert first.wait().code == 0
    assert state_hash(run) == unbroken("clm")


def test_lock_is_free_after_a_kill_with_workers(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = material.command("clm", run, "--dataloader-num-workers", "2")
    assert hfkit(command, tmp_path / "said", faults=[at_step(7)]).code == -signal.SIGKILL
    again = hfkit([*command, "--resume", "auto"], tmp_path / "again")
    assert again.code == 0, again.err


def test_resume_from_what_is_no_checkpoint(killed: Path, material: Material, tmp_path: Path) -> None:
    empty, file = killed / "checkpoint-7", tmp_path / "file"
    empty.mkdir()
    file.write_text("", encoding="utf-8")
    for path, reason in ((killed / "checkpoint-8", "no such checkpoint"), (empty, "incomplete"), (file, "a file")):
        ended = hfkit([*material.command("clm", killed), "--resume", str(path)], tmp_path / "said")
        assert ended.code == 5
        assert f"{path}: {reason}" in ended.err


def test_resume_from_a_named_checkpoint(killed: Path, material: Material, unbroken: Unbroken, tmp_path: Path) -> None:
    new = tmp_path / "new"
    for run in (new, killed):
        ended = hfkit([*material.command("clm", run), "--resume", str(killed / "checkpoint-5")], tmp_path / "said")
        assert ended.code == 0, ended.err
        assert "resuming from step 5" in ended.err
        assert state_hash(run) == unbroken("clm")


@pytest.mark.portable
def test_metrics_are_those_of_an_unbroken_run(killed: Path, finished: Path, resumed: Resumed) -> None:
    def steps(run: Path) -> list[tuple[int, object]]:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [(entry["step"], entry.get("loss", entry.get("eval_loss"))) for entry in map(json.loads, lines)]

    assert resumed("clm", killed).code == 0
    assert steps(killed) == steps(finished)


def test_uncommitted_checkpoint_is_no_model(killed: Path, material: Material, tmp_path: Path) -> None:
    (killed / "checkpoint-10" / "committed.json").unlink()
    for command in (
        ["evaluate", str(killed / "checkpoint-10"), "--data", str(material.text)],
        ["generate", "--model", str(killed / "checkpoint-10"), "--prompt", "hello"],
        ["pretrain", "--model", str(killed / "checkpoint-10"), "--data", str(material.text)],
    ):
        ended = hfkit(command, tmp_path / "said")
        assert ended.code == 5, ended.err
        assert "checkpoint-10: incomplete: its save was interrupted" in ended.err
        assert "checkpoint-5" in ended.err


def test_checkpoint_of_the_stock_trainer_is_a_model(killed: Path, material: Material, tmp_path: Path) -> None:
    foreign = tmp_path / "elsewhere" / "checkpoint-10"
    shutil.copytree(killed / "checkpoint-10", foreign)
    (foreign / "committed.json").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(material.gpt2 / name, foreign)
    ended = hfkit(["generate", "--model", str(foreign), "--prompt", "hello"], tmp_path / "said")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("task", ["clm", "mlm", "classification", "tags"])
@pytest.mark.portable
def test_workers_change_nothing(task: str, unbroken: Unbroken) -> None:
    assert unbroken(task) == unbroken(task, "--dataloader-num-workers", "2")


def test_interrupted_removal_is_finished_later(
    killed: Path, resumed: Resumed, material: Material, tmp_path: Path
) -> None:
    fault = SignalAt(signal.SIGKILL, "checkpoint-5/config.json", event="os.remove")
    command = [*material.command("clm", killed), "--resume", "auto"]
    assert hfkit(command, tmp_path / "said", faults=[fault]).code == -signal.SIGKILL
    assert (killed / "checkpoint-5" / "removing.json").exists()
    assert resumed("clm", killed).code == 0
    assert not (killed / "checkpoint-5").exists()


def test_not_writable(material: Material, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for run in (file, file / "run", Path("/proc/run")):
        ended = hfkit(material.command("clm", run), tmp_path / "said")
        assert ended.code == 6, ended.err
        assert str(file if run != Path("/proc/run") else run) in ended.err
        assert "model:" not in ended.err


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory(killed: Path, material: Material, tmp_path: Path) -> None:
    before = contents(killed / "checkpoint-10")
    command = material.command("clm", killed, "--batch-size", "20000", "--gradient-accumulation-steps", "3")
    ended = hfkit([*command, "--resume", "auto", "--allow-changed"], tmp_path / "said", faults=[limit_memory])
    assert ended.code == 7, ended.err
    assert "out of memory; step 10 is saved" in ended.err
    assert "--batch-size 10000 --gradient-accumulation-steps 6" in ended.err
    assert contents(killed / "checkpoint-10") == before
    assert status(killed)["state"] == "failed"
    wide = ["--set", "model.config.n_embd=20000", "--from-scratch"]
    ended = hfkit(material.command("clm", tmp_path / "new", *wide), tmp_path / "said", faults=[limit_memory])
    assert ended.code == 7, ended.err
    assert "out of memory; no step is saved yet" in ended.err


def limit_memory() -> None:
    """Leaves the process half a gigabyte more than it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * resource.getpagesize() + (512 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


RESTLESS = ["--learning-rate", "0.3", "--lr-scheduler-type", "constant"]  # now better, now worse
BEST = {
    "kept": ["--best", "nll", *RESTLESS, "--max-steps", "30"],
    "stopped early": ["--early-stopping", "1", *RESTLESS, "--max-steps", "60"],
}
# Lines of metrics.jsonl: five steps, then their evaluation. The n-th is the one that never gets written.
KILLS = {"in the first evaluation": 6, "after it": 8, "in the second evaluation": 12, "in the last evaluation": -1}


@pytest.fixture(scope="module", params=BEST)
def best_run(request: pytest.FixtureRequest, material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with each of BEST; its folder is called so."""
    whole = tmp_path_factory.mktemp("best") / request.param
    ended = hfkit(material.command("clm", whole, *BEST[request.param]), whole.with_name("said"))
    assert ended.code == 0, ended.err
    return whole


@pytest.mark.parametrize("when", KILLS)
@pytest.mark.portable
def test_the_best_model_of_a_resumed_run(
    when: str, best_run: Path, material: Material, resumed: Resumed, tmp_path: Path
) -> None:
    whole, which, run = best_run, best_run.name, tmp_path / "run"
    options = BEST[which]
    lines = (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last_evaluation = max(number for number, line in enumerate(lines, 1) if "eval_nll" in line)
    fault = SignalAt(signal.SIGKILL, "metrics.jsonl", KILLS[when] if KILLS[when] > 0 else last_evaluation)
    killed = hfkit(material.command("clm", run, *options), tmp_path / "said", faults=[fault])
    assert killed.code == -signal.SIGKILL
    again = resumed("clm", run, *options)
    assert again.code == 0, again.err
    best, steps = (json.loads((whole / "run.json").read_text(encoding="utf-8"))[name] for name in ("best", "steps"))
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (manifest["best"], manifest["steps"]) == (best, steps)
    assert steps == 30 if which == "kept" else best["step"] + 5 == steps < 60
    assert state_hash(run) == state_hash(whole)
    contents_of = [(folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for folder in (whole, run)]
    losses = [[line for line in map(json.loads, log) if "loss" in line or "eval_loss" in line] for log in contents_of]
    for first, second in zip(*losses, strict=True):
        assert {k: v for k, v in first.items() if "second" not in k and "runtime" not in k} == {
            k: v for k, v in second.items() if "second" not in k and "runtime" not in k
        }
