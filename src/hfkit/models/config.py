"""A model's config: loaded or created, checked before weights are read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hfkit.errors import HfkitError, ModelError, UsageError, did_you_mean, first_line
from hfkit.models import adapters, hub
from hfkit.system import permissions
from hfkit.system.compat import classes_with_head

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from hfkit.settings import Model

# Width, depth and heads of model.size.
SIZES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mini": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}

DEFAULT_NEW_TOKENS = 128  # of a generated text at most, where neither the user nor the model says it

NO_LIMIT = 10**9  # from which a number of tokens means that there is none

# What a head is called in messages where its Auto class does not say it.
HEADS = {"AutoModelForPreTraining": "NextSentencePrediction"}

# RoBERTa's positions start after the pad id, so two of its 514 are never used (huggingface/transformers issue 1363).
POSITION_OFFSETS = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}

# The exact tanh form of GPT-2's activation in one kernel instead of six passes: the same function, 1.16 times as fast.
FAST_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh"}


def quiet_libraries() -> None:
    """The libraries' progress and warnings off: hfkit says what matters itself."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)


def load_config(
    model: Model, *, auto_model: str | None = None, block_size: int | None = None, dropout: float | None = None
) -> PreTrainedConfig:
    """The architecture: that of model.name, or a new one of model.type and model.size; model.config on top.

    `auto_model`, `block_size`: the head and the positions of a new one; `dropout`: for every dropout of the model.
    Raises UsageError for an unknown type or config key, ModelError for a model that can't be read.
    """
    from transformers import AutoConfig

    quiet_libraries()
    if model.name is None:
        if auto_model is None:
            raise UsageError("no model is named", "--model NAME")
        config = _new_config(model, auto_model, block_size)
    else:
        directory = hub.locate_model(model.name, model.revision, weights=not model.from_scratch)
        with readable(model.name):
            source = adapters.config_source(directory)
            config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=trusted())
        _check_keys(config, model.config)
        for key, value in model.config.items():
            setattr(config, key, value)
    for key in ("activation_function", "hidden_act"):
        if getattr(config, key, None) in FAST_ACTIVATIONS:
            setattr(config, key, FAST_ACTIVATIONS[getattr(config, key)])
    if dropout is not None:
        for key, value in vars(config).items():
            # layerdrop leaves out whole layers; a classifier_dropout of None follows the others
            if "drop" in key and "layerdrop" not in key and type(value) in (int, float):
                setattr(config, key, dropout)
    return config


