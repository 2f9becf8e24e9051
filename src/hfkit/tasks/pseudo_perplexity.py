"""Pseudo-perplexity of masked models: each token from all others (Salazar et al. 2020, arXiv 1910.14659)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.tasks.base import Rows
from hfkit.tasks.mlm import MaskedLM

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Score
    from hfkit.settings import Recipe


class PseudoPerplexity(MaskedLM):
    """Masked language modelling with one row for every token, in which this token alone is hidden."""

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Rows:
        from dataclasses import replace

        apart = replace(recipe, data=replace(recipe.data, packing=False, masking="token"))
        return _OneHidden(super().encode(dataset, tokenizer, model, apart))

    def evaluate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        recipe: Recipe,
        beside: Path | None = None,
    ) -> dict[str, Score]:
        import numpy as np

        from hfkit.evaluation.inference import predict_rows
        from hfkit.evaluation.rows import write_rows
        from hfkit.metrics.perplexity import document_row
        from hfkit.metrics.sample import Score, ratio_interval

        rows = self.encode(dataset, tokenizer, model, recipe)
        assert isinstance(rows, _OneHidden)
        reduced, _ = predict_rows(self, model, tokenizer, rows, batch_size=recipe.evaluation.batch_size)
        nats, tokens = (np.bincount(rows.documents, of, len(dataset)) for of in (reduced[:, 0], reduced[:, 1]))
        if beside is not None:
            numbers = zip(dataset["text"][:], nats.tolist(), tokens.tolist(), strict=True)
            write_rows(beside, ({**document_row(text), "nll": nll, "tokens": int(n)} for text, nll, n in numbers))
        wanted, count = recipe.evaluation, int(tokens.sum())
        ends = ratio_interval(nats, tokens, seed=wanted.seed) if wanted.interval else None
        low, high = ends or (None, None)
        value, size = float(nats.sum()) / count, int(rows.blocks.lengths.max())
        how = (
            "each token hidden alone and predicted from all others of its document, in blocks of at most "
            f"{size} tokens; arXiv 1910.14659, special tokens not scored, resampled by document"
        )
        return {
            "pseudo_perplexity": Score(
                math.exp(value),
                None if low is None else math.exp(low),
                None if high is None else math.exp(high),
                count,
                f"exp(nats per token), {how}",
            ),
            "pseudo_nll": Score(value, low, high, count, f"nats per token, {how}"),
        }


class _OneHidden(Rows):
    """A row for every token that is not special: its block with this token hidden; `documents`: which one it is of."""

    def __init__(self, masked: Any) -> None:
        import numpy as np

        self.blocks, masking = masked.blocks, masked.masking
        self.mask_id = masking.shared["mask_id"]
        rows = (masking.row(self.blocks[block]) for block in range(len(masked)))
        places = [np.flatnonzero(row["maskable"]) for row in rows]
        self.block = np.repeat(np.arange(len(places)), [len(some) for some in places])
        self.place = np.concatenate(places)
        self.lengths = self.blocks.lengths[self.block]
        of_block = np.searchsorted(self.blocks.store.starts, self.blocks.first, side="right") - 1
        self.documents = of_block[self.block]

    def example(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        import numpy as np

        tokens, place = self.blocks[int(self.block[index])]["input_ids"], self.place[index]
        inputs, labels = tokens.copy(), np.full_like(tokens, IGNORED)
        inputs[place], labels[place] = self.mask_id, tokens[place]
        return {"input_ids": inputs, "labels": labels}
