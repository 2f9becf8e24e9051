"""T5's span corruption: an encoder-decoder gives back the spans that sentinels stand for (arXiv 1910.10683, 3.1.4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfkit.errors import ModelError, UsageError
from hfkit.tasks.base import Batch, Examples
from hfkit.tasks.language_modeling import (
    OF_LANGUAGE_MODELS,
    LanguageModel,
    nll_scores,
    pad_pairs,
    token_statistics,
    without_cache,
)
from hfkit.tasks.packing import Blocks, pack

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Score
    from hfkit.settings import Evaluation, Recipe


class Denoising(LanguageModel):
    new_type = "t5"
    auto_model = "AutoModelForSeq2SeqLM"
    summary = "T5's masked spans"
    settings = OF_LANGUAGE_MODELS | {"data.mask_probability", "data.mean_span_length"}
    metrics = ("perplexity", "token_accuracy", "nll")

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        import numpy as np

        density, mean_length = recipe.data.mask_probability, recipe.data.mean_span_length
        vocabulary = tokenizer.get_vocab()
        names = itertools.takewhile(vocabulary.__contains__, map("<extra_id_{}>".format, itertools.count()))
        sentinels = np.array([vocabulary[name] for name in names], dtype=np.int64)
        if len(sentinels) == 0 or tokenizer.eos_token_id is None:
            missing = "an eos_token" if len(sentinels) else "the sentinels <extra_id_0>, <extra_id_1>, ..."
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} lacks {missing}, so it can't learn denoising",
                "--model-type t5, or a model and a tokenizer of T5's kind",
            )
        end = tokenizer.eos_token_id
        blocks = pack(dataset, tokenizer, model, block_size=recipe.data.block_size, suffix=[end], end=end)
        _, needed = noise(int(blocks.lengths.max()) - 1, density, mean_length)
        if needed >= len(sentinels):  # one more closes the target
            size = int(blocks.lengths.max())
            raise UsageError(
                f"blocks of {size} tokens need {needed + 1} sentinels, the tokenizer has {len(sentinels)}",
                "a smaller --block-size, or a larger --mean-span-length",
            )
        shared = {
            "density": density,
            "mean_length": mean_length,
            "sentinels": sentinels,
            "end": end,
            "start": model.config.decoder_start_token_id,
        }
        return _NoisyRows(blocks, shared)

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return pad_pairs(examples, tokenizer)

    def adapt(self, model: PreTrainedModel, batch: Batch, rows: Examples | None = None) -> None:
        without_cache(model)

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        return token_statistics(outputs[0], labels)

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        how = f"target tokens of span corruption of the text alone, spans drawn once from seed {evaluation.seed}"
        return nll_scores(reduced, evaluation, how)


def noise(num_tokens: int, density: float, mean_length: float) -> tuple[int, int]:
    """(hidden tokens, spans) of a text: T5's random_spans_noise_mask, with text before every span at any density."""
    if num_tokens < 2:
        return 0, 0
    num_hidden = min(max(round(num_tokens * density), 1), num_tokens - 1)
    return num_hidden, min(max(round(num_hidden / mean_length), 1), num_tokens - num_hidden)


def segments(num_tokens: int, num_segments: int, random: np.random.Generator) -> np.ndarray:
    """Lengths of `num_segments` parts of `num_tokens`, none empty, every division as likely as any other."""
    import numpy as np

    cuts = np.sort(random.choice(max(num_tokens - 1, 0), size=max(num_segments - 1, 0), replace=False)) + 1
    return np.diff(cuts, prepend=0, append=num_tokens)[:num_segments]


class _NoisyRows(Examples):
    """Blocks, each closed by EOS, with what their corruption needs; `lengths` are those of the corrupted inputs."""

    def __init__(self, blocks: Blocks, shared: dict[str, Any]) -> None:
        import numpy as np

        self.blocks, self.shared = blocks, shared
        sizes, place = np.unique(blocks.lengths, return_inverse=True)  # two, where all but the last are full
        counts = [noise(int(size) - 1, shared["density"], shared["mean_length"]) for size in sizes]
        self.lengths = (sizes - [hidden - spans for hidden, spans in counts])[place]

    def example(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        """`input_ids` with a sentinel for each span, `labels` with the spans, and these shifted for the decoder."""
        import numpy as np

        row = self.shared
        tokens = self.blocks[index]["input_ids"][:-1]  # without the EOS that closes the block
        num_hidden, num_spans = noise(len(tokens), row["density"], row["mean_length"])
        hidden = segments(num_hidden, num_spans, random)
        kept = segments(len(tokens) - num_hidden, num_spans, random)
        *pieces, rest = np.split(tokens, np.cumsum(np.stack([kept, hidden], axis=1)))  # by turns; a span comes last
        marks, end = row["sentinels"][: num_spans + 1, None], [row["end"]]
        inputs = [*itertools.chain(*zip(pieces[::2], marks, strict=False)), rest, end]
        target = np.concatenate([*itertools.chain(*zip(marks, pieces[1::2], strict=False)), marks[-1], end])
        return {
            "input_ids": np.concatenate(inputs),
            "labels": target,
            "decoder_input_ids": np.concatenate([[row["start"]], target[:-1]]),
        }
