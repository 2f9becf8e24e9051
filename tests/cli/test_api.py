"""The Python API: what it offers, when it imports what, and that it does what the commands do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hfkit
from stand_in_hub import SOURCE
from tiny_models import make_bert, make_gpt2

ROWS = [("hello world", "good"), ("the lazy dog", "bad"), ("the quick brown fox", "good"), ("a tiny model", "bad")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    make_bert(folder / "bert")
    make_gpt2(folder / "gpt2")
    (folder / "train.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_public_names_are_these() -> None:
    assert hfkit.__all__ == [
        "HfkitError", "__version__", "compare", "evaluate", "generate", "load_recipe", "predict", "train"
    ]  # fmt: skip
    assert dir(hfkit) == hfkit.__all__
    assert all(getattr(hfkit, name) is not None for name in hfkit.__all__)
    assert hfkit.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match=r"^module 'hfkit' has no attribute 'resolve_all'$"):
        hfkit.resolve_all  # noqa: B018


def test_names_are_imported_when_they_are_used() -> None:
    script = """
import sys
import hfkit
def ours():
    return sorted(name for name in sys.modules if name.startswith("hfkit"))
print(ours(), hfkit.__version__)
hfkit.HfkitError
print(ours())
recipe = hfkit.load_recipe("finetune", **{"model.name": "bert-base-uncased"})
print({"torch", "transformers", "datasets", "accelerate", "evaluate", "numpy"} & set(sys.modules))
"""
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, env=env)
    assert (done.stdout.splitlines(), done.stderr) == (
        ["['hfkit'] 0.1.0", "['hfkit', 'hfkit.errors']", "set()"],
        "",
    )


def test_a_recipe_comes_from_a_file_a_mapping_and_settings(folder: Path) -> None:
    path = folder / "r.yaml"
    path.write_text("train: {seed: 3, max_steps: 2}\n")
    recipe = hfkit.load_recipe("finetune", path, **{"train.max_steps": 5, "train.extra.adam_beta1": 0.9})
    assert (recipe.train.seed, recipe.train.max_steps, recipe.train.extra) == (3, 5, {"adam_beta1": 0.9})
    nested = {"train": {"seed": 3, "max_steps": 5, "extra": {"adam_beta1": 0.9}}}
    assert hfkit.load_recipe("finetune", str(path), **{"train": {"max_steps": 5, "extra.adam_beta1": 0.9}}) == recipe
    assert hfkit.load_recipe("finetune", nested) == recipe


def test_mistakes_raise_one_error_that_names_them_all() -> None:
    with pytest.raises(hfkit.HfkitError) as caught:
        hfkit.load_recipe("finetune", **{"train.learning_rat": 1, "train.seed": "x", "generation.seed": 1})
    assert str(caught.value).splitlines() == [
        "train.learning_rat: unknown setting (fix: did you mean 'train.learning_rate'?)",
        "generation.seed: has no effect in `hfkit finetune` (fix: leave it out; it acts in generate, chat)",
        "train.seed: must be a whole number, not 'x' (fix: e.g. 42)",
    ]
    assert caught.value.exit_code == 2
    with pytest.raises(hfkit.HfkitError) as caught:
        hfkit.generate("./gtp2", ["x"])
    assert caught.value.problems == [("./gtp2: no such directory", "did you mean './gpt2'?")]
    assert caught.value.exit_code == 5


def test_train_then_evaluate_then_predict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"data.train": ["train.csv"], "data.validation": ["train.csv"], "train.output_dir": "run"}
    recipe = hfkit.load_recipe("finetune", **{"model.name": "./bert", "train.max_steps": 2, **settings})
    results = hfkit.train(recipe)
    assert results["run"] == "run"
    assert results["eval_accuracy"] == json.loads((folder / "run" / "all_results.json").read_text())["eval_accuracy"]

    scores = hfkit.evaluate("run", **{"evaluation.metrics": ["accuracy"]})
    assert list(scores) == ["accuracy"]
    assert (scores["accuracy"].value, scores["accuracy"].n) == (results["eval_accuracy"], len(ROWS))
    assert scores["accuracy"].definition.startswith("share of rows whose label equals the reference")
    other = hfkit.evaluate("run", **{"data.test": "train.csv", "evaluation.interval": False})["accuracy"]
    assert (other.value, other.low, other.n) == (results["eval_accuracy"], None, len(ROWS))

    answers = hfkit.predict("run", [text for text, _ in ROWS])
    right = sum(answer["label"] == label for answer, (_, label) in zip(answers, ROWS, strict=True))
    assert right / len(ROWS) == results["eval_accuracy"]
    assert [answer["text"] for answer in answers] == [text for text, _ in ROWS]

    with pytest.raises(hfkit.HfkitError, match=r"^1 texts and 2 second texts"):
        hfkit.predict("run", ["a"], ["b", "c"])
    (folder / "texts.txt").write_text("hello world\nthe lazy dog\n")
    assert hfkit.predict("run", input="texts.txt") == answers[:2]
    assert hfkit.predict("run", input="texts.txt", output="answers.jsonl") == []
    assert [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()] == answers[:2]

    evaluated = json.loads((folder / "run" / "eval_results.json").read_text())
    assert evaluated["task"] == "text-classification"

    with pytest.raises(hfkit.HfkitError, match=r"^run: not empty \(fix: "):
        hfkit.train(recipe)
    assert hfkit.train(recipe, resume="auto") == results  # finished: nothing to do
    assert capsys.readouterr().out == ""


def test_files_are_scored_and_compared_without_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gold.csv").write_text("label,kind\na,x\nb,x\na,y\n")
    (folder / "one.csv").write_text("prediction\na\nb\nb\n")
    (folder / "two.csv").write_text("prediction\nb\nb\na\n")
    files = {"predictions": "one.csv", "references": "gold.csv"}
    scores = hfkit.evaluate(**files, metrics=["accuracy"], by="kind", output="kept")
    assert (list(scores), scores["accuracy"].value, scores["accuracy"].n) == (["accuracy"], 2 / 3, 3)
    assert scores.groups is not None
    values = {group: found["accuracy"].value for group, found in scores.groups.scores.items()}
    assert (values, scores.groups.gap["accuracy"]["value"]) == ({"x": 1.0, "y": 0.0}, 1.0)
    kept = json.loads((folder / "kept" / "eval_results.json").read_text())
    assert kept["metrics"]["test"]["accuracy"]["value"] == 2 / 3

    found = hfkit.compare(["one.csv", "two.csv"], references=["gold.csv"], metrics=["accuracy"])
    (difference,) = found.differences
    assert (difference.system, difference.first, difference.value) == ("two.csv", 2 / 3, 2 / 3)
    assert [row["row"] for row in found.rows] == [1, 3]

    with pytest.raises(hfkit.HfkitError, match=r"^--column has no effect without --predictions"):
        hfkit.evaluate("run", column="label")
    with pytest.raises(hfkit.HfkitError, match=r"^--label-column does not apply to --predictions/--references"):
        hfkit.evaluate(**files, **{"data.columns.label": "label"})
    assert capsys.readouterr().out == ""


def test_generate_gives_one_text_a_prompt_the_same_each_time() -> None:
    settings = {"generation.max_new_tokens": 4, "generation.do_sample": True, "generation.seed": 1}
    texts = hfkit.generate("./gpt2", ["the quick", "你好"], **settings)
    assert len(texts) == 2
    assert texts == hfkit.generate("./gpt2", ["the quick", "你好"], **settings)
    assert texts != hfkit.generate("./gpt2", ["the quick", "你好"], **{**settings, "generation.seed": 2})
