"""Settings of the model and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hfkit.settings.section import Section, setting

# Two lines a setting: what it is, then its help.
# fmt: off


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """The model, with its pretrained weights or as an architecture alone."""

    name: str | None = setting("--model --model-name-or-path",
        help="A run, a model directory or a model name on the Hub.")
    revision: str | None = setting("--revision", help="Commit, tag or branch of a model on the Hub.")
    type: str | None = setting("--model-type", only="pretrain finetune", unless="model.name",
        help="Architecture of a new model: gpt2, llama, bert, ...")
    size: Literal["tiny", "mini", "small", "base"] | None = setting(
        "--size", only="pretrain finetune", unless="model.name",
        help="Size of a new model, layers x hidden size: tiny 2x128, mini 4x256, small 4x512, base 12x768.")
    config: dict[str, Any] = setting(default={},
        help="Keys of the model's config, e.g. --set model.config.num_hidden_layers=6.")
    from_scratch: bool = setting("--from-scratch", False, only="pretrain finetune",
        help="Initialize the weights at random; keep the architecture and tokenizer of --model.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = setting("--dtype",
        help="dtype of the weights: float32 (default), bfloat16 (half the memory, slow on CPUs without instructions "
             "for it; default for generation on GPUs) or float16.")


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Section):
    """The tokenizer of a new model; a pretrained model brings its own."""

    name: str | None = setting("--tokenizer --tokenizer-name", only="pretrain finetune",
        help="Tokenizer: a directory or a name on the Hub (default: the model's, or a new one).")
    vocab_size: int = setting(
        "--vocab-size", 8192, only="pretrain finetune", unless="tokenizer.name model.name", ge=300,
        help="Vocabulary size of a new tokenizer, special tokens included.")
    algorithm: Literal["bpe", "wordpiece", "unigram", "char"] | None = setting(
        "--tokenizer-algorithm", only="pretrain finetune", unless="tokenizer.name model.name",
        help="Algorithm of a new tokenizer: bpe (byte-level), wordpiece, unigram or char (default: the usual one of "
             "the model type).")
