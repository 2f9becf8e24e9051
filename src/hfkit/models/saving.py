"""A model directory written as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.errors import DivergedError, ModelError, StorageError
from hfkit.models import adapters
from hfkit.models.adapters import logits, require_same
from hfkit.models.finite import not_finite
from hfkit.models.loading import load_weights
from hfkit.system import files
from hfkit.system.files import is_disk_full, umask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def require_saved(model: PreTrainedModel, directory: Path) -> None:
    """ModelError if the adapter in `directory`, put beside its base anew, does not answer as `model` does."""
    again, _ = load_weights(type(model), str(directory), None, model.config, model.dtype, new_head=False)
    tolerance = 1e-5 if str(model.dtype) == "torch.float32" else 1e-2
    require_same(logits(model), logits(again.to(model.device)), f"{directory} does not read back", tolerance)


STAGED = ".staged"


def export(
    directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: adapters.Base | None = None
) -> None:
    """Saves model and tokenizer so that `directory` holds the old model whole or the new one whole.

    `base`: of a model with adapters, which alone are saved. Raises DivergedError for a tensor that is not finite,
    StorageError for a full disk, ModelError if the saved model does not read back, or answers otherwise.
    """
    if broken := not_finite(model):
        raise DivergedError(
            f"{len(broken)} tensors are not finite, first '{broken[0]}': the model is not saved",
            "resume from the last good checkpoint with a smaller learning rate",
        )
    staged = directory / STAGED
    shutil.rmtree(staged, ignore_errors=True)
    try:
        _stage(staged, model, tokenizer, base)
    except Exception as error:
        shutil.rmtree(staged, ignore_errors=True)
        if is_disk_full(error):
            raise StorageError(
                f"{directory}: disk full while saving the model; what was there is untouched",
                "free some space, then --resume auto",
            ) from error
        raise
    last = ("config.json", adapters.SETTINGS)
    weights = [*directory.glob("model*.safetensors*"), directory / adapters.WEIGHTS, directory / adapters.MODEL_CONFIG]
    for path in [*(directory / name for name in last), *weights]:
        path.unlink(missing_ok=True)  # without the last files no half-old, half-new model can be loaded
    for path in sorted(staged.iterdir(), key=lambda path: path.name in last):
        os.replace(path, directory / path.name)
    staged.rmdir()
    files.sync(directory)


def _stage(
    staged: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: adapters.Base | None
) -> None:
    """Saves model and tokenizer in the new folder `staged` and reads them back."""
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    if base is not None:
        adapters.complete(staged, model, base)
    for path in staged.iterdir():
        path.chmod(0o666 & ~umask())  # safetensors makes its files readable by their owner alone
        files.sync(path)
    if base is not None:
        require_saved(model, staged)
        return
    _, info = type(model).from_pretrained(staged, output_loading_info=True, local_files_only=True)
    unread = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info.get(kind, ())]
    if unread:
        raise ModelError(f"{staged}: the saved model does not read back: {unread[0]}", "report this as a bug")
