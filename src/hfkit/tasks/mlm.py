"""Masked language modelling as in BERT (arXiv 1810.04805, section 3.1): tokens, whole words or spans are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hfkit.tasks.base import Batch, Examples
from hfkit.tasks.language_modeling import OF_LANGUAGE_MODELS, LanguageModel, nll_scores, pad_blocks, token_statistics
from hfkit.tasks.masked_head import add_positions, filled_masks, flat_labels, narrow_head
from hfkit.tasks.masking import Masking, hide, masked_definition
from hfkit.tasks.packing import Blocks, pack
from hfkit.tasks.pseudo_perplexity import OneHidden, pseudo_perplexity

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Measured, Score
    from hfkit.settings import Evaluation, Recipe


class MaskedLM(LanguageModel):
    summary = "masked tokens"
    new_type = "bert"
    auto_model = "AutoModelForMaskedLM"
    metrics: tuple[str, ...] = ("perplexity", "token_accuracy", "nll")
    settings = OF_LANGUAGE_MODELS | {
        "data.packing", "data.masking", "data.mask_probability", "evaluation.pseudo_perplexity",
    }  # fmt: skip

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        alone = recipe.evaluation.pseudo_perplexity
        if alone:
            recipe = replace(recipe, data=replace(recipe.data, packing=False, masking="token"))
        masking = Masking(tokenizer, model, recipe)
        start = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
        stop = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
        blocks = pack(
            dataset,
            tokenizer,
            model,
            block_size=recipe.data.block_size,
            prefix=start,
            suffix=stop,
            end=tokenizer.sep_token_id if recipe.data.packing else None,
            packed=recipe.data.packing,
            words=recipe.data.masking != "token",
        )
        return OneHidden(blocks, masking) if alone else MaskableRows(blocks, masking)

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return add_positions(pad_blocks(examples, tokenizer))

    def adapt(self, model: PreTrainedModel, batch: Batch, rows: Examples | None = None) -> None:
        narrow_head(model, batch)

    def samples(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Examples, seed: int
    ) -> list[str]:
        """What the model puts in place of some masks of the longest example."""
        import numpy as np

        longest = int(np.argmax(rows.lengths))
        example = rows.example(longest, np.random.default_rng((seed, longest)))
        return filled_masks(model, tokenizer, self.collate([example], tokenizer))

    def align(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits, flat_labels(logits, labels)

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        return token_statistics(outputs[0], labels)

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        assert isinstance(rows, MaskableRows)
        return nll_scores(reduced, evaluation, masked_definition(rows.masking, evaluation.seed))

    def results(
        self, dataset: Dataset, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> Measured:
        if isinstance(rows, OneHidden):
            return pseudo_perplexity(dataset["text"][:], reduced, rows, evaluation)
        return super().results(dataset, reduced, labels, rows, evaluation)


class MaskableRows(Examples):
    """Blocks whose tokens are hidden anew whenever an example is made."""

    def __init__(self, blocks: Blocks, masking: Masking) -> None:
        self.blocks, self.lengths, self.masking = blocks, blocks.lengths, masking

    def example(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        inputs, labels = hide(self.masking.row(self.blocks[index]), random)
        return {"input_ids": inputs, "labels": labels}
