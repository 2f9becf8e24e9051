"""Tokenizer and model: from a directory, from the Hub, or new from an architecture's config."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit import adapters, hub, permissions, sharding
from hfkit.console import detail, say
from hfkit.errors import HfkitError, ModelError, UsageError, did_you_mean
from hfkit.readers import first_line

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

# A file of a tokenizer that was saved without tokenizer.json, and the class that it most likely is of.
VOCABULARIES = {"merges.txt": "GPT2Tokenizer", "vocab.txt": "BertTokenizer", "spiece.model": "T5Tokenizer"}

# What a head is called in messages where its Auto class does not say it.
HEADS = {"AutoModelForPreTraining": "NextSentencePrediction"}

VOCABULARY_MULTIPLE = 64  # matrix kernels are fastest on multiples of 64 (nanoGPT pads 50,257 to 50,304)

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


def load_config(recipe: Recipe) -> PreTrainedConfig:
    """The architecture: that of model.name, or a new one of model.type and model.size; model.config on top.

    Raises UsageError for an unknown type or config key, ModelError for a model that can't be read.
    """
    from transformers import AutoConfig

    model = recipe.model
    if model.name is None:
        config = _new_config(recipe)
    else:
        directory = hub.locate_model(model.name, model.revision, weights=not model.from_scratch)
        with readable(model.name):
            source = adapters.config_source(directory)
            config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=_trusted())
        _check_keys(config, model.config)
        for key, value in model.config.items():
            setattr(config, key, value)
    for key in ("activation_function", "hidden_act"):
        if getattr(config, key, None) in FAST_ACTIVATIONS:
            setattr(config, key, FAST_ACTIVATIONS[getattr(config, key)])
    if recipe.train.dropout is not None:
        for key, value in vars(config).items():
            # layerdrop leaves out whole layers; a classifier_dropout of None follows the others
            if "drop" in key and "layerdrop" not in key and type(value) in (int, float):
                setattr(config, key, recipe.train.dropout)
    return config


def _new_config(recipe: Recipe) -> PreTrainedConfig:
    """A config of model.type: what model.size and the block size decide, where the type knows it, then model.config."""
    from transformers import CONFIG_MAPPING

    from hfkit.tasks import TASKS

    model, model_type = recipe.model, str(recipe.model.type)
    auto_model = TASKS[recipe.task or ""].auto_model
    if model_type not in CONFIG_MAPPING:
        known = [name for name in CONFIG_MAPPING if _has_head(name, auto_model)]
        raise UsageError(f"model.type '{model_type}' is unknown", did_you_mean(model_type, known))
    with _buildable(model_type):
        blank = CONFIG_MAPPING[model_type]()
    require_head(blank, auto_model)
    _check_keys(blank, model.config)
    own = {blank.attribute_map.get(key, key): value for key, value in model.config.items()}
    sizes: dict[str, Any] = {blank.attribute_map.get(key, key): n for key, n in SIZES[model.size or "tiny"].items()}
    if recipe.data.block_size:  # positions beyond would stay untrained
        positions = recipe.data.block_size + POSITION_OFFSETS.get(model_type, 0)
        sizes[blank.attribute_map.get("max_position_embeddings", "max_position_embeddings")] = positions
    changes = {key: value for key, value in sizes.items() if key in vars(blank)} | own
    for key, source, factor in (
        ("intermediate_size", "hidden_size", 4),
        ("d_ff", "hidden_size", 4),  # T5's own name
        ("num_key_value_heads", "num_attention_heads", 1),
    ):
        if key in vars(blank) and key not in changes:
            changes[key] = factor * changes[blank.attribute_map.get(source, source)]
    if "d_kv" in vars(blank) and "d_kv" not in changes:  # the width of one of T5's heads
        width, heads = (changes[blank.attribute_map.get(key, key)] for key in ("hidden_size", "num_attention_heads"))
        changes["d_kv"] = max(1, width // heads)
    with _buildable(model_type):
        return CONFIG_MAPPING[model_type](**changes)


def load_tokenizer(
    recipe: Recipe,
    config: PreTrainedConfig,
    corpus: Iterable[str] | None = None,
    begun_with: Path | None = None,
    shared: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer of tokenizer.name or model.name, else a new one trained on `corpus`; always with a pad token.

    `begun_with`: the new one of a run to be resumed, rather than one trained again; `shared`: several processes need
    the new one, and one of them trains it.
    """
    name = recipe.tokenizer.name or recipe.model.name
    if name is None and begun_with is not None:
        return open_tokenizer(str(begun_with))
    if name is None:
        if corpus is None:
            raise UsageError("no model is named", "--model NAME")
        from hfkit.tokenization import shared_tokenizer, train_tokenizer

        train = shared_tokenizer if shared else train_tokenizer
        return train(corpus, config.model_type, recipe.tokenizer.vocab_size, recipe.tokenizer.algorithm)
    own = name == recipe.model.name
    return open_tokenizer(name, recipe.model.revision if own else None, own and not recipe.model.from_scratch)


