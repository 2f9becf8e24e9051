"""A save that dies, finds no room or is damaged later never costs more than the steps since the one before."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import (
    FILES,
    DiesInSave,
    Ended,
    Material,
    SignalAt,
    committed,
    contents,
    hfkit,
    launch,
    resize,
    small_disk,
    state_hash,
    status,
)

Resumed = Callable[..., Ended]
Unbroken = Callable[..., str]

POINTS = [
    *((file, half) for file in FILES for half in (True, False) if file != "trainer_state.json" or half),
    ("checkpoint-10", False),  # the folder is there and empty
    (".committed.json", False),  # everything is there but the marker
    ("committed.json", False),
]


def fault_at(file: str, half: bool, model: Path) -> DiesInSave | SignalAt:
    if file in FILES:
        return DiesInSave(model, 10, file, half)
    if file == "committed.json":
        return SignalAt(signal.SIGKILL, "checkpoint-10/.committed.json", event="os.rename")
    if file == ".committed.json":
        return SignalAt(signal.SIGKILL, "checkpoint-10/.committed.json")
    return SignalAt(signal.SIGKILL, "checkpoint-10", nth=2, event="os.mkdir")


def test_killed_inside_a_save(material: Material, unbroken: Unbroken, finished: Path, tmp_path: Path) -> None:
    """At 16 points of the save of step 10, one after the other in the same run directory."""
    run = tmp_path / "saved"
    model, folder = finished / "checkpoint-15", run / "checkpoint-10"
    arguments = [*material.command("clm", run), "--resume", "auto"]
    for number, (file, half) in enumerate(POINTS):
        ended = hfkit(arguments, tmp_path / "said", faults=[fault_at(file, half, model)])
        assert ended.code in (-signal.SIGKILL, -signal.SIGXFSZ), (file, half, ended.err)
        assert committed(run) == [5], (file, half)
        if number > 0:
            assert "checkpoint-10 is passed over, incomplete" in ended.err, (file, half)
            assert "resuming from step 5 " in ended.err, (file, half)
        if half and file != "model.safetensors":  # whose parts are in a temporary file
            assert 0 <= (folder / file).stat().st_size < (model / file).stat().st_size, file
    ended = hfkit(arguments, tmp_path / "said")
    assert ended.code == 0, ended.err
    assert "checkpoint-10 is passed over, incomplete" in ended.err
    assert state_hash(run) == unbroken("clm")


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_inside_the_first_save(
    ranks: int, material: Material, unbroken: Unbroken, resumed: Resumed, tmp_path: Path
) -> None:
    """Nothing was ever saved, so the run starts again, with its first evaluation on all ranks."""
    run = tmp_path / "run"
    fault = SignalAt(signal.SIGKILL, "checkpoint-5/.committed.json")
    assert hfkit(material.command("clm", run), tmp_path / "said", ranks=ranks, faults=[fault]).code == -signal.SIGKILL
    again = resumed("clm", run, ranks=ranks)
    assert again.codes == [0] * ranks, again.err
    assert "checkpoint-5 is passed over, incomplete" in again.err
    assert state_hash(run) == unbroken("clm", ranks=ranks)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path / "disk", "size=2000k") as folder:
            yield folder
    except PermissionError as error:
        pytest.skip(str(error))


def checkpoint_bytes(run: Path) -> int:
    return sum(path.stat().st_size for path in (run / "checkpoint-15").iterdir())


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(max(shutil.disk_usage(folder).free - leave, 0)))
    return ballast


@pytest.mark.parametrize("keep", ["1", "2"])
def test_disk_that_fills_up_while_training(
    keep: str, disk: Path, material: Material, unbroken: Unbroken, finished: Path, tmp_path: Path
) -> None:
    run = disk / "run"
    more = ("--save-total-limit", keep)
    launched = launch(material.command("clm", run, *more), tmp_path / "said")
    launched.wait_until(lambda: 5 in committed(run))
    ballast = fill(disk, checkpoint_bytes(finished) // 2)
    ended = launched.wait()
    assert ended.code == 6, ended.err
    last = max(committed(run))
    error = ended.err.splitlines()[-1]
    assert "disk full" in error
    assert "needs" in error
    assert f"step {last} is saved" in error
    assert len(ended.err.split("error: ")) == 2
    assert status(run)["state"] == "failed"
    assert "disk full" in status(run)["reason"]
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{step}" for step in committed(run)]
    ballast.unlink()
    again = hfkit([*material.command("clm", run, *more), "--resume", "auto"], tmp_path / "again")
    assert again.code == 0, again.err
    assert state_hash(run) == unbroken("clm")


def test_disk_that_is_full_in_the_middle_of_a_save(
    disk: Path, material: Material, unbroken: Unbroken, finished: Path, tmp_path: Path
) -> None:
    """The check before the save sees room, another program takes it while the save runs."""
    run = disk / "run"
    ended = hfkit(material.command("clm", run), tmp_path / "said", faults=[FillsDisk(disk, 60_000, "checkpoint-15")])
    assert ended.code == 6, ended.err
    assert "disk full" in ended.err.splitlines()[-1]
    assert "step 10 is saved" in ended.err
    assert not (run / "checkpoint-15").exists()
    assert status(run)["state"] == "failed"
    (disk / "ballast").unlink()
    again = hfkit([*material.command("clm", run), "--resume", "auto"], tmp_path / "again")
    assert "resuming from step 10" in again.err
    assert again.code == 0
    assert state_hash(run) == unbroken("clm")


class FillsDisk:
    """Another program that fills the disk but for some bytes when a folder is made."""

    def __init__(self, disk: Path, leave: int, folder: str) -> None:
        self.disk, self.leave, self.folder = disk, leave, folder

    def __call__(self) -> None:
        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event == "os.mkdir" and str(arguments[0]).endswith(self.folder) and not (self.disk / "ballast").exists():
                fill(self.disk, self.leave)

        sys.addaudithook(hook)


def test_disk_too_small_from_the_start(disk: Path, material: Material, tmp_path: Path) -> None:
    resize(disk, 300)
    ended = hfkit(material.command("clm", disk / "run"), tmp_path / "said")
    assert ended.code == 6
    assert "disk full: this run needs" in ended.err.splitlines()[-1]
    assert "step " not in ended.err  # before training


@pytest.mark.parametrize("option", ["ro", "nr_inodes=1"])
def test_disk_that_takes_no_file(option: str, material: Material, tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", "size=2000k", option) as folder:
            ended = hfkit(material.command("clm", folder / "run"), tmp_path / "said")
    except PermissionError as error:
        pytest.skip(str(error))
    assert ended.code == 6, ended.err
    assert f"{folder / 'run'}: can't be written" in ended.err
    assert "model:" not in ended.err


def test_disk_full_at_export_leaves_the_older_model(
    disk: Path, material: Material, finished: Path, tmp_path: Path
) -> None:
    run = disk / "run"
    shutil.copytree(finished, run)
    before = contents(run)
    command = material.command("clm", run, "--learning-rate", "2e-3")
    ended = hfkit([*command, "--overwrite"], tmp_path / "said", faults=[FillsDisk(disk, 20_000, ".staged")])
    assert ended.code == 6, ended.err
    assert "disk full" in ended.err.splitlines()[-1]
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert contents(run)[name] == before[name]
    (disk / "ballast").unlink()
    assert hfkit([*command, "--resume", "auto"], tmp_path / "again").code == 0
    assert contents(run)["model.safetensors"] != before["model.safetensors"]
    assert not (run / ".staged").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"])
def test_missing_file_falls_back(name: str, killed: Path, resumed: Resumed, unbroken: Unbroken) -> None:
    (killed / "checkpoint-10" / name).unlink()
    again = resumed("clm", killed)
    assert f"checkpoint-10 is passed over, incomplete: {name}" in again.err
    assert "resuming from step 5 " in again.err
    assert again.code == 0
    assert state_hash(killed) == unbroken("clm")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_flipped_bit_falls_back(name: str, killed: Path, resumed: Resumed, unbroken: Unbroken) -> None:
    path = killed / "checkpoint-10" / name
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 4
    path.write_bytes(held)
    again = resumed("clm", killed)
    assert f"checkpoint-10 is passed over, damaged: {name}" in again.err
    assert again.code == 0
    assert state_hash(killed) == unbroken("clm")


def test_damage_to_the_only_checkpoint(killed: Path, resumed: Resumed) -> None:
    shutil.rmtree(killed / "checkpoint-5")
    (killed / "checkpoint-10" / "optimizer.pt").unlink()
    before = contents(killed / "checkpoint-10")
    again = resumed("clm", killed)
    assert again.code == 5
    assert "checkpoint-10 incomplete: optimizer.pt" in again.err
    assert contents(killed / "checkpoint-10") == before


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"config.json": 3}}'])
def test_marker_that_is_no_marker(text: str, killed: Path, resumed: Resumed) -> None:
    (killed / "checkpoint-10" / "committed.json").write_text(text, encoding="utf-8")
    again = resumed("clm", killed, "--seed", "1")
    assert "checkpoint-10 is passed over, damaged: committed.json can't be read" in again.err
    assert "checkpoint-5 is of another run: train.seed: 42 -> 1" in again.err


def test_exactly_the_newest_are_kept(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = material.command("clm", run, "--save-steps", "2", "--save-total-limit", "3")
    assert hfkit(command, tmp_path / "said").code == 0
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-16", "checkpoint-18", "checkpoint-20"]


def test_rotation_by_step_and_never_what_is_not_its_own(
    killed: Path, resumed: Resumed, unbroken: Unbroken, tmp_path: Path
) -> None:
    """Old and equal times as after cp -r, folders and files of the user, a link with a checkpoint's name."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(killed / "checkpoint-5", elsewhere)
    (killed / "checkpoint-notes").mkdir()
    (killed / "checkpoint-notes" / "notes.txt").write_text("mine", encoding="utf-8")
    (killed / "checkpoint-5" / "keep.txt").write_text("mine", encoding="utf-8")
    (killed / "checkpoint-15").mkdir()
    (killed / "checkpoint-15" / "keep.txt").write_text("mine", encoding="utf-8")
    (killed / "checkpoint-3").symlink_to(elsewhere)
    for path in killed.rglob("*"):
        os.utime(path, (0, 0) if "checkpoint-5" not in str(path) else (2**31, 2**31))
    before = contents(elsewhere)
    again = resumed("clm", killed, "--save-total-limit", "1")
    assert again.code == 0, again.err
    assert state_hash(killed) == unbroken("clm")
    assert contents(elsewhere) == before
    assert committed(killed) == [3, 20]  # 3 is what the link shows
    assert [path.name for path in (killed / "checkpoint-5").iterdir()] == ["keep.txt"]
    assert [path.name for path in (killed / "checkpoint-15").iterdir()] == ["keep.txt"]
    assert (killed / "checkpoint-notes" / "notes.txt").exists()
    assert not (killed / "checkpoint-10").exists()


def test_save_never_follows_a_link(killed: Path, resumed: Resumed, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (killed / "checkpoint-15").symlink_to(elsewhere)
    again = resumed("clm", killed)
    assert again.code == 6
    assert "checkpoint-15: is not a folder of this run; step 10 is saved" in again.err
    assert list(elsewhere.iterdir()) == []


def test_top_level_holds_no_code(finished: Path) -> None:
    allowed = {".safetensors", ".json", ".yaml", ".jsonl", ".txt", ".jinja", ".md", ".html", ".png"}
    assert {path.suffix for path in finished.iterdir() if path.is_file()} <= allowed
    assert {path.name for path in finished.iterdir() if path.is_dir()} == {"checkpoint-15", "checkpoint-20"}
