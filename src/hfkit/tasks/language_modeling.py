"""What the language-modelling tasks share: documents in, blocks padded, token-weighted numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.errors import DataError, UsageError
from hfkit.tasks.base import LossOptions, Task, batch_defaults

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Score
    from hfkit.settings import Data, Evaluation, Recipe

BUILTIN_TEXT = "builtin:python-docs"


# Settings of the tasks whose models make text: of a new model and its tokenizer, and of samples.
OF_LANGUAGE_MODELS = frozenset(
    {"model.type", "model.size", "tokenizer.name", "tokenizer.vocab_size", "tokenizer.algorithm", "train.samples"}
)


class LanguageModel(Task):
    """A pretraining task: documents in, the mean negative log-likelihood out."""

    command = "pretrain"
    scores_before = True
    new_type: str  # the architecture of a new model if none is named
    documents = "blank-line"  # what a document is in a .txt file by default

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {**language_model_defaults(given, self.new_type), "data.documents": self.documents}

    def usual_metrics(self, config: Any) -> Sequence[str]:
        return ("nll",)

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        return load_documents(recipe)

    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        options: LossOptions = LossOptions(),  # noqa: B008
    ) -> torch.Tensor:
        return token_loss(*self.align(outputs["logits"], labels), num_items_in_batch, options)


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """The label that each position of a decoder predicts; the last one predicts nothing.

    The labels are shifted, not the logits: these are the largest tensor of a step, and a slice is a copy.
    """
    import torch

    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def token_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any, options: LossOptions
) -> torch.Tensor:
    """Cross-entropy in nats, divided by the scored labels of the whole optimizer step."""
    import torch

    total = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=options.smoothing,
    )
    scored = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(scored).clamp(min=1)  # 0: a last block of one token predicts nothing


def language_model_defaults(given: Mapping[str, Any], new_type: str) -> dict[str, Any]:
    """Defaults of pretraining. New models: learning rate, decay, warmup and beta2 of nanoGPT scaled to small models
    (github.com/karpathy/nanoGPT, config/train_shakespeare_char.py: 1e-3, cosine, short warmup, 0.99 as a step holds few
    tokens). Continued ones: the 5e-5 and 0.999 of the example scripts, so that little is forgotten."""
    new = bool(given.get("model.from_scratch") or given.get("model.type") or not given.get("model.name"))
    defaults = {
        "model.dtype": "float32",
        "data.train": [BUILTIN_TEXT],
        "data.block_size": 256,
        "train.num_train_epochs": 3.0 if new else 1.0,
        **batch_defaults(given, 16 if new else 8),
        "train.per_device_eval_batch_size": 16,
        "train.learning_rate": 1e-3 if new else 5e-4 if given.get("lora.enabled") else 5e-5,
        "train.lr_scheduler_type": "cosine",
        "train.warmup_steps": 0.05,
        "train.weight_decay": 0.1 if new else 0.01,
        "train.adam_beta2": 0.99 if new else 0.999,
    }
    if new:
        defaults["train.dropout"] = 0.0
        defaults["model.from_scratch"] = True
        if not given.get("model.name"):
            defaults["model.type"] = new_type
            defaults["model.size"] = "tiny"
    return defaults


def load_documents(recipe: Recipe) -> dict[str, Dataset]:
    """The splits as documents in one column `text`; validation is held out from train if it is not given.

    Training documents are cleaned first, then a share of each source is held out, then what is left is mixed: so no
    document that a mixture repeats is in both.
    """
    import numpy as np
    from datasets import concatenate_datasets

    from hfkit.data.cleaning import clean
    from hfkit.data.loading import load_data, load_parts
    from hfkit.data.splits import hold_out, hold_out_end, mix
    from hfkit.settings import Clean

    if recipe.data.streaming and recipe.data.train:
        return _stream_documents(recipe)
    splits = _documents(load_data(recipe.data), recipe.data)
    if "train" not in splits:
        return splits
    train, seed, share = splits["train"], recipe.train.seed, recipe.data.validation_split
    if recipe.data.mixture:
        sizes = list(map(len, load_parts(recipe.data)))
        train = train.add_column("source", np.repeat(np.arange(len(sizes)), sizes))
    if recipe.data.clean != Clean():
        train = clean(train, recipe.data.clean)
    parts = [train]
    if recipe.data.mixture:
        sources, train = np.asarray(train["source"]), train.remove_columns("source")
        parts = [train.select(np.flatnonzero(sources == source)) for source in range(len(sizes))]
    if "validation" not in splits and share > 0:
        halves = [hold_out_end(part, share) if len(part) == 1 else hold_out(part, share, seed) for part in parts]
        parts, held_out = [list(half) for half in zip(*halves, strict=True)]
        splits["validation"] = concatenate_datasets(held_out)
    splits["train"] = mix(parts, recipe.data.mixture, seed, recipe.data.train) if recipe.data.mixture else parts[0]
    return splits


def _stream_documents(recipe: Recipe) -> dict[str, Dataset]:
    """As `load_documents`, the training split an IterableDataset; rows can't be held out of what isn't loaded."""
    import dataclasses

    from hfkit.data.cleaning import clean_stream
    from hfkit.data.loading import load_data, stream_documents
    from hfkit.settings import Clean

    if not recipe.data.validation and recipe.data.validation_split > 0:
        raise UsageError(
            "no share can be held out of a stream", "--validation FILE, or --validation-split 0 to do without"
        )
    splits = {"train": stream_documents(recipe.data)}
    if recipe.data.clean != Clean():
        splits["train"] = clean_stream(splits["train"], recipe.data.clean)
    if recipe.data.validation or recipe.data.test:
        others = dataclasses.replace(recipe.data, train=[])
        splits |= _documents(load_data(others), others)
    return splits


def _documents(loaded: DatasetDict, data: Data) -> dict[str, Dataset]:
    from hfkit.data.columns import text_column

    column = text_column(loaded, data)
    renamed = {} if column == "text" else {column: "text"}
    return {name: part.select_columns([column]).rename_columns(renamed) for name, part in loaded.items()}


def nll_scores(reduced: np.ndarray, evaluation: Evaluation, how: str) -> dict[str, Score]:
    """Token-weighted perplexity, accuracy and mean NLL of `reduced` (rows, 3); intervals resample rows (blocks)."""
    from hfkit.metrics.sample import Score, ratio_interval

    nll, tokens, right = reduced.T
    count = int(tokens.sum())
    if count == 0:
        raise DataError("no token could be scored", "give more text")

    def score(sums: np.ndarray, change: Callable[[float], float], what: str) -> Score:
        ends = ratio_interval(sums, tokens, seed=evaluation.seed) if evaluation.interval else None
        low, high = (None, None) if ends is None else (change(ends[0]), change(ends[1]))
        return Score(change(float(sums.sum() / count)), low, high, count, f"{what}; {how}, resampled by block")

    return {
        "perplexity": score(nll, math.exp, "exp(nats per token)"),
        "token_accuracy": score(right, float, "share of tokens predicted"),
        "nll": score(nll, float, "nats per token, token-weighted"),
    }


def pad_blocks(
    examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, left: bool = False
) -> dict[str, torch.Tensor]:
    """Arrays per token, each (length,), as int64 tensors (rows, longest) with an attention mask.

    Padding follows them, or stands `left` of them.
    """
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
        length = len(example["input_ids"])
        places = slice(longest - length, longest) if left else slice(length)
        mask[row, places] = 1
        for name, padded in batch.items():
            padded[row, places] = example[name]
    return {name: torch.from_numpy(array) for name, array in {**batch, "attention_mask": mask}.items()}


def pad_packed(examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Blocks without an attention mask: padding only ever follows the text, where a causal model can't see it.

    With several documents `position_ids` start again at each, from which the library makes a mask between them
    (transformers.masking_utils.find_packed_sequence_indices), if it gets no attention mask.
    """
    import torch

    batch = pad_blocks(examples, tokenizer)
    del batch["attention_mask"]
    longest = batch["input_ids"].shape[1]
    if "position_ids" in examples[0]:
        positions = torch.arange(longest).repeat(len(examples), 1)
        for row, example in zip(positions, examples, strict=True):
            length = len(example["position_ids"])
            row[:length] = torch.from_numpy(example["position_ids"])
            row[length:] -= length - 1 - row[length - 1].item()  # padding goes on where the last document ends
        batch["position_ids"] = positions
    return batch


