"""Texts or pairs as token ids: one row each, cut at a length, or one row for each of their windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import MULTIPLE, SINGLE, kind_of, labels_of, problem_type_of
from hfkit.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

MAX_LENGTH = 512  # where nobody says: BERT's limit, and attention costs the square of it


class EncodedTexts:
    """Tokenized rows of a data set with their labels; `owners` says which text each is of (its windows are neighbours).

    `is_long`, `was_cut`: which texts are longer than a row, and which of them lost their end; `longest`: tokens of the
    longest text, uncut; `limit`, `most`: tokens of a row at most, by the recipe and by the model.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> None:
        import numpy as np

        self.config, self.pooling = model.config, recipe.data.window_pooling
        self.names = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        self.limit, self.most = _limits(tokenizer, model, recipe)
        texts = dataset["text"][:]
        pairs = dataset["text_pair"][:] if "text_pair" in dataset.column_names else None
        whole = tokenizer(texts, pairs, truncation=False, return_attention_mask=False, verbose=False)
        lengths = np.array([len(ids) for ids in whole["input_ids"]])
        self.longest = int(lengths.max())
        self.is_long = lengths > self.limit
        self.owners = np.arange(len(texts))
        self.columns: Any = whole
        if self.is_long.any():
            if recipe.data.long_documents == "window":
                self._divide(tokenizer, texts, pairs, recipe)
            else:
                self.columns = tokenizer(
                    texts, pairs, truncation=True, max_length=self.limit, return_attention_mask=False
                )
        self.was_cut = self.is_long & (recipe.data.long_documents == "truncate")
        self.lengths = np.array([len(ids) for ids in self.columns["input_ids"]])
        self.kind = problem_type_of(model.config)
        self.labels = self._labels(dataset) if kind_of(dataset) else None
        self.weights: list[float] | None = None
        if recipe.train.class_weights is not None and self.labels is not None:
            self.weights = class_weights(recipe.train.class_weights, self.names, self.labels)

    def _divide(
        self, tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, recipe: Recipe
    ) -> None:
        """Windows of `limit` tokens; of pairs the text that is longer in the mean is divided, the other repeated."""
        import numpy as np

        overlap = self.limit // 8 if recipe.data.window_overlap is None else recipe.data.window_overlap
        side = "only_second" if pairs is not None and sum(map(len, pairs)) > sum(map(len, texts)) else "only_first"
        room = self.limit - tokenizer.num_special_tokens_to_add(pair=pairs is not None)
        if overlap >= room:
            problem = f"data.window_overlap {overlap}: a window has room for {room} tokens"
            raise UsageError(problem, f"--window-overlap {max(0, room // 4)}")
        options = {"truncation": side, "max_length": self.limit, "stride": overlap}
        try:
            self.columns = tokenizer(
                texts, pairs, return_overflowing_tokens=True, return_attention_mask=False, **options
            )
        except Exception as error:  # the tokenizers' own class, for a text that leaves the other no room
            if "Truncation error" not in str(error):
                raise
            which = "first" if side == "only_second" else "second"
            problem = f"a {which} text of a pair fills a whole window of {self.limit} tokens"
            raise DataError(problem, "--long-documents truncate, or a larger --max-length") from None
        self.owners = np.array(self.columns.pop("overflow_to_sample_mapping"))

    def _labels(self, dataset: Dataset) -> list[Any]:
        """Ids, rows of 0 and 1 or numbers, one for each row of tokens."""
        labels = labels_of(dataset)
        if self.kind == SINGLE:
            labels = [self.config.label2id[label] for label in labels]
        elif self.kind == MULTIPLE:
            labels = [[float(name in given) for name in self.names] for given in map(set, labels)]
        return [labels[owner] for owner in self.owners]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {name: column[index] for name, column in self.columns.items()}
        if self.labels is not None:
            row["labels"] = self.labels[index]
        return row

    def pooled(self, logits: np.ndarray) -> np.ndarray:
        """The logits of each text, (texts, k), from those of its windows, (rows, k): mean or, by label, maximum."""
        import numpy as np

        starts = self.starts
        if len(starts) == len(logits):
            return logits
        if self.pooling == "max":
            largest: np.ndarray = np.maximum.reduceat(logits, starts, axis=0)
            return largest
        counts = np.diff([*starts, len(logits)])[:, np.newaxis]
        means: np.ndarray = np.add.reduceat(logits, starts, axis=0) / counts
        return means

    @property
    def starts(self) -> np.ndarray:
        """The first row of each text."""
        import numpy as np

        first: np.ndarray = np.flatnonzero(np.diff(self.owners, prepend=-1))
        return first


def _limits(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe) -> tuple[int, int]:
    """Tokens of a row at most, by the recipe and by the model."""
    from hfkit.models.config import max_tokens

    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no token to pad with", "choose another --model"
        )
    longest = min(tokenizer.model_max_length, max_tokens(model) or tokenizer.model_max_length)
    limit = recipe.data.max_length or min(MAX_LENGTH, longest)
    if limit > longest:
        raise UsageError(
            f"data.max_length {limit} is longer than the model's {longest} tokens", f"--max-length {longest}"
        )
    return limit, longest


def class_weights(wanted: str, names: Sequence[str], labels: Sequence[int]) -> list[float]:
    """The weight of each class: rows / (classes * rows of the class) for `balanced`, which is 1 in the mean over rows
    (King and Zeng 2001, as scikit-learn has it), or those of a mapping as YAML, 1 where it names none."""
    import yaml

    if wanted == "balanced":
        counts = Counter(labels)
        return [len(labels) / (len(counts) * counts[index]) if counts[index] else 1.0 for index in range(len(names))]
    try:
        weights = yaml.load(wanted, yaml.BaseLoader)  # noqa: S506 - every value stays text, so does the label `no`
        given = {str(name): float(weight) for name, weight in weights.items()}
        if min(given.values()) < 0 or max(given.values()) == 0:
            raise ValueError
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        problem = f"train.class_weights '{wanted}': neither balanced nor a mapping of labels to numbers"
        raise UsageError(problem, f"--class-weights balanced, or '{{{names[0]}: 2}}'") from None
    if strange := [name for name in given if name not in names]:
        known = ", ".join(names[:20])
        raise UsageError(f"train.class_weights names '{strange[0]}', no label of the data: {known}", "correct it")
    return [given.get(name, 1.0) for name in names]
