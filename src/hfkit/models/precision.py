"""The dtype in which this machine trains a model fastest: on a CPU measured once, and kept."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import constants

from hfkit.models.device import gpu_has_bfloat16
from hfkit.system.files import locked, write_atomically

Precision = Literal["float32", "bfloat16"]

SIZE = 512  # rows and columns of the matrices that are timed: a few milliseconds each

ROUNDS = 7  # of both dtypes in turn; the fastest one counts, since other programs can only slow one down

GAIN = 1.3  # from which bfloat16 is worth its rounding

NARROW = 256  # hidden size below which a step gains less: 1.1 times at 64, 1.3 at 128, 1.5 at 256 on an AMD EPYC

# What chooses the kernels of a CPU, beside its kind.
KERNELS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS")


def fast_precision(hidden_size: int | None) -> tuple[Precision, float]:
    """ "bfloat16" or "float32", and how many times as fast as float32 matrix products are in bfloat16.

    A GPU has bfloat16 or not, and is not measured. A CPU can have instructions for it and still be slower. Matrix
    products of both dtypes are timed once for each kind of machine, so that a command repeats its numbers.
    """
    if torch.cuda.is_available():
        return ("bfloat16" if gpu_has_bfloat16() else "float32"), math.nan
    if torch.accelerator.is_available() or (hidden_size is not None and hidden_size < NARROW):
        return "float32", math.nan
    gain = _kept(_machine(), bfloat16_gain)
    return ("bfloat16" if gain >= GAIN else "float32"), gain


def bfloat16_gain() -> float:
    """CPU time of a matrix product in float32, divided by that in bfloat16 with the conversion of its inputs.

    It is taken on one thread, since several wait for each other on a busy machine.
    """
    inputs, threads = torch.ones(SIZE, SIZE, device="cpu"), torch.get_num_threads()
    seconds = {False: math.inf, True: math.inf}
    torch.set_num_threads(1)
    try:
        for number in range(2 * (ROUNDS + 1)):
            is_bfloat16 = bool(number % 2)
            start = time.thread_time()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
                torch.nn.functional.linear(inputs, inputs)
            if number > 1:  # the first ones choose their kernels
                seconds[is_bfloat16] = min(seconds[is_bfloat16], time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds[False] / seconds[True]


def _machine() -> str:
    """What the speed of matrix products depends on."""
    kind = [torch.cpu.get_capabilities().get("cpu_name", ""), torch.backends.cpu.get_cpu_capability()]
    return ", ".join(map(str, [*kind, f"torch {torch.__version__}", *map(os.environ.get, KERNELS)]))


def _kept(key: str, measure: Callable[[], float]) -> float:
    """The number under `key` in the cache, measured first if it is not there; kept where the disk allows it."""
    path = Path(constants.HF_HOME) / "hfkit" / "bfloat16.json"
    found = _read(path)
    if key in found:
        return found[key]
    gain = round(measure(), 2)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            gain = (found := _read(path)).setdefault(key, gain)  # another process may have been first
            write_atomically(path, json.dumps(found, indent=1))
    return gain


def _read(path: Path) -> dict[str, float]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if isinstance(value, float) and value > 0}
    return {}
