"""How many rows a step has, how they are divided, and that the recipe of a run means the same on more processes."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

import hfkit
from hfkit.cli.main import main
from hfkit.errors import UsageError, is_out_of_memory
from hfkit.recipe.resolve import dump_yaml
from hfkit.training.batch import BatchSize, batch_size
from tiny_models import TEXT, make_bert, make_gpt2

PRETRAIN = {"task": "clm", "model.type": "gpt2", "data.train": ["text.txt"]}


def recipe_of(command="pretrain", **train):
    given = {f"train.{name}": value for name, value in train.items()}
    return hfkit.load_recipe(command, **(PRETRAIN if command == "pretrain" else {"model.name": "bert"}), **given)


def settings_of(recipe):
    train = recipe.train
    return train.global_batch_size, train.per_device_train_batch_size, train.gradient_accumulation_steps


@pytest.mark.parametrize(
    ("given", "settings", "devices", "division"),
    [
        ({}, (16, None, None), 1, (16, 1, 1)),
        ({}, (16, None, None), 8, (2, 1, 8)),
        ({"global_batch_size": 512}, (512, None, None), 1, (16, 32, 1)),
        ({"global_batch_size": 512}, (512, None, None), 64, (8, 1, 64)),
        ({"global_batch_size": 24}, (24, None, None), 1, (12, 2, 1)),
        ({"global_batch_size": 16, "per_device_train_batch_size": 4}, (16, 4, None), 2, (4, 2, 2)),
        ({"global_batch_size": 64, "gradient_accumulation_steps": 2}, (64, None, 2), 1, (32, 2, 1)),
        ({"global_batch_size": 96, "per_device_train_batch_size": "auto"}, (96, "auto", None), 2, (48, 1, 2)),
        ({"per_device_train_batch_size": "auto"}, (16, "auto", None), 1, (16, 1, 1)),
        ({"per_device_train_batch_size": 4}, (None, 4, None), 2, (4, 1, 2)),
        ({"gradient_accumulation_steps": 4}, (None, 16, 4), 2, (16, 4, 2)),
        ({"per_device_train_batch_size": "8", "gradient_accumulation_steps": 4}, (None, 8, 4), 1, (8, 4, 1)),
    ],
)
def test_passes_and_rows_follow_from_the_step(given, settings, devices, division):
    recipe = recipe_of(**given)
    assert settings_of(recipe) == settings
    assert batch_size(recipe, devices) == BatchSize(*division)
    again = hfkit.load_recipe("pretrain", yaml.safe_load(dump_yaml(recipe, "pretrain")))
    assert settings_of(again) == settings


def test_the_usual_rows_are_those_of_the_task():
    assert settings_of(recipe_of("finetune")) == (32, None, None)
    assert settings_of(hfkit.load_recipe("pretrain", **{"model.name": "gpt2"})) == (8, None, None)
    assert batch_size(recipe_of("finetune", global_batch_size=256), 1) == BatchSize(32, 8, 1)


@pytest.mark.parametrize(
    ("given", "devices", "problem"),
    [
        (
            {"global_batch_size": 16, "per_device_train_batch_size": 3},
            1,
            "train.global_batch_size 16 on 1 process is not possible with --batch-size 3 "
            "(fix: --batch-size 2 --gradient-accumulation-steps 8; possible: 16 x 1, 8 x 2, 4 x 4, 2 x 8, 1 x 16)",
        ),
        (
            {"global_batch_size": 16, "per_device_train_batch_size": 8},
            4,
            "train.global_batch_size 16 on 4 processes is not possible with --batch-size 8 "
            "(fix: --batch-size 4 --gradient-accumulation-steps 1; possible: 4 x 1, 2 x 2, 1 x 4)",
        ),
        (
            {"global_batch_size": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
            1,
            "train.global_batch_size 8 on 1 process is not possible with --batch-size 4 "
            "--gradient-accumulation-steps 4 "
            "(fix: --batch-size 4 --gradient-accumulation-steps 2; possible: 8 x 1, 4 x 2, 2 x 4, 1 x 8)",
        ),
        (
            {"global_batch_size": 16},
            3,
            "train.global_batch_size 16 can't be divided equally among 3 processes "
            "(fix: --global-batch-size 15 or 18, or a number of processes that divides it: 1, 2, 4)",
        ),
        (
            {"global_batch_size": 2},
            4,
            "train.global_batch_size 2 can't be divided equally among 4 processes "
            "(fix: --global-batch-size 4, or a number of processes that divides it: 1, 2)",
        ),
    ],
)
def test_what_can_not_be_lists_what_can(given, devices, problem):
    with pytest.raises(UsageError) as caught:
        batch_size(recipe_of(**given), devices)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("0", "--batch-size: must be at least 1, or auto, not 0 (fix: e.g. 8)"),
        ("-2", "--batch-size: must be at least 1, or auto, not -2 (fix: e.g. 8)"),
        ("many", "--batch-size: must be a whole number, not 'many' (fix: e.g. 8)"),
    ],
)
def test_a_size_is_a_number_or_auto(value, problem, capsys):
    assert main(["pretrain", "--data", "nothing.txt", "--batch-size", value]) == 2
    assert capsys.readouterr().err == f"error: {problem}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    make_gpt2(folder / "gpt2")
    make_bert(folder / "bert")
    (folder / "text.txt").write_text("\n\n".join(TEXT * 5))
    return folder


def command(folder, run, *options):
    words = ["pretrain", "--model", str(folder / "gpt2"), "--data", str(folder / "text.txt"), "--block-size", "16"]
    words += ["--max-steps", "4", "--dropout", "0", "--lr", "1e-3", "--validation-split", "0", "--output-dir", str(run)]
    return [*words, *options]


def test_it_is_told_before_data_is_read(folder, tmp_path, capsys):
    options = ["--global-batch-size", "6", "--batch-size", "4", "--data", "nothing.txt"]
    assert main(command(folder, tmp_path / "run", *options)) == 2
    assert "6 x 1, 3 x 2, 2 x 3, 1 x 6" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.portable
def test_a_step_is_the_same_however_it_is_divided(folder, tmp_path, capsys):
    weights = []
    for rows, steps in ((8, "1 accumulation step"), (2, "4 accumulation steps")):
        run = tmp_path / str(rows)
        assert main(command(folder, run, "--global-batch-size", "8", "--batch-size", str(rows))) == 0
        said = capsys.readouterr().err
        line = rf"each step: 8 examples \({rows} in a micro-batch x {steps} x 1 process\), about (\d+) tokens\n"
        tokens = int(re.search(line, said)[1])
        seen = json.loads((run / "run.json").read_text())["tokens_seen"]
        assert tokens == pytest.approx(seen / 4, rel=0.1)
        saved = yaml.safe_load((run / "recipe.yaml").read_text())["train"]
        assert (saved["global_batch_size"], saved["per_device_train_batch_size"]) == (8, rows)
        assert "gradient_accumulation_steps" not in saved  # it follows, on any number of processes
        weights.append(load_file(run / "model.safetensors"))
    for name, tensor in weights[0].items():
        # 7e-8 apart; 2e-4 where a step is the mean of the means of its passes
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=2e-6)


def test_another_global_batch_is_another_run(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command(folder, run, "--global-batch-size", "4")) == 0
    capsys.readouterr()
    options = ["--global-batch-size", "8", "--resume", "auto"]
    assert main(command(folder, run, *options)) == 2
    assert "train.global_batch_size: 4 -> 8" in capsys.readouterr().err
    assert main(command(folder, run, *options, "--max-steps", "8", "--extend")) == 2
    assert "train.global_batch_size: 4 -> 8 (fix: undo the change, or --allow-changed)" in capsys.readouterr().err


LIMITED = """
import resource, sys
import psutil
import torch
from hfkit.cli.main import main

