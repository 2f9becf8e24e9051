"""Which tokens a masked objective hides, and what stands in their place: single tokens, whole words or spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.errors import ModelError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

MAX_SPAN_WORDS = 10  # SpanBERT's longest span and the rate of its geometric lengths (arXiv 1907.10529, section 3.1)

SPAN_RATE = 0.2


class Masking:
    """How `recipe` hides tokens of `tokenizer`'s texts from `model`: what `hide` needs to know beside a row.

    Raises ModelError or UsageError if the model can't learn it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe) -> None:
        import inspect

        import numpy as np

        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no mask token, so it can't learn {recipe.task}",
                f"give a {'tokenizer' if recipe.tokenizer.name else 'model'} that has one",
            )
        if "attention_mask" not in inspect.signature(model.forward).parameters:  # FNet's
            raise UsageError(
                f"{model.config.model_type} takes no attention mask, so padding would change what it answers",
                "choose another --model",
            )
        self.special = np.zeros(len(tokenizer), dtype=bool)
        self.special[tokenizer.all_special_ids] = True
        self.shared = {
            "masking": recipe.data.masking,
            "probability": recipe.data.mask_probability,
            "mask_id": tokenizer.mask_token_id,
            "ordinary_ids": np.flatnonzero(~self.special),
        }

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """`row` with all that `hide` takes."""
        return {**row, "maskable": ~self.special[row["input_ids"]], **self.shared}


def hide(row: dict[str, Any], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, labels) of a row, each (tokens,): of the chosen units 80% become the mask, 10% random tokens, 10% stay.

    A unit is a token, a word, or a span of words; one fate for all its tokens, as in SpanBERT, since a word half
    hidden says what its other half is (google-research/bert, create_pretraining_data.py, draws for each token). At
    least one unit is always chosen. `words` of a row: whether a token begins a word.
    """
    import numpy as np

    tokens = row["input_ids"]
    inputs, labels = tokens.copy(), np.full_like(tokens, IGNORED)
    candidates = np.flatnonzero(row["maskable"])
    if len(candidates) == 0:
        return inputs, labels
    words = np.arange(len(candidates)) if row["masking"] == "token" else _words(row["words"], candidates)
    if row["masking"] == "span":
        units = _spans(words, candidates, row["probability"], random)
    else:
        units = _singles(words[-1] + 1, row["probability"], random)
    unit = units[words]  # of each candidate; -1: it stays
    chosen, unit = candidates[unit >= 0], unit[unit >= 0]
    labels[chosen] = tokens[chosen]
    kind = random.random(units.max() + 1)[unit]
    inputs[chosen[kind < 0.8]] = row["mask_id"]
    replaced = chosen[kind >= 0.9]
    inputs[replaced] = random.choice(row["ordinary_ids"], size=len(replaced))
    return inputs, labels


def masked_definition(masking: Masking, seed: int) -> str:
    """What a number over the hidden tokens is about."""
    of = {"token": "", "whole-word": " of whole words", "span": " of spans"}[masking.shared["masking"]]
    return f"masked tokens{of} only, masks drawn once from seed {seed}"


def _words(begins: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The number of each candidate's word, from 0 on; a word that the edge of a block cuts is what is in the block."""
    import numpy as np

    first = begins[candidates].copy()
    first[1:] |= np.diff(candidates) > 1
    first[0] = True
    numbers: np.ndarray = np.cumsum(first) - 1
    return numbers


def _singles(num_words: int, probability: float, random: np.random.Generator) -> np.ndarray:
    """The unit of each word, -1 for the words not chosen; each alone and with `probability`, so tokens are, too."""
    import numpy as np

    chosen = np.flatnonzero(random.random(num_words) < probability)
    if len(chosen) == 0:
        chosen = random.choice(num_words, size=1)
    units = np.full(num_words, -1)
    units[chosen] = np.arange(len(chosen))
    return units


def _spans(words: np.ndarray, candidates: np.ndarray, probability: float, random: np.random.Generator) -> np.ndarray:
    """The unit of each word, -1 for the words not chosen: spans of words until `probability` of the tokens is in them.

    The last word chosen may go beyond that. No span reaches across a special token or into another span.
    """
    import numpy as np

    lengths = np.bincount(words)
    starts = candidates[np.cumsum(lengths) - lengths]
    apart = np.ones(len(lengths) + 1, dtype=bool)  # whether a word does not follow on the one before
    apart[1:-1] = starts[1:] != starts[:-1] + lengths[:-1]
    shares = (1 - SPAN_RATE) ** np.arange(MAX_SPAN_WORDS)  # cut at the longest and scaled to 1: a mean of 3.8 words
    shares = np.cumsum(shares / shares.sum())
    units, left, number = np.full(len(lengths), -1), max(1, round(probability * len(candidates))), 0
    while left > 0:
        free = np.flatnonzero(units < 0)
        word = int(free[random.integers(len(free))])
        for _ in range(int(np.searchsorted(shares, random.random(), side="right")) + 1):
            units[word] = number
            left -= lengths[word]
            word += 1
            if left <= 0 or apart[word] or units[word] >= 0:
                break
        number += 1
    return units