def _new_config(model: Model, auto_model: str, block_size: int | None) -> PreTrainedConfig:
    """A config of model.type: what model.size and the block size decide, where the type knows it, then model.config.

    BART and its kin begin at weights as large as their width wants (Glorot and Bengio 2010: variance 2 / (in + out)).
    At their class's 0.02, which is for a width of 1,024, a narrow decoder does not learn to read its source: on
    Multi30k its loss was the same with the sources of other sentences after 1,771 steps of 64 pairs.
    """
    from transformers import CONFIG_MAPPING

    model_type = str(model.type)
    if model_type not in CONFIG_MAPPING:
        known = [name for name in CONFIG_MAPPING if _has_head(name, auto_model)]
        usual = next((name for name in ("gpt2", "bert", "t5") if name in known), known[0])
        near = did_you_mean(model_type, known) or f"--model-type {usual}"
        raise UsageError(f"model.type '{model_type}' is unknown", near)
    with buildable(model_type):
        blank = CONFIG_MAPPING[model_type]()
    require_head(blank, auto_model)
    _check_keys(blank, model.config)
    own = {blank.attribute_map.get(key, key): value for key, value in model.config.items()}
    sizes: dict[str, Any] = {blank.attribute_map.get(key, key): n for key, n in SIZES[model.size or "tiny"].items()}
    if block_size:  # positions beyond would stay untrained
        positions = block_size + POSITION_OFFSETS.get(model_type, 0)
        sizes[blank.attribute_map.get("max_position_embeddings", "max_position_embeddings")] = positions
    changes = {key: value for key, value in sizes.items() if key in vars(blank)} | own
    for key, source, factor in (
        ("intermediate_size", "hidden_size", 4),
        ("d_ff", "hidden_size", 4),  # T5's own name
        ("encoder_ffn_dim", "hidden_size", 4),  # BART's
        ("decoder_ffn_dim", "hidden_size", 4),
        ("decoder_layers", "num_hidden_layers", 1),
        ("decoder_attention_heads", "num_attention_heads", 1),
        ("num_key_value_heads", "num_attention_heads", 1),
    ):
        if key in vars(blank) and key not in changes:
            changes[key] = factor * changes[blank.attribute_map.get(source, source)]
    if "d_kv" in vars(blank) and "d_kv" not in changes:  # the width of one of T5's heads
        width, heads = (changes[blank.attribute_map.get(key, key)] for key in ("hidden_size", "num_attention_heads"))
        changes["d_kv"] = max(1, width // heads)
    if blank.is_encoder_decoder and "init_std" in vars(blank) and "init_std" not in own:
        changes["init_std"] = changes[blank.attribute_map.get("hidden_size", "hidden_size")] ** -0.5
    with buildable(model_type):
        return CONFIG_MAPPING[model_type](**changes)


def was_saved_with(auto_model: str, config: PreTrainedConfig) -> bool:
    """Whether the model that `config` describes was saved with the head of `auto_model`, as far as it says."""

    if auto_model in own_classes(config):
        return True
    heads = classes_with_head(auto_model).get(config.model_type, ())
    names = ({heads} if isinstance(heads, str) else set(heads)) if _has_head(config.model_type, auto_model) else set()
    return bool(names & set(config.architectures)) if config.architectures else bool(names)


def own_classes(config: PreTrainedConfig) -> dict[str, str]:
    """The Auto classes for which the model brings code of its own that may run, with the names of its classes."""
    return getattr(config, "auto_map", {}) if trusted() else {}


def trusted() -> bool:
    return permissions.allows(permissions.REMOTE_CODE)


def as_limit(value: Any) -> int | None:
    """A number of tokens at most; None for what configs and tokenizers hold where there is no limit: nothing, -1 (as
    XLNet), or a number beyond any text."""
    return value if isinstance(value, int) and 0 < value < NO_LIMIT else None


def max_tokens(model: PreTrainedModel) -> int | None:
    """The tokens of text that the model has positions for; None where nothing limits them."""
    positions = as_limit(getattr(model.config, "max_position_embeddings", None))
    offset = next(
        (
            module.padding_idx + 1
            for name, module in model.named_modules()
            if name.endswith("embeddings.position_embeddings") and getattr(module, "padding_idx", None) is not None
        ),
        0,
    )  # see POSITION_OFFSETS
    return None if positions is None else positions - offset


def trained_prefix(config: PreTrainedConfig) -> str:
    """What stood before every source in training, as the config keeps it."""
    return getattr(config, "source_prefix", None) or ""


def trained_suffix(config: PreTrainedConfig) -> str | None:
    """What stood between every source and its target in the training of a decoder; None if its config keeps nothing."""
    return getattr(config, "source_suffix", None)


def own_new_tokens(model: PreTrainedModel) -> int | None:
    """The number of new tokens that the model's own generation settings allow; None if they say nothing.

    The `max_length` of an encoder-decoder counts the token that its answer begins with.
    """
    settings = model.generation_config
    if settings.max_new_tokens is None and settings.max_length is not None and model.config.is_encoder_decoder:
        return max(int(settings.max_length) - 1, 1)
    found: int | None = settings.max_new_tokens
    return found


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


def _has_head(model_type: str, auto_model: str) -> bool:
    """Whether models of this type have the head of `auto_model`; AutoModelForPreTraining stands for BERT's two heads,
    though it takes any type with whatever that was pretrained with."""

    auto_model = "AutoModelForNextSentencePrediction" if auto_model == "AutoModelForPreTraining" else auto_model
    return model_type in classes_with_head(auto_model)


def has_head(config: PreTrainedConfig, auto_model: str) -> bool:
    """Whether models of this architecture can have the head of `auto_model`."""
    return auto_model in own_classes(config) or _has_head(config.model_type, auto_model)


def require_head(config: PreTrainedConfig, auto_model: str) -> None:
    """UsageError if models of this architecture can't have the head of `auto_model`."""
    model_type = config.model_type
    if auto_model in own_classes(config):
        return
    if not _has_head(model_type, auto_model):
        raise UsageError(
            f"{model_type} models have no {HEADS.get(auto_model, auto_model.removeprefix('AutoModelFor'))} head",
            "choose another --model or --task",
        )
    two_ways = auto_model == "AutoModelForCausalLM" and _has_head(model_type, "AutoModelForMaskedLM")
    if two_ways and not getattr(config, "is_decoder", False):
        raise UsageError(f"{model_type} reads in both directions, it can't learn clm", "--objective mlm")


def _check_keys(config: PreTrainedConfig, changes: Mapping[str, Any]) -> None:
    """Unknown keys are an error: the config class itself accepts any key."""
    known = {*vars(config), *config.attribute_map}
    problems = [
        (f"model.config.{key}: {config.model_type} has no such setting", did_you_mean(key, known) or "leave it out")
        for key in changes
        if key not in known
    ]
    if problems:
        raise UsageError.of(problems)


@contextmanager
def buildable(model_type: str) -> Iterator[None]:
    """Turns what config and model classes raise at odd sizes into one UsageError; checks differ from class to class."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{model_type} can't be built: {first_line(error)}", "change model.config") from error


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns the libraries' many ways of failing on a damaged file into one ModelError that names the model."""
    try:
        yield
    except HfkitError:
        raise
    except Exception as error:
        if "trust_remote_code=True" in str(error):  # what the library says to type
            fix = f"read its *.py files, and if you trust them: {permissions.REMOTE_CODE}"
            raise ModelError(f"{name} brings code of its own, which would run with all your rights", fix) from error
        raise ModelError(f"{name}: can't be read: {first_line(error)}", "download or save the model again") from error
