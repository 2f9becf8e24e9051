"""Two machines for real: two network namespaces of this one with a cable between them, hfkit in each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from harness import Material, committed, launch, state_hash, status

starts_interpreters = pytest.mark.soak  # which takes a minute
PATIENCE = 300.0  # seconds for two machines to start, meet and train, on a busy one
TIMEOUT = 15  # train.ddp_timeout: after so many seconds of silence a machine counts as lost
MORE = ("--set", f"train.extra.ddp_timeout={TIMEOUT}")


class Network:
    """Namespaces `names`, the first with the address 10.83.0.1; all that `ip` has made ends with `close`."""

    def __init__(self) -> None:
        self.names = [f"hfkit-{os.getpid()}-{number}" for number in (0, 1)]
        self.cables = [f"hfkit{number}" for number in (0, 1)]
        for name in self.names:
            ip("netns", "add", name)
        ip("-n", self.names[0], *f"link add {self.cables[0]} type veth peer name {self.cables[1]}".split())
        ip("-n", self.names[0], "link", "set", self.cables[1], "netns", self.names[1])
        for number, name in enumerate(self.names):
            ip("-n", name, "address", "add", f"10.83.0.{number + 1}/24", "dev", self.cables[number])
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", self.cables[number], "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", self.cables[1], "down")

    def mend(self) -> None:
        ip("-n", self.names[1], "link", "set", self.cables[1], "up")

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise PermissionError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def network() -> Iterator[Network]:
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux and its command ip")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = Network.__new__(Network)
    try:
        try:
            made.__init__()  # type: ignore[misc]
        except PermissionError as error:
            pytest.skip(f"network namespaces can't be made here: {error}")
        yield made
    finally:
        made.close()


@contextmanager
def machines(network: Network, arguments: Sequence[str], said: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`hfkit ARGUMENTS` on both machines, one process each; what each says is in `said`-0 and `said`-1."""
    started = []
    try:
        for rank, name in enumerate(network.names):
            many = ["--num-processes", "2", "--num-machines", "2", "--machine-rank", str(rank)]
            command = [sys.executable, "-m", "hfkit", *arguments, *many, "--main-process-ip", "10.83.0.1"]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": network.cables[rank]}
            with Path(f"{said}-{rank}").open("wb") as file:
                inside = ["ip", "netns", "exec", name, *command]
                started.append(subprocess.Popen(inside, stdout=file, stderr=file, env=environment))
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                for below in [*psutil.Process(process.pid).children(recursive=True), process]:
                    below.kill()
            process.wait()


def end(processes: Sequence[subprocess.Popen[bytes]], said: Path, seconds: float = PATIENCE) -> list[int]:
    """Exit codes of both machines, which end within so many `seconds`."""
    until = time.monotonic() + seconds
    try:
        return [process.wait(max(until - time.monotonic(), 0.01)) for process in processes]
    except subprocess.TimeoutExpired:
        words = "\n".join(heard(said, rank) for rank in (0, 1))
        raise AssertionError(f"no end after {seconds} s:\n{words}") from None


def heard(said: Path, rank: int) -> str:
    return Path(f"{said}-{rank}").read_text(encoding="utf-8")


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def test_rank_that_falls_silent_counts_as_lost_after_the_time_out(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = material.command("clm", run, "--set", "train.extra.ddp_timeout=2", "--max-steps", "20000")
    launched = launch(command, tmp_path / "said", ranks=2)
    launched.wait_until(lambda: bool(committed(run)))
    launched.signal(signal.SIGSTOP, 1)
    launched.processes[0].join(PATIENCE)
    launched.signal(signal.SIGKILL, 1)
    ended = launched.wait()
    assert ended.codes == [8, -signal.SIGKILL]
    assert "error: rank 0 has lost another of the 2 processes: timed out waiting; step " in ended.err


@starts_interpreters
def test_two_machines_end_in_the_bits_of_one_with_two_processes(
    network: Network, material: Material, unbroken: Callable[..., str], tmp_path: Path
) -> None:
    run, said = tmp_path / "run", tmp_path / "said"
    with machines(network, material.command("clm", run, *MORE), said) as processes:
        assert end(processes, said) == [0, 0], heard(said, 0) + heard(said, 1)
    assert state_hash(run) == unbroken("clm", *MORE, ranks=2)
    assert len(losses(run)) == 20
    assert "step    20/20" in heard(said, 0)
    assert "step " not in heard(said, 1)


@starts_interpreters
def test_cut_cable_ends_both_machines_in_time_and_the_run_goes_on_from_there(
    network: Network, material: Material, unbroken: Callable[..., str], tmp_path: Path
) -> None:
    run, said = tmp_path / "run", tmp_path / "said"
    more = [*MORE, "--max-steps", "400", "--save-steps", "50", "--eval-steps", "50"]
    command = material.command("clm", run, *more)
    with machines(network, command, said) as processes:
        until = time.monotonic() + PATIENCE
        while not committed(run):
            assert all(process.poll() is None for process in processes), heard(said, 0) + heard(said, 1)
            assert time.monotonic() < until
            time.sleep(0.01)
        network.cut()
        # silence is noticed after the time-out; taking all processes down takes a while on a busy machine
        assert end(processes, said, TIMEOUT + 45) == [8, 8], heard(said, 0) + heard(said, 1)
    step = committed(run)[-1]
    assert step < 400
    for rank in (0, 1):
        problem = f"error: rank {rank} has lost another of the 2 processes: timed out waiting; step {step} is saved"
        assert problem in heard(said, rank)
    assert (status(run)["state"], status(run)["step"]) == ("failed", step)

    network.mend()
    again = tmp_path / "again"
    with machines(network, [*command, "--resume", "auto"], again) as processes:
        assert end(processes, again) == [0, 0], heard(again, 0) + heard(again, 1)
    assert f"resuming from step {step} " in heard(again, 0)
    assert state_hash(run) == unbroken("clm", *more, ranks=2)
