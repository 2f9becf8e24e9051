"""Everything that training starts from: splits, tokenizer, model, encoded examples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.errors import DataError, UsageError
from hfkit.models import adapters
from hfkit.runs.run import Run
from hfkit.system.console import say, warn
from hfkit.system.processes import largest
from hfkit.training.arguments import training_arguments
from hfkit.training.batch import division_of, num_devices, rows_that_fit

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from hfkit.settings import Recipe
    from hfkit.tasks.base import Rows, Task
    from hfkit.training.stream import StreamedExamples, TrainingStream

TOKENIZER_ROWS = 100_000  # of a stream, for a new tokenizer


class Prepared(NamedTuple):
    """All that training starts from."""

    splits: dict[str, Any]
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    rows: Rows | None  # None: they are streamed
    held_out: Rows | None  # the validation rows, where there are any
    encode: Callable[[Dataset], Rows]


def prepare(task: Task, recipe: Recipe, run: Run, *, shared: bool = False) -> Prepared:
    """Data, tokenizer and model, the model as it stands before the first step.

    `shared`: several processes do this, and a new tokenizer is made by one of them.
    """
    from transformers import set_seed

    from hfkit.models.config import describe, load_config, quiet_libraries, require_head
    from hfkit.models.loading import new_or_pretrained
    from hfkit.models.tokenizer import load_tokenizer

    quiet_libraries()
    config = load_config(recipe)
    require_head(config, task.auto_model)  # before the data is read, which can take long
    adapters.check(recipe, config)
    splits = load_splits(task, recipe)
    if "validation" not in splits and (recipe.train.best or recipe.train.early_stopping):
        raise UsageError("the best model is told by validation data, and there is none", "--validation FILE")
    set_seed(recipe.train.seed)
    tokenizer = load_tokenizer(recipe, config, corpus(splits["train"]), begun_with=run.saved_tokenizer(), shared=shared)
    for key, value in task.model_settings(splits, config).items():
        setattr(config, key, value)
    model = new_or_pretrained(task.auto_model, recipe, config, tokenizer)
    say(f"model: {describe(model)}")

    def encode(dataset: Dataset) -> Rows:
        return task.encode(dataset, tokenizer, model, recipe)

    rows = None if recipe.data.streaming else encode(splits["train"])
    if rows is not None:
        task.begin(model, rows)
    held_out = encode(splits["validation"]) if "validation" in splits else None
    return Prepared(splits, config, tokenizer, model, rows, held_out, encode)


def stream_of(
    steps: int, task: Task, recipe: Recipe, ready: Prepared, args: TrainingArguments
) -> TrainingStream | StreamedExamples:
    """The training examples of a run of so many steps, in their order."""
    from hfkit.training.stream import StreamedExamples, TrainingStream

    seed, device_rows = recipe.train.seed, args.train_batch_size
    step_rows = device_rows * args.gradient_accumulation_steps * args.world_size
    if ready.rows is not None:
        return TrainingStream(ready.rows, task, steps=steps, step_rows=step_rows, seed=seed)
    return StreamedExamples(
        ready.splits["train"],
        ready.encode,
        task,
        steps=steps,
        step_rows=step_rows,
        device_rows=device_rows,
        seed=seed,
        buffer=recipe.data.shuffle_buffer,
    )


def load_splits(task: Task, recipe: Recipe) -> dict[str, Any]:
    """The task's splits, each with rows."""
    from datasets import IterableDataset

    splits = task.load(recipe)
    for name, dataset in splits.items():
        if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
            flag = "data" if name == "train" else name
            raise DataError(f"the {name} data has no rows", f"give rows with --{flag}")
    if recipe.data.max_train_samples is not None:
        splits["train"] = sampled(splits["train"], recipe.data.max_train_samples, recipe.train.seed)
    return splits


def sampled(dataset: Dataset, num_rows: int, seed: int) -> Dataset:
    """`num_rows` random rows of `dataset`, in its order, and says so; all of them where there are no more."""
    if num_rows >= len(dataset):
        warn(f"data.max_train_samples {num_rows:,} has no effect: the training data has {len(dataset):,} rows")
        return dataset
    say(f"training on {num_rows:,} of {len(dataset):,} rows, drawn with seed {seed}")
    return dataset.select(sorted(random.Random(seed).sample(range(len(dataset)), num_rows)))


def corpus(dataset: Dataset | IterableDataset) -> Iterable[str]:
    """The texts that a new tokenizer is trained on: all of them, or the first TOKENIZER_ROWS of a stream."""
    if hasattr(dataset, "num_rows"):
        texts: Iterable[str] = dataset["text"]
        return texts
    return (row["text"] for row in dataset.take(TOKENIZER_ROWS))


def with_rows_that_fit(task: Task, recipe: Recipe, ready: Prepared, directory: Path) -> Recipe:
    """`recipe` with the most rows in a pass that fit the memory of every process."""
    args = training_arguments(recipe, directory)
    stream = stream_of(1, task, recipe, ready, args)
    task.prepare(ready.model, task.collate(stream.sample(1), ready.tokenizer))
    division = division_of(recipe, num_devices(recipe))
    rows = rows_that_fit(task, ready.model, ready.tokenizer, stream, division, args)
    rows = -largest(-rows, args.device)
    return replace(recipe, train=replace(recipe.train, per_device_train_batch_size=rows))


def data_hash(recipe: Recipe) -> str:
    from hfkit.data.loading import fingerprint

    return fingerprint(recipe.data.train)


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
