"""Masked language modelling as in BERT (arXiv 1810.04805, section 3.1)."""

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
from hfkit.tasks.masked_head import add_positions, flat_labels, narrow_head

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics import Score
    from hfkit.recipe import Recipe


class MaskedLM(Task):
    command = "pretrain"
    auto_model = "AutoModelForMaskedLM"
    best_metric = "nll"
    metrics = ("perplexity", "token_accuracy", "nll")

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {**language_model_defaults(given, new_type="bert"), "data.documents": "blank-line"}

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        return load_documents(recipe)

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Rows:
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no mask token, so it can't learn mlm",
                "--objective clm, or a model of BERT's kind",
            )
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
        return _MaskableRows(blocks, tokenizer, recipe.data.mask_probability)

    def example(self, row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        """Of the chosen tokens 80% become the mask, 10% a random token, 10% stay; at least one is always chosen."""
        import numpy as np

        tokens, maskable = row["input_ids"], row["maskable"]
        inputs, labels = tokens.copy(), np.full_like(tokens, IGNORED)
        candidates = np.flatnonzero(maskable)
        chosen = candidates[random.random(len(candidates)) < row["probability"]]
        if len(chosen) == 0 and len(candidates) > 0:
            chosen = random.choice(candidates, size=1)
        labels[chosen] = tokens[chosen]
        kind = random.random(len(chosen))
        inputs[chosen[kind < 0.8]] = row["mask_id"]
        replaced = chosen[kind >= 0.9]
        inputs[replaced] = random.choice(row["ordinary_ids"], size=len(replaced))
        return {"input_ids": inputs, "labels": labels}

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return add_positions(pad_blocks(examples, tokenizer))

    def prepare(self, model: PreTrainedModel, batch: Batch) -> None:
        narrow_head(model, batch)

    def align(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits, flat_labels(logits, labels)

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        return token_statistics(outputs[0], labels)

    def scores(self, reduced: np.ndarray, labels: np.ndarray, rows: Rows, recipe: Recipe) -> dict[str, Score]:
        return nll_scores(reduced, recipe, f"masked tokens only, masks drawn once from seed {recipe.evaluation.seed}")


class _MaskableRows:
    """Blocks with what masking needs: which tokens are ordinary ones, and which ids may replace them."""

    def __init__(self, blocks: Rows, tokenizer: PreTrainedTokenizerBase, probability: float) -> None:
        import numpy as np

        special = np.zeros(len(tokenizer), dtype=bool)
        special[tokenizer.all_special_ids] = True
        self.blocks, self.lengths = blocks, blocks.lengths
        self.special = special
        self.shared = {
            "probability": probability,
            "mask_id": tokenizer.mask_token_id,
            "ordinary_ids": np.flatnonzero(~special),
        }

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.blocks[index]["input_ids"]
        return {"input_ids": tokens, "maskable": ~self.special[tokens], **self.shared}
