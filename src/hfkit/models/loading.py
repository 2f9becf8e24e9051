"""Tokenizer and model: from a directory, from the Hub, or new from an architecture's config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.errors import ModelError, UsageError
from hfkit.models import adapters, hub, sharded
from hfkit.models.config import buildable, readable, require_head, trusted
from hfkit.system import permissions
from hfkit.system.console import detail, say

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

VOCABULARY_MULTIPLE = 64  # matrix kernels are fastest on multiples of 64 (nanoGPT pads 50,257 to 50,304)


def new_or_pretrained(
    auto_model: str,
    recipe: Recipe,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    new_head: bool = True,
) -> PreTrainedModel:
    """The model in recipe.model.dtype; what is new in it (all of it, or a head) is said aloud.

    Raises ModelError where weights are missing, have other shapes or can't be read; a head's may be new in training
    alone (`new_head`), as adapters and frozen weights are.
    """
    import torch
    import transformers

    auto_class = getattr(transformers, auto_model)
    dtype = getattr(torch, recipe.model.dtype or "float32")
    require_head(config, auto_model)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = tokenizer.pad_token_id  # as T5's checkpoints have it; its config class has none
    if recipe.model.from_scratch:
        config.vocab_size = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        for role in ("bos", "eos", "pad"):
            setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
        with buildable(config.model_type):
            model: PreTrainedModel = auto_class.from_config(config, dtype=dtype, trust_remote_code=trusted())
    else:
        assert recipe.model.name is not None
        fitted = recipe if new_head else None  # a run's recipe says how it was trained in other commands, too
        model = load_weights(auto_class, recipe.model.name, recipe.model.revision, config, dtype, new_head, fitted)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UsageError(
            f"the tokenizer has {len(tokenizer):,} entries, the model only {rows:,}",
            "use the model's own tokenizer, or --from-scratch",
        )
    if tokenizer.pad_token_id is not None:  # a classifying decoder reads its last token that is not this one
        model.config.pad_token_id = tokenizer.pad_token_id
    if new_head and recipe.train.freeze:
        adapters.freeze(model, recipe.train.freeze)
    return model


def load_weights(
    auto_class: Any,
    name: str,
    revision: str | None,
    config: PreTrainedConfig,
    dtype: Any,
    new_head: bool,
    recipe: Recipe | None = None,
) -> PreTrainedModel:
    """The model `name` with its weights, and with its adapter where it is one; new adapters are added as `recipe` says.

    Raises ModelError where weights are missing, have other shapes or can't be read; a head's may be (`new_head`).
    """
    directory = base = hub.locate_model(name, revision, weights=True)
    if adapters.is_adapter(directory):
        base = adapters.locate_base(directory)
        if new_head:
            fix = f"hfkit export {name} --merge --output-dir NEW, then --model NEW"
            raise UsageError(f"{name} is an adapter, and training begins with a whole model", fix)
    with readable(name):
        model, info = auto_class.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=None if permissions.allows(permissions.PICKLE) else True,  # None: where there are any
            trust_remote_code=trusted(),
            ignore_mismatched_sizes=True,
        )
    prefix = model.base_model_prefix + "."
    body = (
        {f"{prefix}{key}" for key, _ in model.base_model.named_parameters()}
        if model.base_model is not model
        else {key for key, _ in model.named_parameters()}
    )
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if base is not directory:
        with readable(name):
            fresh -= adapters.load(model, directory)
    broken = sorted(key for key in fresh & body if ".pooler." not in key)
    if broken:
        raise ModelError(
            f"{base}: {len(broken)} weights are missing or have another shape, first '{broken[0]}'",
            "download or save the model again",
        )
    if fresh and not new_head:
        raise ModelError(
            f"{name} has no weights for {', '.join(sorted(fresh))}, and drawn at random they would say nothing",
            "choose a model that was trained for this task",
        )
    if fresh:
        say(f"new weights (the model was not trained for this yet): {', '.join(sorted(fresh))}")
    if info["unexpected_keys"]:
        detail(f"weights of the file that this model has no use for: {', '.join(sorted(info['unexpected_keys']))}")
    if recipe is not None and recipe.lora.enabled:
        adapters.attach(model, recipe, fresh)
    return model


def with_weights_of(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """A model like `model` with the weights that a checkpoint of its run holds."""
    if adapters.has_adapter(model):
        adapters.read(model, directory)
        return model
    kind = sharded.plain_class(model)
    if (directory / sharded.SHARDS).is_dir():
        return sharded.load(kind, model.config, directory)
    again: PreTrainedModel = kind.from_pretrained(directory, dtype=model.dtype, local_files_only=True)
    return again
