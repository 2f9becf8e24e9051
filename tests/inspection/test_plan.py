"""What a run will take is known before it begins, and to the last row where it can be counted."""

import json
from math import ceil

import numpy as np
import pytest

import hfkit
from hfkit.cli.main import main
from hfkit.inspection.plan import CURVE, as_text, plan, plot
from hfkit.system.console import scaled, size
from hfkit.training.stream import TrainingStream
from tiny_models import TEXT, make_bert, make_gpt2

LAYERS, WIDTH, BLOCK = 2, 16, 16  # of the tiny GPT-2 and its data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    make_gpt2(folder / "gpt2")
    make_bert(folder / "bert")
    (folder / "text.txt").write_text("\n\n".join(TEXT * 5))
    return folder


def command(folder, *options, model="gpt2", task="clm"):
    words = ["pretrain", "--objective", task, "--model", str(folder / model), "--data", str(folder / "text.txt")]
    return [
        *words,
        "--validation-split",
        "0",
        "--block-size",
        str(BLOCK),
        "--output-dir",
        str(folder / "run"),
        *options,
    ]


def planned(capsys, arguments):
    assert main([*arguments, "--plan", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def facts(folder, tmp_path_factory):
    settings = {"model.name": str(folder / "gpt2"), "data.train": [str(folder / "text.txt")], "data.block_size": BLOCK}
    settings |= {
        "train.dropout": 0.0,
        "data.validation_split": 0.0,
        "train.num_train_epochs": 10.0,
        "train.warmup_steps": 0.1,
    }
    settings |= {"train.output_dir": str(tmp_path_factory.mktemp("out") / "run")}
    recipe = hfkit.load_recipe("pretrain", **settings)
    return plan(recipe, [1, 2, 8])


def test_what_can_be_counted_is_exact(facts, folder):
    """Every weight matrix is multiplied three times, forward and for both gradients; so are queries and keys, scores
    and values, but once more in the backward pass, which makes the scores again."""
    vocabulary = json.loads((folder / "gpt2" / "config.json").read_text())["vocab_size"]
    matrices = LAYERS * 12 * WIDTH * WIDTH
    assert facts["compute"]["flops_per_token"] == 6 * (matrices + vocabulary * WIDTH) + 14 * LAYERS * BLOCK * WIDTH
    assert facts["compute"]["counted"]
    biases_and_norms = LAYERS * (9 * WIDTH + 4 * WIDTH) + 2 * WIDTH
    parameters = matrices + (vocabulary + 64) * WIDTH + biases_and_norms
    model = {"type": "gpt2", "parameters": parameters, "trained_parameters": parameters, "dtype": "float32"}
    assert facts["model"] == model
    rows = facts["data"]["rows"]
    assert facts["data"]["tokens_in_row"]["longest"] == facts["data"]["tokens_in_row"]["median"] == BLOCK
    tokens = facts["data"]["tokens_in_row"]["mean"] * rows
    assert ceil(tokens / BLOCK) == rows
    (one, two, eight) = facts["runs"]
    steps = ceil(10 * rows / 8)  # 8 rows are a step of a continued model
    assert [run["steps"] for run in facts["runs"]] == [steps] * 3
    assert [run["warmup_steps"] for run in facts["runs"]] == [ceil(0.1 * steps)] * 3
    assert [(run["processes"], run["rows_in_pass"]) for run in facts["runs"]] == [(1, 8), (2, 4), (8, 1)]
    assert one["tokens"] == pytest.approx(tokens * steps * 8 / rows, abs=1)
    assert one["flops"] == pytest.approx(facts["compute"]["flops_per_token"] * tokens * steps * 8 / rows)
    weights = 4 * parameters
    others = {"weights": weights, "optimizer": 2 * weights}
    assert one["memory"].items() >= {**others, "gradients": weights}.items()
    assert two["memory"].items() >= {**others, "gradients": 2 * weights}.items()  # DDP's buckets
    example = (one["memory"]["activations"] - eight["memory"]["activations"]) / 7
    assert two["memory"]["activations"] == pytest.approx(one["memory"]["activations"] - 4 * example, abs=4)
    assert 0 <= one["memory"]["activations"] - 8 * example < 1000  # positions and counts, whatever the examples
    assert one["memory"]["sum"] == sum(one["memory"][part] for part in (*others, "gradients", "activations"))
    assert facts["disk"]["bytes"] == 3 * facts["disk"]["checkpoint_bytes"] + weights
    assert one["seconds"] == pytest.approx(one["step_seconds"] * steps)
    assert one["step_seconds"] > two["step_seconds"] > eight["step_seconds"] > 0
    assert 0 < one["mfu"] < 1


def test_converted_weights_are_planned_once(folder, capsys):
    """Mixed precision keeps a copy of each matrix in bfloat16, however many examples there are."""
    options = ("--precision", "bfloat16", "--global-batch-size", "8", "--dropout", "0", "--num-processes", "1,8")
    facts = planned(capsys, command(folder, *options))
    one, eight = (run["memory"]["activations"] for run in facts["runs"])
    kept = (8 * eight - one) / 7
    vocabulary = json.loads((folder / "gpt2" / "config.json").read_text())["vocab_size"]
    matrices = LAYERS * 12 * WIDTH * WIDTH + vocabulary * WIDTH
    assert 2 * matrices <= kept <= 2 * facts["model"]["parameters"] + 1000


def test_the_table_says_it_to_a_person(facts):
    text = as_text(facts)
    lines = {line.strip().split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["processes"] == ["processes", "1", "2", "8"]
    assert lines["micro-batch"][-3:] == ["8", "4", "1"]
    assert lines["warm-up"][-1] == str(facts["runs"][0]["warmup_steps"])
    assert f"gpt2, {facts['model']['parameters']:,} parameters" in text
    assert max(map(len, text.replace(facts["disk"]["directory"], "run").splitlines())) <= 120


def test_sharded_weights_are_divided(folder):
    settings = {"model.name": str(folder / "gpt2"), "data.train": [str(folder / "text.txt")], "data.block_size": BLOCK}
    facts = plan(hfkit.load_recipe("pretrain", **settings, **{"data.validation_split": 0.0}), [4], "fsdp2")
    parameters = facts["model"]["parameters"]
    share = {"weights": parameters, "gradients": parameters, "optimizer": 2 * parameters}  # 4 bytes, 4 processes
    assert facts["runs"][0]["memory"].items() >= share.items()
    assert "FSDP2" in as_text(facts)


def test_the_plan_is_what_then_happens(folder, tmp_path, capsys):
    """The same steps and learning rates, and a plan writes nothing."""
    settings = ["--max-tokens", "900", "--batch-size", "4", "--warmup-steps", "3", "--lr-scheduler-type", "cosine"]
    arguments = command(folder, *settings, "--logging-steps", "1", "--output-dir", str(tmp_path / "run"))
    facts = planned(capsys, arguments)
    assert not (tmp_path / "run").exists()
    assert main(arguments) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert len(rates) == facts["runs"][0]["steps"] == 15
    assert facts["learning_rate"]["curve"] == rates
    done = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["runs"][0]["tokens"] == pytest.approx(done["tokens_seen"], rel=0.02)


def test_processes_side_by_side(folder, capsys):
    facts = planned(capsys, command(folder, "--batch-size", "4", "--num-processes", "1,2"))
    assert [(run["rows_in_step"], run["rows_in_pass"]) for run in facts["runs"]] == [(4, 4), (8, 4)]
    assert facts["runs"][0]["steps"] == ceil(facts["data"]["rows"] / 4)
    assert facts["runs"][1]["steps"] == ceil(facts["data"]["rows"] / 8)
    assert main(command(folder, "--global-batch-size", "16", "--num-processes", "1,3", "--plan")) == 2
    assert "train.global_batch_size 16 can't be divided equally among 3 processes" in capsys.readouterr().err
    assert not (folder / "run").exists()


@pytest.mark.parametrize("task", ["mlm"])
def test_other_tasks_have_a_plan(task, folder, capsys):
    facts = planned(
        capsys, command(folder, "--batch-size", "auto", "--documents", "blank-line", model="bert", task=task)
    )
    assert facts["model"]["type"] == "bert"
    assert facts["runs"][0]["rows_in_pass"] == 8
    assert facts["compute"]["flops_per_token"] > 0


def test_a_new_model_beyond_the_memory_is_planned_on_paper(folder, capsys):
    """Its shapes alone are made: 100 billion weights."""
    width = 65536
    words = [
        "pretrain",
        "--model-type",
        "gpt2",
        "--tokenizer",
        str(folder / "gpt2"),
        "--data",
        str(folder / "text.txt"),
    ]
    words += ["--block-size", "16", "--validation-split", "0", "--output-dir", str(folder / "run")]
    for key, value in {"n_layer": LAYERS, "n_embd": width, "n_head": 64}.items():
        words += ["--set", f"model.config.{key}={value}"]
    facts = planned(capsys, words)
    vocabulary = 64 * ceil(json.loads((folder / "gpt2" / "config.json").read_text())["vocab_size"] / 64)
    matrices = LAYERS * 12 * width * width + vocabulary * width
    assert facts["model"]["parameters"] == matrices + 16 * width + LAYERS * 13 * width + 2 * width
    assert not facts["compute"]["counted"]
    assert facts["compute"]["flops_per_token"] == 6 * facts["model"]["parameters"]  # the embedding is the head as well
    assert facts["runs"][0]["memory"]["activations"] is None
    assert "time at least" in as_text(facts)


class Lengths:
    """Rows of so many tokens."""

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths)

    def __len__(self):
        return len(self.lengths)

    def example(self, index, random):
        return {"input_ids": np.zeros(self.lengths[index], dtype=int)}


def test_what_is_timed_is_as_long_as_what_is_trained_on():
    """Rows of one batch are alike, and a few batches stand for all: in a batch of rows drawn at random, padding would
    make the time of a step four times what it is."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(2.2, 0.8, 4000).round(), 3, 200).astype(int)
    stream = TrainingStream(Lengths(lengths), steps=50, global_batch_size=32, seed=0)
    widths = [max(len(stream[32 * batch + row]["input_ids"]) for row in range(32)) for batch in range(50)]
    batches, longer = stream.spread(32, 5)
    timed = [max(len(example["input_ids"]) for example in batch) for batch in batches]
    assert [len(batch) for batch in batches] == [32] * 5
    assert timed == sorted(timed)
    assert np.mean(timed) * longer == pytest.approx(np.mean(widths))
    assert 0.8 < longer < 1.3
    at_random = np.mean([lengths[draw.permutation(4000)[:32]].max() for _ in range(50)])
    assert at_random > 2.5 * np.mean(timed) * longer
    assert [len(example["input_ids"]) for example in stream.longest(3)] == sorted(lengths)[-3:][::-1]


def test_rows_of_one_length_need_one_batch():
    stream = TrainingStream(Lengths([8] * 40), steps=50, global_batch_size=8, seed=0)
    batches, longer = stream.spread(4, 5)
    assert ([len(batch) for batch in batches], longer) == ([4], 1.0)
    assert len(stream.longest(100)) == 100  # more than there are


def test_small_plots_and_sizes():
    assert plot([0, 1, 2, 4, 4]) == ["   ██", "   ██", "  ███", " ████"]
    assert len(plot([1.0])) == CURVE[1]
    assert [scaled(number) for number in (7, 1234, 5e9)] == ["7 ", "1.23 k", "5 G"]
    assert [size(number) for number in (7, 2048, 3 << 30)] == ["7 bytes", "2 KiB", "3 GiB"]
