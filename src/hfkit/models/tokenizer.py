"""The tokenizer of a model, or a new one."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.errors import ModelError, UsageError
from hfkit.models import hub
from hfkit.models.config import readable, trusted
from hfkit.system import network

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

# A file of a tokenizer that was saved without tokenizer.json, and the class that it most likely is of.
VOCABULARIES = {"merges.txt": "GPT2Tokenizer", "vocab.txt": "BertTokenizer", "spiece.model": "T5Tokenizer"}


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
        from hfkit.models.new_tokenizer import shared_tokenizer, train_tokenizer

        train = shared_tokenizer if shared else train_tokenizer
        return train(corpus, config.model_type, recipe.tokenizer.vocab_size, recipe.tokenizer.algorithm)
    own = name == recipe.model.name
    return open_tokenizer(name, recipe.model.revision if own else None, own and not recipe.model.from_scratch)


def open_tokenizer(name: str, revision: str | None = None, weights: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or on the Hub, always with a pad token; `weights`: of a model that is used, too."""
    from transformers import AutoTokenizer

    if network.is_local(name):
        _require_class(name)
    directory = hub.locate_model(name, revision, weights)
    with readable(name):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=trusted())
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
