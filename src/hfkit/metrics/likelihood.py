"""Log-probabilities of tokens under a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from hfkit.data.batches import by_length
from hfkit.data.labels import IGNORED
from hfkit.errors import ModelError
from hfkit.system.processes import all_gather, shard

ROWS_AT_ONCE = 64  # of logits in float64

MAX_LOGITS = 1 << 27  # numbers in one batch of logits, 512 MiB in float32

Ids = Sequence[int] | npt.NDArray[np.int64]  # token ids, shape (tokens,)


class Passage(NamedTuple):
    """Tokens to score, `ids`, and what the model reads before them."""

    context: Ids  # in the decoder; empty: an encoder-decoder puts its own start before `ids`, as in training
    ids: Ids
    source: Ids | None = None  # in the encoder; None: the model has none
    scored: npt.NDArray[np.bool_] | None = None  # which of `ids`, shape (tokens,); None: all of them

    @property
    def num_tokens(self) -> int:
        """Tokens that the decoder reads or predicts."""
        return len(self.context) + len(self.ids)


@dataclass(frozen=True)
class Token:
    """One token of a text: its log-probability, and the likeliest tokens in its place with theirs."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


def token_logprobs(model: PreTrainedModel, passages: Sequence[Passage], num_top: int = 0) -> list[list[Token]]:
    """The tokens of each passage, each with `num_top` alternatives; raises ModelError if the model answers with NaN."""
    found: list[list[Token]] = [[] for _ in passages]
    with torch.inference_mode():
        for places in batches(model, passages):
            for place, logits in zip(places, batch_logits(model, [passages[place] for place in places]), strict=True):
                ids = passages[place].ids
                sums = log_sums(logits).cpu()
                chosen = logits.cpu().gather(1, torch.tensor(ids, dtype=torch.long)[:, None])[:, 0].double() - sums
                require_finite(chosen.numpy())
                top = logits.topk(min(num_top, logits.shape[1]))
                values = top.values.cpu().double() - sums[:, None]
                others = [
                    [*zip(*pair, strict=True)] for pair in zip(top.indices.tolist(), values.tolist(), strict=True)
                ]
                found[place] = [Token(*token) for token in zip(ids, chosen.tolist(), others, strict=True)]
    return found


def token_nats(model: PreTrainedModel, passages: Sequence[Passage], batch_size: int | None) -> npt.NDArray[np.float64]:
    """The summed nats of each passage's scored tokens, shape (passages,); several processes share the batches.

    Raises ModelError if the model answers with NaN.
    """
    nats: npt.NDArray[np.float64] = np.zeros(len(passages))
    model.eval()
    with torch.inference_mode():
        for places in shard(batches(model, passages, batch_size)):
            for place, logits in zip(places, batch_logits(model, [passages[place] for place in places]), strict=True):
                _, ids, _, scored = passages[place]
                chosen = logits.gather(1, torch.as_tensor(ids, dtype=torch.long, device=logits.device)[:, None])[:, 0]
                losses = log_sums(logits) - chosen.double()
                if scored is not None:
                    losses = losses[torch.as_tensor(scored, device=logits.device)]
                nats[place] = losses.sum().item()
    nats = np.add.reduce(all_gather([nats]))  # one process found each number, and it is 0 in the others
    require_finite(nats)
    return nats


def log_sums(logits: torch.Tensor) -> torch.Tensor:
    """ln(sum(exp)) of each row, float64 of shape (rows,): over a large vocabulary a float32 sum is 1e-5 nats off."""
    starts = range(0, max(len(logits), 1), ROWS_AT_ONCE)
    return torch.cat([logits[start : start + ROWS_AT_ONCE].double().logsumexp(-1) for start in starts])


def batches(
    model: PreTrainedModel, passages: Sequence[Passage], batch_size: int | None = None
) -> Sequence[Sequence[int]]:
    """The places of `passages`, longest first, in batches whose logits stay below MAX_LOGITS."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    lengths = [passage.num_tokens + len(() if passage.source is None else passage.source) for passage in passages]
    found = by_length(
        lengths, batch_size, device=model.device.type, most=lambda longest: MAX_LOGITS // (longest * vocabulary)
    )
    return [places.tolist() for places in found]


def batch_logits(model: PreTrainedModel, passages: Sequence[Passage]) -> Iterator[torch.Tensor]:
    """The logits of the `ids` of each passage, float32 of shape (ids, vocabulary), from one forward pass."""
    given: dict[str, Any] = {}
    if passages[0].source is not None:
        sources = [torch.as_tensor(passage.source) for passage in passages]
        given["input_ids"] = pad_sequence(sources, batch_first=True, padding_value=model.config.pad_token_id or 0)
        given["attention_mask"] = pad_sequence([torch.ones_like(ids) for ids in sources], batch_first=True)
    if len(passages[0].context):
        name = "input_ids" if passages[0].source is None else "decoder_input_ids"
        texts = [np.concatenate([passage.context, passage.ids]) for passage in passages]
        read = [torch.as_tensor(text[: max(len(text) - 1, 1)]) for text in texts]  # the last token predicts nothing
        given[name] = pad_sequence(read, batch_first=True)  # padding follows the text, where no token sees it
    else:  # each architecture makes the decoder's input from the labels in a way of its own
        labels = [torch.as_tensor(passage.ids) for passage in passages]
        given["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    inputs = {name: ids.long().to(model.device) for name, ids in given.items()}
    logits = model(**inputs, use_cache=False).logits
    for row, passage in enumerate(passages):
        first = max(len(passage.context) - 1, 0)
        yield logits[row, first : first + len(passage.ids)].float()


def require_finite(numbers: npt.NDArray[Any]) -> None:
    if not np.isfinite(numbers).all():
        raise ModelError(
            "the model answers with NaN: its weights hold no numbers", "an earlier checkpoint, or --dtype float32"
        )
