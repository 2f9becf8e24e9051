"""Numbers with a definition and an interval: of a run or model on data, or of predictions against references."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.console import say
from hfkit.errors import DataError, UsageError
from hfkit.metrics import Score, compute
from hfkit.recipe import SETTINGS, acts
from hfkit.sources import stay_local

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hfkit.recipe import Recipe


def evaluate(recipe: Recipe) -> dict[str, Score]:
    """The metrics of recipe.model.name, a run or a model, on recipe.data.test, else on the run's own held-out data.

    Raises UsageError where no data is named, DataError or ModelError where data or model can't be read or don't fit.
    """
    from hfkit.inference import to_device
    from hfkit.models import load_config, load_tokenizer, new_or_pretrained, quiet_libraries
    from hfkit.tasks import TASKS

    stay_local(recipe)
    quiet_libraries()
    config = load_config(recipe)
    recipe = dataclasses.replace(recipe, task=recipe.task or _task_of(config, recipe.model.name))
    task = TASKS[recipe.task or ""]
    _require_effect(recipe)
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
    if recipe.evaluation.compat is not None:  # whose names are those of the other program
        return scores
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


def _require_effect(recipe: Recipe) -> None:
    """UsageError naming every setting of the evaluation that means nothing to the model's task."""
    problems = []
    for key, one in SETTINGS.items():
        section, _, name = key.partition(".")
        if section != "evaluation" or not acts("evaluate", key) or acts("evaluate", key, recipe.task):
            continue
        if getattr(recipe.evaluation, name) != one.default:
            flag, tasks = one.metadata["flags"][0], " and ".join(one.metadata["tasks"])
            problems.append((f"{flag} has no effect for {recipe.task}, it is for {tasks}", "leave it out"))
    if problems:
        raise UsageError.of(problems)


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
