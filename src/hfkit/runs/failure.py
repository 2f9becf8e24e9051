"""What ended a run, as the error that a person can act on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.errors import HfkitError, OutOfMemoryError, StorageError, is_out_of_memory
from hfkit.system import files, processes

if TYPE_CHECKING:
    from hfkit.settings import Data, Train
    from hfkit.system.signals import StopSignal


def failure_of(
    error: BaseException, train: Train, data: Data, directory: Path, signals: StopSignal, safe: str
) -> BaseException:
    """`error` itself, or the HfkitError that says what to do about it; `safe`: what is saved of the run."""
    if is_out_of_memory(error):
        return OutOfMemoryError(f"out of memory; {safe}", smaller_batch(train, data))
    if isinstance(error, HfkitError):
        return error
    if signals.caught:  # whatever it is, the signal set it off
        return signals.stopped(safe)
    if processes.is_lost(error):
        return processes.lost(error, safe)
    if files.is_disk_full(error):
        message = f"{directory}: disk full: {files.free(directory):,} bytes are free; {safe}"
        return StorageError(message, "free some space, then --resume auto")
    return error


def smaller_batch(train: Train, data: Data) -> str:
    """What to type for the same optimizer step in smaller micro-batches."""
    size, steps = train.per_device_train_batch_size, train.gradient_accumulation_steps or 1
    if size == "auto" or 1 in (size, train.global_batch_size):
        return f"a smaller {'--block-size' if data.block_size else '--max-length'}, or a smaller model"
    if train.global_batch_size is None and isinstance(size, int):
        return f"--batch-size {size // 2} --gradient-accumulation-steps {steps * 2} for the same step"
    return "--batch-size auto for the same step in micro-batches that fit"
