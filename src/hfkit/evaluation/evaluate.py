"""Scores of a run or a model on data, each with a definition and an interval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hfkit.data.sources import offline_for
from hfkit.errors import DataError, UsageError
from hfkit.evaluation.files import option
from hfkit.evaluation.groups import Groups, by_group
from hfkit.evaluation.rows import PREDICTIONS, Evaluated, keep, make_directory
from hfkit.evaluation.scoring import measure_split, write_files
from hfkit.evaluation.tables import groups_of
from hfkit.evaluation.task import task_of, without_effect
from hfkit.metrics.sample import Score
from hfkit.metrics.table import KEYS
from hfkit.models.config import load_config
from hfkit.models.loading import open_model
from hfkit.models.tokenizer import load_tokenizer
from hfkit.recipe.effect import tasks_with
from hfkit.settings import Recipe
from hfkit.system.console import is_main_process, say
from hfkit.system.processes import distributed_inference
from hfkit.tasks import TASKS


def evaluate(recipe: Recipe, *, by: str | None = None, output: Path | None = None) -> Evaluated:
    """The metrics of recipe.model.name, a run or a model, on recipe.data.test, else on the run's own held-out data.

    `by`: a column of the data whose groups are scored, too. `output`: a directory for the scores, and for files about
    the examples. Raises UsageError where no data is named, DataError or ModelError where data or model can't be read
    or don't fit.
    """
    output = output if is_main_process() else None
    with offline_for(recipe), distributed_inference():
        if output is not None:
            make_directory(output)
        config = load_config(recipe.model)
        recipe = with_task(recipe, recipe.task or task_of(config, recipe))
        task = TASKS[recipe.task or ""]
        splits = task.load(recipe)
        split = next((name for name in ("test", "validation") if name in splits), None)
        if split is None:
            raise UsageError("there is no data to evaluate on", "--data FILE")
        dataset = splits[split]
        if not recipe.data.test:
            say(f"data: the run's own {split} data, {len(dataset):,} rows")
        for key, value in task.model_config({split: dataset}, config).items():
            setattr(config, key, value)
        tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
        model = open_model(task.auto_model, recipe.model, config, tokenizer)
        measured = measure_split(task, model, tokenizer, dataset, recipe)
        rows = list(measured.rows)
        if output is not None:
            Path(f"{output / split}_{PREDICTIONS}").unlink(missing_ok=True)  # of an earlier evaluation
            write_files(output / split, rows)
        found = Evaluated(asked_for(measured.scores, recipe), rows)
        if by is not None:
            found = replace(found, groups=groups_by(found, recipe, by))
    if output is not None:
        keep(output, split, found, recipe.task)
    return found


def with_task(recipe: Recipe, name: str) -> Recipe:
    """The recipe of this task, with the task's own unit of documents; UsageError for settings without effect in it."""
    task = TASKS[name]
    problems = [
        (f"{option(key)} has no effect for {name}, it is for {' and '.join(tasks_with(key))}", "leave it out")
        for key in without_effect(recipe, name)
    ]
    if problems := problems or task.unknown_metrics(recipe.evaluation.metrics):
        raise UsageError.of(problems)
    documents = recipe.data.documents or task.defaults({}).get("data.documents")
    return replace(recipe, task=name, data=replace(recipe.data, documents=documents))


def asked_for(scores: dict[str, Score], recipe: Recipe) -> dict[str, Score]:
    """Those of evaluation.metrics, or all; DataError for a metric that the data does not have."""
    names = recipe.evaluation.metrics
    keys = [key for name in names for key in KEYS.get(name, (name,))]
    if missing := [key for key in keys if key not in scores]:
        raise DataError(f"this data has no {', '.join(missing)}", f"--metrics {','.join(scores)}")
    if "perplexity" in names:  # one name for all its units, as rouge is for four numbers
        return scores
    return {key: one for key, one in scores.items() if not names or key.partition(".")[0] in keys}


def groups_by(found: Evaluated, recipe: Recipe, by: str) -> Groups:
    """The scores of each group of examples with the same value in the column `by` of recipe.data.test."""
    if not found.rows:
        raise UsageError("--by: this task keeps no predictions of single rows", "leave it out")
    groups, wanted = groups_of(recipe, by, len(found.rows)), recipe.evaluation
    return by_group(found.rows, groups, wanted.metrics, interval=wanted.interval, seed=wanted.seed)
