"""Ranks that a launcher started: its signals reach them, and its death ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import Material, committed, hfkit, state_hash, status

pytestmark = pytest.mark.soak  # each starts real interpreters, which takes a quarter of a minute

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "-m", "hfkit"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "hfkit"],
    "accelerate of one": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "hfkit"],
    "none": ["-m", "hfkit"],
}


def start(launcher: str, arguments: list[str], said: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with said.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *LAUNCHERS[launcher], *arguments],
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def descendants(pid: int) -> list[int]:
    """Processes below a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [below for child in map(int, children) for below in (child, *descendants(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_end_of_the_launcher_ends_the_ranks(launcher: str, number: int, material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if launcher == "none" and number == signal.SIGKILL:
        pytest.skip("test_kill.py")
    command = material.command("clm", run, "--max-steps", "2000", "--logging-steps", "100")
    process = start(launcher, command, tmp_path / "said")
    ranks = [process.pid]
    try:
        until = time.monotonic() + 90
        while not committed(run):
            assert process.poll() is None, (tmp_path / "said").read_text(encoding="utf-8")
            assert time.monotonic() < until
            time.sleep(0.05)
        ranks += descendants(process.pid)
        process.send_signal(number)
        start_of_end = time.monotonic()
        while process.poll() is None or any(map(alive, ranks)):
            assert time.monotonic() < start_of_end + 30, "an orphan trains on"
            time.sleep(0.02)
        assert status(run)["state"] == "stopped"
        if launcher == "none":
            assert process.returncode == 143
        step = committed(run)[-1]
        assert status(run)["step"] == step
    finally:
        for pid in filter(alive, ranks):
            os.kill(pid, signal.SIGKILL)


def test_torchrun_gives_what_forked_ranks_give(material: Material, tmp_path: Path) -> None:
    command = material.command("mlm", tmp_path / "run")
    assert start("torchrun", command, tmp_path / "said").wait(120) == 0
    assert hfkit(material.command("mlm", tmp_path / "forked"), tmp_path / "forked-said", ranks=2).codes == [0, 0]
    assert state_hash(tmp_path / "run") == state_hash(tmp_path / "forked")


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 4.0])
def test_sigterm_while_libraries_are_imported(seconds: float, material: Material, tmp_path: Path) -> None:
    process = start("none", material.command("clm", tmp_path / "run", "--max-steps", "2000"), tmp_path / "said")
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not (tmp_path / "run" / "status.json").exists() or status(tmp_path / "run")["state"] == "stopped"
