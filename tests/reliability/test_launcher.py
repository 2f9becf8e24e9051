"""Ranks that a launcher started: its signals reach them, and its death ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Material, committed, hfkit, state_hash, status

pytestmark = pytest.mark.soak  # each starts real interpreters, which takes a quarter of a minute

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "-m", "hfkit"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "hfkit"],
    "accelerate of one": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "hfkit"],
    "hfkit": ["-m", "hfkit"],
    "none": ["-m", "hfkit"],
}
IN_TWO = ["--num-processes", "2"]
ENDLESS = ["--max-steps", "2000", "--logging-steps", "100"]


def start(launcher: str, arguments: list[str], said: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
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


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


def listening(pid: int) -> list[str]:
    """The IPv4 addresses at which a process waits for others (all of them is 0.0.0.0)."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists() or link.is_symlink()]
    own = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in own:
                place = bytes.fromhex(local.partition(":")[0])
                found.append(".".join(map(str, place[::-1][:4] if table == "tcp" else place[:4])))
    return found


@contextlib.contextmanager
def under_way(launcher: str, command: list[str], run: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A run that has saved its first step, and its ranks, in their order; none of its processes is left behind."""
    process = start(launcher, command, run.with_name("said"))
    everyone: list[int] = []
    try:
        wait_until(lambda: bool(committed(run)), process)
        everyone = [process.pid, *descendants(process.pid)]
        OF[process.pid] = everyone
        yield process, sorted((pid for pid in everyone if variable(pid, "RANK")), key=lambda pid: variable(pid, "RANK"))
    finally:
        for pid in filter(alive, everyone or [process.pid]):
            os.kill(pid, signal.SIGKILL)
        process.wait()


OF: dict[int, list[int]] = {}  # all processes of a run, by its first one


def variable(pid: int, name: str) -> str:
    """What a process was started with in its environment."""
    pairs = (pair.partition(b"=") for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return next((value.decode() for key, _, value in pairs if key == name.encode()), "")


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for_all(process: subprocess.Popen[bytes]) -> None:
    """Returns when no process of the run is left; fails where one is after half a minute."""
    start_of_end = time.monotonic()
    while process.poll() is None or any(map(alive, OF[process.pid])):
        assert time.monotonic() < start_of_end + 30, "an orphan trains on"
        time.sleep(0.02)


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
    command = material.command("clm", run, *ENDLESS, *(IN_TWO if launcher == "hfkit" else []))
    with under_way(launcher, command, run) as (process, _):
        process.send_signal(number)
        wait_for_all(process)
        assert status(run)["state"] == "stopped"
        if launcher in ("none", "hfkit") and number == signal.SIGTERM:
            assert process.returncode == 143
        assert status(run)["step"] == committed(run)[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_that_is_killed(material: Material, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said"
    command = material.command("clm", run, *ENDLESS, *IN_TWO)
    with under_way("hfkit", command, run) as (process, ranks):
        os.kill(ranks[1], signal.SIGKILL)
        wait_for_all(process)
        assert process.returncode == 128 + signal.SIGKILL
    errors = [line for line in said.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
    assert errors == ["error: rank 1 was ended by SIGKILL"]
    assert "Traceback" not in said.read_text(encoding="utf-8")
    failed = status(run)
    told = {  # by the rank that is left, where it hears of the other before the launcher stops it, or by the launcher
        8: "rank 0 has lost another of the 2 processes",
        128 + signal.SIGKILL: "another process has failed with exit code 137; step ",
    }
    assert failed["state"] == "failed"
    assert told[failed["exit_code"]] in failed["reason"]
    again = start("hfkit", [*command, "--resume", "auto"], said)
    try:
        wait_until(lambda: f"resuming from step {failed['step']} " in said.read_text(encoding="utf-8"), again)
    finally:
        again.terminate()
        assert again.wait(60) == 143


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_that_is_killed_while_the_run_is_scored(material: Material, tmp_path: Path) -> None:
    """The launcher ends the others with SIGTERM then, which is not why the run has ended."""
    run, said, many = tmp_path / "run", tmp_path / "said", tmp_path / "many.csv"
    header, *rows = material.table.read_text(encoding="utf-8").splitlines()
    many.write_text("\n".join([header, *rows * 800]), encoding="utf-8")
    command = ["finetune", "--model", str(material.bert), "--data", str(material.table), "--validation", str(many)]
    settings = ["--max-steps", "2", "--eval-steps", "1000", "--no-interval", "--output-dir", str(run)]
    with under_way("hfkit", [*command, *settings, *IN_TWO], run) as (process, ranks):
        wait_until(lambda: "scoring the validation data" in said.read_text(encoding="utf-8"), process)
        os.kill(ranks[1], signal.SIGKILL)
        wait_for_all(process)
        assert process.returncode == 128 + signal.SIGKILL
    assert "error: rank 1 was ended by SIGKILL" in said.read_text(encoding="utf-8").splitlines()
    assert status(run)["state"] == "failed"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_launcher_that_is_killed(number: int, material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with under_way("hfkit", material.command("clm", run, *ENDLESS, *IN_TWO), run) as (process, _):
        (launcher,) = children(process.pid)
        os.kill(launcher, number)
        wait_for_all(process)
        assert process.returncode == 143
        assert status(run)["state"] == "stopped"
        assert status(run)["step"] == committed(run)[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_loopback_listens(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with under_way("hfkit", material.command("clm", run, *ENDLESS, *IN_TWO), run) as (process, ranks):
        found = {address for pid in (process.pid, *children(process.pid), *ranks) for address in listening(pid)}
        assert found == {"127.0.0.1"}
        process.terminate()
        wait_for_all(process)


def test_hfkit_gives_what_forked_ranks_give(material: Material, tmp_path: Path) -> None:
    command = material.command("mlm", tmp_path / "run", *IN_TWO)
    assert (
        start(
            "hfkit", [*command, "--", "--num_cpu_threads_per_process", os.environ["OMP_NUM_THREADS"]], tmp_path / "said"
        ).wait(120)
        == 0
    )
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert said.count("preparing data and tokenizer, once for all processes") == said.count("model: bert, ") == 1
    assert hfkit(material.command("mlm", tmp_path / "forked"), tmp_path / "forked-said", ranks=2).codes == [0, 0]
    assert state_hash(tmp_path / "run") == state_hash(tmp_path / "forked")


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
    assert process.wait(30) in (143, -signal.SIGTERM)  # a busy machine may take 0.3 s to start Python
    assert not (tmp_path / "run" / "status.json").exists() or status(tmp_path / "run")["state"] == "stopped"
