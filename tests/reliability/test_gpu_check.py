"""The check of GPUs runs to its end, here with tiny models on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.soak
def test_the_gpu_check_still_runs():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu", "--quick", "--budget", "1200"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "6 passed, 0 failed, 4 skipped", done.stdout
