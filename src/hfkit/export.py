"""A model in a directory of its own, without what else a run holds: as it is, merged, or read from a GGUF file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit import adapters, hub, runs
from hfkit.errors import ModelError, StorageError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export(name: str, directory: Path, *, merged: bool, dtype: str | None) -> None:
    """The model `name`, read back once written, in a new `directory`, or nothing at all.

    `merged`: with its adapter added to the weights; `dtype`: their number type (default: as it is). Raises UsageError
    where there is something in `directory` or nothing to merge.
    """
    import torch
    import transformers

    from hfkit.models import load_config, load_weights, open_tokenizer, quiet_libraries
    from hfkit.recipe import Model, Recipe

    _require_new(directory)
    quiet_libraries()
    config = load_config(Recipe(model=Model(name=name)))
    source = hub.locate_model(name)
    if merged and not adapters.is_adapter(source):
        raise UsageError(f"{name} has no adapter to merge", "leave out --merge")
    if dtype is not None and adapters.is_adapter(source) and not merged:
        raise UsageError("--dtype has no effect on an adapter", "add --merge")
    model_class = next((getattr(transformers, kind, None) for kind in config.architectures or []), None)
    if model_class is None:
        raise ModelError(f"{name}: its config names no class of transformers", "choose a run of hfkit")
    own_dtype = config.dtype or torch.float32
    model = load_weights(model_class, name, None, config, torch.float32 if merged else own_dtype, new_head=False)
    if merged:
        adapters.merge(model)
    model.to(getattr(torch, dtype) if dtype else own_dtype)
    base = adapters.base_of(source) if adapters.has_adapter(model) else None
    _write(directory, model, open_tokenizer(name, None, weights=True), base)


def export_gguf(file: Path, directory: Path, *, dtype: str | None) -> None:
    """The language model in a GGUF file as a plain one in a new `directory`: its weights in `dtype` (default: float32),
    each as exact as the file has it."""
    import torch

    from hfkit.models import quiet_libraries, readable

    _require_new(directory)
    if not file.is_file():
        raise ModelError(f"{file}: no such file", "give a GGUF file")
    if find_spec("gguf") is None:
        raise UsageError("GGUF files need the package gguf", "pip install gguf")
    hub.no_network()
    quiet_libraries()

    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": file.name, "local_files_only": True}
    with readable(str(file)):
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    # The library refuses to save what it still takes for quantized.
    for state in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(state, None)
    vars(model.config).pop("quantization_config", None)
    _write(directory, model.to(getattr(torch, dtype or "float32")), tokenizer, None)


def _require_new(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory}: {'not empty' if directory.is_dir() else 'is a file'}", "--output-dir NEW")


def _write(
    directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: tuple[str, str | None] | None
) -> None:
    """Model (of an adapter's `base`) and tokenizer in `directory`, which appears whole or not at all."""
    try:
        with runs.new_directory(directory) as new:
            runs.export(new, model, tokenizer, base)
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}", "--output-dir ELSEWHERE") from error
