"""Training learns, repeats itself bit for bit, and leaves a directory that everything else can open."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from hfkit.cli.main import main
from tiny_models import make_bert, make_gpt2

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, this is a tiny model",
    "the lazy dog jumps over the tiny fox",
    "this is a quick model, hello",
    "a brown world is over",
    "the model jumps over the world",
    "hello lazy fox, this is the quick dog",
    "a tiny brown dog",
]
LABELS = ["good", "bad", "bad", "good", "bad", "good", "good", "bad"]
FILES = {
    "all_results.json",
    "config.json",
    "eval_results.json",
    "metrics.jsonl",
    "model.safetensors",
    "recipe.yaml",
    "run.json",
    "status.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tiny models and eight rows: `rows.tsv` with labels, `rows.txt` with a document a paragraph."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    make_gpt2(folder / "tiny-gpt2")
    make_bert(folder / "tiny-bert")
    rows = "".join(f"{text}\t{label}\n" for text, label in zip(TEXTS, LABELS, strict=True))
    (folder / "rows.tsv").write_text("text\tlabel\n" + rows)
    (folder / "rows.txt").write_text("\n\n".join(TEXTS) + "\n")
    return folder


def arguments(folder, task):
    """The command that overfits the eight rows; they are the validation data, too."""
    if task == "text-classification":
        command, model, file, size = "finetune", "tiny-bert", "rows.tsv", ["--batch-size", "8"]
    else:
        command, model, file = "pretrain", "tiny-gpt2" if task == "clm" else "tiny-bert", "rows.txt"
        size = ["--block-size", "24", "--batch-size", "4", "--documents", "blank-line"]
        size += ["--no-document-masking"] if task == "clm" else []  # or nothing tells which row a first "the" begins
    data = ["--data", str(folder / file), "--validation", str(folder / file)]
    steps = {"clm": "150", "mlm": "250", "text-classification": "40"}[task]
    schedule = ["--lr", "1e-2", "--warmup-steps", "5", "--weight-decay", "0", "--dropout", "0", "--max-steps", steps]
    return [command, "--task", task, "--model", str(folder / model), *data, *size, *schedule]


@pytest.fixture(scope="module", params=["clm", "mlm", "text-classification"])
def run(request, folder):
    """A finished run of each task, with `task` and what its command printed with --json."""
    return finished(
        request.param, folder, folder / f"run-{request.param}", "--eval-steps", "20", "--logging-steps", "10"
    )


def finished(task, folder, directory, *options):
    import contextlib
    import io
    from types import SimpleNamespace

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*arguments(folder, task), "--output-dir", str(directory), "--json", *options]) == 0
    return SimpleNamespace(task=task, directory=directory, printed=json.loads(out.getvalue()))


def weights(directory):
    return load_file(directory / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.portable
def test_eight_rows_are_learned_by_heart(run):
    log = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] > {"clm": 4, "mlm": 4, "text-classification": 0.4}[run.task]
    assert losses[-1] < {"clm": 0.15, "mlm": 1.2, "text-classification": 0.02}[run.task]
    metrics = run.printed["metrics"]
    last = [entry for entry in log if "eval_loss" in entry][-1]
    if run.task == "clm":  # the blocks themselves; documents on their own begin with a token that nothing tells
        assert last["eval_token_accuracy"] == 1.0
        assert last["eval_nll"] < 0.15
    elif run.task == "mlm":
        assert metrics["nll"]["value"] < 1.2
    else:
        assert metrics["accuracy"]["value"] == last["eval_accuracy"] == 1.0
        assert metrics["accuracy"]["n"] == 8


@pytest.mark.portable
def test_every_parameter_changed(run, folder):
    before = weights(folder / ("tiny-gpt2" if run.task == "clm" else "tiny-bert"))
    after = weights(run.directory)
    shared = before.keys() & after.keys()
    assert len(shared) > 20
    assert [name for name in shared if torch.equal(before[name], after[name])] == []


def test_run_directory_is_a_model_directory(run):
    kinds = {
        "clm": AutoModelForCausalLM,
        "mlm": AutoModelForMaskedLM,
        "text-classification": AutoModelForSequenceClassification,
    }
    model, info = kinds[run.task].from_pretrained(run.directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(run.directory)
    assert model(**tokenizer("hello world", return_tensors="pt")).logits.shape[0] == 1
    if run.task == "text-classification":
        assert model.config.id2label == {0: "bad", 1: "good"}
    assert {path.name for path in run.directory.iterdir()} >= FILES
    assert json.loads((run.directory / "status.json").read_text())["state"] == "finished"


def test_config_keeps_the_cache_on(run):
    config = json.loads((run.directory / "config.json").read_text())
    assert config.get("use_cache", True) is True
    if run.task == "clm":
        assert config["use_cache"] is True


@pytest.mark.portable
def test_printed_metrics_are_those_that_evaluate_prints(run, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run.directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == run.printed["metrics"]
    assert main(["evaluate", str(run.directory), "--json", "--batch-size", "3"]) == 0
    again = json.loads(capsys.readouterr().out)["metrics"]
    for name, score in run.printed["metrics"].items():
        assert again[name]["value"] == pytest.approx(score["value"], rel=1e-6, abs=1e-6)  # of float32 logits


@pytest.mark.portable
def test_flat_results_have_the_names_of_the_trainer(run):
    results = json.loads((run.directory / "all_results.json").read_text())
    metrics = run.printed["metrics"]
    loss = metrics["log_loss" if run.task == "text-classification" else "nll"]
    assert results["eval_loss"] == loss["value"]
    for name, score in metrics.items():
        assert results[f"eval_{name}"] == score["value"]
    if run.task == "text-classification":
        assert results["eval_accuracy"] == 1.0
    else:
        assert results["perplexity"] == metrics["perplexity"]["value"] == pytest.approx(np.exp(results["eval_nll"]))


@pytest.fixture(scope="module", params=["mlm", "text-classification"])
def short_run(request, folder):
    """Four steps with masks or dropout, by which a changed order or random state would show."""
    return short(request.param, folder, folder / f"short-{request.param}")


def short(task, folder, directory, *options):
    return finished(task, folder, directory, "--max-steps", "4", "--dropout", "0.1", *options)


def test_identical_commands_give_identical_weights(short_run, folder, tmp_path):
    assert same(weights(short_run.directory), weights(short(short_run.task, folder, tmp_path / "again").directory))
    other = short(short_run.task, folder, tmp_path / "other", "--seed", "7")
    assert not same(weights(short_run.directory), weights(other.directory))


@pytest.mark.parametrize("option", ["--dataloader-num-workers=2", "--eval-steps=1", "--logging-steps=1"])
def test_what_is_learned_does_not_depend_on(option, short_run, folder, tmp_path):
    assert same(
        weights(short_run.directory), weights(short(short_run.task, folder, tmp_path / "run", option).directory)
    )


@pytest.mark.parametrize("task", ["clm", "text-classification"])
def test_recipe_of_a_run_runs_again(folder, tmp_path, task):
    first = finished(task, folder, tmp_path / "first", "--max-steps", "3", "--dropout", "0.1")
    recipe = yaml.safe_load((first.directory / "recipe.yaml").read_text())
    assert recipe["train"]["max_steps"] == 3
    command = "pretrain" if task == "clm" else "finetune"
    assert main([command, str(first.directory / "recipe.yaml"), "--output-dir", str(tmp_path / "second")]) == 0
    assert same(weights(first.directory), weights(tmp_path / "second"))


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "bert", "roberta"])
def test_new_models_learn_from_the_first_command(model_type, folder, tmp_path, capsys):
    objective = "clm" if model_type in ("gpt2", "llama") else "mlm"
    sizes = ["--set", "model.config.hidden_size=32", "--set", "model.config.num_hidden_layers=1"]
    data = ["--data", str(folder / "rows.txt"), "--validation", str(folder / "rows.txt"), "--vocab-size", "300"]
    new = ["pretrain", "--objective", objective, "--model-type", model_type, *sizes, *data, "--block-size", "16"]
    assert main([*new, "--max-steps", "60", "--lr", "1e-2", "--output-dir", str(tmp_path / "run"), "--json"]) == 0
    nll = json.loads(capsys.readouterr().out)["metrics"]["nll"]["value"]
    assert nll < (2.0 if objective == "clm" else 4.0)
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["nll"]["value"] == nll


def test_block_longer_than_the_positions_stops_before_anything_is_written(folder, tmp_path, capsys):
    command = [*arguments(folder, "clm"), "--block-size", "65", "--output-dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert (
        "data.block_size 65 is longer than the model's 64 positions (fix: --block-size 64)" in capsys.readouterr().err
    )
    assert not (tmp_path / "run" / "config.json").exists()
