"""A number that is no number stops the run before it reaches a weight, and is never saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Ended, Material, committed, hfkit, status

Resumed = Callable[..., Ended]


def assert_finite(run: Path) -> None:
    import torch
    from safetensors.torch import load_file

    for path in run.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path
    for path in run.rglob("optimizer.pt"):
        for state in torch.load(path, weights_only=True)["state"].values():
            assert all(torch.isfinite(torch.as_tensor(tensor)).all() for tensor in state.values()), path


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("save_steps", ["1", "5"])
@pytest.mark.portable
def test_learning_rate_far_too_high(save_steps: str, ranks: int, material: Material, tmp_path: Path) -> None:
    """Only every tenth step is logged: the guard looks at each."""
    run = tmp_path / "run"
    command = material.command(
        "clm", run, "--learning-rate", "1e20", "--logging-steps", "10", "--save-steps", save_steps
    )
    ended = hfkit(command, tmp_path / "said", ranks=ranks)
    assert ended.codes == [4] * ranks, ended.err
    error = ended.err.splitlines()[-1]
    assert error.startswith("error: loss is NaN at step 3; ")
    assert ("step 2 is saved" if save_steps == "1" else "no step is saved yet") in error
    assert "--learning-rate" in error
    assert "Traceback" not in ended.err
    assert committed(run) == ([1, 2] if save_steps == "1" else [])
    assert not (run / "model.safetensors").exists()
    assert status(run)["state"] == "failed"
    assert "NaN" in status(run)["reason"]
    assert_finite(run)


@pytest.mark.portable
def test_weight_that_breaks_in_the_update(material: Material, tmp_path: Path) -> None:
    """Loss and gradient are fine, the update itself overflows: it is found before the save."""
    run = tmp_path / "run"
    more = ("--learning-rate", "3e38", "--weight-decay", "10", "--warmup-steps", "0", "--save-steps", "1")
    ended = hfkit(material.command("clm", run, *more), tmp_path / "said")
    assert ended.code == 4, ended.err
    assert "a weight or optimizer state is not finite at step 1; no step is saved yet" in ended.err
    assert committed(run) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_element_shows_in_clipped_gradients(bad: float) -> None:
    import torch

    from hfkit.training.callbacks import clipped_in_order

    weights = [torch.nn.Parameter(torch.ones(size)) for size in (3, 5, 1000)]
    for weight in weights:
        weight.grad = torch.full_like(weight, 2.0)
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    assert clipped_in_order([weight.grad for weight in weights])
    for weight in weights:
        weight.grad = torch.full_like(weight, 2.0)
    weights[2].grad[7] = bad
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    assert not clipped_in_order([weight.grad for weight in weights])


def test_guard_costs_no_exactness() -> None:
    import torch

    from hfkit.training.callbacks import all_finite

    huge = torch.full((1000,), 3e38)  # whose sum of squares is not finite
    assert all_finite([huge, torch.arange(3), torch.tensor(1.0, dtype=torch.bfloat16), 5])
    for bad in (math.nan, math.inf, -math.inf):
        assert not all_finite([huge, torch.tensor([0.0, bad])])
    assert all_finite([])
