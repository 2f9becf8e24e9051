"""The command line: what is typed, what stands on stdout and on stderr, and the exit code."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import hfkit
from hfkit.cli.main import main
from hfkit.recipe.effect import tasks_with
from hfkit.recipe.yaml import read_recipe
from hfkit.settings import SETTINGS, acts
from hfkit.tasks import TASKS
from stand_in_hub import SOURCE
from tiny_models import make_bert, make_gpt2

COMMANDS = ["pretrain", "finetune", "predict", "generate", "chat", "evaluate", "doctor", "recipes"]
RECIPES = Path(__file__).parents[2] / "recipes"
ROWS = [("hello world", "good"), ("the lazy dog", "bad"), ("the quick brown fox", "good"), ("a tiny model", "bad")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models `bert` and `gpt2`, and labeled data in `train.csv` and `dev.csv`."""
    folder = tmp_path_factory.mktemp("cli")
    make_bert(folder / "bert")
    make_gpt2(folder / "gpt2")
    lines = ["text,label", *(f"{text},{label}" for text, label in ROWS)]
    for name in ("train.csv", "dev.csv"):
        (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "book.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A classifier, trained as the example script run_glue.py is called."""
    words = f"""finetune --model_name_or_path {folder}/bert --train_file {folder}/train.csv
        --validation_file {folder}/dev.csv --output_dir {folder}/run --per_device_train_batch_size 2
        --num_train_epochs 1 --max_seq_length 32 --learning_rate 2e-5 --seed 3 --eval_steps 2"""
    assert main(words.split()) == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


class Said:
    """What one command line ended in."""

    def __init__(self, line: str, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        self.code = main(shlex.split(line))
        self.out, self.err = capsys.readouterr()


def process(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """One bash line in a process of its own, in which `hfkit` is this one."""
    bash = f'set -o pipefail; hfkit() {{ {shlex.quote(sys.executable)} -m hfkit "$@"; }}; {line}'
    variables = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "80", "PYTHONWARNINGS": "error", **env}
    return subprocess.run(["bash", "-c", bash], capture_output=True, text=True, env=variables, timeout=60)


# Names of options.


def test_names_of_the_example_scripts_reach_their_settings(run: Path) -> None:
    settings, _ = read_recipe(run / "recipe.yaml")
    assert settings["model"]["name"] == f"{run.parent}/bert"
    files = {"train": [f"{run.parent}/train.csv"], "validation": [f"{run.parent}/dev.csv"]}
    assert settings["data"].items() >= {**files, "max_length": 32}.items()
    wanted = {"per_device_train_batch_size": 2, "num_train_epochs": 1.0, "learning_rate": 2e-5, "seed": 3}
    assert {key: settings["train"][key] for key in wanted} == wanted
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert json.loads((run / "status.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--max-steps 3", "--max_steps 3"),
        ("--max-steps 3", "--max_steps=3"),
        ("--model x", "--model_name_or_path x"),
        ("--model x", "--model-name-or-path=x"),
        ("--lr 3e-5", "--learning_rate 3e-5"),
        ("--data a.csv", "--train_file a.csv"),
        ("--epochs 2", "--num-train_epochs 2"),
        ("--warmup-steps 0.1", "--warmup_ratio 0.1"),
        ("--eval-batch-size 2", "--per_device_eval_batch_size 2"),
        ("--label-column y", "--label_column_name y"),
        ("--task text-classification", "--objective text-classification"),
        ("-o out", "--output_dir out"),
        ("--data a.csv --data b.csv", "--set 'data.train=[a.csv, b.csv]'"),
        ("--lr 3e-5", "--set train.learning_rate=3e-5"),
        ("--from-scratch", "--set model.from_scratch=true"),
    ],
)
def test_two_ways_to_write_an_option_are_alike(one: str, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Said(f"finetune --dry-run {one}", capsys), Said(f"finetune {other} --dry-run", capsys)
    assert (first.code, first.out) == (second.code, second.out)
    assert first.code == 0
    assert first.out != Said("finetune --dry-run", capsys).out or "text-classification" in one


def test_an_alias_after_two_dashes_is_no_option() -> None:
    from hfkit.cli.options import without_aliases

    line = ["--train_file", "x", "--", "--train_file", "y z"]
    assert without_aliases(["compare", *line]) == ["compare", "--data", "x", "--", "--train_file", "y z"]
    assert without_aliases(["pretrain", *line]) == [
        "pretrain", "--data", "x", "--launcher-arguments=--train_file 'y z'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--resume"], ["--resume", "auto"]),
        (["--resume", "--json"], ["--resume", "auto", "--json"]),
        (["--resume", "runs/x"], ["--resume", "runs/x"]),
    ],
)
def test_resume_alone_means_auto(given: list[str], meant: list[str]) -> None:
    from hfkit.cli.options import without_aliases

    assert without_aliases(given) == meant


