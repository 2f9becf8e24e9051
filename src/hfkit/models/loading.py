"""Tokenizer and model: from a directory, from the Hub, or new from an architecture's config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from hfkit.errors import ModelError, UsageError
from hfkit.models import adapters, hub, sharded
from hfkit.models.config import buildable, readable, require_head, trusted
from hfkit.models.device import to_device
from hfkit.models.finite import not_finite
from hfkit.models.stored_generation import make_savable, stored_generation
from hfkit.system import permissions
from hfkit.system.console import detail, say

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Model, Recipe

VOCABULARY_MULTIPLE = 64  # matrix kernels are fastest on multiples of 64 (nanoGPT pads 50,257 to 50,304)


def open_model(
    auto_model: str, model: Model, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The trained model, ready to answer on this machine's device.

    Raises ModelError if it has no such head, or weights that are no numbers.
    """
    made = to_device(new_or_pretrained(auto_model, model, config, tokenizer))
    if broken := not_finite(made):
        what = f"{model.name}: {len(broken)} weights hold NaN or infinity, first '{broken[0]}'"
        raise ModelError(what, "choose an earlier checkpoint, or train it again with a smaller learning rate")
    return made


def new_or_pretrained(
    auto_model: str,
    model: Model,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    training: Recipe | None = None,
) -> PreTrainedModel:
    """The model in model.dtype. What is new in it (all of it, or a head) is printed.

    `training`: the recipe of a run that starts here; only then may a head be new, weights frozen and adapters added.
    Raises ModelError if weights are missing, have other shapes or can't be read.
    """
    auto_class, dtype = getattr(transformers, auto_model), getattr(torch, model.dtype or "float32")
    require_head(config, auto_model)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = tokenizer.pad_token_id  # as T5's checkpoints have it; its config class has none
    if model.from_scratch:
        _take_vocabulary(config, tokenizer)
        with buildable(config.model_type):
            made: PreTrainedModel = auto_class.from_config(config, dtype=dtype, trust_remote_code=trusted())
    else:
        assert model.name is not None
        made, new = load_weights(auto_class, model.name, model.revision, config, dtype, new_head=training is not None)
        if training is not None:
            make_savable(made, model.name)
        if training is not None and training.lora.enabled:
            adapters.attach(made, training.lora, new)
    rows = made.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UsageError(
            f"the tokenizer has {len(tokenizer):,} entries, the model only {rows:,}",
            "use the model's own tokenizer, or --from-scratch",
        )
    if tokenizer.pad_token_id is not None:  # a classifying decoder reads its last token that is not this one
        made.config.pad_token_id = tokenizer.pad_token_id
    if training is not None and training.train.freeze:
        adapters.freeze(made, training.train.freeze)
    return made


def _take_vocabulary(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Puts the size and the special ids of `tokenizer` into the config of a new model, wherever its own stand.

    New T5 models share their embeddings with the output and scale it, as T5 1.0: the library's config shares them
    always (transformers 5.23), and without the scale logits begin far too large. UsageError for mT5, which has none.
    """
    if config.model_type == "mt5":
        raise UsageError("mt5 can't begin at random weights: its outputs are not scaled", "--model-type umt5, or t5")
    if hasattr(config, "scale_decoder_outputs"):
        config.scale_decoder_outputs = True
    config.vocab_size = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if hasattr(config, "decoder_vocab_size"):
        config.decoder_vocab_size = config.vocab_size
    roles = ("bos", "eos", "pad")
    own = {getattr(config, f"{role}_token_id", None): role for role in roles}
    for key in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        value = getattr(config, key, None)
        if value is not None and value in own:
            setattr(config, key, getattr(tokenizer, f"{own[value]}_token_id"))
    for role in roles:
        setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))


def load_weights(
    auto_class: Any, name: str, revision: str | None, config: PreTrainedConfig, dtype: Any, *, new_head: bool
) -> tuple[PreTrainedModel, set[str]]:
    """The model `name` with its weights and, if it is an adapter, with its adapter; and the names of new weights.

    Raises ModelError if weights are missing, have other shapes or can't be read; those of a head may be missing with
    `new_head`, in training.
    """
    directory = base = hub.locate_model(name, revision, weights=True)
    if adapters.is_adapter(directory):
        base = adapters.locate_base(directory)
        if new_head:
            fix = f"hfkit export {name} --merge --output-dir NEW, then --model NEW"
            raise UsageError(f"{name} is an adapter, and training begins with a whole model", fix)
    own = stored_generation(directory, name)
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
            generation_config=stored_generation(base, name) if own is None and base != directory else own,
        )
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if base is not directory:
        with readable(name):
            new -= adapters.load(model, directory)
    broken = sorted(key for key in new & _body(model) if ".pooler." not in key)
    if broken:
        raise ModelError(
            f"{base}: {len(broken)} weights are missing or have another shape, first '{broken[0]}'",
            "download or save the model again",
        )
    if new and not new_head:
        raise ModelError(
            f"{name} has no weights for {', '.join(sorted(new))}, and random ones would be meaningless",
            "choose a model that was trained for this task",
        )
    if new:
        say(f"new weights (the model was not trained for this yet): {', '.join(sorted(new))}")
    if info["unexpected_keys"]:
        detail(f"weights of the file that this model does not use: {', '.join(sorted(info['unexpected_keys']))}")
    return model, new


def _body(model: PreTrainedModel) -> set[str]:
    """The names of all weights below the head."""
    if model.base_model is model:
        return {key for key, _ in model.named_parameters()}
    return {f"{model.base_model_prefix}.{key}" for key, _ in model.base_model.named_parameters()}


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


def require_fit(model: PreTrainedModel, checkpoint: Path) -> None:
    """ModelError if the weights in a checkpoint have other shapes than those of `model`. Adapters are not looked at."""
    from safetensors import safe_open

    if adapters.has_adapter(model) or not (files := sorted(checkpoint.glob("model*.safetensors"))):
        return
    saved: dict[str, list[int]] = {}
    for file in files:
        with safe_open(file, "np") as weights:
            saved |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    needed = {name: [*weight.shape] for name, weight in model.state_dict().items()}
    strange = next((name for name, shape in saved.items() if needed.get(name) != shape), None)
    stored = {weight.data_ptr() for name, weight in model.state_dict().items() if name in saved}
    strange = strange or next(
        (name for name, one in model.state_dict().items() if name not in saved and one.data_ptr() not in stored), None
    )
    if strange is not None:
        what = f"{strange} {saved.get(strange, 'is not there')}, and the model {needed.get(strange, 'has none')}"
        raise ModelError(f"{checkpoint} is of another architecture: {what}", "undo the change of the model")
