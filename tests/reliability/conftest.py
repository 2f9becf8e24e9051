"""Material, unbroken runs to compare with, and a cleaner of processes for the reliability tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Ended, Material, at_step, hfkit, state_hash

Unbroken = Callable[..., str]
Resumed = Callable[..., Ended]


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def unbroken(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """The hash of an undisturbed run of a task with more settings; each is run once."""
    known: dict[tuple[object, ...], str] = {}

    def run(task: str, *more: str, ranks: int = 1) -> str:
        key = (task, ranks, *more)
        if key not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            ended = hfkit(material.command(task, folder / "run", *more), folder / "said", ranks=ranks)
            assert ended.codes == [0] * ranks, ended.err
            known[key] = state_hash(folder / "run")
        return known[key]

    return run


@pytest.fixture
def resumed(material: Material) -> Resumed:
    """Continues a run with --resume auto."""

    def run(task: str, folder: Path, *more: str, ranks: int = 1) -> Ended:
        return hfkit([*material.command(task, folder, *more), "--resume", "auto"], folder.parent / "again", ranks=ranks)

    return run


@pytest.fixture(scope="session")
def _whole(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    ended = hfkit(material.command("clm", folder / "run"), folder / "said")
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture
def finished(_whole: Path, tmp_path: Path) -> Path:
    """A finished clm run with checkpoints 15 and 20, a copy for each test."""
    return Path(shutil.copytree(_whole, tmp_path / "finished"))


@pytest.fixture(scope="session")
def _killed(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    hfkit(material.command("clm", folder / "run"), folder / "said", faults=[at_step(12)])
    return folder / "run"


@pytest.fixture
def killed(_killed: Path, tmp_path: Path) -> Path:
    """A clm run that was killed at step 12, with checkpoints 5 and 10, a copy for each test."""
    return Path(shutil.copytree(_killed, tmp_path / "run"))
