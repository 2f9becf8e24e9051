"""How long a run is, by which optimizer it learns, and which of its models is kept."""

import json

import pytest
import torch
from safetensors.torch import load_file

import hfkit
from hfkit.cli.main import main
from hfkit.tasks import TASKS
from hfkit.tasks.base import LossOptions
from hfkit.training.pace import seconds_of
from tiny_models import TEXT, make_bert, make_gpt2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budgets")
    make_gpt2(folder / "gpt2")
    make_bert(folder / "bert")
    (folder / "text.txt").write_text("\n\n".join(TEXT * 5))
    (folder / "other.txt").write_text("an other world of jumps, quick and lazy\n\nhello hello hello")
    return folder


def trained(folder, run, *options, model="gpt2", task="clm"):
    """The finished run's directory, manifest and log."""
    command = ["pretrain", "--objective", task, "--model", str(folder / model), "--data", str(folder / "text.txt")]
    command += ["--documents", "blank-line", "--validation", str(folder / "other.txt"), "--block-size", "16"]
    command += ["--batch-size", "4", "--logging-steps", "1", "--no-interval", "--output-dir", str(run), *options]
    assert main(command) == 0
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.loads((run / "run.json").read_text()), log


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adamw", ["--lr", "1e-2"]),
        ("adafactor", ["--lr", "1e-2"]),
        ("sgd", ["--lr", "1", "--momentum", "0.9"]),
        ("sgd", ["--lr", "1", "--momentum", "0"]),
    ],
)
def test_every_optimizer_learns(optimizer, options, folder, tmp_path):
    run = tmp_path / "run"
    _, log = trained(folder, run, "--max-steps", "40", "--optimizer", optimizer, *options, "--warmup-steps", "4")
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] > 5
    assert losses[-1] < 0.6 * losses[0]
    state = torch.load(run / "checkpoint-40" / "optimizer.pt", weights_only=True)["state"].get(0, {})
    expected = {"adamw": "exp_avg_sq", "adafactor": "exp_avg_sq", "sgd": "momentum_buffer"}[optimizer]
    without = optimizer == "sgd" and options[-1] == "0"
    assert (state.get(expected) is None) == (without or (optimizer == "adafactor" and "exp_avg_sq" not in state))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--optimizer", "adamv"], "unknown optimizer 'adamv' (fix: did you mean 'adamw'?)"),
        (["--momentum", "0.5"], "has no effect without train.optimizer=sgd (fix: --set train.optimizer=sgd)"),
        (["--max-time", "soon"], "must be a time such as 90s, 30m or 1h30m, not 'soon'"),
        (["--max-time", "1h", "--max-steps", "3"], "--max-time: has no effect with train.max_steps"),
        (["--max-tokens", "9", "--max-steps", "3"], "--max-tokens: has no effect with train.max_steps"),
        (["--best", "accuracy"], "no evaluation during training has 'accuracy': nll, perplexity"),
        (["--set", "train.extra.optim=sgd"], "is decided by hfkit (fix: set train.optimizer)"),
        (["--set", "train.extra.bf16=true"], "is decided by hfkit (fix: set train.precision: bfloat16)"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(options, problem, capsys):
    assert main(["pretrain", "--model", "nowhere", "--data", "nothing.txt", *options]) == 2
    assert problem in capsys.readouterr().err


def test_tokens_are_a_budget(folder, tmp_path):
    manifest, _ = trained(folder, tmp_path / "run", "--max-tokens", "500")
    assert manifest["steps"] == 8  # of 4 rows of 16 tokens: the first step that reaches 500
    assert 500 <= manifest["tokens_seen"] <= 512


def test_time_is_a_budget(folder, tmp_path, capsys):
    """Whatever the machine's pace, the run ends as a finished one, at the planned step or before."""
    options = ["--max-time", "2s", "--eval-steps", "10000"]
    manifest, _ = trained(folder, tmp_path / "run", *options)
    said = capsys.readouterr().err
    planned = int(said.split("2s is time for about ")[1].split()[0].replace(",", ""))
    assert 1 <= manifest["steps"] <= planned
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert manifest["identity"]["train.max_steps"] == planned
    trained(folder, tmp_path / "run", *options, "--resume", "auto")
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("0.5h", 1800)])
def test_times_as_people_write_them(given, seconds):
    assert hfkit.load_recipe("pretrain", **{"train.max_time": given}).train.max_time == given
    assert seconds_of(given) == seconds


def evaluations(log, metric="eval_nll"):
    return {entry["step"]: entry[metric] for entry in log if metric in entry}


