"""Perplexity of text under a causal language model, in all its units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hfkit.errors import DataError, UsageError
from hfkit.metrics import Score, ratio_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_CONTEXT = 1024  # where neither the recipe nor the run says
MAX_WORD_NATS = 100  # a model that knows nothing spends some 40 on an English word
MAX_LOGITS = 1 << 27  # numbers in one batch of logits, 512 MiB in float32


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    interval: bool = True,
    seed: int = 0,
) -> dict[str, Score]:
    """Perplexity of `documents` under a causal model: every token scored once, in a window that moves by `stride`.

    A window holds `context` tokens; all but the first score their last `stride` tokens, so each token is predicted
    from at least context - stride tokens before it, where the document has them. Documents are apart. The tokenizer's
    BOS token, where it has one, stands before each document and is not scored; without one the first token of a
    document can't be scored and is left out. No EOS is added. Intervals resample documents, or windows where there is
    one document.
    """
    import torch

    from hfkit.models import max_tokens

    limit = max_tokens(model)
    context = context or min(limit or MAX_CONTEXT, MAX_CONTEXT)
    if limit is not None and context > limit:
        raise UsageError(
            f"evaluation.context {context} is longer than the model's {limit} positions", f"--context {limit}"
        )
    stride = stride or max(1, context // 2)
    if stride >= context:
        raise UsageError(
            f"evaluation.stride {stride} must be smaller than the context {context}", f"--stride {context // 2}"
        )
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    sequences = [np.asarray(bos + ids, dtype=np.int64) for ids in encoded]
    windows = [(doc, *window) for doc, ids in enumerate(sequences) for window in _windows(len(ids), context, stride)]
    if not windows:
        raise DataError("no token can be scored: every document is empty or of one token", "give longer text")
    windows.sort(key=lambda window: window[1] - window[2])  # longest first
    vocabulary = model.get_input_embeddings().weight.shape[0]
    batch_size = max(1, min(batch_size, MAX_LOGITS // (context * vocabulary)))

    nll, scored = np.zeros(len(windows)), np.array([stop - first for _, _, stop, first in windows])
    model.eval()
    with torch.inference_mode():
        for begin in range(0, len(windows), batch_size):
            chosen = windows[begin : begin + batch_size]
            longest = max(stop - start for _, start, stop, _ in chosen)
            inputs = torch.zeros(len(chosen), longest, dtype=torch.long)
            for row, (doc, start, stop, _) in enumerate(chosen):
                inputs[row, : stop - start] = torch.from_numpy(sequences[doc][start:stop])
            logits = model(input_ids=inputs.to(model.device), use_cache=False).logits.float().cpu()
            for row, (_, start, stop, first) in enumerate(chosen):
                predicted = logits[row, first - start - 1 : stop - start - 1]
                targets = inputs[row, first - start : stop - start]
                losses = torch.nn.functional.cross_entropy(predicted, targets, reduction="none")
                nll[begin + row] = losses.double().sum().item()

    by_document = len(documents) > 1
    units = np.array([doc for doc, *_ in windows]) if by_document else np.arange(len(windows))
    nll_of, tokens_of = (np.bincount(units, weights, minlength=len(documents)) for weights in (nll, scored))
    sizes = {
        "byte": [len(text.encode()) for text in documents],
        "character": [len(text) for text in documents],
        "word": [len(text.split()) for text in documents],
    }
    lost = sum(len(ids) > 0 for ids in encoded) if not bos else 0
    how = (
        f"context {context}, stride {stride}, BOS {'before each document' if bos else 'none'}, "
        f"{str(model.dtype).removeprefix('torch.')}, {int(scored.sum()):,} tokens scored, {lost:,} not, "
        f"resampled by {'document' if by_document else 'window'}"
    )

    def score(per: np.ndarray, change: Any, what: str) -> Score:
        ends = ratio_interval(nll_of, per, seed=seed) if interval else None
        low, high = (None, None) if ends is None else (change(ends[0]), change(ends[1]))
        return Score(change(nll_of.sum() / per.sum()), low, high, int(scored.sum()), f"{what}; {how}")

    def shares(unit: str) -> np.ndarray:
        """Size of each unit of resampling; one document's size is shared out by tokens."""
        total = np.asarray(sizes[unit], dtype=float)
        return total if by_document else tokens_of * total.sum() / tokens_of.sum()

    scores = {
        "perplexity": score(tokens_of, math.exp, "exp(nats per token)"),
        "bits_per_byte": score(shares("byte"), lambda x: x / math.log(2), "bits per UTF-8 byte of the text"),
        "bits_per_character": score(shares("character"), lambda x: x / math.log(2), "bits per character of the text"),
        "nll": score(tokens_of, float, "nats per token, token-weighted"),
    }
    # "Words" of a script without blanks are whole paragraphs: no number worth printing, nor one that a float can hold.
    if (nll_of <= MAX_WORD_NATS * shares("word")).all():
        scores["word_perplexity"] = score(shares("word"), math.exp, "exp(nats per word between blanks)")
    return scores


def _windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first scored) of each window over a sequence of `length` tokens, whose first is never scored."""
    scored = 1
    for start in range(0, length, stride):
        stop = min(start + context, length)
        if stop > scored:
            yield start, stop, scored
            scored = stop
