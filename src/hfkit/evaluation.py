"""Numbers with a definition and an interval: of a run or model on data, or of predictions against references."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfkit import hub
from hfkit.console import say
from hfkit.errors import DataError, UsageError
from hfkit.metrics import Score, compute, ratio_interval

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.recipe import Recipe

MAX_CONTEXT = 1024  # where neither the recipe nor the run says
MAX_WORD_NATS = 100  # a model that knows nothing spends some 40 on an English word
MAX_LOGITS = 1 << 27  # numbers in one batch of logits, 512 MiB in float32


def evaluate(recipe: Recipe) -> dict[str, Score]:
    """The metrics of recipe.model.name, a run or a model, on recipe.data.test, else on the run's own held-out data.

    Raises UsageError where no data is named, DataError or ModelError where data or model can't be read or don't fit.
    """
    from hfkit.inference import to_device
    from hfkit.models import load_config, load_tokenizer, new_or_pretrained, quiet_libraries
    from hfkit.tasks import TASKS

    hub.stay_local(recipe)
    quiet_libraries()
    config = load_config(recipe)
    recipe = dataclasses.replace(recipe, task=recipe.task or _task_of(config, recipe.model.name))
    task = TASKS[recipe.task or ""]
    if problems := task.unknown_metrics(recipe.evaluation.metrics):
        raise UsageError.of(problems)
    documents = recipe.data.documents or task.defaults({}).get("data.documents")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, documents=documents))
    splits = task.load(recipe)
    split = next((name for name in ("test", "validation") if name in splits), None)
    if split is None:
        raise UsageError("there is no data to evaluate on", "--data FILE")
    if not recipe.data.test:
        say(f"data: the run's own {split} data, {len(splits[split]):,} rows")
    for key, value in task.model_settings({split: splits[split]}, config).items():
        setattr(config, key, value)
    tokenizer = load_tokenizer(recipe, config)
    model = to_device(new_or_pretrained(task.auto_model, recipe, config, tokenizer, new_head=False))
    scores = task.evaluate(model, tokenizer, splits[split], recipe)
    if missing := [name for name in recipe.evaluation.metrics if name not in scores]:
        raise DataError(f"this data has no {', '.join(missing)}", f"--metrics {','.join(scores)}")
    if "perplexity" in recipe.evaluation.metrics:  # one name for all its units, as rouge is for four numbers
        return scores
    return {name: scores[name] for name in recipe.evaluation.metrics or scores}


def evaluate_files(
    predictions: Path, references: Path, metrics: Sequence[str], *, interval: bool = True, seed: int = 0
) -> dict[str, Score]:
    """The text metrics of one file against another, line by line (.txt) or row by row (column `text`)."""
    rows = [_lines(path) for path in (predictions, references)]
    if len(rows[0]) != len(rows[1]):
        raise DataError(
            f"{predictions} has {len(rows[0]):,} lines, {references} has {len(rows[1]):,}",
            "give one reference per prediction, in the same order",
        )
    return compute(metrics, rows[0], rows[1], interval=interval, seed=seed)


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


def _task_of(config: PreTrainedConfig, name: str | None) -> str:
    """The task of a model that is no run of ours: the one whose head it was saved with."""
    from hfkit.models import was_saved_with
    from hfkit.tasks import TASKS

    fitting = [task for task in TASKS if was_saved_with(TASKS[task].auto_model, config)] if config.architectures else []
    if len(fitting) != 1:
        names = ", ".join(config.architectures or []) or "its config"
        raise UsageError(f"{name}: can't tell its task from {names}", f"--task {' or '.join(TASKS)}")
    return fitting[0]


def _lines(path: Path) -> list[str]:
    """One text a line, an empty one too; or the rows of the column `text`."""
    from hfkit.readers import format_of, read_lines

    if format_of(path)[0] == ".txt":
        lines = [line.rstrip("\r\n") for _, line in read_lines(path)]
        if not lines:
            raise DataError(f"{path}: no rows", "give one text a line")
        return lines
    from hfkit.data import load_source

    dataset = load_source([str(path)])
    if "text" not in dataset.column_names:
        raise DataError(f"{path} has no column 'text', found: {', '.join(dataset.column_names)}", "rename it to text")
    return [str(text) for text in dataset["text"]]
