"""Perplexity of text, or of targets given their sources, in all units, by hfkit's definition or another program's."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hfkit.errors import DataError, DivergedError, ModelError, UsageError
from hfkit.metrics.likelihood import Passage, token_nats
from hfkit.metrics.sample import Score, ratio_interval
from hfkit.system.console import short, warn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Row

Window = tuple[int, int, int, int]  # document, start, stop, first token that is scored

MAX_CONTEXT = 1024  # tokens, if neither the recipe nor the run names a context

MAX_NATS = 700  # exp of more overflows a float

MAX_WORD_NATS = 100  # an untrained model needs about 40 for an English word


FEW = 100  # documents, whose lengths can be so unequal that an interval of fewer is too narrow


@dataclass(frozen=True)
class Likelihood:
    """The nats of documents under a model, by window: `owners` says which document each window belongs to.

    `nats`, `scored` (tokens): shape (windows,). `sources`: of targets, the text that each was the answer to.
    """

    documents: Sequence[str]
    owners: np.ndarray
    nats: np.ndarray
    scored: np.ndarray
    how: str
    sources: Sequence[str] | None = None

    def rows(self) -> list[Row]:
        """For each document its identity, nats, tokens scored, and perplexity (None if no token is scored)."""
        sums = [np.bincount(self.owners, of, minlength=len(self.documents)) for of in (self.nats, self.scored)]
        described = (
            map(document_row, self.documents) if self.sources is None else map(pair_row, self.sources, self.documents)
        )
        return [
            {**row, "nll": nll, "tokens": int(tokens), "perplexity": _exp(nll / tokens) if tokens else None}
            for row, nll, tokens in zip(described, *(of.tolist() for of in sums), strict=True)
        ]

    def scores(self, *, interval: bool, seed: int) -> dict[str, Score]:
        """The numbers over all documents."""
        by_document = len(self.documents) > 1
        units = self.owners if by_document else np.arange(len(self.nats))
        nats, tokens = (np.bincount(units, of, minlength=len(self.documents)) for of in (self.nats, self.scored))
        how = f"{self.how}, resampled by {'document' if by_document else 'window'}"
        if interval and by_document and 1 < len(nats) < FEW:
            how += f"; of {len(nats)} documents, so the interval is rather too narrow"

        def score(per: np.ndarray, change: Any, what: str) -> Score:
            ends = ratio_interval(nats, per, seed=seed) if interval else None
            low, high = (None, None) if ends is None else (change(ends[0]), change(ends[1]))
            return Score(change(nats.sum() / per.sum()), low, high, int(self.scored.sum()), f"{what}; {how}")

        def shares(unit: str) -> np.ndarray:
            """The size of each unit of resampling; the size of a single document is divided by tokens."""
            total = np.array([SIZES[unit](text) for text in self.documents], dtype=float)
            return total if by_document else tokens * total.sum() / tokens.sum()

        def bits(nats_per: float) -> float:
            return nats_per / math.log(2)

        scores = {
            "perplexity": score(tokens, _exp, "exp(nats per token)"),
            "bits_per_byte": score(shares("bytes"), bits, "bits per UTF-8 byte of the text"),
            "bits_per_character": score(shares("characters"), bits, "bits per character of the text"),
            "nll": score(tokens, float, "nats per token, token-weighted"),
        }
        # In a script without blanks a "word" is a whole paragraph, and its perplexity overflows.
        if (nats <= MAX_WORD_NATS * shares("words")).all():
            scores["word_perplexity"] = score(shares("words"), math.exp, "exp(nats per word between blanks)")
        return scores


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    batch_size: int | None = None,
) -> Likelihood:
    """The nats of `documents` under a causal model: every token scored once, in a window that moves by `stride`.

    A window holds `context` tokens; all but the first score their last `stride` tokens. So each token is predicted from
    at least context - stride tokens before it, where the document has them. No window spans two documents. With `bos`
    "yes", or "auto" and a tokenizer that has one, a BOS token stands before each document and is not scored; without
    it the first token of a document can't be scored and is left out. No EOS is added. Raises UsageError for a stride or
    a BOS that is not possible, and DataError if no token can be scored.
    """
    context = context_of(model, context)
    stride = stride or max(1, context // 2)
    if stride >= context:
        raise UsageError(
            f"evaluation.stride {stride} must be smaller than the context {context}", f"--stride {context // 2}"
        )
    if bos == "yes" and tokenizer.bos_token_id is None:
        raise UsageError(f"the tokenizer of {tokenizer.name_or_path} has no BOS token", "--bos no")
    start = [] if bos == "no" or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = _encoded(tokenizer, documents, add_special_tokens=False)
    sequences = [np.asarray(start + ids, dtype=np.int64) for ids in encoded]
    windows = [(doc, *window) for doc, ids in enumerate(sequences) for window in _windows(len(ids), context, stride)]
    if not windows:
        raise DataError("no token can be scored: every document is empty or of one token", "give longer text")
    nats = _window_nats(model, sequences, windows, batch_size)
    owners = np.array([doc for doc, *_ in windows])
    scored = np.array([stop - first for *_, stop, first in windows])
    lost = sum(len(ids) > 0 for ids in encoded) if not start else 0
    how = (
        f"context {context}, stride {stride}, BOS {'before each document' if start else 'none'}, "
        f"{_dtype(model)}, {int(scored.sum()):,} tokens scored, {lost:,} not"
    )
    return Likelihood(documents, owners, nats, scored, how)


def measure_targets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    max_length: int | None = None,
    batch_size: int | None = None,
) -> Likelihood:
    """The nats of each target under an encoder-decoder that has read its source; each token from all before it.

    The special tokens that the tokenizer puts around a target are seen, as in training, but not scored. Sources are cut
    at `max_length` tokens, both at the model's positions if their number is limited. What is cut is printed, and the
    sizes of a target are those of the part that was scored.
    """
    from hfkit.models.config import max_tokens

    positions = max_tokens(model)
    if max_length is not None and positions is not None and max_length > positions:
        raise UsageError(
            f"data.max_length {max_length} is longer than the model's {positions} positions",
            f"--max-length {positions}",
        )
    asked, lost_of_sources = _within(tokenizer, max_length or positions, text=list(sources))
    made, lost_of_targets = _within(tokenizer, positions, text_target=list(targets))
    if blank := [row for row, ids in enumerate(asked["input_ids"], 1) if not ids]:
        raise DataError(f"row {blank[0]}: the source is empty", "fill it in, or delete the row")
    _warn_of_cut("source", lost_of_sources, max_length or positions)
    _warn_of_cut("target", lost_of_targets, positions)
    masks = [np.array(mask) == 0 for mask in made["special_tokens_mask"]]
    scored = np.array([mask.sum() for mask in masks])
    if not scored.any():
        raise DataError("no token can be scored: every target is empty", "give targets that are not")
    rows = np.flatnonzero(scored)
    passages = [Passage((), made["input_ids"][row], asked["input_ids"][row], masks[row]) for row in rows]
    nats = np.zeros(len(scored))
    nats[rows] = token_nats(model, passages, batch_size)
    ends = [max((stop for _, stop in offsets), default=0) for offsets in made["offset_mapping"]]
    documents = [text[:end] if lost else text for text, end, lost in zip(targets, ends, lost_of_targets, strict=True)]
    how = (
        f"of each target given its source, special tokens seen but not scored, {_dtype(model)}, "
        f"{scored.sum():,} tokens scored, {lost_of_targets.sum():,} not, "
        f"{(lost_of_sources > 0).sum():,} of {len(sources):,} sources cut"
    )
    return Likelihood(documents, np.arange(len(scored)), nats, scored, how, sources)


def compatible(
    program: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    context: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Score]:
    """The perplexity that `program` prints for these documents, by its own definition; no intervals.

    lm-eval: `loglikelihood_rolling` of version 0.4 and the units of its wikitext task. evaluate: its metric
    `perplexity`, where `context` is max_length. run-clm: transformers' example script, where `context` is block_size.
    """
    as_program = {"lm-eval": _as_lm_eval, "evaluate": _as_evaluate, "run-clm": _as_run_clm}[program]
    scores = as_program(model, tokenizer, documents, context_of(model, context), batch_size)
    how = f"{_dtype(model)}, as {program}"
    return {name: replace(one, definition=f"{one.definition}; {how}") for name, one in scores.items()}


def _as_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    context: int,
    batch_size: int | None,
) -> dict[str, Score]:
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if prefix is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no BOS or EOS to begin with", "leave out --compat"
        )
    sequences = [np.array([prefix, *ids]) for ids in _encoded(tokenizer, documents)]
    windows = [(doc, *one) for doc, ids in enumerate(sequences) for one in _disjoint_windows(len(ids), context)]
    nats, count = _total(model, sequences, windows, batch_size)
    words, num_bytes = (sum(map(size, documents)) for size in (_split_words, lambda text: len(text.encode())))
    how = (
        f"windows of {context} tokens that don't overlap, each after one token of the window before (hfkit's "
        f"overlap, which lowers the number), the first after {tokenizer.decode([prefix])}, the last filled up with "
        "context; special tokens of the tokenizer scored with the text"
    )
    return {
        "perplexity": Score(_exp(nats / count), None, None, count, f"exp(nats per token); {how}"),
        "word_perplexity": Score(_exp_of_words(nats / words), None, None, words, f"exp(nats per word); {how}"),
        "byte_perplexity": Score(math.exp(nats / num_bytes), None, None, num_bytes, f"exp(nats per byte); {how}"),
        "bits_per_byte": Score(nats / num_bytes / math.log(2), None, None, num_bytes, f"bits per byte; {how}"),
    }


def _as_evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    context: int,
    batch_size: int | None,
) -> dict[str, Score]:
    if tokenizer.bos_token_id is None:
        raise ModelError(f"evaluate needs a BOS token, {tokenizer.name_or_path} has none", "--compat lm-eval")
    encoded = _encoded(tokenizer, documents, add_special_tokens=False)
    passages = [Passage([tokenizer.bos_token_id], ids[: context - 1]) for ids in encoded]
    if empty := [doc for doc, passage in enumerate(passages, 1) if not passage.ids]:
        raise DataError(f"row {empty[0]} is empty, and evaluate divides by its length", "leave it out")
    counts = [len(passage.ids) for passage in passages]
    rows = np.exp(token_nats(model, passages, batch_size) / counts)
    cut = sum(len(ids) > context - 1 for ids in encoded)
    how = (
        f"every row alike whatever its length, where hfkit weights by tokens; BOS first; {cut:,} of "
        f"{len(documents):,} rows cut at {context} tokens"
    )
    value = float(rows.mean())
    return {"mean_perplexity": Score(value, None, None, len(rows), f"mean over rows of exp(nats per token); {how}")}


def _as_run_clm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    context: int,
    batch_size: int | None,
) -> dict[str, Score]:
    lines = [line for text in documents for line in io.StringIO(text)]  # with their ends, as it reads text files
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in _encoded(tokenizer, lines)])
    blocks = tokens[: len(tokens) // context * context].reshape(-1, context)
    if len(blocks) == 0:
        raise DataError(f"{len(tokens):,} tokens fill no block of {context}: run_clm drops all", "--context LESS")
    nats, count = _total(model, list(blocks), [(block, 0, context, 1) for block in range(len(blocks))], batch_size)
    how = (
        f"lines one after another in blocks of {context}, where a token sees the block alone and the first of each is "
        f"not scored ({len(blocks):,}), nor the last {len(tokens) - blocks.size:,} tokens; hfkit scores all"
    )
    return {
        "perplexity": Score(_exp(nats / count), None, None, count, f"exp(eval_loss); {how}"),
        "nll": Score(nats / count, None, None, count, f"eval_loss, nats per token; {how}"),
    }


def context_of(model: PreTrainedModel, wanted: int | None) -> int:
    """The tokens in a window: `wanted`, or a default. Raises UsageError if the model has fewer positions."""
    from hfkit.models.config import max_tokens

    limit = max_tokens(model)
    if limit is not None and wanted is not None and wanted > limit:
        raise UsageError(
            f"evaluation.context {wanted} is longer than the model's {limit} positions", f"--context {limit}"
        )
    return wanted or min(limit or MAX_CONTEXT, MAX_CONTEXT)


def _warn_of_cut(what: str, lost: np.ndarray, limit: int | None) -> None:
    """A warning if any of the texts lost tokens; `lost`: how many each."""
    if lost.any():
        cut = f"{(lost > 0).sum():,} of {len(lost):,} {what}s"
        warn(f"{cut} are longer than {limit} tokens: the last {lost.sum():,} tokens of them are not read")


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)["input_ids"]
    return ids


def _within(
    tokenizer: PreTrainedTokenizerBase, limit: int | None, **texts: list[str]
) -> tuple[Mapping[str, Any], np.ndarray]:
    """The tokenized texts, each truncated to `limit` tokens, and how many tokens each lost."""
    options = {"return_special_tokens_mask": True, "return_offsets_mapping": True, "verbose": False}
    whole = tokenizer(**texts, **options)
    lost = np.array([max(0, len(ids) - (limit or sys.maxsize)) for ids in whole["input_ids"]])
    return (tokenizer(**texts, truncation=True, max_length=limit, **options) if lost.any() else whole), lost


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first scored) of each window over `length` tokens; the first token is never scored."""
    scored = 1
    for start in range(0, length, stride):
        stop = min(start + context, length)
        if stop > scored:
            yield start, stop, scored
            scored = stop


