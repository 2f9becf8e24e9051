"""Everything that training starts from: splits, tokenizer, model, encoded examples."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, set_seed

from hfkit.data.loading import fingerprint
from hfkit.errors import DataError, UsageError
from hfkit.models import adapters
from hfkit.models.config import describe, has_head, load_config, require_head
from hfkit.models.loading import new_or_pretrained
from hfkit.models.new_tokenizer import shared_tokenizer, train_tokenizer
from hfkit.models.precision import fast_precision
from hfkit.models.tokenizer import load_tokenizer, open_tokenizer
from hfkit.runs.run import Run
from hfkit.settings import Data, Recipe
from hfkit.system.console import say, silence, warn
from hfkit.system.processes import all_reduce_max, has_parent, num_processes
from hfkit.tasks import TASKS
from hfkit.tasks.base import Task
from hfkit.training.arguments import training_arguments
from hfkit.training.batch import batch_size, examples_that_fit, num_devices
from hfkit.training.prepared import Prepared
from hfkit.training.stream import StreamedExamples, TrainingStream

TOKENIZER_ROWS = 100_000  # of a stream, for a new tokenizer


def prepare(task: Task, recipe: Recipe, run: Run, *, shared: bool | None = None) -> Prepared:
    """Data, tokenizer and model, as they are before the first step.

    `shared`: several processes do this, and one of them makes a new tokenizer; None: if a launcher started several.
    """
    shared = num_processes() > 1 if shared is None else shared
    with silence() if has_parent() else nullcontext():  # the parent has printed all this
        size, dropout = recipe.data.block_size, recipe.train.dropout
        config = load_config(recipe.model, auto_model=task.auto_model, block_size=size, dropout=dropout)
        _require_model_for(task, config)  # before the data is read, which can take long
        adapters.check(recipe, config)
        splits = load_splits(task, recipe)
        if "validation" not in splits and (recipe.train.best or recipe.train.early_stopping):
            flag = "--best" if recipe.train.best else "--early-stopping"
            raise UsageError(f"{flag} needs validation data", "--validation FILE")
        set_seed(recipe.train.seed)
        tokenizer = tokenizer_of(recipe, config, splits["train"], run.saved_tokenizer(), shared)
        for key, value in task.model_config(splits, config).items():
            setattr(config, key, value)
        model = new_or_pretrained(task.auto_model, recipe.model, config, tokenizer, recipe)
        say(f"model: {describe(model)}")
        use_cache = getattr(config, "use_cache", None)
        recipe = with_precision(recipe, config)
        ready = Prepared(task, recipe, splits, config, tokenizer, model, use_cache, None, None)
        rows = None if recipe.data.streaming else ready.encode(splits["train"])
        held_out = ready.encode(splits["validation"]) if "validation" in splits else None
        return ready._replace(rows=rows, held_out=held_out)


def _require_model_for(task: Task, config: PreTrainedConfig) -> None:
    """UsageError if the model can't have the head of the task; it names the task on the same data that it can learn."""
    try:
        require_head(config, task.auto_model)
    except UsageError as error:
        if has_head(config, task.auto_model):
            raise
        alike = [name for name, one in TASKS.items() if (one.roles, one.command) == (task.roles, task.command)]
        if fitting := [name for name in alike if _can_learn(TASKS[name], config)]:
            raise UsageError(error.problems[0][0], f"--task {fitting[0]}") from None
        raise


def _can_learn(task: Task, config: PreTrainedConfig) -> bool:
    with suppress(UsageError):
        require_head(config, task.auto_model)
        return True
    return False


def with_precision(recipe: Recipe, config: PreTrainedConfig) -> Recipe:
    """`recipe` with a dtype of the computation instead of "auto"; what a CPU was measured to be fast in is printed."""
    if recipe.train.precision != "auto":
        return recipe
    precision, gain = fast_precision(getattr(config.get_text_config(), "hidden_size", None))
    if precision == "bfloat16" and not math.isnan(gain) and recipe.model.dtype == "float32":
        say(
            f"precision: bfloat16 with float32 weights, since matrix products are {gain:.1f} times as fast in it here "
            "(change with --precision float32)"
        )
    return replace(recipe, train=replace(recipe.train, precision=precision))


