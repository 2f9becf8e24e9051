"""Sources and targets as token ids, as an encoder-decoder takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.errors import ModelError, UsageError, did_you_mean
from hfkit.models.config import trained_prefix
from hfkit.system.console import say_once
from hfkit.tasks.base import Examples
from hfkit.tasks.packing import token_store
from hfkit.tasks.windows import MAX_LENGTH, token_limits

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Data, Recipe


class Around(NamedTuple):
    """The special tokens that a tokenizer puts before and behind a text."""

    before: list[int]
    behind: list[int]

    @classmethod
    def source(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> Around:
        return cls._of(tokenizer(text, return_special_tokens_mask=True))

    @classmethod
    def target(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> Around:
        """Around a target, an EOS behind it in any case: the model has to learn where to stop."""
        around = cls._of(tokenizer(text_target=text, return_special_tokens_mask=True))
        end = tokenizer.eos_token_id
        if end is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no token that ends a text",
                "a model whose tokenizer has an eos_token",
            )
        return around if end in around.behind else around._replace(behind=[*around.behind, end])

    @classmethod
    def _of(cls, encoding: Any) -> Around:
        ids, mask = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
        first = mask.index(0) if 0 in mask else len(mask)
        last = len(mask) - mask[::-1].index(0) if 0 in mask else len(mask)
        return cls(ids[:first], ids[last:])

    @property
    def size(self) -> int:
        return len(self.before) + len(self.behind)


class Side:
    """One side of all pairs: tokens in a memory map, special tokens around them, at most `limit` together."""

    def __init__(
        self, dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, around: Around, limit: int
    ) -> None:
        import numpy as np

        self.store, self.around, self.limit = token_store(dataset, tokenizer, column=column), around, limit
        counts = np.diff(self.store.starts, append=len(self.store.tokens))
        self.longest = int(counts.max()) + around.size  # in tokens, untruncated
        self.was_cut = counts > limit - around.size
        self.counts = np.minimum(counts, limit - around.size)
        self.lengths = self.counts + around.size

    def __getitem__(self, index: int) -> np.ndarray:
        """The ids of a text, int64 of shape (tokens,)."""
        import numpy as np

        start = self.store.starts[index]
        body = self.store.tokens[start : start + self.counts[index]]
        return np.concatenate([self.around.before, body, self.around.behind]).astype(np.int64)


class EncodedPairs(Examples):
    """Pairs as an encoder-decoder takes them; `lengths` are the tokens of both sides together."""

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> None:
        self.prefix = prefix_of(model, recipe.data)
        self.num_beams = recipe.evaluation.num_beams
        set_languages(tokenizer, model, recipe.data)
        sources = with_prefix(dataset, self.prefix)
        around = Around.source(tokenizer, sources[0]["text"]), Around.target(tokenizer, dataset[0]["target"])
        limit, self.most = token_limits(tokenizer, model, recipe)
        self.sources = Side(sources, "text", tokenizer, around[0], limit)
        self.targets = Side(dataset, "target", tokenizer, around[1], target_tokens(recipe.data, self.most))
        self.start = decoder_start(model, self.targets[0])
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = self.start
        self.lengths = self.sources.lengths + self.targets.lengths

    def example(self, index: int, random: np.random.Generator | None = None) -> dict[str, Any]:
        """The ids of the source, those that the decoder reads, and those that it has to give."""
        labels = self.targets[index]
        read = labels.copy()
        read[1:], read[0] = labels[:-1], self.start
        return {"input_ids": self.sources[index], "decoder_input_ids": read, "labels": labels}


def prefix_of(model: PreTrainedModel, data: Data) -> str:
    """What stands before every source: as it was given, else as in the training of the model."""
    return data.source_prefix if data.source_prefix is not None else trained_prefix(model.config)


def with_prefix(dataset: Dataset, prefix: str, suffix: str = "") -> Dataset:
    """The sources alone, each between `prefix` and `suffix`."""
    sources, around = dataset.select_columns(["text"]), {"prefix": prefix, "suffix": suffix}
    return sources.map(_put_around, batched=True, fn_kwargs=around) if prefix or suffix else sources


def _put_around(batch: dict[str, list[str]], prefix: str, suffix: str) -> dict[str, list[str]]:
    return {"text": [f"{prefix}{text}{suffix}" for text in batch["text"]]}


def target_tokens(data: Data, most: int) -> int:
    """Tokens of a target at most; UsageError if the model has fewer positions."""
    limit = data.max_target_length or min(MAX_LENGTH, most)
    if limit > most:
        problem = f"data.max_target_length {limit} is longer than the model's {most} tokens"
        raise UsageError(problem, f"--max-target-length {most}")
    return limit


def decoder_start(model: PreTrainedModel, labels: Sequence[int] | np.ndarray) -> int:
    """What the decoder reads before its first label, by the architecture's own way to make its input from labels.

    ModelError for one whose input is not its labels, shifted by one.
    """
    import torch

    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return int(model.config.decoder_start_token_id)
    given = torch.tensor([list(map(int, labels))], device="cpu")  # also where a plan builds models without memory
    read = model.prepare_decoder_input_ids_from_labels(labels=given)[0].tolist()
    if read[1:] != given[0, :-1].tolist():
        raise ModelError(f"{model.config.model_type} makes its decoder's input in an unknown way", "another --model")
    return int(read[0])


def set_languages(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, data: Data) -> None:
    """Has tokenizer and model read and write the languages that `data` names, where the tokenizer has languages.

    UsageError for a language that it does not have, and if none is named.
    """
    given = {"src_lang": ("--source-lang", data.source_lang), "tgt_lang": ("--target-lang", data.target_lang)}
    for name, (flag, language) in given.items():
        if not hasattr(tokenizer, name):
            if language is not None:
                say_once(f"{flag} {language} only chooses a column: the tokenizer has no languages")
            continue
        known = [token for token in tokenizer.all_special_tokens if token not in tokenizer.special_tokens_map.values()]
        if language is None and getattr(tokenizer, name) is None:
            missing = [flag for key, (flag, one) in given.items() if one is None and getattr(tokenizer, key) is None]
            fix = f"{' ... '.join(missing)} ...: {', '.join(known[:10])}, ..."
            raise UsageError("the model translates between languages, and they are not all named", fix)
        if language is not None and language not in known:
            fix = did_you_mean(language, known) or f"one of {', '.join(known[:10])}, ..."
            raise UsageError(f"{flag} {language}: the tokenizer has no such language", fix)
        if language is not None:
            setattr(tokenizer, name, language)
    if not hasattr(tokenizer, "tgt_lang"):
        return
    language_id = tokenizer.convert_tokens_to_ids(tokenizer.tgt_lang)
    if language_id == tokenizer(text_target="")["input_ids"][0]:  # mBART's first models have it at the end
        model.generation_config.forced_bos_token_id = language_id
