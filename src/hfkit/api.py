"""The Python API: what the commands do, as six functions. Settings are given by dotted name or as a nested mapping.

A call leaves the process as it was: environment, random states, logging, signals. Only the telemetry of the Hugging
Face libraries stays off.

>>> import hfkit
>>> recipe = hfkit.load_recipe("finetune", **{"model.name": "bert-base-uncased", "data.train": ["train.csv"]})
>>> hfkit.train(recipe)["eval_accuracy"]
>>> hfkit.predict("runs/finetune-bert-base-uncased", ["a fine film"])[0]["label"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.recipe.resolve import resolve
from hfkit.system.state import kept_state

if TYPE_CHECKING:
    from hfkit.evaluation.files import Files
    from hfkit.evaluation.groups import Groups
    from hfkit.evaluation.rows import Evaluated
    from hfkit.evaluation.systems import Comparison
    from hfkit.metrics.sample import Score
    from hfkit.settings import Recipe

Paths = str | Path | Sequence[str | Path]


class Scores(dict[str, "Score"]):
    """Scores by metric; `groups`: the scores of each group and their gap, if `by` names a column."""

    groups: Groups | None = None


def load_recipe(command: str, recipe: str | Path | Mapping[str, Any] | None = None, **settings: Any) -> Recipe:
    """The validated recipe of `command` from a YAML file or mapping, with `settings` by dotted name on top.

    Raises HfkitError naming every setting that is unknown, has a wrong type or would have no effect.
    """
    return resolve(command, recipe=Path(recipe) if isinstance(recipe, str) else recipe, sets=settings)


def train(
    recipe: Recipe,
    *,
    resume: str | None = None,
    overwrite: bool = False,
    allow_changed: bool = False,
    extend: bool = False,
) -> dict[str, Any]:
    """Pretrains or fine-tunes as `recipe` says; returns the run directory ("run") and the flat results beside it."""
    from hfkit.training.train import train as run

    with kept_state():
        return run(recipe, resume=resume, overwrite=overwrite, allow_changed=allow_changed, extend=extend)


def evaluate(
    model: str | None = None,
    *,
    predictions: str | Path | None = None,
    references: Paths = (),
    metrics: Sequence[str] = (),
    column: str | None = None,
    prediction_column: str | None = None,
    reference_column: str | None = None,
    by: str | None = None,
    output: str | Path | None = None,
    allow_download: bool = False,
    **settings: Any,
) -> Scores:
    """Metrics by name, each with value, low, high, n and definition: of a run or model, or of files.

    A `model` is measured on `data.test=["dev.csv"]`, or on the run's own data. Without a model the file `predictions`
    is compared with one or more files of `references`; columns without a name are the usual ones. `by`: a column whose
    groups are measured, too. `output`: a directory for eval_results.json and a line per example. `allow_download`:
    also metrics of the Hub, whose code is run. Other settings by dotted name, as `evaluation.interval=False`.
    """
    from hfkit.evaluation.files import Files

    recipe = resolve("evaluate", run=model, sets=_with_metrics(settings, metrics))
    made = None if predictions is None else Path(predictions)
    files = Files(made, _paths(references), column, prediction_column, reference_column, allow_download)
    files.require_sense(recipe)
    found = evaluate_recipe(recipe, files, by=by, output=None if output is None else Path(output))
    scores = Scores(found.scores)
    scores.groups = found.groups
    return scores


def evaluate_recipe(recipe: Recipe, files: Files, *, by: str | None = None, output: Path | None = None) -> Evaluated:
    """The evaluation of `files`, or without any of the model in `recipe`."""
    if files:
        from hfkit.evaluation.files import evaluate_files

        return evaluate_files(files, recipe.evaluation, by=by, output=output)
    from hfkit.evaluation.evaluate import evaluate as run

    with kept_state():
        return run(recipe, by=by, output=output)


def compare(
    systems: Sequence[str | Path],
    *,
    references: Paths = (),
    metrics: Sequence[str] = (),
    column: str | None = None,
    prediction_column: str | None = None,
    reference_column: str | None = None,
    **settings: Any,
) -> Comparison:
    """Two or more systems on the same examples: `differences` from the first one, metric by metric, and `rows`.

    Systems are files of predictions if there are `references`, runs or models if `settings` name `data.test`, else what
    evaluations have kept. `rows` are the examples where the first two differ most.
    """
    from hfkit.evaluation.files import Files
    from hfkit.evaluation.systems import compare_systems

    files = Files(None, _paths(references), column, prediction_column, reference_column)
    sets = _with_metrics(settings, metrics)
    with kept_state():
        return compare_systems(list(map(str, systems)), lambda name: resolve("evaluate", run=name, sets=sets), files)


def generate(model: str, prompts: Sequence[str], **settings: Any) -> list[str]:
    """The continuation of each prompt; `settings` as `generation.max_new_tokens=50`."""
    from hfkit.generation.generator import generate as run

    with kept_state():
        return run(resolve("generate", run=model, sets=settings), prompts)


def predict(
    model: str,
    texts: Sequence[str] = (),
    pairs: Sequence[str] | None = None,
    *,
    input: str | Path | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Label, score and probabilities of each text (or pair of texts), in order.

    `input`: a file of texts in place of `texts`. `output`: a file for its answers, as JSON lines, which are not
    returned then; `resume` continues a file that is there, `overwrite` replaces it.
    """
    from hfkit.evaluation.predict import predict as run
    from hfkit.evaluation.predict import predict_file

    recipe = resolve("predict", run=model, sets=settings, files=[] if input is None else [str(input)])
    answers: list[dict[str, Any]] = []
    file = None if output is None else Path(output)
    with kept_state():
        if input is None:
            return run(recipe, texts, pairs)
        predict_file(recipe, str(input), answers.append, file, resume=resume, overwrite=overwrite)
    return answers


def _paths(given: Paths) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(one) for one in given]


def _with_metrics(settings: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    return {**settings, "evaluation.metrics": list(metrics)} if metrics else dict(settings)