@pytest.mark.portable
def test_the_best_model_is_kept_not_the_last(folder, tmp_path, capsys):
    """Text that is unlike the training text is understood worse and worse."""
    run = tmp_path / "run"
    options = ["--max-steps", "30", "--eval-steps", "3", "--lr", "6e-2", "--save-total-limit", "1", "--best", "nll"]
    manifest, log = trained(folder, run, *options)
    found = evaluations(log)
    assert list(found) == list(range(3, 31, 3))  # after the last step, too
    best = min(found, key=found.get)
    assert best < 30
    assert manifest["best"] == {"step": best, "nll": found[best]}
    assert f"the best model is that of step {best}, not the last: nll" in capsys.readouterr().err
    assert sorted(path.name for path in run.glob("checkpoint-*")) == sorted({f"checkpoint-{best}", "checkpoint-30"})
    kept, checkpoint = (load_file(path / "model.safetensors") for path in (run, run / f"checkpoint-{best}"))
    last = load_file(run / "checkpoint-30" / "model.safetensors")
    assert all(torch.equal(kept[name], checkpoint[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    assert main(["evaluate", str(run), "--json", "--no-interval"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert printed["nll"]["value"] == json.loads((run / "all_results.json").read_text())["eval_nll"]


@pytest.mark.portable
def test_training_ends_where_nothing_gets_better(folder, tmp_path, capsys):
    options = ["--max-steps", "60", "--eval-steps", "3", "--lr", "6e-2", "--early-stopping", "2"]
    manifest, log = trained(folder, tmp_path / "run", *options)
    found = evaluations(log)
    best = min(found, key=found.get)
    assert manifest["steps"] == best + 6 == max(found) < 60
    assert "no better for 2 evaluations: nll" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


@pytest.mark.portable
def test_precision_is_of_the_arithmetic_alone(folder, tmp_path):
    losses = {}
    for precision in ("auto", "float32", "bfloat16"):
        run = tmp_path / precision
        _, log = trained(folder, run, "--max-steps", "2", "--precision", precision)
        losses[precision] = [entry["loss"] for entry in log if "loss" in entry]
        assert {tensor.dtype for tensor in load_file(run / "model.safetensors").values()} == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)


def test_auto_precision_is_measured_once_and_kept(tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40, encoding="utf-8")
    kept = tmp_path / "cache" / "hfkit" / "bfloat16.json"

    def run(name, *options):
        shape = [
            "--set",
            "model.config.n_embd=256",
            "--set",
            "model.config.n_layer=1",
            "--set",
            "model.config.n_head=2",
        ]
        size = [*shape, "--block-size", "16", "--vocab-size", "300"]
        command = [
            "pretrain",
            "--model-type",
            "gpt2",
            "--data",
            str(text),
            *size,
            "-o",
            str(tmp_path / name),
            "--max-steps",
            "2",
            "--json",
        ]
        assert main([*command, *options]) == 0
        said = "precision: bfloat16 with float32 weights, since matrix products are 5.0 times as fast in it here"
        found = json.loads((tmp_path / name / "run.json").read_text())["identity"]["train.precision"]
        return found, said in capsys.readouterr().err

    run("first")
    (machine,) = json.loads(kept.read_text())
    kept.write_text(json.dumps({machine: 5.0}))
    assert run("fast") == ("bfloat16", True)
    kept.write_text(json.dumps({machine: 0.5}))
    assert run("slow") == ("float32", False)
    assert run("fast", "--resume", "auto", "--max-steps", "4", "--extend") == ("bfloat16", False)
    assert run("asked", "--precision", "bfloat16") == ("bfloat16", False)
    scores = json.loads((tmp_path / "fast" / "all_results.json").read_text())
    command = ["evaluate", str(tmp_path / "fast"), "--json"]
    assert main(command) == 0
    measured = json.loads(capsys.readouterr().out)["metrics"]["perplexity"]["value"]
    assert measured == pytest.approx(scores["eval_perplexity"], rel=1e-6)  # float32, as the run's own


@pytest.mark.portable
def test_activations_computed_again_change_nothing(folder, tmp_path):
    weights = {}
    for flag in ("--gradient-checkpointing", "--no-gradient-checkpointing"):
        trained(folder, tmp_path / flag, "--max-steps", "3", flag, "--dropout", "0.1")
        weights[flag] = load_file(tmp_path / flag / "model.safetensors")
    first, second = weights.values()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=1e-6)


def test_stable_rate_falls_in_the_last_fifth(folder, tmp_path):
    options = ["--max-steps", "20", "--lr-scheduler-type", "warmup_stable_decay", "--warmup-steps", "5", "--lr", "1e-2"]
    _, log = trained(folder, tmp_path / "run", *options)
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates[5:17] == [1e-2] * 12
    assert rates[16] > rates[17] > rates[18] > rates[19] > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_is_that_of_torch_and_not_in_evaluation(smoothing, folder, tmp_path):
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    loss = TASKS["clm"].loss({"logits": logits}, labels, options=LossOptions(smoothing))
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1), label_smoothing=smoothing
    )
    torch.testing.assert_close(loss, expected)
    _, log = trained(folder, tmp_path / "run", "--max-steps", "2", "--eval-steps", "1",
                     "--label-smoothing", str(smoothing))  # fmt: skip
    (evaluation,) = (entry for entry in log if "eval_loss" in entry)
    text, ends = evaluation["eval_nll"], evaluation["eval_eos_nll"]
    assert min(text, ends) <= evaluation["eval_loss"] <= max(text, ends)


def test_samples_show_what_the_model_makes_of_the_validation_text(folder, tmp_path, capsys):
    trained(folder, tmp_path / "clm", "--max-steps", "2", "--eval-steps", "1")
    assert '    "an other wor" -> ' in capsys.readouterr().err
    trained(folder, tmp_path / "mlm", "--max-steps", "2", "--eval-steps", "1", model="bert", task="mlm")
    assert "(hidden: " in capsys.readouterr().err
    trained(folder, tmp_path / "none", "--max-steps", "2", "--eval-steps", "1", "--no-samples")
    assert " -> " not in capsys.readouterr().err
