"""What a second process is worth: `python benchmarks/scaling.py [--steps N] [--sizes tiny,small,...]`.

On one machine, `hfkit pretrain` of the same model on the same global batch: one process with two threads, and two
processes with one thread each, in turn. Tokens per second are those that the run itself logs, the first lines left out;
the ratio is that of the medians, with the quartiles of the lines of both. The weights of both runs are compared too.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

WARM_UP = 3  # logged steps that are not counted
TEXT, TEXT_ROWS = "text.txt", 2000
ROWS, BLOCK = 16, 256  # of a step, over all processes
SIZES = {  # hidden size, layers, heads
    "tiny": (128, 2, 2),
    "small": (256, 4, 4),
    "medium": (384, 6, 6),
    "large": (768, 12, 12),
}
WAYS = {"1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="of each run; the first few are not counted")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each way, in turn")
    parser.add_argument("--sizes", default=",".join(SIZES), help="of the model, of " + ", ".join(SIZES))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="hfkit-scaling-") as name:
        write_text(Path(name) / TEXT)
        for size in options.sizes.split(","):
            rows.append(measured(size, options.steps, options.rounds, Path(name)))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    titles = ("model", *(f"{way}, tokens/s" for way in WAYS), "ratio", "weights after the last step")
    print("\n".join(f"| {' | '.join(row)} |" for row in [titles, ("---",) * len(titles), *rows]))


def measured(size: str, steps: int, rounds: int, folder: Path) -> tuple[str, ...]:
    """A line of the table."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    runs = {way: folder / f"{size}-{way.replace(' ', '-')}" for way in WAYS}
    for number in range(rounds):
        for way, (processes, threads) in WAYS.items():
            pretrain(size, steps, processes, threads, runs[way])
            rates[way] += tokens_per_second(runs[way])
            print(f"{size}, {way}, round {number + 1}: {statistics.median(rates[way]):,.0f}", file=sys.stderr)
    one, two = rates.values()
    low, _, high = statistics.quantiles([after / before for after in two for before in one], n=4)
    ratio = f"{statistics.median(two) / statistics.median(one):.2f} ({low:.2f} to {high:.2f})"
    shown = (f"{statistics.median(rate):,.0f}" for rate in rates.values())
    return (f"{size}, {parameters(runs['1 process x 2 threads'])}", *shown, ratio, difference(*runs.values()))


def write_text(path: Path) -> None:
    """The beginning of the built-in text: preparing it takes seconds."""
    from hfkit.data.sources import load_builtin

    rows = load_builtin("builtin:python-docs")["train"]["text"]
    path.write_text("\n\n".join(rows[:TEXT_ROWS]), encoding="utf-8")


def pretrain(size: str, steps: int, processes: int, threads: int, run: Path) -> None:
    width, layers, heads = SIZES[size]
    arguments = [
        *("pretrain", "--model-type", "gpt2", "--set", f"model.config.n_embd={width}"),
        *("--set", f"model.config.n_layer={layers}", "--set", f"model.config.n_head={heads}"),
        *("--data", str(run.parent / TEXT), "--block-size", str(BLOCK), "--vocab-size", "8192", "--dropout", "0"),
        *("--batch-size", str(ROWS // processes), "--gradient-accumulation-steps", "1", "--max-steps", str(steps)),
        *("--validation-split", "0", "--logging-steps", "1", "--save-steps", str(steps), "--precision", "float32"),
        *("--no-interval", "--output-dir", str(run), "--overwrite"),
    ]
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": loopback,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(run.parent / "cache"),
    }
    command = [sys.executable, *launcher, "-m", "hfkit", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    (run / "said.txt").write_text(done.stderr, encoding="utf-8")


def tokens_per_second(run: Path) -> list[float]:
    """Of each logged step, as it was said."""
    lines = [line for line in (run / "said.txt").read_text(encoding="utf-8").splitlines() if " tokens/s" in line]
    rates = [float(line.split(" tokens/s")[0].split()[-1].replace(",", "")) for line in lines if "step" in line]
    return rates[WARM_UP:]


def parameters(run: Path) -> str:
    from safetensors import safe_open

    with safe_open(run / "model.safetensors", "np") as file:
        count = sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    steps = json.loads((run / "status.json").read_text(encoding="utf-8"))["step"]
    return f"{count / 1e6:.1f} million weights, {steps} steps"


def difference(one: Path, two: Path) -> str:
    """The largest between the weights of two runs."""
    from safetensors.numpy import load_file

    before, after = (load_file(run / "model.safetensors") for run in (one, two))
    largest = max(float(np.abs(before[name] - after[name]).max()) for name in before)
    return "equal to the bit" if largest == 0 else f"{largest:.1e} apart"


if __name__ == "__main__":
    main()