def _disjoint_windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """The same for lm-eval: `context` tokens are scored at once, from as many before the last of them."""
    for scored in range(1, length, context):
        stop = min(scored + context, length)
        yield max(0, stop - 1 - context), stop, scored


def _split_words(text: str) -> int:
    return len(re.split(r"\s+", text))  # blanks at an end make one more, in lm-eval


def _exp(nats: float) -> float:
    if nats > MAX_NATS:
        raise DivergedError(
            f"{nats:,.0f} nats per token: no number holds the perplexity, the model has diverged",
            "train it again with a smaller learning rate",
        )
    return math.exp(nats)


def _exp_of_words(nats: float) -> float:
    if nats > MAX_WORD_NATS:
        raise DataError("word perplexity is beyond any number: few blanks divide this text", "another --compat")
    return math.exp(nats)


def _total(
    model: PreTrainedModel, sequences: Sequence[np.ndarray], windows: Sequence[Window], batch_size: int | None
) -> tuple[float, int]:
    """(nats, tokens scored) of all windows."""
    if not windows:
        raise DataError("no token can be scored: every document is empty", "give longer text")
    nats = _window_nats(model, sequences, windows, batch_size)
    return float(nats.sum()), sum(stop - first for *_, stop, first in windows)


def _window_nats(
    model: PreTrainedModel, sequences: Sequence[np.ndarray], windows: Sequence[Window], batch_size: int | None
) -> np.ndarray:
    """The nats of each window's scored tokens, shape (windows,)."""
    passages = [Passage(sequences[doc][start:first], sequences[doc][first:stop]) for doc, start, stop, first in windows]
    return token_nats(model, passages, batch_size)


SHOWN = 80  # characters of a document in a row; its digest identifies it

# The units besides tokens that nats are divided by: sizes of the text itself, independent of the tokenizer.
SIZES: dict[str, Callable[[str], int]] = {
    "bytes": lambda text: len(text.encode()),
    "characters": len,
    "words": lambda text: len(text.split()),
}


def document_row(text: str) -> Row:
    """A document's beginning, digest and sizes."""
    return {"text": short(text, SHOWN), "digest": _digest(text), **_sizes(text)}


def pair_row(source: str, target: str) -> Row:
    """The beginnings of a source and its target, their digest, and the sizes of the target."""
    shown = {"text": short(source, SHOWN), "reference": short(target, SHOWN)}
    return {**shown, "digest": _digest(json.dumps([source, target])), **_sizes(target)}


def _digest(text: str) -> str:
    import xxhash

    return str(xxhash.xxh3_128(text.encode()).hexdigest())


def _sizes(text: str) -> dict[str, int]:
    return {unit: size(text) for unit, size in SIZES.items()}
