"""What a model could do to its user, code of its own and pickled weights, is done where the user says so, only."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfkit.cli.main import main
from tiny_models import make_gpt2

CODE = """
from transformers import GPT2Config, GPT2LMHeadModel

open({canary!r}, "w").close()


class CanaryConfig(GPT2Config):
    model_type = "homemade"


class CanaryForCausalLM(GPT2LMHeadModel):
    config_class = CanaryConfig
"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return make_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def canary(gpt2, tmp_path):
    """A model of a type that its own code defines, which leaves a file behind where it runs, and that file."""
    model, ran = shutil.copytree(gpt2, tmp_path / "homemade"), tmp_path / "ran"
    (model / "canary.py").write_text(CODE.format(canary=str(ran)))
    own = {
        "model_type": "homemade",
        "architectures": ["CanaryForCausalLM"],
        "auto_map": {"AutoConfig": "canary.CanaryConfig", "AutoModelForCausalLM": "canary.CanaryForCausalLM"},
    }
    config = json.loads((model / "config.json").read_text()) | own
    (model / "config.json").write_text(json.dumps(config))
    return model, ran


@pytest.fixture
def pickled(gpt2, tmp_path):
    model = shutil.copytree(gpt2, tmp_path / "pickled")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return model


def generate(model, *more):
    return main(["generate", str(model), "--prompt", "hello", "--max-new-tokens", "4", *more])


def test_code_of_a_model_runs_for_the_command_that_trusts_it_alone(gpt2, canary, capsys):
    model, ran = canary
    assert generate(gpt2) == 0
    text = capsys.readouterr().out
    assert generate(model) == 5
    refusal = (
        f"error: {model} brings code of its own, which would run with all your rights "
        "(fix: read its *.py files, and if you trust them: --trust-remote-code)\n"
    )
    assert capsys.readouterr().err == refusal
    assert not ran.exists()
    assert generate(model, "--trust-remote-code") == 0
    assert capsys.readouterr().out == text
    assert ran.exists()
    assert generate(model) == 5
    assert capsys.readouterr().err == refusal


def test_a_model_with_code_is_trained_evaluated_and_exported_with_its_code(canary, tmp_path, capsys, monkeypatch):
    model, _ = canary
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    train = ["pretrain", "--model", str(model), "--data", "text.txt", "--block-size", "16", "--max-steps", "1"]
    assert main([*train, "--output-dir", "run"]) == 5
    assert not Path("run").exists()
    assert main([*train, "--output-dir", "run", "--trust-remote-code"]) == 0
    assert main(["evaluate", "./run", "--data", "text.txt", "--trust-remote-code"]) == 0
    assert main(["export", "./run", "--output-dir", "copy", "--trust-remote-code"]) == 0
    assert Path("copy/canary.py").read_text() == (model / "canary.py").read_text()
    capsys.readouterr()
    assert generate("./copy") == 5
    assert "./copy brings code of its own" in capsys.readouterr().err
    assert generate("./copy", "--trust-remote-code") == 0


def test_pickled_weights_are_read_for_the_command_that_allows_them_alone(gpt2, pickled, tmp_path, capsys):
    assert generate(gpt2) == 0
    text = capsys.readouterr().out
    assert generate(pickled) == 5
    assert "found: pytorch_model.bin) (fix: --allow-pickle, or convert it: python -c " in capsys.readouterr().err
    assert generate(pickled, "--allow-pickle") == 0
    assert capsys.readouterr().out == text
    assert generate(pickled) == 5
    assert main(["export", str(pickled), "--output-dir", str(tmp_path / "safe"), "--allow-pickle"]) == 0
    capsys.readouterr()
    assert generate(tmp_path / "safe") == 0
    assert capsys.readouterr().out == text


class Shell:
    """What runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_allowed_pickle_holds_weights_and_nothing_that_runs(pickled, tmp_path, capsys):
    torch.save({"weight": Shell(f"touch {tmp_path / 'ran'}")}, pickled / "pytorch_model.bin")
    assert generate(pickled, "--allow-pickle") == 5
    assert "pickled: can't be read: " in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("flag", ["--trust-remote-code", "--allow-pickle"])
def test_no_recipe_can_ask_for_it(flag, canary, tmp_path, capsys):
    model, ran = canary
    key = "model." + flag.removeprefix("--").replace("-", "_")
    fix = f"can't be allowed by a recipe (fix: type {flag} on the command line)\n"
    assert generate(model, "--set", f"{key}=true") == 2
    assert capsys.readouterr().err == f"error: --set {key}: {fix}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model:\n  name: {model}\n  {key.partition('.')[2]}: true\ndata:\n  train: [text.txt]\n")
    assert main(["pretrain", str(recipe)]) == 2
    assert capsys.readouterr().err == f"error: {recipe}: line 3: {key}: {fix}"
    assert not ran.exists()
