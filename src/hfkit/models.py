"""Tokenizer and model: from a directory, from the Hub, or new from an architecture's config."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit import hub
from hfkit.console import detail, say
from hfkit.errors import ModelError, UsageError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.recipe import Recipe

# Width, depth and heads of model.size.
SIZES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mini": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}

# The tokenizer class that is trained for a new model: byte-level BPE but for BERT's WordPiece and T5's Unigram.
NEW_TOKENIZERS = {
    "bert": "BertTokenizer",
    "t5": "T5Tokenizer",
    "roberta": "RobertaTokenizer",
    "modernbert": "RobertaTokenizer",
}
BYTE_LEVEL_BPE = "GPT2Tokenizer"

VOCABULARY_MULTIPLE = 64  # matrix kernels are fastest on multiples of 64 (nanoGPT pads 50,257 to 50,304)

# The exact tanh form of GPT-2's activation in one kernel instead of six passes: the same function, 1.16 times as fast.
FAST_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh"}


def quiet_libraries() -> None:
    """The libraries' progress and warnings off: hfkit says what matters itself."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)


def load_config(recipe: Recipe) -> PreTrainedConfig:
    """The architecture: that of model.name, or a new one of model.type and model.size; model.config on top.

    Raises UsageError for an unknown type or config key, ModelError for a model that can't be read.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    model = recipe.model
    if model.name is None:
        if model.type not in CONFIG_MAPPING:
            raise UsageError(f"model.type '{model.type}' is unknown", did_you_mean(str(model.type), CONFIG_MAPPING))
        changes = {**SIZES[model.size or "tiny"], **model.config}
        if "max_position_embeddings" not in changes and recipe.data.block_size:
            changes["max_position_embeddings"] = recipe.data.block_size  # positions beyond would stay untrained
        _check_keys(CONFIG_MAPPING[model.type](), changes)
        config = AutoConfig.for_model(model.type, **changes)
        hidden = config.hidden_size
        if "intermediate_size" in vars(config) and "intermediate_size" not in changes:
            config.intermediate_size = 4 * hidden
        if "num_key_value_heads" in vars(config) and "num_key_value_heads" not in changes:
            config.num_key_value_heads = config.num_attention_heads
        for key in ("activation_function", "hidden_act"):
            if getattr(config, key, None) in FAST_ACTIVATIONS and key not in changes:
                setattr(config, key, FAST_ACTIVATIONS[getattr(config, key)])
    else:
        directory = hub.locate_model(model.name, model.revision, weights=not model.from_scratch)
        with _readable(model.name):
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        _check_keys(config, model.config)
        for key, value in model.config.items():
            setattr(config, key, value)
    if recipe.train.dropout is not None:
        for key, value in vars(config).items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, recipe.train.dropout)
    return config


def load_tokenizer(
    recipe: Recipe, config: PreTrainedConfig, corpus: Iterable[str] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of tokenizer.name or model.name, else a new one trained on `corpus`; always with a pad token."""
    from transformers import AutoTokenizer

    name = recipe.tokenizer.name or recipe.model.name
    if name is None:
        if corpus is None:
            raise UsageError("no model is named", "--model NAME")
        return train_tokenizer(corpus, config.model_type, recipe.tokenizer.vocab_size)
    own = name == recipe.model.name
    directory = hub.locate_model(
        name, recipe.model.revision if own else None, weights=own and not recipe.model.from_scratch
    )
    with _readable(name):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: its tokenizer has no fast form", "save it once with use_fast=True")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{name}: holds no tokenizer files", "--tokenizer NAME, or copy tokenizer.json there")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # only ever under the attention mask
    return tokenizer


