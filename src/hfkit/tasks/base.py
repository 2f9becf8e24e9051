"""The contract between the spine (training, evaluation, prediction) and a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Measured, Score
    from hfkit.settings import Evaluation, Recipe

Batch = dict[str, "torch.Tensor"]

Loss = Callable[..., "torch.Tensor"]  # (outputs, labels, num_items_in_batch=None), as the Trainer calls it


Predict = Callable[[], "tuple[np.ndarray, np.ndarray]"]  # (reduced, labels) of all rows


class LossOptions(NamedTuple):
    """What the loss depends on beside a batch."""

    smoothing: float = 0.0  # share of each label that is spread over all labels
    global_batch_size: int | None = None  # examples of one optimizer step; None: those of the batch
    class_weights: Sequence[float] | None = None  # by class id


class Examples(ABC):
    """A data set as a task encoded it; `lengths` are the tokens of each example, shape (examples,)."""

    lengths: np.ndarray
    class_weights: Sequence[float] | None = None  # what train.class_weights comes to on this data

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def example(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        """Example `index` as `collate` takes it. Every random choice comes from `random`, so it can be made again."""


class Task(ABC):
    """One thing that can be learned. Instances hold no state; modules of tasks import nothing heavy at the top."""

    command: str  # the command that trains it
    auto_model: str  # the Auto class of transformers that has its head
    watched: tuple[str, ...] = ()  # the names that train.best may hold where they are not those of `metrics`
    metrics: tuple[str, ...]  # the names that evaluation.metrics may hold
    roles: tuple[str, ...] = ("text",)  # the columns that it reads, by their names in data.columns
    questions: tuple[str, ...] = ("text", "text_pair")  # what `encode` takes of a row without labels
    aliases: tuple[str, ...] = ()  # what others call it, for messages
    scores_before = False  # whether a model is worth scoring before it trains: it has learned this already
    guessed = True  # whether a model that has this head alone is taken for one of this task
    summary = ""  # what is learned, in a few words, for the help
    settings: frozenset[str] = frozenset()  # dotted keys of its settings that not every task has

    @abstractmethod
    def usual_metrics(self, config: Any) -> Sequence[str]:
        """The metrics of a model with this config if none are named; the first one says how good it is."""

    @abstractmethod
    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults of the settings, by dotted key; `given` are the values that the user gave."""

    def next_step(self, run: str, is_adapter: bool) -> str:
        """The command to type after training; `run`: the run directory, `is_adapter`: it holds LoRA adapters only."""
        if is_adapter:
            return f"hfkit export {run} --merge --output-dir NEW, which `hfkit finetune --model NEW` takes"
        return f"hfkit finetune --model {run} --data train.csv"

    def claims(self, sources: Sequence[str]) -> str:
        """Why training data of these names is for this task and no other, in a few words; empty if it need not be."""
        return ""

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

    def model_config(self, splits: Mapping[str, Dataset], config: Any) -> dict[str, Any]:
        """Keys of the model's config that the data decides, such as its labels."""
        return {}

    @abstractmethod
    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        """The dataset as token ids."""

    @abstractmethod
    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Examples as one padded batch."""

    def adapt(self, model: PreTrainedModel, batch: Batch, rows: Examples | None = None) -> None:  # noqa: B027
        """Makes the model ready for this task's batches and checks it on a first `batch`; again it does nothing.

        `rows`: the training data, from which a new head can start better than at random.
        """

    @abstractmethod
    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        options: LossOptions = LossOptions(),  # noqa: B008 - a tuple can't change
    ) -> torch.Tensor:
        """The loss of a micro-batch, shape (): summed, and divided by the labels or examples of the whole step.

        So any division of a step into micro-batches and processes has the same gradient. (Models such as
        BertForSequenceClassification ignore `num_items_in_batch` and average over the micro-batch: with four
        accumulation steps their loss is four times too large.)
        """

    def align(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and the labels that they predict, position by position."""
        return logits, labels

    @abstractmethod
    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        """What `scores` needs of a batch's outputs (the logits come first): shape (rows, k), so that no
        vocabulary-sized tensor is kept."""

    @abstractmethod
    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        """The metrics over all `rows`: `reduced` (rows, k) from `reduce`, `labels` as collated."""

    def samples(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Examples, seed: int
    ) -> list[str]:
        """Lines that show what the model does with some of the validation `rows` now; none if numbers say it all."""
        return []

    def tune(  # noqa: B027 - most tasks have nothing to tune
        self, model: PreTrainedModel, rows: Examples, evaluation: Evaluation, predict: Predict
    ) -> None:
        """Puts into the trained model's config what the validation `rows` decide; `predict` runs the model on them."""

    def answers(self, reduced: np.ndarray, rows: Examples, evaluation: Evaluation) -> Iterator[dict[str, Any]]:
        """What `hfkit predict` says of each text or pair, in order: flat objects, the main answer first."""
        raise UsageError("this task has no answers to predict", "hfkit generate")

    def results(
        self, dataset: Dataset, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> Measured:
        """The final scores of one pass over all `rows` of `dataset`, and what to keep about each example."""
        from hfkit.metrics.sample import Measured

        return Measured(self.scores(reduced, labels, rows, evaluation), ())

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, recipe: Recipe
    ) -> Measured | None:
        """The final scores of a task that needs more than one pass over encoded rows; None: `results` has them."""
        return None


def finetuning_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of BERT's own fine-tuning (arXiv 1810.04805, A.3: batch 16-32, 2e-5 to 5e-5, 2-4 epochs)."""
    return {
        "model.dtype": "float32",
        "train.num_train_epochs": 3.0,
        **batch_defaults(given, 32),
        "train.per_device_eval_batch_size": 64,
        "train.learning_rate": 5e-4 if given.get("lora.enabled") else 5e-5,  # adapters begin at nothing
        "train.lr_scheduler_type": "linear",
        "train.warmup_steps": 0.06,
        "train.weight_decay": 0.01,
    }


def batch_defaults(given: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A global batch of `size` examples; a micro-batch of `size` where `given` holds gradient accumulation steps."""
    micro_batch_size, steps = (
        given.get(f"train.{name}") for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    if given.get("train.global_batch_size") is not None or micro_batch_size not in (None, "auto"):
        return {}
    return {f"train.{'global' if steps is None else 'per_device_train'}_batch_size": size}
