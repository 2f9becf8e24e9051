"""Causal language modelling: the next token, over packed blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfkit.errors import ModelError
from hfkit.packing import pack
from hfkit.tasks.base import IGNORED, Batch, Rows, Task
from hfkit.tasks.language_modeling import (
    language_model_defaults,
    load_documents,
    nll_scores,
    pad_blocks,
    token_statistics,
)

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics import Score
    from hfkit.recipe import Recipe


class CausalLM(Task):
    command = "pretrain"
    auto_model = "AutoModelForCausalLM"
    best_metric = "nll"
    metrics = ("perplexity", "bits_per_byte", "bits_per_character", "word_perplexity", "nll")

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {**language_model_defaults(given, new_type="gpt2"), "data.documents": "file"}

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        return load_documents(recipe)

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Rows:
        if tokenizer.eos_token_id is None and len(dataset) > 1:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-text token to put between documents",
                "give one document, or a tokenizer that has an eos_token",
            )
        size, end = recipe.data.block_size, tokenizer.eos_token_id
        return pack(dataset, tokenizer, model, block_size=size, prefix=[], suffix=[], end=end)

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch = pad_blocks(examples, tokenizer)
        mask = batch.pop("attention_mask")  # padding only ever follows the text, where a causal model can't see it
        batch["labels"] = batch["input_ids"].masked_fill(mask == 0, IGNORED)
        return batch

    def align(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits[:, :-1], labels[:, 1:]

    def reduce(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return token_statistics(*self.align(logits, labels))

    def scores(self, reduced: np.ndarray, labels: np.ndarray, model_config: Any, recipe: Recipe) -> dict[str, Score]:
        return nll_scores(reduced, recipe, "blocks of the training length, no overlap")

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, recipe: Recipe
    ) -> dict[str, Score]:
        from hfkit.perplexity import perplexity

        wanted = recipe.evaluation
        return perplexity(
            model,
            tokenizer,
            dataset["text"][:],
            context=wanted.context or recipe.data.block_size,
            stride=wanted.stride,
            batch_size=wanted.batch_size,
            interval=wanted.interval,
            seed=wanted.seed,
        )
