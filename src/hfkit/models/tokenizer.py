"""The tokenizer of a model."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.errors import ModelError, UsageError
from hfkit.models import hub
from hfkit.models.config import readable, trusted
from hfkit.system import network

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hfkit.settings import Model, Tokenizer

# A file of a tokenizer that was saved without tokenizer.json, and the class that it most likely is of.
VOCABULARIES = {"merges.txt": "GPT2Tokenizer", "vocab.txt": "BertTokenizer", "spiece.model": "T5Tokenizer"}


def load_tokenizer(tokenizer: Tokenizer, model: Model) -> PreTrainedTokenizerBase:
    """The tokenizer of tokenizer.name or model.name, always with a pad token; UsageError if neither is given."""
    name = tokenizer.name or model.name
    if name is None:
        raise UsageError("no model is named", "--model NAME")
    own = name == model.name
    return open_tokenizer(name, model.revision if own else None, own and not model.from_scratch)


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
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:  # a blank T5 tokenizer also has the sign of a blank
        raise ModelError(f"{name}: holds no tokenizer files", "copy its tokenizer.json there")
    if (model := tokenizer.backend_tokenizer.model).__class__.__name__ == "WordPiece" and (
        model.token_to_id(model.unk_token) is None
    ):
        problem = f"{name}: its tokenizer has no token {model.unk_token} for words that it can't read"
        raise ModelError(problem, "add it to the vocabulary in tokenizer.json, or take another model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # only ever under the attention mask
    return tokenizer


def _require_class(name: str) -> None:
    """ModelError if a directory has the vocabulary of a known class of tokenizers, and nothing that names the class.

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
