"""The contract between the spine (training, evaluation, prediction) and a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hfkit.data.labels import IGNORED
from hfkit.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Score
    from hfkit.settings import Recipe

Batch = dict[str, "torch.Tensor"]

Loss = Callable[..., "torch.Tensor"]  # (outputs, labels, num_items_in_batch=None), as the Trainer calls it


class Rows(Protocol):
    """Encoded data: row `i` as the task's `example` takes it, and the length of every row in tokens, shape (rows,)."""

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Task(ABC):
    """One thing that can be learned. Instances hold no state; modules of tasks import nothing heavy at the top."""

    command: str  # the command that trains it
    auto_model: str  # the Auto class of transformers that has its head
    best_metric: str  # the name in `scores` that says how good a model is
    watched: tuple[str, ...] = ()  # the names that train.best may hold where they are not those of `metrics`
    metrics: tuple[str, ...]  # the names that evaluation.metrics may hold
    roles: tuple[str, ...] = ("text",)  # the columns that it reads, by their names in data.columns
    summary = ""  # what is learned, in a few words, for the help
    settings: frozenset[str] = frozenset()  # dotted keys of its settings that not every task has

    def best_metric_of(self, config: Any) -> str:
        """The metric in `scores` that says how good a model with this config is."""
        return self.best_metric

    @abstractmethod
    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the settings that nobody gave, by dotted key; `given` are those that somebody gave."""

    def next_step(self, run: str, is_adapter: bool) -> str:
        """The command to type after training; `run`: the run directory, `is_adapter`: it holds LoRA adapters only."""
        if is_adapter:
            return f"hfkit export {run} --merge --output-dir NEW, which `hfkit finetune --model NEW` takes"
        return f"hfkit finetune --model {run} --data train.csv"

    @abstractmethod
    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        """The raw splits: `train` where data.train is named, `validation` and `test` where there are any."""

    def unknown_metrics(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """A problem and its fix for each of `names` that this task does not measure."""
        measured = ", ".join(self.metrics)
        return [
            (f"unknown metric '{name}', this task has: {measured}", did_you_mean(name, self.metrics))
            for name in names
            if name not in self.metrics
        ]

    def model_settings(self, splits: Mapping[str, Dataset], config: Any) -> dict[str, Any]:
        """Keys of the model's config that the data decides, such as its labels."""
        return {}

    @abstractmethod
    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Rows:
        """The dataset as token ids."""

    def begin(self, model: PreTrainedModel, rows: Rows) -> None:  # noqa: B027 - most tasks have nothing to do
        """Gives a new head what the training `rows` alone can tell it, before the first step."""

    def example(self, row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        """A row as the model sees it; every random choice comes from `random`, so that it can be made again."""
        return row

    @abstractmethod
    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Examples as one padded batch."""

    def prepare(self, model: PreTrainedModel, batch: Batch) -> None:  # noqa: B027 - most tasks have nothing to do
        """Makes the model ready for this task's batches and checks it on a first one; calling it again does nothing."""

    def training_loss(self, recipe: Recipe, rows: Rows | None, step_rows: int) -> Loss:
        """The loss that is minimised; `rows`: the training data where it is known, `step_rows`: rows in one step."""
        return partial(self.loss, smoothing=recipe.train.label_smoothing, step_rows=step_rows)

    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        *,
        smoothing: float = 0.0,
        step_rows: int | None = None,
    ) -> torch.Tensor:
        """Cross-entropy in nats, summed and divided by the scored labels of the whole optimizer step, so that any
        split of a step into passes and processes has the same gradient. (Models such as BertForSequenceClassification
        take the count in silence and average over the pass: four accumulation steps make their loss four times.)

        `smoothing`: share of each label that is spread over all; `step_rows`: for losses that count rows as well.
        """
        import torch

        logits, labels = self.align(outputs["logits"], labels)
        total = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            labels.reshape(-1),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )
        scored = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(scored).clamp(min=1)  # 0: a last block of one token predicts nothing

    def align(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and the labels they predict, position by position."""
        return logits, labels

    @abstractmethod
    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        """What `scores` needs of a batch's outputs (the logits come first): shape (rows, k), so that no
        vocabulary-sized tensor is kept."""

    @abstractmethod
    def scores(self, reduced: np.ndarray, labels: np.ndarray, rows: Rows, recipe: Recipe) -> dict[str, Score]:
        """The metrics over all `rows`: `reduced` (rows, k) from `reduce`, `labels` as collated."""

    def samples(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, recipe: Recipe
    ) -> list[str]:
        """Lines that show what the model makes of some of the validation `rows` now; none where numbers say it all."""
        return []

    def calibrate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, recipe: Recipe) -> None:
        """Puts into the trained model's config what the validation `rows` decide."""
        return  # nothing, for most tasks

    def answers(self, reduced: np.ndarray, rows: Rows, recipe: Recipe) -> Iterator[dict[str, Any]]:
        """What `hfkit predict` says of each text or pair, in order: flat objects, the main answer first."""
        raise UsageError("this task has no answers to predict", "hfkit generate")

    def evaluate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        recipe: Recipe,
        beside: Path | None = None,
    ) -> dict[str, Score]:
        """The final metrics on one split: those of `scores` over one pass, unless the task measures in another way.

        `beside`: where a task writes files about single rows, their names begin with this path.
        """
        from hfkit.evaluation.inference import predict_rows

        rows = self.encode(dataset, tokenizer, model, recipe)
        reduced, labels = predict_rows(
            self, model, tokenizer, rows, batch_size=recipe.evaluation.batch_size, seed=recipe.evaluation.seed
        )
        return self.scores(reduced, labels, rows, recipe)


def batch_defaults(given: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """`rows` in a step, however many processes share them; in a pass where `given` says how many passes are a step."""
    device_rows, passes = (
        given.get(f"train.{name}") for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    if given.get("train.global_batch_size") is not None or device_rows not in (None, "auto"):
        return {}
    return {f"train.{'global' if passes is None else 'per_device_train'}_batch_size": rows}
