"""Numbers with a definition and an interval: of a run or model on data, or of predictions against references."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.data.sources import stay_local
from hfkit.errors import DataError, UsageError
from hfkit.evaluation.rows import PREDICTIONS, keep_scores, make_directory, read_rows
from hfkit.evaluation.scoring import score_split
from hfkit.metrics.sample import Row, Score
from hfkit.recipe.effect import acts_for, tasks_with
from hfkit.settings import SETTINGS, acts
from hfkit.system.console import is_main_process, say
from hfkit.system.processes import together

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hfkit.settings import Recipe


@dataclass(frozen=True)
class Evaluated:
    """Scores, the split they are of, and what the model said of each row; no rows where the task keeps none."""

    scores: dict[str, Score]
    split: str
    rows: list[Row]


def evaluate(recipe: Recipe) -> dict[str, Score]:
    """The metrics of recipe.model.name, a run or a model, on recipe.data.test, else on the run's own held-out data.

    Raises UsageError where no data is named, DataError or ModelError where data or model can't be read or don't fit.
    """
    with together():
        return _evaluate(recipe, None).scores


def evaluate_rows(recipe: Recipe, output: Path | None = None) -> Evaluated:
    """As `evaluate`, with the rows; files about them and the scores are left in `output`, where that is given."""
    output = output if is_main_process() else None
    with tempfile.TemporaryDirectory(prefix="hfkit-") as scratch, together():
        if output is not None:
            make_directory(output)
        found = _evaluate(recipe, output or Path(scratch))
    if output is not None:
        keep_scores(output, found.split, found.scores)
    return found


def _evaluate(recipe: Recipe, directory: Path | None) -> Evaluated:
    from hfkit.models.config import load_config
    from hfkit.models.loading import open_model
    from hfkit.models.tokenizer import load_tokenizer
    from hfkit.tasks import TASKS

    stay_local(recipe)
    config = load_config(recipe.model)
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
    for key, value in task.model_config({split: splits[split]}, config).items():
        setattr(config, key, value)
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
    model = open_model(task.auto_model, recipe.model, config, tokenizer)
    beside = None if directory is None else directory / split
    kept = Path(f"{beside}_{PREDICTIONS}")
    kept.unlink(missing_ok=True)  # of an earlier evaluation
    scores = score_split(task, model, tokenizer, splits[split], recipe, beside)
    rows = read_rows(kept) if beside is not None and kept.exists() else []
    if recipe.evaluation.compat is not None:  # whose names are those of the other program
        return Evaluated(scores, split, rows)
    if missing := [name for name in recipe.evaluation.metrics if name not in scores]:
        raise DataError(f"this data has no {', '.join(missing)}", f"--metrics {','.join(scores)}")
    if "perplexity" not in recipe.evaluation.metrics:  # one name for all its units, as rouge is for four numbers
        scores = {name: scores[name] for name in recipe.evaluation.metrics or scores}
    return Evaluated(scores, split, rows)


def _require_effect(recipe: Recipe) -> None:
    """UsageError naming every setting that means nothing to the model's task."""
    problems = []
    for key, one in SETTINGS.items():
        if acts("evaluate", key) and not acts_for(recipe.task, key) and attrgetter(key)(recipe) != one.default:
            flag, tasks = one.metadata["flags"][0].partition("/")[0], " and ".join(tasks_with(key))
            problems.append((f"{flag} has no effect for {recipe.task}, it is for {tasks}", "leave it out"))
    if problems:
        raise UsageError.of(problems)


def _task_of(config: PreTrainedConfig, name: str | None) -> str:
    """The task of a model that is no run of ours: the one whose head it was saved with."""
    from hfkit.models.config import was_saved_with
    from hfkit.tasks import TASKS

    fitting = [task for task in TASKS if was_saved_with(TASKS[task].auto_model, config)] if config.architectures else []
    if len(fitting) != 1:
        names = ", ".join(config.architectures or []) or "its config"
        raise UsageError(f"{name}: can't tell its task from {names}", f"--task {' or '.join(fitting or TASKS)}")
    return fitting[0]