def train_tokenizer(corpus: Iterable[str], model_type: str, vocab_size: int) -> PreTrainedTokenizerBase:
    """A new tokenizer of the kind that `model_type` uses, with its special tokens and a pad token."""
    import transformers

    name = NEW_TOKENIZERS.get(model_type, BYTE_LEVEL_BPE)
    special = {"pad_token": "<|pad|>"} if name == BYTE_LEVEL_BPE else {}
    blank = getattr(transformers, name)(**special)
    tokenizer = blank.train_new_from_iterator(_chunks(corpus), vocab_size=vocab_size, show_progress=False)
    say(
        f"tokenizer: new {name.removesuffix('Tokenizer')} tokenizer, {len(tokenizer):,} entries, from the training text"
    )
    return tokenizer


def new_or_pretrained(
    auto_model: str, recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model in recipe.model.dtype; what is new in it (all of it, or a head) is said aloud.

    Raises ModelError where weights of the body are missing, have other shapes or can't be read.
    """
    import torch
    import transformers

    auto_class = getattr(transformers, auto_model)
    dtype = getattr(torch, recipe.model.dtype)
    if config.model_type in ("bert", "roberta") and auto_model == "AutoModelForCausalLM" and not config.is_decoder:
        raise UsageError(f"{config.model_type} reads in both directions, it can't learn clm", "--objective mlm")
    if type(config) not in auto_class._model_mapping:
        raise UsageError(
            f"{config.model_type} models have no {auto_model.removeprefix('AutoModelFor')} head",
            "choose another --model or --task",
        )
    if recipe.model.from_scratch:
        config.vocab_size = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        for role in ("bos", "eos", "pad"):
            setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype, trust_remote_code=False)
    else:
        assert recipe.model.name is not None
        model = _load_weights(auto_class, recipe.model.name, recipe.model.revision, config, dtype)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UsageError(
            f"the tokenizer has {len(tokenizer):,} entries, the model only {rows:,}",
            "use the model's own tokenizer, or --from-scratch",
        )
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def describe(model: PreTrainedModel) -> str:
    """Architecture and size in one line."""
    embeddings = {
        id(p)
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
        if m is not None
        for p in m.parameters()
    }
    total = sum(p.numel() for p in model.parameters())
    inner = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    return f"{model.config.model_type}, {total:,} parameters ({inner:,} without embeddings)"


def _load_weights(
    auto_class: Any, name: str, revision: str | None, config: PreTrainedConfig, dtype: Any
) -> PreTrainedModel:
    directory = hub.locate_model(name, revision, weights=True)
    with _readable(name):
        model, info = auto_class.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
        )
    prefix = model.base_model_prefix + "."
    body = (
        {f"{prefix}{key}" for key, _ in model.base_model.named_parameters()}
        if model.base_model is not model
        else {key for key, _ in model.named_parameters()}
    )
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    broken = sorted(key for key in fresh & body if ".pooler." not in key)
    if broken:
        raise ModelError(
            f"{directory}: {len(broken)} weights are missing or have another shape, first '{broken[0]}'",
            "download or save the model again",
        )
    if fresh:
        say(f"new weights (the model was not trained for this yet): {', '.join(sorted(fresh))}")
    if info["unexpected_keys"]:
        detail(f"weights of the file that this model has no use for: {', '.join(sorted(info['unexpected_keys']))}")
    return model


def _check_keys(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    """Unknown keys are an error: the config class itself takes anything in silence."""
    known = {*vars(config), *config.attribute_map}
    problems = [
        (f"model.config.{key}: {config.model_type} has no such setting", did_you_mean(key, known))
        for key in changes
        if key not in known
    ]
    if problems:
        raise UsageError.of(problems)


def _chunks(corpus: Iterable[str], characters: int = 10_000) -> Iterable[list[str]]:
    """Lists of short pieces: the trainer counts words, so one huge document only costs memory."""
    for text in corpus:
        yield [text[start : start + characters] for start in range(0, len(text), characters)]


class _readable:
    """Turns the libraries' many ways of failing on a damaged file into one ModelError that names the model."""

    def __init__(self, name: str | Path) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, ModelError | MemoryError):
            lines = str(error).strip().splitlines()
            first = lines[0] if lines else type(error).__name__
            raise ModelError(f"{self.name}: can't be read: {first}", "download or save the model again") from error