def tokenizer_of(
    recipe: Recipe, config: PreTrainedConfig, dataset: Dataset | IterableDataset, begun_with: Path | None, shared: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe names, else that of the resumed run (`begun_with`), else a new one from `dataset`.

    `shared`: several processes need the new one, and one of them trains it.
    """
    if recipe.tokenizer.name or recipe.model.name:
        return load_tokenizer(recipe.tokenizer, recipe.model)
    if begun_with is not None:
        return open_tokenizer(str(begun_with))
    train = shared_tokenizer if shared else train_tokenizer
    return train(corpus(dataset), config.model_type, recipe.tokenizer.vocab_size, recipe.tokenizer.algorithm)


def stream_of(steps: int, ready: Prepared) -> TrainingStream | StreamedExamples:
    """The training examples of a run of `steps` steps, in their order."""
    recipe = ready.recipe
    batch, seed = batch_size(recipe, num_devices(recipe)), recipe.train.seed
    if ready.rows is not None:
        return TrainingStream(ready.rows, steps=steps, global_batch_size=batch.total, seed=seed)
    return StreamedExamples(
        ready.splits["train"],
        ready.encode,
        steps=steps,
        global_batch_size=batch.total,
        micro_batch_size=batch.per_process,
        seed=seed,
        buffer=recipe.data.shuffle_buffer,
    )


def load_splits(task: Task, recipe: Recipe) -> dict[str, Any]:
    """The task's splits, none of them empty."""
    splits: dict[str, Any] = task.load(recipe)
    for name, dataset in splits.items():
        if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
            flag = "data" if name == "train" else name
            raise DataError(f"the {name} data has no rows", f"give rows with --{flag}")
    if recipe.data.max_train_samples is not None:
        splits["train"] = sampled(splits["train"], recipe.data.max_train_samples, recipe.train.seed)
    return splits


def sampled(dataset: Dataset, num_rows: int, seed: int) -> Dataset:
    """`num_rows` random rows of `dataset` in their order; all rows if there are no more. Prints which."""
    if num_rows >= len(dataset):
        warn(f"data.max_train_samples {num_rows:,} has no effect: the training data has {len(dataset):,} examples")
        return dataset
    say(f"training on {num_rows:,} of {len(dataset):,} examples, sampled with seed {seed}")
    return dataset.select(sorted(random.Random(seed).sample(range(len(dataset)), num_rows)))


def corpus(dataset: Dataset | IterableDataset) -> Iterable[str]:
    """The texts that a new tokenizer is trained on: all of them, or the first TOKENIZER_ROWS of a stream.

    Sources and targets share one tokenizer.
    """
    if isinstance(dataset, Dataset):
        return _Texts([dataset[name] for name in ("text", "target") if name in dataset.column_names])
    return (row["text"] for row in dataset.take(TOKENIZER_ROWS))


class _Texts:
    """The texts of several columns, one column after the other, as often as they are asked for."""

    def __init__(self, columns: Sequence[Iterable[str]]) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self.columns)


def with_batch_that_fits(ready: Prepared, directory: Path) -> Prepared:
    """`ready` with the largest micro-batch in its recipe that fits the memory of every process."""
    recipe = ready.recipe
    args = training_arguments(recipe, directory)
    stream = stream_of(1, ready)
    ready.task.adapt(ready.model.to(args.device), ready.collate(stream.sample(1)))
    found = examples_that_fit(ready, stream, batch_size(recipe, num_devices(recipe)), args)
    found = -all_reduce_max(-found, args.device)
    return ready._replace(recipe=replace(recipe, train=replace(recipe.train, per_device_train_batch_size=found)))


def data_hash(data: Data) -> str:
    """What identifies the training data: its content."""
    return fingerprint(data.train)


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
