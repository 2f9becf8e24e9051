"""What libraries keep for a whole process: a call of the Python API leaves it as it was."""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

LOGGERS = ("transformers", "torch.distributed")  # that hfkit silences


@contextmanager
def kept_state() -> Iterator[None]:
    """Restores logging levels, progress bars, random states and the csv module's limit.

    Enter it when the libraries are imported: some draw random numbers then.
    """
    import datasets
    import numpy as np
    import transformers
    from huggingface_hub import utils as hub_utils

    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    bars = (
        (not datasets.are_progress_bars_disabled(), datasets.enable_progress_bars, datasets.disable_progress_bars),
        (
            transformers.logging.is_progress_bar_enabled(),
            transformers.logging.enable_progress_bar,
            transformers.logging.disable_progress_bar,
        ),
        (  # last: transformers also sets those of the Hub
            not hub_utils.are_progress_bars_disabled(),  # type: ignore[attr-defined]
            hub_utils.enable_progress_bars,  # type: ignore[attr-defined]
            hub_utils.disable_progress_bars,  # type: ignore[attr-defined]
        ),
    )
    drawn, field_size = (random.getstate(), np.random.get_state()), csv.field_size_limit()
    try:
        with kept_random_state():
            yield
    finally:
        csv.field_size_limit(field_size)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for shown, enable, disable in bars:
            (enable if shown else disable)()


def kept_random_state() -> AbstractContextManager[None]:
    """Restores torch's random states, of the CPU and of the device of this process.

    Without naming the device, torch takes all devices of the machine, and warns where there are several.
    """
    import torch

    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    return torch.random.fork_rng(devices)
