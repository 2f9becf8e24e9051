"""Pseudo-perplexity of masked models: each token from all others (Salazar et al. 2020, arXiv 1910.14659)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.tasks.base import Examples

if TYPE_CHECKING:
    import numpy as np

    from hfkit.metrics.sample import Measured
    from hfkit.settings import Evaluation
    from hfkit.tasks.masking import Masking
    from hfkit.tasks.packing import Blocks


class OneHidden(Examples):
    """An example for every token that is not special: its block with this token hidden.

    `documents`: which document each example is of, shape (examples,).
    """

    def __init__(self, blocks: Blocks, masking: Masking) -> None:
        import numpy as np

        self.blocks = blocks
        self.mask_id = masking.shared["mask_id"]
        rows = (masking.row(blocks[block]) for block in range(len(blocks)))
        places = [np.flatnonzero(row["maskable"]) for row in rows]
        self.block = np.repeat(np.arange(len(places)), [len(some) for some in places])
        self.place = np.concatenate(places)
        self.lengths = blocks.lengths[self.block]
        of_block = np.searchsorted(blocks.store.starts, blocks.first, side="right") - 1
        self.documents = of_block[self.block]

    def example(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        import numpy as np

        tokens, place = self.blocks[int(self.block[index])]["input_ids"], self.place[index]
        inputs, labels = tokens.copy(), np.full_like(tokens, IGNORED)
        inputs[place], labels[place] = self.mask_id, tokens[place]
        return {"input_ids": inputs, "labels": labels}


def pseudo_perplexity(texts: Sequence[str], reduced: np.ndarray, rows: OneHidden, evaluation: Evaluation) -> Measured:
    """Scores and rows of the documents `texts`; `reduced` (examples, 3): nats, tokens and right ones."""
    import numpy as np

    from hfkit.metrics.perplexity import document_row
    from hfkit.metrics.sample import Measured, Score, ratio_interval

    nats, tokens = (np.bincount(rows.documents, of, len(texts)) for of in (reduced[:, 0], reduced[:, 1]))
    count = int(tokens.sum())
    ends = ratio_interval(nats, tokens, seed=evaluation.seed) if evaluation.interval else None
    low, high = ends or (None, None)
    value, size = float(nats.sum()) / count, int(rows.blocks.lengths.max())
    how = (
        "each token hidden alone and predicted from all others of its document, in blocks of at most "
        f"{size} tokens; arXiv 1910.14659, special tokens not scored, resampled by document"
    )
    scores = {
        "pseudo_perplexity": Score(
            math.exp(value),
            None if low is None else math.exp(low),
            None if high is None else math.exp(high),
            count,
            f"exp(nats per token), {how}",
        ),
        "pseudo_nll": Score(value, low, high, count, f"nats per token, {how}"),
    }
    numbers = zip(texts, nats.tolist(), tokens.tolist(), strict=True)
    return Measured(scores, ({**document_row(text), "nll": nll, "tokens": int(n)} for text, nll, n in numbers))
