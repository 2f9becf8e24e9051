"""Weights that FSDP2 spreads over ranks: really spread, refused where they would not be, and merged by export.

Accelerate leaves FSDP2 out on CPU. Where a test needs a whole sharded run, accelerate is told that these ranks are not
on CPU; everything else is what runs on GPUs: torch's fully_shard, accelerate's preparation, the Trainer's checkpoints.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from harness import Material, at_step, committed, hfkit, status
from safetensors.torch import load_file

from hfkit.cli.main import main
from hfkit.errors import UsageError
from hfkit.models.sharded import SHARDS, require_sharded

NO_DROPOUT = ("--dropout", "0")


def ask_for_fsdp2() -> None:
    """What `accelerate launch` tells its ranks."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    }


def asking(arguments: list[str]) -> int:
    """hfkit on ranks that ask for FSDP2."""
    ask_for_fsdp2()
    return main(arguments)


def asking_for_tensor_parallelism(arguments: list[str]) -> int:
    os.environ |= {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"}
    return main(arguments)


def sharded(arguments: list[str]) -> int:
    """hfkit on ranks that accelerate takes for GPUs, so that they get the FSDP2 which they ask for."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def begin_as_on_gpus(self: PartialState, *values: object, **options: object) -> None:
        first = not PartialState._shared_state
        begin(self, *values, **options)
        if first and self.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = begin_as_on_gpus
    return asking(arguments)


def shard_and_save(arguments: list[str]) -> int:
    """A GPT-2 sharded by torch itself; its shards and what it answers in the folder that is given."""
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from transformers import AutoModelForCausalLM

    from hfkit.models.sharded import complete

    dist.init_process_group("gloo")
    model, folder = AutoModelForCausalLM.from_pretrained(arguments[0]).eval(), Path(arguments[1])
    for layer in model.transformer.h:
        fully_shard(layer)
    fully_shard(model)
    require_sharded(model)
    assert all(isinstance(weight, DTensor) for weight in model.parameters())
    assert sum(weight.to_local().numel() for weight in model.parameters()) < 0.6 * model.num_parameters()
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    save({"model": get_model_state_dict(model)}, checkpoint_id=folder / SHARDS)
    logits = model(torch.arange(20)[None]).logits
    if dist.get_rank() == 0:
        complete(folder, model)
        torch.save(logits, folder / "logits.pt")
    dist.destroy_process_group()
    return 0


@pytest.fixture(scope="module")
def sharded_run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    ended = hfkit(material.command("clm", folder / "run", *NO_DROPOUT), folder / "said", ranks=2, program=sharded)
    assert ended.codes == [0, 0], ended.err
    return folder / "run"


@pytest.mark.portable
def test_weights_that_torch_has_sharded_are_exported_whole(material: Material, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint, out = tmp_path / "checkpoint-1", tmp_path / "out"
    ended = hfkit([str(material.gpt2), str(checkpoint)], tmp_path / "said", ranks=2, program=shard_and_save)
    assert ended.codes == [0, 0], ended.err
    assert {path.name for path in (checkpoint / SHARDS).iterdir()} == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(material.gpt2 / name, checkpoint)
    assert main(["export", str(checkpoint), "--output-dir", str(out)]) == 0
    with torch.inference_mode():
        before, after = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (material.gpt2, out))
        logits = after(torch.arange(20)[None]).logits
    weights = after.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in before.state_dict().items())
    # not to the bit: hfkit takes the faster of two forms of GPT-2's activation
    torch.testing.assert_close(logits, torch.load(checkpoint / "logits.pt", weights_only=True), rtol=0, atol=1e-6)


@pytest.mark.portable
def test_sharded_run_ends_where_a_run_with_whole_weights_does(
    sharded_run: Path, material: Material, tmp_path: Path
) -> None:
    """Up to rounding: the norm by which gradients are clipped is summed over shards, in another order."""
    whole = tmp_path / "whole"
    assert hfkit(material.command("clm", whole, *NO_DROPOUT), tmp_path / "said", ranks=2).codes == [0, 0]
    assert (sharded_run / "checkpoint-20" / SHARDS).is_dir()
    one, other = (load_file(folder / "model.safetensors") for folder in (sharded_run, whole))
    assert one.keys() == other.keys()
    for name in one:
        # 7e-7 apart; 2e-3 if each rank clips by the norm of its own shards, 1e-2 if the gradients of one rank are lost
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=2e-5)
    one, other = (json.loads((folder / "all_results.json").read_text()) for folder in (sharded_run, whole))
    assert one == pytest.approx(other, rel=1e-6)  # 7e-9 apart; 7e-5 or more in each of the two other cases


@pytest.mark.portable
def test_killed_sharded_run_goes_on_to_the_same_bits(sharded_run: Path, material: Material, tmp_path: Path) -> None:
    command = material.command("clm", tmp_path / "run", *NO_DROPOUT, "--set", "train.extra.ddp_timeout=15")
    ended = hfkit(command, tmp_path / "said", ranks=2, program=sharded, faults=[at_step(18)])
    assert ended.codes[0] == -9
    assert committed(tmp_path / "run") == [10, 15]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert main(["export", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out")]) == 0  # of checkpoint-15
    assert main(["export", str(sharded_run / "checkpoint-15"), "--output-dir", str(tmp_path / "same")]) == 0
    out, same = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "same"))
    assert out == same != (sharded_run / "model.safetensors").read_bytes()
    ended = hfkit([*command, "--resume", "auto"], tmp_path / "again", ranks=2, program=sharded)
    assert ended.codes == [0, 0], ended.err
    final = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert final == (sharded_run / "model.safetensors").read_bytes()


@pytest.mark.portable
def test_export_of_the_last_checkpoint_is_the_model_of_the_run(sharded_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(sharded_run / "checkpoint-20"), "--output-dir", str(tmp_path / "out")]) == 0
    exported = tmp_path / "out" / "model.safetensors"
    assert exported.read_bytes() == (sharded_run / "model.safetensors").read_bytes()
    assert main(["export", str(sharded_run), "--output-dir", str(tmp_path / "run"), "--dtype", "bfloat16"]) == 0


@pytest.mark.portable
def test_best_of_a_sharded_run_is_read_from_its_shards(material: Material, tmp_path: Path) -> None:
    """Characters that the training text never has grow less likely with every step: the first evaluation is best."""
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(["0123456789"] * 20), encoding="utf-8")
    best = ("--best", "nll", "--learning-rate", "1e-2", "--validation", str(other))
    command = material.command("clm", tmp_path / "run", *NO_DROPOUT, *best)
    ended = hfkit(command, tmp_path / "said", ranks=2, program=sharded)
    assert ended.codes == [0, 0], ended.err
    assert "the best model is that of step 5, not the last" in ended.err
    kept = (tmp_path / "run" / "model.safetensors").read_bytes()
    for step in (5, 20):
        out = tmp_path / f"out-{step}"
        assert main(["export", str(tmp_path / "run" / f"checkpoint-{step}"), "--output-dir", str(out)]) == 0
        assert ((out / "model.safetensors").read_bytes() == kept) == (step == 5)


def test_gradient_that_is_no_number_stops_all_ranks_of_a_sharded_run(material: Material, tmp_path: Path) -> None:
    command = material.command("clm", tmp_path / "run", *NO_DROPOUT, "--learning-rate", "1e20")
    ended = hfkit(command, tmp_path / "said", ranks=2, program=sharded)
    assert ended.codes == [4, 4]
    assert status(tmp_path / "run")["state"] == "failed"


@pytest.mark.parametrize("ranks", [1, 2])
def test_fsdp2_is_refused_where_accelerate_would_train_without_it(
    ranks: int, material: Material, tmp_path: Path
) -> None:
    ended = hfkit(material.command("clm", tmp_path / "run"), tmp_path / "said", ranks=ranks, program=asking)
    assert ended.codes == [2] * ranks
    assert "error: FSDP2 needs several GPUs" in ended.err
    assert "(fix: --parallel ddp)" in ended.err
    assert not (tmp_path / "run").exists()


def test_fsdp2_of_the_recipe_is_refused_on_cpu(material: Material, tmp_path: Path) -> None:
    command = material.command("clm", tmp_path / "run", "--set", "train.extra.fsdp=full_shard")
    ended = hfkit(command, tmp_path / "said", ranks=2)
    assert ended.codes == [2, 2]
    assert "error: FSDP2 needs several GPUs" in ended.err


def test_lora_under_fsdp2_is_refused(material: Material, tmp_path: Path) -> None:
    ended = hfkit(material.command("clm", tmp_path / "run", "--lora"), tmp_path / "said", ranks=2, program=sharded)
    assert ended.codes == [2, 2]
    assert "error: FSDP2 and LoRA do not go together" in ended.err


def test_tensor_parallelism_is_refused(material: Material, tmp_path: Path) -> None:
    command = material.command("clm", tmp_path / "run")
    ended = hfkit(command, tmp_path / "said", ranks=2, program=asking_for_tensor_parallelism)
    assert ended.codes == [2, 2]
    assert "error: tensor, context or sequence parallelism" in ended.err
    assert not (tmp_path / "run").exists()


def test_model_with_whole_weights_is_no_sharded_one(material: Material) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(material.gpt2)
    with pytest.raises(UsageError, match=r"28 of 28 weights are not sharded, first 'transformer\.wte\.weight'"):
        require_sharded(model)


def test_sharded_checkpoint_is_no_model_yet(
    sharded_run: Path, material: Material, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(sharded_run / "checkpoint-15")
    assert main(["generate", "--model", checkpoint, "--prompt", "the"]) == 5
    assert f"has its weights in shards (fix: hfkit export {checkpoint} --output-dir NEW)" in capsys.readouterr().err


def test_checkpoint_of_deepspeed_names_the_script_that_merges_it(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(material.gpt2, tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-3" / "zero_to_fp32.py").write_text("", encoding="utf-8")
    assert main(["export", str(tmp_path / "checkpoint-3"), "--output-dir", str(tmp_path / "out")]) == 5
    checkpoint = tmp_path / "checkpoint-3"
    assert f"(fix: python {checkpoint}/zero_to_fp32.py {checkpoint} {checkpoint} --safe" in capsys.readouterr().err


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("fault", ["code", "bytes", "cut", "missing"])
def test_table_of_contents_runs_no_code(fault: str, sharded_run: Path, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    checkpoint, canary = tmp_path / "checkpoint-15", tmp_path / "canary"
    shutil.copytree(sharded_run / "checkpoint-15", checkpoint, ignore=shutil.ignore_patterns("committed.json"))
    table = checkpoint / SHARDS / ".metadata"
    if fault == "code":
        table.write_bytes(pickle.dumps(Evil(canary)))
    elif fault == "bytes":  # which torch would unpickle
        table.write_bytes(pickle.dumps({"model.lm_head.weight": BytesStorageMetadata()}))
    elif fault == "cut":
        table.write_bytes(table.read_bytes()[:-20])
    else:
        table.unlink()
    assert main(["export", str(checkpoint), "--output-dir", str(tmp_path / "out")]) == 5
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


def test_shards_of_another_model_are_refused(
    sharded_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint-15"
    shutil.copytree(sharded_run / "checkpoint-15", checkpoint, ignore=shutil.ignore_patterns("committed.json"))
    config = checkpoint / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"n_layer": 2', '"n_layer": 3'), encoding="utf-8")
    assert main(["export", str(checkpoint), "--output-dir", str(tmp_path / "out")]) == 5
    assert "transformer.h.2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
