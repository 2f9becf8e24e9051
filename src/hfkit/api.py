"""The Python API: what the commands do, as five functions. Settings are given by dotted name or as a nested mapping.

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
    from hfkit.metrics.sample import Score
    from hfkit.settings import Recipe


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


def evaluate(model: str, **settings: Any) -> dict[str, Score]:
    """Metrics of a run or model, by name, each with value, low, high, n and definition.

    `settings` as `data.test=["dev.csv"]` or `evaluation.metrics=["accuracy"]`; without data the run's own is used.
    """
    from hfkit.evaluation.evaluate import evaluate as run

    with kept_state():
        return run(resolve("evaluate", run=model, sets=settings))


def generate(model: str, prompts: Sequence[str], **settings: Any) -> list[str]:
    """The continuation of each prompt; `settings` as `generation.max_new_tokens=50`."""
    from hfkit.generation.generator import generate as run

    with kept_state():
        return run(resolve("generate", run=model, sets=settings), prompts)


def predict(
    model: str, texts: Sequence[str], pairs: Sequence[str] | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Label, score and probabilities of each text (or pair of texts), in order."""
    from hfkit.evaluation.predict import predict as run

    with kept_state():
        return run(resolve("predict", run=model, sets=settings), texts, pairs)
