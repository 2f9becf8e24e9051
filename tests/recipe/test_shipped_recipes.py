"""Every recipe that comes with hfkit runs, on tiny data."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from chat_models import CHATML, make_chat_model
from hfkit.cli.main import main
from hfkit.recipe.shipped import headline, shipped_recipes
from hfkit.recipe.yaml import read_recipe
from hfkit.tasks import TASKS
from tiny_models import TEXT, make_bert, make_gpt2, make_t5

RECIPES = shipped_recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_recipe(RECIPES[name])[0]
    command, data = TASKS[settings["task"]].command, settings.get("data", {})
    line = [command, name, "--max-steps", "2", "--global-batch-size", "2", "--output-dir", "run"]
    if command == "pretrain":
        Path("rows.txt").write_text("\n\n".join(TEXT * 4), encoding="utf-8")
        line += ["--data", "rows.txt", "--validation-split", "0.2", "--block-size", "16"]
        if "name" in settings["model"]:
            make = make_bert if settings["task"] == "mlm" else make_gpt2
            line += ["--model", str(make(tmp_path / "model"))]
        else:
            line += ["--vocab-size", "300"]
    elif "target" in TASKS[settings["task"]].roles:
        rows = [{"source": text, "target": text.split()[0]} for text in TEXT]
        Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        line += ["--data", "rows.jsonl"] + ([] if "validation_split" in data else ["--validation", "rows.jsonl"])
        line += ["--vocab-size", "300"] if "type" in settings["model"] else ["--model", str(make_t5(tmp_path / "t5"))]
    elif "messages" in TASKS[settings["task"]].questions:
        make_chat_model(tmp_path / "chat", CHATML)
        rows = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in TEXT]
        Path("rows.jsonl").write_text("".join(f"{json.dumps({'messages': row})}\n" for row in rows), encoding="utf-8")
        line += ["--model", "./chat", "--data", "rows.jsonl", "--validation-split", "0.2"]
    else:
        make_bert(tmp_path / "bert")
        file = write_rows(TASKS[settings["task"]].questions, data)
        line += ["--model", "./bert", "--data", file, "--max-length", "32"]
        line += [] if "validation_split" in data else ["--validation", file]
    assert main(line) == 0
    assert json.loads(Path("run/status.json").read_text())["step"] == 2


def write_rows(questions: tuple[str, ...], data: dict[str, Any]) -> str:
    """A few rows of what a task with these `questions` learns from, as its recipe's settings of `data` want them."""
    texts = [text.replace(",", "") for text in TEXT]
    if "tokens" in questions:
        lines = [f"{word}\tB-x" for text in texts for word in text.split()]
        file, lines = "rows.conll", [*lines, "the\tO", ""] * 2
    elif "context" in questions:
        rows = [{"question": "what?", "context": text, "answers": [text.split()[0]]} for text in dict.fromkeys(texts)]
        file, lines = "rows.jsonl", list(map(json.dumps, rows))
    else:
        lines = [f"{text},{'ab'[number % 2]}" for number, text in enumerate(texts)]
        if data.get("problem_type") == "regression":
            lines = [f"{text},{text},{number / 2}" for number, text in enumerate(texts)]
        columns = {"text": "text", "label": "label", **data.get("columns", {})}
        header = [] if data.get("header") is False else [f"{columns['text']},{columns['label']}"]
        file, lines = "rows.csv", [*header, *lines]
    Path(file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_opens_with_what_it_does_and_how_to_run_it(name: str) -> None:
    comments = [line for line in RECIPES[name].read_text().splitlines() if line.startswith("#")]
    assert comments[0] == "# yaml-language-server: $schema=schema.json"
    assert comments[-2].startswith(f"# Run: hfkit {TASKS[read_recipe(RECIPES[name])[0]['task']].command} {name}")
    assert comments[-1].startswith("# Worth trying: ")
    assert len(headline(RECIPES[name])) > 40


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_says_is_worth_trying_can_be_typed(name: str) -> None:
    (said,) = (line for line in RECIPES[name].read_text().splitlines() if line.startswith("# Worth trying: "))
    flags = re.split("[,;]", said.removeprefix("# Worth trying: "))[0]
    command = TASKS[read_recipe(RECIPES[name])[0]["task"]].command
    line = shlex.split(flags) if flags.startswith("--") else []
    assert main([command, name, *line, "--dry-run"]) == 0
