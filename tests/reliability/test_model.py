"""A model directory that is damaged is refused with the file's name, never loaded in part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Material, hfkit


def weights(model: Path, change: Callable[[dict[str, object]], object]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def header(path: Path) -> None:
    path.write_bytes(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "no such directory"),
    "half the weights": (lambda model: cut(model / "model.safetensors", 0.5), "can't be read"),
    "empty weights": (lambda model: cut(model / "model.safetensors", 0), "can't be read"),
    "bad header": (lambda model: header(model / "model.safetensors"), "can't be read"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "no weights"),
    "half a config": (lambda model: cut(model / "config.json", 0.5), "config"),
    "config of another shape": (
        lambda model: (model / "config.json").write_text(
            json.dumps({**json.loads((model / "config.json").read_text(encoding="utf-8")), "n_embd": 32}),
            encoding="utf-8",
        ),
        "another shape",
    ),
    "a tensor missing": (
        lambda model: weights(model, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight")),
        "transformer.h.1.mlp.c_fc.weight",
    ),
    "half a tokenizer": (lambda model: cut(model / "tokenizer.json", 0.5), "can't be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model(damage: str, material: Material, tmp_path: Path) -> None:
    model = Path(shutil.copytree(material.gpt2, tmp_path / "model"))
    harm, reason = DAMAGES[damage]
    harm(model)
    command = material.command("clm", tmp_path / "run")
    command[command.index(str(material.gpt2))] = str(model)
    for arguments in (command, ["generate", "--model", str(model), "--prompt", "hello"]):
        ended = hfkit(arguments, tmp_path / "said")
        assert ended.code == 5, ended.err
        assert reason in ended.err
        assert str(model) in ended.err
        assert "Traceback" not in ended.err
    assert not (tmp_path / "run").exists()
