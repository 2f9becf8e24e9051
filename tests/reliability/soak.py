"""Runs that are killed or stopped at random moments until they finish: `python soak.py N`, N trials.

Each trial is a run of one of the tasks with 1 or 2 processes. It gets SIGKILL or SIGTERM at a moment drawn between its
first step and the end of its export, and is continued with `--resume auto`, with another signal at another moment, up
to three times. The hash over its final weights and optimizer tensors must be that of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tiny_models

from harness import STREAMING, Ended, Launched, Material, committed, hfkit, launch, state_hash, status

# What is run, by name: task and further settings.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "clm": ("clm", ()),
    "mlm": ("mlm", ()),
    "classification": ("classification", ()),
    "streaming": ("clm", STREAMING),
}
RANKS = (1, 2)
EXPECTED = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (143,)}
MOST_SIGNALS = 3  # in one trial


@dataclasses.dataclass
class Cell:
    """The trials of one kind with one number of processes."""

    name: str
    task: str
    more: tuple[str, ...]
    ranks: int
    unbroken: str = ""
    seconds: float = 0.0  # from the first step to the end
    trials: int = 0
    identical: int = 0
    ends: Counter[str] = dataclasses.field(default_factory=Counter)
    stopping: list[float] = dataclasses.field(default_factory=list)  # seconds from SIGTERM to exit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="hfkit-soak-"))
    start = time.monotonic()
    try:
        material = Material(folder)
        cells = [
            prepare(material, Cell(name, task, more, ranks), folder / f"{name}-{ranks}")
            for name, (task, more) in KINDS.items()
            for ranks in RANKS
        ]
        faults: list[str] = []
        for number in range(options.trials):
            cell = cells[number % len(cells)]
            fault = trial(material, cell, folder / "trial", draw)
            cell.trials += 1
            cell.identical += not fault
            if fault:
                faults.append(f"trial {number} ({cell.name}, {cell.ranks} processes): {fault}")
                print(faults[-1], flush=True)
                shutil.copytree(folder / "trial", folder / f"failed-{number}")
            shutil.rmtree(folder / "trial", ignore_errors=True)
        print(table(cells))
        identical = sum(cell.identical for cell in cells)
        print(f"seed {options.seed}, {time.monotonic() - start:.0f} seconds")
        print(f"{identical} of {options.trials} identical")
    finally:
        if not list(folder.glob("failed-*")):
            shutil.rmtree(folder)
    return 0 if not faults else 1


def prepare(material: Material, cell: Cell, folder: Path) -> Cell:
    """`cell` with the hash of its unbroken run, and how long that takes from its first step on."""
    run = folder / "run"
    launched = launch(material.command(cell.task, run, *cell.more), folder / "said", ranks=cell.ranks)
    launched.wait_until(lambda: training(run))
    start = time.monotonic()
    ended = launched.wait()
    assert ended.codes == [0] * cell.ranks, ended.err
    cell.unbroken, cell.seconds = state_hash(run), time.monotonic() - start
    return cell


def trial(material: Material, cell: Cell, folder: Path, draw: random.Random) -> str:
    """What went wrong in one trial; empty where the end is that of the unbroken run."""
    run = folder / "run"
    command = [*material.command(cell.task, run, *cell.more), "--resume", "auto"]
    for _ in range(draw.randint(1, MOST_SIGNALS)):
        number = draw.choice(tuple(EXPECTED))
        to = draw.choice([(), *((rank,) for rank in range(cell.ranks))])  # all ranks, or one
        launched = launch(command, folder / "said", ranks=cell.ranks)
        try:
            launched.wait_until(lambda run=run, pid=launched.processes[0].pid: training(run, pid))
        except AssertionError as error:
            return str(error)
        time.sleep(draw.uniform(0, cell.seconds))
        fault, finished = disturb(cell, launched, run, number, to)
        if fault or finished:
            return fault or difference(cell, run)
    ended = hfkit(command, folder / "said", ranks=cell.ranks)
    if ended.codes != [0] * cell.ranks:
        return f"the last resume ended with {ended.codes}:\n{ended.err}"
    return difference(cell, run)


def disturb(cell: Cell, launched: Launched, run: Path, number: int, ranks: tuple[int, ...]) -> tuple[str, bool]:
    """What was wrong with the end that a signal made, and whether the run had finished before it."""
    start = time.monotonic()
    launched.signal(number, *ranks)
    try:
        ended = launched.wait()
    except AssertionError as error:
        return str(error), False
    seconds = time.monotonic() - start
    if status(run)["state"] == "finished":  # all is on disk, whatever signal met the process on its way out
        cell.ends["finished first"] += 1
        return "", True
    if ended.code == 0:
        return f"exit code 0 and {status(run)['state']}", False
    cell.ends[signal.Signals(number).name] += 1
    if number == signal.SIGTERM:
        cell.stopping.append(seconds)
        return wrong_stop(ended, run), False
    return "", False


def wrong_stop(ended: Ended, run: Path) -> str:
    """Why an end after SIGTERM is not as promised."""
    state, step = status(run)["state"], status(run)["step"]
    if ended.code != 143 or state != "stopped" or step != max(committed(run), default=0):
        return f"exit codes {ended.codes}, {state} at step {step}, saved {committed(run)}:\n{ended.err}"
    return ""


def difference(cell: Cell, run: Path) -> str:
    found = state_hash(run)
    return "" if found == cell.unbroken else f"hash {found}, unbroken {cell.unbroken}"


def training(run: Path, pid: int | None = None) -> bool:
    """Whether the run (of this process) has made its first step, or is past all steps."""
    try:
        found = status(run)
        own = pid in (None, found["pid"])
        return own and found["state"] == "running" and (run / "metrics.jsonl").exists()
    except (FileNotFoundError, ValueError):
        return False


def table(cells: list[Cell]) -> str:
    lines = [f"{'run':<16}{'processes':>9}{'trials':>8}{'identical':>11}  {'ends':<52}SIGTERM to exit, s (median, max)"]
    for cell in cells:
        ends = ", ".join(f"{count} {name}" for name, count in sorted(cell.ends.items()))
        waits = sorted(cell.stopping)
        stop = f"{waits[len(waits) // 2]:.2f}, {waits[-1]:.2f}" if waits else ""
        lines.append(f"{cell.name:<16}{cell.ranks:>9}{cell.trials:>8}{cell.identical:>11}  {ends:<52}{stop}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
