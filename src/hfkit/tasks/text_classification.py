"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfkit.console import say, warn
from hfkit.errors import DataError, ModelError, UsageError
from hfkit.tasks.base import Batch, Rows, Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics import Score
    from hfkit.recipe import Recipe

BUILTIN_LABELLED = "builtin:python-docstrings"
MAX_LENGTH = 512  # where nobody says: BERT's limit, and attention costs the square of it
METRICS = ("accuracy", "f1_macro", "log_loss")


class TextClassification(Task):
    command = "finetune"
    auto_model = "AutoModelForSequenceClassification"
    best_metric = "accuracy"
    metrics = (
        "accuracy", "balanced_accuracy", "precision", "recall", "f1", "precision_macro", "recall_macro", "f1_macro",
        "f1_micro", "f1_weighted", "mcc", "log_loss", "brier", "ece",
    )  # fmt: skip

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of BERT's own fine-tuning (arXiv 1810.04805, A.3: batch 16-32, 2e-5 to 5e-5, 2-4 epochs)."""
        return {
            "data.train": [BUILTIN_LABELLED],
            "train.num_train_epochs": 3.0,
            "train.per_device_train_batch_size": 32,
            "train.per_device_eval_batch_size": 64,
            "train.learning_rate": 5e-5,
            "train.lr_scheduler_type": "linear",
            "train.warmup_steps": 0.06,
            "train.weight_decay": 0.01,
        }

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        from hfkit.data import classification_columns, hold_out, load_data

        loaded = load_data(recipe)
        columns = zip(("text", "text_pair", "label"), classification_columns(loaded, recipe), strict=True)
        roles = {column: role for role, column in columns if column is not None}
        renamed = {column: role for column, role in roles.items() if column != role}
        splits = {name: part.select_columns(list(roles)).rename_columns(renamed) for name, part in loaded.items()}
        if "train" in splits and "validation" not in splits and recipe.data.validation_split > 0:
            share = recipe.data.validation_split
            splits["train"], splits["validation"] = hold_out(splits["train"], share, recipe.train.seed)
            say(f"validation: {len(splits['validation']):,} rows held out of the training data")
        return splits

    def model_settings(self, splits: Mapping[str, Dataset], config: Any) -> dict[str, Any]:
        if "train" not in splits:
            names = [config.id2label[index] for index in range(config.num_labels)]
        else:
            names = _label_names(splits["train"], config)
        known = set(names)
        for split, dataset in splits.items():
            for row, label in enumerate(_labels(dataset), start=1):
                if label not in known:
                    raise DataError(
                        f"{split} data, row {row}: label '{label}' is none of the training data's: "
                        f"{', '.join(names[:20])}",
                        "correct the label or add training rows that have it",
                    )
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": "single_label_classification",
        }

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Rows:
        return EncodedTexts(dataset, tokenizer, model, recipe.data.max_length)

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        # on the right whatever the tokenizer prefers: a classifier's positions count from the first column
        batch: Batch = dict(tokenizer.pad(list(examples), padding_side="right", return_tensors="pt"))
        return batch

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        return outputs[0].float()

    def scores(self, reduced: np.ndarray, labels: np.ndarray, rows: Rows, recipe: Recipe) -> dict[str, Score]:
        from hfkit.inference import probabilities
        from hfkit.metrics import compute

        names = recipe.evaluation.metrics or METRICS
        return compute(
            names,
            probabilities(reduced),
            labels.tolist(),
            interval=recipe.evaluation.interval,
            seed=recipe.evaluation.seed,
        )

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, recipe: Recipe
    ) -> dict[str, Score]:
        """The scores, and beside them what saying the most frequent label every time would reach."""
        from hfkit.metrics import Score

        label, count = Counter(_labels(dataset)).most_common(1)[0]
        majority = Score(count / len(dataset), None, None, len(dataset), f"accuracy of always saying '{label}'")
        return {**super().evaluate(model, tokenizer, dataset, recipe), "majority_baseline": majority}


class EncodedTexts:
    """Texts or pairs, tokenized once, cut at `max_length` with the number of cut rows said aloud."""

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, max_length: int | None
    ) -> None:
        import numpy as np

        from hfkit.models import max_tokens

        pairs = dataset["text_pair"][:] if "text_pair" in dataset.column_names else None
        texts = dataset["text"][:]
        if tokenizer.pad_token is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no token to pad with", "choose another --model"
            )
        longest = min(tokenizer.model_max_length, max_tokens(model) or tokenizer.model_max_length)
        limit = max_length or min(MAX_LENGTH, longest)
        if limit > longest:
            raise UsageError(
                f"data.max_length {limit} is longer than the model's {longest} tokens", f"--max-length {longest}"
            )
        whole = tokenizer(texts, pairs, truncation=False, return_attention_mask=False, verbose=False)
        cut = sum(len(ids) > limit for ids in whole["input_ids"])
        self.columns = (
            whole
            if cut == 0
            else tokenizer(texts, pairs, truncation=True, max_length=limit, return_attention_mask=False)
        )
        if cut:
            warn(
                f"{cut:,} of {len(texts):,} rows ({cut / len(texts):.1%}) are longer than {limit} tokens and were cut",
                f"--max-length {needed}" if (needed := max(map(len, whole["input_ids"]))) <= longest else "",
            )
        self.lengths = np.array([len(ids) for ids in self.columns["input_ids"]])
        label2id = model.config.label2id
        self.labels = [label2id[label] for label in _labels(dataset)] if "label" in dataset.column_names else None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {name: column[index] for name, column in self.columns.items()}
        if self.labels is not None:
            row["labels"] = self.labels[index]
        return row


def _labels(dataset: Dataset) -> list[str]:
    """The labels as strings; a ClassLabel column gives its names."""
    feature = dataset.features["label"]
    values = dataset["label"][:]
    return [feature.int2str(value) for value in values] if hasattr(feature, "int2str") else [str(v) for v in values]


def _label_names(dataset: Dataset, config: Any) -> list[str]:
    """ClassLabel order, else the model's own where the names are the same, else natural order (10 after 9)."""
    feature = dataset.features["label"]
    found = set(_labels(dataset))
    if len(found) < 2:
        raise DataError(
            f"the training data has one label only: '{next(iter(found))}'",
            "name the right column with --label-column, or add rows of another class",
        )
    if hasattr(feature, "int2str"):
        return list(feature.names)
    own = [config.id2label[index] for index in sorted(config.id2label)]
    return own if set(own) == found else sorted(found, key=_natural)


def _natural(name: str) -> tuple[float, list[tuple[int, str]]]:
    """Sort key: numbers by size (-1, 0, 1.5, 10) and before all else, runs of digits inside names likewise."""
    try:
        return float(name), []
    except ValueError:
        parts = re.split(r"(\d+)", name)
        return math.inf, [(len(part), part) if part.isdigit() else (0, part) for part in parts]
