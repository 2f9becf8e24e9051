"""A model in a directory of its own, without what else a run holds: as it is, merged, or read from a GGUF file."""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfkit.errors import ModelError, StorageError, UsageError
from hfkit.models import adapters, hub, saving, sharded
from hfkit.models.config import load_config, own_classes, quiet_libraries, readable
from hfkit.models.loading import load_weights
from hfkit.models.tokenizer import open_tokenizer
from hfkit.settings import Model
from hfkit.system import files, network
from hfkit.system.console import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

SOURCE = "gguf.json"  # in a directory made of a GGUF file: which one


def export(name: str, directory: Path, *, merged: bool, dtype: str | None) -> None:
    """The model `name`, read back once written, in a new `directory`, or nothing at all.

    `merged`: with its adapter added to the weights; `dtype`: their number type (default: as it is). The weights of a
    sharded checkpoint are merged. Raises UsageError if there is something in `directory` or nothing to merge.
    """
    _require_new(directory)
    checkpoint = sharded.checkpoint_of(name)
    if checkpoint is not None:
        name = str(checkpoint)
        say(f"putting the shards of {name} together")
    config = load_config(Model(name=name, from_scratch=checkpoint is not None))
    source = hub.locate_model(name, weights=checkpoint is None)
    if merged and not adapters.is_adapter(source):
        raise UsageError(f"{name} has no adapter to merge", "leave out --merge")
    if dtype is not None and adapters.is_adapter(source) and not merged:
        raise UsageError("--dtype has no effect on an adapter", "add --merge")
    saved_as = config.architectures or []
    own = [auto for auto, code in own_classes(config).items() if code.rpartition(".")[2] in saved_as]
    model_class = next((getattr(transformers, kind, None) for kind in [*own, *saved_as]), None)
    if model_class is None:
        raise ModelError(f"{name}: its config names no class of transformers", "choose a run of hfkit")
    own_dtype = config.dtype or torch.float32
    if checkpoint is not None:
        model = sharded.load(model_class, config, checkpoint)
    else:
        kept = torch.float32 if merged else own_dtype
        model, _ = load_weights(model_class, name, None, config, kept, new_head=False)
    if merged:
        adapters.merge(model)
    model.to(getattr(torch, dtype) if dtype else own_dtype)
    base = adapters.base_of(source) if adapters.has_adapter(model) else None
    _write(directory, model, open_tokenizer(name, None, weights=checkpoint is None), base)


def export_gguf(file: Path, directory: Path, *, dtype: str | None) -> None:
    """The language model in a GGUF file as a plain one in a new `directory`: its weights in `dtype` (default: float32),
    each as exact as the file has it."""
    _require_new(directory)
    model, tokenizer = read_gguf(file)
    _write(directory, model.to(getattr(torch, dtype or "float32")), tokenizer, None, _source_of(file))


def with_plain_copy(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe with the GGUF file that is its model replaced by a plain copy in `directory`, which is made where it
    is not there yet. Raises UsageError for another model, and where `directory` holds something else."""
    name = str(recipe.model.name)
    if not network.is_gguf(name):
        raise UsageError(f"--convert makes plain models of GGUF files, and {name} is none", "leave it out")
    file = Path(name).expanduser()
    if _is_copy(directory, file):
        say(f"using {directory}, the plain copy of {name}")
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} holds something else than a copy of {name}", "--convert NEW")
    else:
        export_gguf(file, directory, dtype=None)
        say(f"{directory} is a plain copy of {name}, used from now on by the same command")
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, name=str(directory.absolute())))


def _is_copy(directory: Path, file: Path) -> bool:
    if not (directory / SOURCE).is_file() or not file.is_file():
        return False
    kept: Any = json.loads((directory / SOURCE).read_text(encoding="utf-8"))
    return bool(kept == _source_of(file))


def _source_of(file: Path) -> dict[str, str]:
    return {"file": file.name, "xxh3_128": files.file_hash(file)}


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model, its weights unpacked to float32, and tokenizer of a GGUF file; ModelError if it can't be read."""
    if not file.is_file():
        raise ModelError(f"{file}: no such file", "give a GGUF file")
    if find_spec("gguf") is None:
        raise UsageError("GGUF files need the package gguf", "pip install gguf")
    quiet_libraries()
    source = {"gguf_file": file.name, "local_files_only": True}
    with network.offline(), readable(str(file)):
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    # The library refuses to save what it still takes for quantized.
    for state in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(state, None)
    vars(model.config).pop("quantization_config", None)
    return model, tokenizer


def _require_new(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory}: {'not empty' if directory.is_dir() else 'is a file'}", "--output-dir NEW")


def _write(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: tuple[str, str | None] | None,
    source: dict[str, str] | None = None,
) -> None:
    """Model (of an adapter's `base`), tokenizer and `source` in `directory`, which appears whole or not at all."""
    try:
        with files.new_directory(directory) as new:
            saving.export(new, model, tokenizer, base)
            if source is not None:
                (new / SOURCE).write_text(json.dumps(source), encoding="utf-8")
    except StorageError as error:  # what a run would do does not help here
        raise StorageError(error.problems[0][0], "--output-dir ELSEWHERE") from error
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}", "--output-dir ELSEWHERE") from error