def pad_pairs(examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Arrays of the encoder and of the decoder, each padded to its own longest."""
    encoder = pad_blocks([{"input_ids": example["input_ids"]} for example in examples], tokenizer)
    shifted = [{"input_ids": one["decoder_input_ids"], "labels": one["labels"]} for one in examples]
    decoder = pad_blocks(shifted, tokenizer)  # padding only ever follows, where the decoder can't see it
    return {**encoder, "decoder_input_ids": decoder["input_ids"], "labels": decoder["labels"]}


def without_cache(model: PreTrainedModel) -> None:
    """Turns the cache of an encoder-decoder off, which training can't use."""
    for part in (model, model.get_decoder()):  # T5's decoder has a config of its own
        part.config.use_cache = False


def token_statistics(logits: torch.Tensor, labels: torch.Tensor, apart: Sequence[int] | None = None) -> torch.Tensor:
    """Per row: summed negative log-likelihood in nats, tokens scored, tokens predicted right; shape (rows, 3).

    `logits` as `labels`, (rows, tokens, vocabulary), or of the scored positions alone, (scored, vocabulary). With
    `apart` the tokens of these ids are counted apart, in columns 4 to 6.
    """
    import torch

    scored = labels != IGNORED
    targets = labels[scored]
    logits = (logits if logits.dim() == 2 else logits[scored]).float()
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
    right = (logits.argmax(-1) == targets).double()
    values = torch.stack([nll, torch.ones_like(nll), right], dim=1)
    if apart is not None:
        special = torch.isin(targets, torch.tensor(apart, device=targets.device)).unsqueeze(1)
        values = torch.cat([values * ~special, values * special], dim=1)
    sums = torch.zeros(len(labels), values.shape[1], dtype=torch.double, device=labels.device)
    return sums.index_add_(0, scored.nonzero()[:, 0], values)
