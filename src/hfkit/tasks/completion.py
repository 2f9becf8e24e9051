"""Completions of prompts by a decoder: texts from texts, as for an encoder-decoder, read and written in one row."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hfkit.data.conversations import are_plain, first_row, has_labels
from hfkit.data.labels import IGNORED
from hfkit.errors import UsageError
from hfkit.models.config import trained_suffix
from hfkit.tasks.base import Batch, Examples
from hfkit.tasks.encoded_pairs import Around, EncodedPairs, Side, prefix_of, with_prefix
from hfkit.tasks.language_modeling import next_tokens, pad_blocks
from hfkit.tasks.seq2seq import Seq2Seq
from hfkit.tasks.windows import MAX_LENGTH

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Row, Score
    from hfkit.settings import Data, Recipe

SUFFIX = "\n"  # between a source and its target, where nothing else was chosen


class Prompts(Side):
    """Sources with `suffix` behind them, which those that are cut keep."""

    def __init__(self, suffix: str, tokenizer: PreTrainedTokenizerBase, *others: Any) -> None:
        super().__init__(*others)
        self.suffix = tokenizer.backend_tokenizer.encode(suffix, add_special_tokens=False).ids

    def __getitem__(self, index: int) -> np.ndarray:
        ids = super().__getitem__(index)
        if self.was_cut[index] and self.suffix:
            ids[-len(self.suffix) :] = self.suffix
        return ids


class EncodedCompletions(EncodedPairs):
    """Sources and targets in one row each: the source is read, the target and its EOS are learned."""

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> None:
        self.num_beams = recipe.evaluation.num_beams
        self.prefix, self.suffix = prefix_of(model, recipe.data), suffix_of(model, recipe.data)
        sources = with_prefix(dataset, self.prefix, self.suffix)
        before = Around.source(tokenizer, sources[0]["text"]).before
        end = Around.target(tokenizer, dataset[0]["target"]).behind[-1:]  # an EOS
        limit, target_limit, positions = completion_limits(tokenizer, model, recipe.data)
        self.sources = Prompts(self.suffix, tokenizer, sources, "text", tokenizer, Around(before, []), limit)
        self.targets = Side(dataset, "target", tokenizer, Around([], end), target_limit)
        self.most = positions - limit
        self.lengths = self.sources.lengths + self.targets.lengths

    def example(self, index: int, random: np.random.Generator | None = None) -> dict[str, Any]:
        """The ids of source and target, and as labels those of the target."""
        import numpy as np

        source, target = self.sources[index], self.targets[index]
        labels = np.concatenate([np.full(len(source), IGNORED), target])
        return {"input_ids": np.concatenate([source, target]), "labels": labels}


class Completion(Seq2Seq):
    summary = "texts from texts by a decoder: prompts and their completions"
    aliases: tuple[str, ...] = ("prompt-completion", "sft", "instruction-tuning")
    auto_model = "AutoModelForCausalLM"
    guessed = False  # a decoder is evaluated as a language model, unless somebody says what it completes
    pairs = EncodedCompletions
    new_model = MappingProxyType({"model.type": "gpt2", "model.size": "tiny"})
    settings = Seq2Seq.settings | {"data.source_suffix"}  # a language chooses a column here

    def claims(self, sources: Sequence[str]) -> str:
        row = first_row(sources)
        return (
            "the data has texts in the columns prompt and completion" if are_plain(row) and not has_labels(row) else ""
        )

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return pad_blocks(examples, tokenizer)

    def adapt(self, model: PreTrainedModel, batch: Batch, rows: Examples | None = None) -> None:
        super().adapt(model, batch, rows)
        if isinstance(rows, EncodedCompletions):
            model.config.source_suffix = rows.suffix

    def align(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits, next_tokens(labels)

    def measure_likelihoods(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, recipe: Recipe
    ) -> tuple[dict[str, Score], list[Row]]:
        import numpy as np

        from hfkit.metrics.likelihood import Passage, token_nats
        from hfkit.metrics.perplexity import Likelihood

        pairs = self.pairs(dataset, tokenizer, model, recipe)
        targets = [pairs.targets[index][:-1] for index in range(len(pairs))]  # without EOS
        passages = [Passage(pairs.sources[index], ids) for index, ids in enumerate(targets) if len(ids)]
        scored = np.array(list(map(len, targets)))
        nats = np.zeros(len(targets))
        nats[scored > 0] = token_nats(model, passages, recipe.evaluation.batch_size)
        texts = [
            tokenizer.decode(ids) if was_cut else text
            for text, ids, was_cut in zip(dataset["target"], targets, pairs.targets.was_cut, strict=True)
        ]
        how = (
            f"of each target given its source, EOS not scored, {str(model.dtype).removeprefix('torch.')}, "
            f"{scored.sum():,} tokens scored, {pairs.targets.was_cut.sum():,} targets cut"
        )
        found = Likelihood(texts, np.arange(len(texts)), nats, scored, how, dataset["text"][:])
        wanted = recipe.evaluation
        return found.scores(interval=wanted.interval, seed=wanted.seed), list(found.rows())


def suffix_of(model: PreTrainedModel, data: Data) -> str:
    """What stands between a source and its target: as it was given, else as in the training of the model."""
    if data.source_suffix is not None:
        return data.source_suffix
    trained = trained_suffix(model.config)
    return SUFFIX if trained is None else trained


def completion_limits(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, data: Data) -> tuple[int, int, int]:
    """Tokens of a source and of a target at most, and the model's positions, which both share."""
    from hfkit.models.config import NO_LIMIT, as_limit, max_tokens

    limits = [as_limit(tokenizer.model_max_length), max_tokens(model)]
    most = min((one for one in limits if one is not None), default=NO_LIMIT)
    target = data.max_target_length or min(MAX_LENGTH, most // 2)
    source = data.max_length or min(MAX_LENGTH, most - target)
    if target >= most:
        problem = f"a target of {target:,} tokens leaves no room for its source: the model has {most:,} positions"
        raise UsageError(problem, f"--max-target-length {most // 2}")
    if source + target > most:
        problem = f"{source} tokens of a source and {target} of its target are more than the model's {most} positions"
        raise UsageError(problem, f"--max-length {most - target}")
    return source, target, most