def open_tokenizer(name: str, revision: str | None = None, weights: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or on the Hub, always with a pad token; `weights`: of a model that is used, too."""
    from transformers import AutoTokenizer

    if hub.is_local(name):
        _require_class(name)
    directory = hub.locate_model(name, revision, weights)
    with readable(name):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=_trusted())
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: its tokenizer has no fast form", "save it once with use_fast=True")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{name}: holds no tokenizer files", "--tokenizer NAME, or copy tokenizer.json there")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # only ever under the attention mask
    return tokenizer


def _require_class(name: str) -> None:
    """ModelError where a directory has the vocabulary of a known class of tokenizers, and nothing that names the class.

    Also where the package that reads it is missing.
    """
    path = Path(name).expanduser()
    if any((path / file).exists() for file in ("tokenizer.json", "config.json")):
        return
    for file, class_name in VOCABULARIES.items():
        if not (path / file).exists():
            continue
        if not (path / "tokenizer_config.json").exists():
            target = shlex.quote(str(path / "tokenizer_config.json"))
            fix = f"""echo '{{"tokenizer_class": "{class_name}"}}' > {target}"""
            raise ModelError(f"{name}: {file} alone does not say what tokenizer it is of", fix)
        if file.endswith(".model") and find_spec("sentencepiece") is None:
            fix = "pip install sentencepiece protobuf"
            raise ModelError(f"{name}: reading {file} needs the package sentencepiece", fix)


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
        with _buildable(config.model_type):
            model: PreTrainedModel = auto_class.from_config(config, dtype=dtype, trust_remote_code=_trusted())
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


def was_saved_with(auto_model: str, config: PreTrainedConfig) -> bool:
    """Whether the model that `config` describes was saved with the head of `auto_model`, as far as it says."""
    import transformers

    if auto_model in own_classes(config):
        return True
    heads = getattr(transformers, auto_model)._model_mapping._model_mapping.get(config.model_type, ())
    names = ({heads} if isinstance(heads, str) else set(heads)) if _has_head(config.model_type, auto_model) else set()
    return bool(names & set(config.architectures)) if config.architectures else bool(names)


def own_classes(config: PreTrainedConfig) -> dict[str, str]:
    """The Auto classes for which the model brings code of its own that may run, with the names of its classes."""
    return getattr(config, "auto_map", {}) if _trusted() else {}


def _trusted() -> bool:
    return permissions.allows(permissions.REMOTE_CODE)


def max_tokens(model: PreTrainedModel) -> int | None:
    """The tokens of text that the model has positions for; None where nothing limits them."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    offset = next(
        (
            module.padding_idx + 1
            for name, module in model.named_modules()
            if name.endswith("embeddings.position_embeddings") and getattr(module, "padding_idx", None) is not None
        ),
        0,
    )  # see POSITION_OFFSETS
    return None if positions is None else positions - offset


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
            trust_remote_code=_trusted(),
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
    kind = sharding.plain_class(model)
    if (directory / sharding.SHARDS).is_dir():
        return sharding.load(kind, model.config, directory)
    again: PreTrainedModel = kind.from_pretrained(directory, dtype=model.dtype, local_files_only=True)
    return again


def _has_head(model_type: str, auto_model: str) -> bool:
    """Whether models of this type have the head of `auto_model`; AutoModelForPreTraining stands for BERT's two heads,
    though it takes any type with whatever that was pretrained with."""
    import transformers

    auto_model = "AutoModelForNextSentencePrediction" if auto_model == "AutoModelForPreTraining" else auto_model
    return model_type in getattr(transformers, auto_model)._model_mapping._model_mapping


def require_head(config: PreTrainedConfig, auto_model: str) -> None:
    """UsageError where models of this architecture can't have the head of `auto_model`."""
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
    """Unknown keys are an error: the config class itself takes anything in silence."""
    known = {*vars(config), *config.attribute_map}
    problems = [
        (f"model.config.{key}: {config.model_type} has no such setting", did_you_mean(key, known))
        for key in changes
        if key not in known
    ]
    if problems:
        raise UsageError.of(problems)


@contextmanager
def _buildable(model_type: str) -> Iterator[None]:
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
