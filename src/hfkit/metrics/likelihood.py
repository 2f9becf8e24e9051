"""Log-probabilities of tokens under a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.errors import ModelError
from hfkit.system.processes import gathered, share

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.generation.generator import Generator


@dataclass(frozen=True)
class Token:
    """One token of a text: its log-probability, and the likeliest tokens in its place with theirs."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


def score(
    generator: Generator, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], num_top: int = 0
) -> list[list[Token]]:
    """The tokens of each continuation after the prompt in its place, one padded forward for as many as fit the memory.

    Raises ModelError where the model's answer is no number.
    """
    import torch

    model, settings = generator.model, generator.settings
    start = settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id
    contexts = prompts if generator.is_decoder else [[start]] * len(prompts)
    rows = [([*context], [*ids], prompt) for context, ids, prompt in zip(contexts, continuations, prompts, strict=True)]
    longest = max(len(context) + len(ids) for context, ids, _ in rows)
    num_rows = max(1, MAX_LOGITS // (longest * model.get_input_embeddings().weight.shape[0]))
    found: list[list[Token]] = []
    for begin in range(0, len(rows), num_rows):
        part = rows[begin : begin + num_rows]
        inputs = torch.zeros(len(part), max(len(context) + len(ids) for context, ids, _ in part), dtype=torch.long)
        for row, (context, ids, _) in enumerate(part):  # what stands behind a token does not change its answer
            inputs[row, : len(context) + len(ids)] = torch.tensor([*context, *ids])
        given = {"input_ids": inputs}
        if not generator.is_decoder:
            encoder = pad_blocks([{"input_ids": torch.tensor(prompt)} for *_, prompt in part], generator.tokenizer)
            given = {**encoder, "decoder_input_ids": inputs}
        with torch.inference_mode():
            logits = model(**{name: tensor.to(model.device) for name, tensor in given.items()}, use_cache=False).logits
        for row, (context, ids, _) in enumerate(part):
            places = slice(len(context) - 1, len(context) + len(ids) - 1)
            shares = logits[row, places].float().log_softmax(-1).cpu()
            chosen = shares.gather(1, torch.tensor(ids, dtype=torch.long)[:, None])[:, 0]
            if not torch.isfinite(chosen).all():
                raise ModelError("the model answers with NaN: its weights hold no numbers", "an earlier checkpoint")
            top = shares.topk(min(num_top, shares.shape[1]))
            alternatives = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            found.append(
                [
                    Token(token, logprob, [*zip(*others, strict=True)])
                    for token, logprob, others in zip(ids, chosen.tolist(), alternatives, strict=True)
                ]
            )
    return found


MAX_LOGITS = 1 << 27  # numbers in one batch of logits, 512 MiB in float32

Window = tuple[int, int, int, int]  # document, start, stop, first token that is scored


def token_nats(
    model: PreTrainedModel, sequences: Sequence[np.ndarray], windows: list[Window], context: int, batch_size: int
) -> np.ndarray:
    """The summed nats of each window's scored tokens; sorts `windows`, the longest first."""
    import numpy as np
    import torch

    windows.sort(key=lambda window: window[1] - window[2])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    batch_size = max(1, min(batch_size, MAX_LOGITS // (context * vocabulary)))
    nats: np.ndarray = np.zeros(len(windows))
    model.eval()
    with torch.inference_mode():
        for begin in share(range(0, len(windows), batch_size)):
            chosen = windows[begin : begin + batch_size]
            longest = max(stop - start for _, start, stop, _ in chosen)
            inputs = torch.zeros(len(chosen), longest, dtype=torch.long)
            for row, (doc, start, stop, _) in enumerate(chosen):
                inputs[row, : stop - start] = torch.from_numpy(sequences[doc][start:stop])
            logits = model(input_ids=inputs[:, :-1].to(model.device), use_cache=False).logits
            for row, (_, start, stop, first) in enumerate(chosen):
                predicted = logits[row, first - start - 1 : stop - start - 1].float().cpu()
                targets = inputs[row, first - start : stop - start]
                losses = torch.nn.functional.cross_entropy(predicted, targets, reduction="none")
                nats[begin + row] = losses.double().sum().item()
    nats = np.add.reduce(gathered([nats]))  # each number was found once, and is 0 elsewhere
    require_numbers(nats)
    return nats


def require_numbers(nats: np.ndarray) -> None:
    import numpy as np

    if not np.isfinite(nats).all():
        raise ModelError(
            "the model answers with NaN: its weights hold no numbers", "an earlier checkpoint, or --dtype float32"
        )


def pad_blocks(examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Arrays per token, each (length,), as int64 tensors (rows, longest) with an attention mask."""
    import numpy as np
    import torch

    longest = max(len(example["input_ids"]) for example in examples)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    fill = {"input_ids": pad, "labels": IGNORED, "token_type_ids": 0}
    batch = {
        name: np.full((len(examples), longest), fill[name], dtype=np.int64) for name in fill if name in examples[0]
    }
    mask = np.zeros((len(examples), longest), dtype=np.int64)
    for row, example in enumerate(examples):
        mask[row, : len(example["input_ids"])] = 1
        for name, padded in batch.items():
            padded[row, : len(example[name])] = example[name]
    return {name: torch.from_numpy(array) for name, array in {**batch, "attention_mask": mask}.items()}


def token_statistics(logits: torch.Tensor, labels: torch.Tensor, end: int | None = None) -> torch.Tensor:
    """Per row: summed negative log-likelihood in nats, tokens scored, tokens predicted right; shape (rows, 3).

    `logits` as `labels`, (rows, tokens, vocabulary), or of the scored positions alone, (scored, vocabulary). With
    `end` the tokens of this id are counted apart, in columns 4 to 6.
    """
    import torch

    scored = labels != IGNORED
    targets = labels[scored]
    logits = (logits if logits.dim() == 2 else logits[scored]).float()
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
    right = (logits.argmax(-1) == targets).double()
    values = torch.stack([nll, torch.ones_like(nll), right], dim=1)
    if end is not None:
        ends = (targets == end).unsqueeze(1)
        values = torch.cat([values * ~ends, values * ends], dim=1)
    sums = torch.zeros(len(labels), values.shape[1], dtype=torch.double, device=labels.device)
    return sums.index_add_(0, scored.nonzero()[:, 0], values)
