"""What training starts from, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfkit.settings import Recipe
from hfkit.tasks.base import Batch, Examples, Task


class Prepared(NamedTuple):
    """Everything that training starts from."""

    task: Task
    recipe: Recipe
    splits: dict[str, Any]
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    use_cache: bool | None  # of the config; training turns the cache off
    rows: Examples | None  # the training data, None if it is streamed
    held_out: Examples | None  # the validation data, if there is any

    @property
    def scoring(self) -> Recipe:
        """The recipe to score with: the metric of train.best is always among the metrics."""
        best, wanted = self.recipe.train.best, self.recipe.evaluation
        names = list(wanted.metrics or self.task.usual_metrics(self.config))
        if best is None or best in names:
            return self.recipe
        return replace(self.recipe, evaluation=replace(wanted, metrics=[*names, best]))

    def encode(self, dataset: Dataset) -> Examples:
        """The examples of `dataset` as the model takes them."""
        return self.task.encode(dataset, self.tokenizer, self.model, self.recipe)

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Examples as one padded batch."""
        return self.task.collate(examples, self.tokenizer)