@pytest.mark.parametrize("command", ["pretrain", "finetune", "predict", "generate", "evaluate"])
def test_every_setting_with_a_flag_can_be_typed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value comes back under the flag's name: so the option exists and reaches its setting."""
    for key, setting in SETTINGS.items():
        kind = str(setting.type)
        numeric = kind.startswith(("int", "float")) and acts(command, key)
        if not numeric or not setting.metadata["flags"] or (command == "finetune" and tasks_with(key)):
            continue
        for flag in setting.metadata["flags"]:
            said = Said(f"{command} {flag} x", capsys)
            expected = "a whole number" if kind.startswith("int") else "a number"
            shared = flag in ("--seed", "--batch-size")  # train's in training, evaluation's elsewhere
            name = flag if shared else setting.metadata["flags"][0]
            assert said.code == 2
            assert f"error: {name}: must be {expected}, not 'x'" in said.err


# Mistakes on the command line.


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("finetne", "No such command 'finetne' (fix: did you mean 'finetune'?)"),
        ("xyz", "No such command 'xyz' (fix: hfkit --help)"),
        ("recipes shw", "No such command 'shw' (fix: did you mean 'show'?)"),
        ("recipes xyz", "No such command 'xyz' (fix: hfkit recipes --help)"),
        ("recipes show", "Missing argument 'name' (fix: hfkit recipes --help)"),
        ("finetune --learning_rat 3", "No such option: --learning-rat (fix: did you mean --learning-rate?)"),
        ("finetune --learn 3", "No such option: --learn (fix: did you mean --header, --lr, --plan?)"),
        ("finetune --lr", "Option '--lr' requires an argument (fix: hfkit finetune --help)"),
        ("--zzz", "No such option: --zzz (fix: hfkit --help)"),
        ("generate a b --prompt c", "Got unexpected extra argument(s) (b) (fix: hfkit generate --help)"),
        ("generate --prompt x", "no model is named (fix: hfkit generate MODEL ...)"),
        ("generate gpt2", "there is no prompt (fix: --prompt 'Once upon a time' or --input FILE)"),
        ("generate ./gpt2 --model ./bert --prompt x", "two models are named: ./gpt2 and ./bert (fix: name one)"),
        ("predict --text x", "no model is named (fix: hfkit predict MODEL ...)"),
        ("predict ./bert", "there is no text to classify (fix: --text 'some text' or --input FILE)"),
        ("predict ./bert --data x.csv --text a", "No such option: --data (fix: did you mean --dtype?)"),
        ("evaluate", "there is nothing to evaluate (fix: hfkit evaluate RUN, or --predictions F --references G)"),
        ("evaluate --predictions a",
         "predictions and references go together (fix: --predictions FILE --references FILE)"),
        ("evaluate ./bert --predictions a --references b",
         "--model does not apply to --predictions/--references (fix: leave it out)"),
        ("evaluate --predictions a --references b --data x --label-column y",
         "--data does not apply to --predictions/--references (fix: leave it out)\n"
         "error: --label-column does not apply to --predictions/--references"
         " (fix: use --prediction-column, --reference-column)"),
        ("finetune", "no model is named (fix: --model bert-base-uncased, or a directory)"),
        ("finetune nosuch", "nosuch: no such recipe (fix: hfkit recipes list)"),
        ("finetune finetune-docstring",
         "finetune-docstring: no such recipe (fix: did you mean 'finetune-docstrings'?)"),
        ("finetune --max-steps x --dry-run", "--max-steps: must be a whole number, not 'x' (fix: e.g. 8)"),
        ("finetune . --dry-run", ".: Is a directory (fix: hfkit recipes list)"),
        (f"finetune {'x' * 300}", f"{'x' * 300}: no such recipe (fix: hfkit recipes list)"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_line_and_code_2(line: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(line, capsys)
    assert (said.code, said.out, said.err) == (2, "", f"error: {error}\n")


def test_debug_shows_the_traceback_and_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said("generate ./nothing --prompt x --debug", capsys)
    assert said.code == 5
    assert said.err.startswith("Traceback (most recent call last):\n")
    assert said.err.endswith(
        "error: ./nothing: no such directory (fix: give a directory with a config.json, or a Hub name)\n"
    )


# Results on stdout, talk on stderr.

SCORE = {"value", "low", "high", "n", "definition"}


def test_finetune_prints_results_on_stdout_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "finetune --model ./bert --data train.csv --validation dev.csv --test dev.csv --max-steps 2 --batch-size 2"
    said = Said(f"{line} --output-dir plain", capsys)
    assert said.code == 0
    rows = [re.split(r"  +", row.strip())[:2] for row in said.out.splitlines() if not row.startswith("  (")]
    assert [row[0] for row in rows if len(row) == 1] == ["validation:", "test:", "run: plain"]
    assert {row[0] for row in rows if len(row) == 2} >= {"accuracy", "f1_macro"}
    assert said.err.splitlines()[-1] == 'next: hfkit predict plain --text "..."'

    said = Said(f"{line} --output-dir as-json --json", capsys)
    (printed,) = said.out.splitlines()
    result = json.loads(printed)
    assert (said.code, result["run"], set(result)) == (0, "as-json", {"run", "metrics"})
    assert all(set(score) == SCORE for score in result["metrics"].values())
    accuracy = result["metrics"]["accuracy"]
    assert accuracy["n"] == len(ROWS)
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] == json.loads((folder / "as-json" / "all_results.json").read_text())["test_accuracy"]


def test_the_recipe_of_a_run_runs_again_to_the_same_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(f"finetune {run}/recipe.yaml --output-dir again", capsys)
    assert said.code == 0
    name = "model.safetensors"
    assert (run.parent / "again" / name).read_bytes() == (run / name).read_bytes()
    first, second = (read_recipe(folder / "recipe.yaml")[0] for folder in (run, run.parent / "again"))
    assert first["train"].pop("output_dir") == str(run)
    assert second["train"].pop("output_dir") == "again"
    assert first == second


def test_a_shipped_recipe_takes_flags_on_top(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said("finetune finetune-docstrings --model ./bert --lr 1e-4 --set data.max_length=16 --dry-run", capsys)
    shipped = yaml.safe_load((RECIPES / "finetune-docstrings.yaml").read_text())
    printed = yaml.safe_load(said.out)
    assert (printed["model"]["name"], printed["train"]["learning_rate"], printed["data"]["max_length"]) == (
        "./bert", 1e-4, 16,
    )  # fmt: skip
    assert (printed["task"], printed["data"]["train"]) == (shipped["task"], shipped["data"]["train"])
    assert said.err == ""


def test_dry_run_prints_a_recipe_that_gives_itself_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = folder / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for line in (
        "pretrain",
        "pretrain --objective mlm --size mini",
        "finetune --model x --set train.extra.adam_beta1=0.9",
    ):
        said = Said(f"{line} --dry-run", capsys)
        assert (said.code, said.err, list(empty.iterdir())) == (0, "", [])
        (folder / "dry.yaml").write_text(said.out)
        assert Said(f"{line.split()[0]} ../dry.yaml --dry-run", capsys).out == said.out
        assert Said("recipes check ../dry.yaml", capsys).code == 0


def test_predict_prints_a_line_a_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(f"predict {run} --text 'hello world' --text dog", capsys)
    assert (said.code, said.err) == (0, "")
    assert all(re.fullmatch(r"(good|bad)\t0\.\d{3}\t\((good|bad) 0\.\d{3}\)", line) for line in said.out.splitlines())
    assert len(said.out.splitlines()) == 2

    answers = [
        json.loads(line) for line in Said(f"predict --model {run} --input dev.csv --json", capsys).out.splitlines()
    ]
    assert [answer["text"] for answer in answers] == [text for text, _ in ROWS]
    for answer in answers:
        assert set(answer) == {"text", "label", "score", "probabilities"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["score"] == answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())


def test_generate_prints_the_continuation_alone(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Said("generate ./gpt2 --prompt 'the quick' --max-new-tokens 4", capsys)
    echoed = Said("generate ./gpt2 --prompt 'the quick' --max-new-tokens 4 --echo", capsys)
    as_json = Said("generate --model ./gpt2 --prompt 'the quick' --max_new_tokens 4 --prompt '你好' --json", capsys)
    assert (alone.code, alone.err) == (0, "warning: the text was cut after 4 tokens (fix: --max-new-tokens 8)\n")
    assert echoed.out == "the quick" + alone.out
    first, second = map(json.loads, as_json.out.splitlines())
    assert (first["prompt"], first["text"]) == ("the quick", alone.out.removesuffix("\n"))
    assert (first["tokens"], first["finish_reason"]) == (4, "length")
    assert second["prompt"] == "你好"


def test_evaluate_of_a_run_repeats_its_own_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(f"evaluate {run} --json", capsys)
    metrics = json.loads(said.out)["metrics"]
    assert said.code == 0
    assert all(set(score) == SCORE for score in metrics.values())
    assert metrics["accuracy"]["value"] == json.loads((run / "all_results.json").read_text())["eval_accuracy"]
    assert "data: the run's own validation data, 4 rows" in said.err


def test_evaluate_measures_all_of_the_data_that_is_given(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (f"{run} --data dev.csv", f"--model {run} --test dev.csv", f"{run} --set data.test=dev.csv"):
        said = Said(f"evaluate {line} --metrics mcc,accuracy --json", capsys)
        metrics = json.loads(said.out)["metrics"]
        assert (said.code, list(metrics), metrics["accuracy"]["n"]) == (0, ["mcc", "accuracy"], len(ROWS))


def test_evaluate_takes_a_plain_model_and_two_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said("evaluate --model ./gpt2 --data book.txt --metrics perplexity --json", capsys)
    metrics = json.loads(said.out)["metrics"]  # one name for all units of one measurement
    assert list(metrics) == ["perplexity", "bits_per_byte", "bits_per_character", "nll", "word_perplexity"]
    assert (said.code, set(metrics["perplexity"])) == (0, SCORE)
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(metrics["nll"]["value"]))

    (folder / "p.txt").write_text("the cat sat on the mat\nhello there world again\n")
    (folder / "r.txt").write_text("the cat sat on the mat\nhello there world again\n")
    said = Said("evaluate --predictions p.txt --references r.txt --metrics bleu,rouge", capsys)
    assert (said.code, said.err) == (0, "")
    values = {line.split()[0]: float(line.split()[1]) for line in said.out.splitlines() if line[2] != "("}
    assert values == {"bleu": 100, "rouge1": 100, "rouge2": 100, "rougeL": 100, "rougeLsum": 100}


def test_unknown_metric_is_refused_before_the_data_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(f"evaluate {run} --data missing.csv --metrics acuracy", capsys)
    assert said.code == 2
    assert said.err.startswith("error: --metrics: unknown metric 'acuracy', this task has: accuracy, ")
    said = Said("evaluate ./gpt2 --data book.txt --metrics accuracy", capsys)
    assert said.code == 2
    assert said.err.startswith("error: unknown metric 'accuracy', this task has: perplexity, ")
    said = Said("evaluate ./gpt2 --data book.txt --metrics bleu", capsys)  # of a decoder that completes prompts
    assert said.code == 3
    assert "book.txt: line 1: one text file, and no tab between a source and its target" in said.err


# Recipes, doctor, help.


def test_recipes_are_listed_shown_copied_and_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert names
    listed = Said("recipes list", capsys)
    assert [line.split()[0] for line in listed.out.splitlines()] == names
    for name, line in zip(names, listed.out.splitlines(), strict=True):
        text = (RECIPES / f"{name}.yaml").read_text()
        assert line.split(maxsplit=1)[1] == text.splitlines()[1].removeprefix("# ")
        assert Said(f"recipes show {name}", capsys).out == text
        command = name.partition("-")[0]
        checked = Said(f"recipes check {name}", capsys)
        assert (checked.code, checked.out) == (
            0, f"{RECIPES / name}.yaml: valid; run it with: hfkit {command} {name}\n",
        )  # fmt: skip

    copied = Said(f"recipes copy {names[0]}", capsys)
    assert copied.out == f"{names[0]}.yaml\n"
    text = (folder / f"{names[0]}.yaml").read_text()
    schema = f"# yaml-language-server: $schema={RECIPES}/schema.json\n"
    original = (RECIPES / f"{names[0]}.yaml").read_text()
    assert text == original.replace("# yaml-language-server: $schema=schema.json\n", schema)
    again = Said(f"recipes copy {names[0]}", capsys)
    assert (again.code, again.err) == (
        2, f"error: {names[0]}.yaml exists (fix: name another file: hfkit recipes copy {names[0]} other.yaml)\n",
    )  # fmt: skip
    assert (folder / f"{names[0]}.yaml").read_text() == text
    nowhere = Said(f"recipes copy {names[0]} no/such/folder.yaml", capsys)
    assert (nowhere.code, nowhere.err) == (
        6, "error: no/such/folder.yaml: No such file or directory (fix: name a file in a writable folder)\n",
    )  # fmt: skip


def test_recipes_check_says_all_that_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ", ".join(TASKS)
    (folder / "bad.yaml").write_text("task: clm\ntrain:\n  learning_rat: 1\n  seed: x\n")
    said = Said("recipes check bad.yaml", capsys)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        "error: bad.yaml: line 3: train.learning_rat: unknown setting (fix: did you mean 'train.learning_rate'?)",
        "error: bad.yaml: line 4: train.seed: must be a whole number, not 'x' (fix: e.g. 42)",
    ]
    for text, error in [
        (
            "train: {seed: 1}\n",
            f"bad.yaml: names no task (fix: write `task:` and one of {tasks})",
        ),
        (
            "task: [clm]\n",
            f"bad.yaml: unknown task ['clm'] (fix: one of {tasks})",
        ),
        (
            "task: clmm\n",
            f"bad.yaml: unknown task 'clmm' (fix: one of {tasks})",
        ),
    ]:
        (folder / "bad.yaml").write_text(text)
        assert Said("recipes check bad.yaml", capsys).err == f"error: {error}\n"


def test_recipes_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads(Said("recipes schema", capsys).out)
    sections = {"task", "model", "data", "tokenizer", "train", "lora", "generation", "evaluation"}
    assert set(schema["properties"]) == sections


def test_doctor_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    said = Said("doctor --json", capsys)
    found = json.loads(said.out)
    assert said.code == 0
    assert list(found) == ["facts", "problems"]
    facts: dict[str, str] = found["facts"]
    assert list(facts) == ["versions", "devices", "memory", "working directory", "Hub cache", "Hub"]
    import torch

    assert f"torch {torch.__version__}" in facts["versions"]
    assert f"hfkit {hfkit.__version__}" in facts["versions"]
    assert facts["Hub"] == "offline (HF_HUB_OFFLINE is set)"
    assert facts["working directory"].startswith(os.getcwd())
    plain = Said("doctor", capsys)
    assert [line.split("  ")[0] for line in plain.out.splitlines()[: len(facts)]] == list(facts)
    assert len(plain.out.splitlines()) == len(facts) + max(1, len(found["problems"]))


@pytest.mark.parametrize("command", ["", *COMMANDS, "recipes list", "recipes show", "recipes copy", "recipes check"])
def test_help_says_what_it_does_and_its_examples_are_right(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(f"{command} --help", capsys)
    assert (said.code, said.err) == (0, "")
    assert f"Usage: hfkit {command}".rstrip() in said.out
    assert Said(f"{command} -h", capsys).out == said.out
    for name in COMMANDS if command == "" else []:
        assert re.search(rf"^│ {name} +[A-Z]", said.out, re.MULTILINE), name


@pytest.mark.parametrize("command", ["pretrain", "finetune", "predict", "generate", "chat", "evaluate"])
def test_examples_in_help_fit_a_line_and_name_what_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    import hfkit.cli

    (info,) = [
        info for info in hfkit.cli.app.registered_commands if info.callback and info.callback.__name__ == command
    ]
    text = re.sub(r"\[/?(bold|dim)\]", "", str(info.callback.__doc__))
    examples = [line.partition("  #")[0] for line in text.splitlines() if line.startswith("hfkit ")]
    assert len(examples) >= 2
    for line in text.splitlines():
        assert len(line) <= 78, line  # an 80-column terminal with its margins
    for example in examples:
        words = shlex.split(example)[1:]
        assert words[0] == command
        # A wrong number is refused after the options are read and before anything else: so all of them exist.
        said = Said(shlex.join([*words, "--set", "model.dtype=x"]), capsys)
        assert said.code == 2
        wrong = "error: --set model.dtype: must be one of float32, bfloat16, float16, not 'x'\n"
        noted = "task: token-classification, because train.conll holds tagged words (change with --task)\n"
        assert said.err.removeprefix(noted) == wrong


# The process.


HEAVY = {"torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub", "numpy", "sklearn"}


def test_help_dry_run_and_errors_import_no_heavy_library(folder: Path) -> None:
    lines = [
        *(f"{command} --help" for command in ("", *COMMANDS)),
        "finetune --dry-run",
        "pretrain --objective mlm --dry-run",
        "finetne",
        "finetune --learning-rat 3",
        "finetune --lr x",
        "finetune --set train.extra.adam_beta3=1",
        "pretrain --set modl.name=x",
        "finetune no-such-recipe",
        "finetune",
        "generate gpt2",
        "recipes list",
        "recipes schema",
        "recipes check pretrain-clm",
    ]
    script = f"""
import contextlib, io, shlex, sys
from hfkit.cli.main import main
for line in {lines!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(shlex.split(line))
    heavy = {HEAVY} & set(sys.modules)
    print(f"{{line}}: {{heavy}}" if heavy else "light")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert (done.stdout.splitlines(), done.stderr) == (["light"] * len(lines), "")


def test_it_runs_as_a_module_and_as_a_script(folder: Path) -> None:
    expected = f"hfkit {hfkit.__version__}\n"
    assert process("hfkit --version").stdout == expected
    script = Path(sys.executable).with_name("hfkit")
    assert script.exists(), "install it: make setup"
    done = process(f"{shlex.quote(str(script))} --version && {shlex.quote(str(script))} finetne; echo $?")
    assert (done.stdout, done.stderr) == (
        f"{expected}2\n",
        "error: No such command 'finetne' (fix: did you mean 'finetune'?)\n",
    )


def test_a_closed_pipe_ends_it_in_silence() -> None:
    done = process(
        "hfkit recipes schema | head -n 1; hfkit recipes schema | true; echo ${PIPESTATUS[0]}; hfkit --help | true"
    )
    assert (done.stdout, done.stderr) == ("{\n0\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_told() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hfkit", "recipes", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 6
    assert done.stderr == (
        "error: stdout can't be written: No space left on device (fix: free some space, or write elsewhere)\n"
    )


def test_nothing_is_lost_where_the_interpreter_is_not_taken_apart(run: Path, tmp_path: Path) -> None:
    """Threads, what was registered for the end, and a buffer that nobody has flushed, in a process with torch."""
    script = (
        "import atexit, sys, threading, time, torch\n"
        "from hfkit.cli.main import run\n"
        f"note = lambda word: open({str(tmp_path / 'notes')!r}, 'a').write(word)\n"
        "atexit.register(note, 'end ')\n"
        "threading.Thread(target=lambda: (time.sleep(1), note('thread '))).start()\n"
        "sys.stdout.write('before ')\n"
        f"sys.argv[1:] = ['predict', {str(run)!r}, '--text', 'hello']\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("before ")
    assert (tmp_path / "notes").read_text() == "thread end "


def test_without_arguments_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    bare, asked = Said("", capsys), Said("--help", capsys)
    assert (bare.code, bare.out.rstrip(), bare.err) == (2, asked.out.rstrip(), "")


def test_shells_complete_commands_and_options() -> None:
    done = process("hfkit --show-completion")
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete -o default -F _hfkit_completion hfkit" in done.stdout
    words = {"COMP_WORDS": "hfkit fi", "COMP_CWORD": "1", "_HFKIT_COMPLETE": "complete_bash"}
    assert process("hfkit", **words).stdout.split() == ["finetune"]
    words |= {"COMP_WORDS": "hfkit finetune --max", "COMP_CWORD": "2"}
    assert process("hfkit", **words).stdout.split() == [
        "--max-target-length",
        "--max-length",
        "--max-train-samples",
        "--max-steps",
        "--max-time",
    ]


def test_verbose_says_more_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    line = "generate ./gpt2 --prompt dog --max-new-tokens 2"
    quiet, loud = Said(line, capsys), Said(f"{line} -v", capsys)
    assert quiet.out == loud.out
    cut = "warning: the text was cut after 2 tokens (fix: --max-new-tokens 4)"
    assert quiet.err.splitlines() == [cut]
    assert loud.err.splitlines()[0].startswith("generation: ")
    assert loud.err.splitlines()[-1] == cut


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]) -> None:
    monkeypatch.setenv("RANK", "1")
    said = Said("recipes list", capsys)
    assert (said.code, said.out, said.err) == (0, "", "")
