"""A run that goes back to an earlier checkpoint: what was after it is set aside and never resumed by itself."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
from harness import EVERY, Material, SignalAt, at_step, hfkit, state_hash

from conftest import Resumed
from hfkit.system.checkpoints import set_aside

KEEP = ("--save-total-limit", "9")


def changed(material: Material, run: Path, *more: str) -> list[str]:
    return material.command("clm", run, *KEEP, "--learning-rate", "0.01", *more)


@pytest.fixture(scope="module")
def _broken(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    hfkit(material.command("clm", folder / "run", *KEEP), folder / "said", faults=[at_step(19)])
    return folder / "run"


@pytest.fixture
def broken(_broken: Path, tmp_path: Path) -> Path:
    """A run that was killed at step 19, with checkpoints 5, 10 and 15."""
    return Path(shutil.copytree(_broken, tmp_path / "run"))


def killed_at(step: int, begun: int) -> SignalAt:
    """The end of a process that resumes from the step `begun`, when `step` is logged: first the log is cut."""
    return SignalAt(signal.SIGKILL, "metrics.jsonl", 1 + step + (step - 1) // EVERY - begun - begun // EVERY)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("end", [7, 12])
def test_the_branch_that_was_named_last_is_resumed(broken: Path, material: Material, tmp_path: Path, end: int) -> None:
    back = ["--resume", str(broken / "checkpoint-5"), "--allow-changed"]
    other = hfkit(changed(material, tmp_path / "other", *back), tmp_path / "said")
    assert other.code == 0, other.err
    ended = hfkit(changed(material, broken, *back), tmp_path / "said", faults=[killed_at(end, 5)])
    assert "rewound to checkpoint-5: checkpoint-10, checkpoint-15 set aside in " in ended.err
    assert names(broken / "set-aside" / "1") == ["checkpoint-10", "checkpoint-15"]
    again = hfkit(changed(material, broken, "--resume", "auto"), tmp_path / "said")
    assert again.code == 0, again.err
    assert f"resuming from step {end // 5 * 5} " in again.err
    assert state_hash(broken) == state_hash(tmp_path / "other")


def test_a_branch_that_was_set_aside_can_be_taken_up_again(broken: Path, material: Material, tmp_path: Path) -> None:
    whole = hfkit(material.command("clm", tmp_path / "whole"), tmp_path / "said")
    assert whole.code == 0, whole.err
    back = ["--resume", str(broken / "checkpoint-5"), "--allow-changed"]
    hfkit(changed(material, broken, *back), tmp_path / "said", faults=[killed_at(12, 5)])
    first = [*material.command("clm", broken, *KEEP), "--resume", str(broken / "set-aside" / "1" / "checkpoint-15")]
    ended = hfkit(first, tmp_path / "said", faults=[killed_at(17, 15)])
    assert "rewound to checkpoint-15: checkpoint-5, checkpoint-10 set aside" in ended.err
    moved = broken.rename(tmp_path / "moved")  # no checkpoint but those that were set aside
    again = hfkit([*material.command("clm", moved, *KEEP), "--resume", "auto"], tmp_path / "said")
    assert again.code == 0, again.err
    assert state_hash(moved) == state_hash(tmp_path / "whole")


def test_a_rewind_that_was_interrupted_is_finished(broken: Path, resumed: Resumed) -> None:
    manifest = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**manifest, "rewinding to": "checkpoint-5"}))
    moved = broken.rename(broken.with_name("moved"))
    again = resumed("clm", moved, *KEEP)
    assert again.code == 0, again.err
    assert "resuming from step 5 " in again.err
    assert names(moved / "set-aside" / "1") == ["checkpoint-10", "checkpoint-15"]
    facts = json.loads((moved / "run.json").read_text())
    assert "rewinding to" not in facts
    assert facts["resumed"][-1]["from"] == "checkpoint-5"


def test_each_rewind_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for steps in ([5, 10, 15, 20], [15, 20, 25]):
        for step in steps:
            (tmp_path / f"checkpoint-{step}").mkdir()
        set_aside(tmp_path, 10)
    assert names(tmp_path / "set-aside" / "1") == ["checkpoint-15", "checkpoint-20"]
    assert names(tmp_path / "set-aside" / "2") == ["checkpoint-15", "checkpoint-20", "checkpoint-25"]


@pytest.mark.parametrize("garbage", ["", "{", "[3]", '{"run_id": 3}', None])
def test_a_manifest_that_cannot_be_read_loses_no_checkpoint(
    broken: Path, resumed: Resumed, garbage: str | None
) -> None:
    if garbage is None:
        (broken / "run.json").unlink()
    else:
        (broken / "run.json").write_text(garbage)
    again = resumed("clm", broken, *KEEP)
    assert again.code == 0, again.err
    assert "resuming from step 15 " in again.err
    assert "run.json can't be read: its facts are taken from checkpoint-15" in again.err


def test_a_flipped_bit_in_a_marker_falls_back_to_the_checkpoint_before(broken: Path, resumed: Resumed) -> None:
    marker = broken / "checkpoint-15" / "committed.json"
    marker.write_text(marker.read_text().replace('"train.seed": 42', '"train.seed": 43'))
    again = resumed("clm", broken, *KEEP)
    assert again.code == 0, again.err
    assert "warning: checkpoint-15 is passed over, damaged: committed.json can't be read" in again.err
    assert "resuming from step 10 " in again.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--optimizer", "sgd"], "train.optimizer: adamw -> sgd can't change within a run"),
        (["--lora"], "lora.enabled: False -> True can't change within a run"),
        (["--freeze", "embeddings"], "train.freeze: [] -> ['embeddings'] can't change within a run"),
        (["--from-scratch", "--set", "model.config.n_layer=3"], "checkpoint-15 is of another architecture: "),
        (["--from-scratch", "--set", "model.config.n_inner=48"], "checkpoint-15 is of another architecture: "),
    ],
)
def test_what_a_run_cannot_change_is_refused(broken: Path, resumed: Resumed, change: list[str], message: str) -> None:
    before = names(broken)
    again = resumed("clm", broken, *KEEP, *change, "--allow-changed")
    assert again.code in (2, 5), again.err
    assert message in again.err
    assert "Traceback" not in again.err
    assert names(broken) == before
    if "--from-scratch" not in change:
        assert message in resumed("clm", broken, *KEEP, *change).err  # said at once, not after --allow-changed


def assert_branches_are_kept(material: Material, folder: Path, seed: int) -> None:
    """Kills, rewinds with a change, and resumes a run at random: each start goes on from the branch named last."""
    draw, run, last = random.Random(seed), folder / "run", 20
    rate = "0.001"  # of the branch
    here: dict[int, str] = {}  # the checkpoints of the branch: the rates that they were trained at
    command: list[str] = []
    begun, newer = 0, 0  # the step to start from, and the newest checkpoint after it
    for number in range(5):
        stop = min(begun + draw.randint(1, 9), last - 1)
        faults = [killed_at(stop, begun) if command else at_step(stop)]
        if newer and draw.random() < 0.5:  # in the middle of the rewind, or at its end
            moved = SignalAt(signal.SIGKILL, f"checkpoint-{newer}", event="os.rename")
            faults, stop = [draw.choice([moved, SignalAt(signal.SIGKILL, "run.json", nth=2)])], begun
        ended = hfkit(
            material.command("clm", run, *KEEP, "--learning-rate", rate, *command), folder / "said", faults=faults
        )
        assert ended.code == -signal.SIGKILL, ended.err
        if stop > begun:
            assert (f"resuming from step {begun} " in ended.err) == (begun > 0), ended.err
        here |= {step: rate for step in range(begun + 1, stop) if step % EVERY == 0}
        command, begun, newer = ["--resume", "auto"], max(here, default=0), 0
        if here and draw.random() < 0.6:
            begun, newer = draw.choice(sorted(here)), begun
            newer = 0 if newer == begun else newer
            here = {step: used for step, used in here.items() if step <= begun}
            rate = f"0.{number + 2:03}"
            command = ["--resume", str(run / f"checkpoint-{begun}"), "--allow-changed"]
    ended = hfkit(material.command("clm", run, *KEEP, "--learning-rate", rate, *command), folder / "said")
    assert ended.code == 0, ended.err
    here |= {step: rate for step in range(begun + 1, last + 1) if step % EVERY == 0}
    assert names(run) == sorted(f"checkpoint-{step}" for step in here)
    for step, used in here.items():
        marker = json.loads((run / f"checkpoint-{step}" / "committed.json").read_text())
        assert marker["identity"]["train.learning_rate"] == float(used)


@pytest.mark.parametrize("seed", range(4))
def test_random_chains_end_on_the_branch_that_was_named_last(material: Material, tmp_path: Path, seed: int) -> None:
    assert_branches_are_kept(material, tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4, 16))
def test_many_random_chains(material: Material, tmp_path: Path, seed: int) -> None:
    assert_branches_are_kept(material, tmp_path, seed)