torch.ones(512, 512) @ torch.ones(512, 512)  # the threads and their stacks are there now
limit = psutil.Process().memory_info().data + (800 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


def test_auto_takes_what_fits_and_keeps_the_step(folder, tmp_path, capsys):
    """A row of 16 tokens needs about 200 KB, 8,192 rows 1.6 GB. A new process has no freed memory to reuse."""
    run = tmp_path / "run"
    options = ["--global-batch-size", "8192", "--batch-size", "auto", "--max-steps", "1"]
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, *command(folder, run, *options)], capture_output=True, text=True
    )
    assert limited.returncode == 0, limited.stderr
    rows = int(
        re.search(r"batch: ([\d,]+) examples fit in a micro-batch, 8,192 don't", limited.stderr)[1].replace(",", "")
    )
    assert 64 <= rows <= 4096
    assert (
        f"each step: 8,192 examples ({rows:,} in a micro-batch x {8192 // rows} accumulation steps x 1 process)"
        in limited.stderr
    )
    saved = yaml.safe_load((run / "recipe.yaml").read_text())["train"]
    assert (saved["global_batch_size"], saved["per_device_train_batch_size"]) == (8192, rows)
    assert main(command(folder, run, *options, "--resume", "auto")) == 0
    assert "nothing to do" in capsys.readouterr().err  # it is not searched for again, where more would fit now
    assert main(command(folder, run, *options, "--resume", "auto", "--extend", "--max-steps", "2")) == 0
    assert f"each step: 8,192 examples ({rows:,} in a micro-batch" in capsys.readouterr().err


def test_auto_is_the_whole_step_where_there_is_room(folder, tmp_path, capsys):
    table = folder / "table.csv"
    table.write_text(
        "text,label\n" + "\n".join(f"{text},{number % 2}" for number, text in enumerate(["a fox", "the dog"] * 3))
    )
    words = ["finetune", "--model", str(folder / "bert"), "--data", str(table), "--validation-split", "0"]
    assert main([*words, "--batch-size", "auto", "--max-steps", "1", "--output-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "batch: 32 examples fit in a micro-batch\n" in said
    assert "each step: 32 examples (32 in a micro-batch x 1 accumulation step x 1 process), about " in said


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_what_gpus_call_out_of_memory(message):
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
