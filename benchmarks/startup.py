"""CPU seconds that a command needs before it says its first word, beside those of the tools that people know.

    python benchmarks/startup.py

User and system time of a fresh process, median of five after one run that fills the file cache.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

RUNS = 5
BIN = Path(sys.executable).parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "hfkit --help": ["hfkit", "--help"],
    "hfkit finetune --help": ["hfkit", "finetune", "--help"],
    "hfkit finetune --dry-run": ["hfkit", "finetune", "--dry-run"],
    "transformers --help": ["transformers", "--help"],
    "trl --help": ["trl", "--help"],
}


def main() -> None:
    print(f"{'command':<26} CPU seconds")
    for name, command in COMMANDS.items():
        program = shutil.which(command[0], path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
        if program is None:
            print(f"{name:<26} not installed")
            continue
        seconds = [cpu_seconds([program, *command[1:]]) for _ in range(1 + RUNS)][1:]
        print(f"{name:<26} {statistics.median(seconds):.2f}  ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)


def cpu_seconds(command: list[str]) -> float:
    """User and system seconds of a process that must end well."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
