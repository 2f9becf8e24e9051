"""Weights that FSDP2 spreads over processes: no doubt whether they are, and whole again where a plain model is due."""

from __future__ import annotations

import os
import pickle
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.errors import ModelError, UsageError
from hfkit.system import checkpoints, processes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

    from hfkit.settings import Recipe

SHARDS = "pytorch_model_fsdp_0"  # the folder of a checkpoint that accelerate writes each process's weights into

ZERO_SCRIPT = "zero_to_fp32.py"  # what DeepSpeed puts into a checkpoint of its own

# What the table of contents of shards of weights is made of. Torch reads this file as any pickle, and would do the same
# to what the table calls bytes, so that BytesStorageMetadata is missing here.
_PARTS = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
}


def is_asked(args: TrainingArguments) -> bool:
    """Whether accelerate's configuration or the recipe's `train.extra.fsdp` wants the weights sharded."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def require_possible(args: TrainingArguments, recipe: Recipe) -> None:
    """UsageError if the processes would not train as accelerate was asked to, which it says nothing about."""
    problem = _problem(args, recipe)
    if problem is not None:
        processes.barrier()  # a rank that leaves while others still connect would be what they complain about
        raise UsageError(*problem)


def _problem(args: TrainingArguments, recipe: Recipe) -> tuple[str, str] | None:
    if any(int(os.environ.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1")) > 1 for kind in ("TP", "CP", "SP")):
        problem = (
            "tensor, context or sequence parallelism shares each row between processes, and hfkit gives each its own"
        )
        return problem, "leave tp_size, cp_size and sp_size out of accelerate's parallelism_config"
    if not is_asked(args):
        return None
    if args.distributed_state.distributed_type.value in ("NO", "MULTI_CPU"):
        return "FSDP2 needs several GPUs: on CPU every process would hold all weights", "--parallel ddp"
    return ("FSDP2 and LoRA do not go together", "--parallel ddp, or leave out --lora") if recipe.lora.enabled else None


def require_sharded(model: PreTrainedModel) -> None:
    """UsageError if a weight of the model that is about to be trained is not sharded by FSDP2."""
    from torch.distributed.tensor import DTensor

    weights = dict(model.named_parameters())
    whole = [name for name, weight in weights.items() if not isinstance(weight, DTensor)]
    if whole:
        raise UsageError(
            f"FSDP2 is asked for, and {len(whole)} of {len(weights)} weights are not sharded, first '{whole[0]}'",
            "`fsdp_version: 2` in accelerate's configuration, or --parallel ddp",
        )


def complete(checkpoint: Path, model: PreTrainedModel) -> None:
    """Puts the configs beside the shards of a checkpoint: the library writes them beside whole weights only."""
    if (checkpoint / SHARDS).is_dir():
        model.config.architectures = [plain_class(model).__name__]
        model.config.save_pretrained(checkpoint)
        if model.can_generate():
            model.generation_config.save_pretrained(checkpoint)


def plain_class(model: PreTrainedModel) -> Any:
    """The class of `model`, without what FSDP2 has made of it."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def fix_for(directory: Path) -> str:
    """What to type for a plain model where the weights of a checkpoint lie in shards; empty where they do not."""
    name = shlex.quote(str(directory))
    if (directory / SHARDS).is_dir():
        return f"hfkit export {name} --output-dir NEW"
    if (directory / ZERO_SCRIPT).is_file():  # it unpickles whatever the checkpoint holds, so it is a person's to run
        return f"python {shlex.quote(str(directory / ZERO_SCRIPT))} {name} {name} --safe_serialization"
    return ""


def checkpoint_of(name: str) -> Path | None:
    """The sharded checkpoint that `name` is, or the newest whole one of the unfinished run that it is; else None."""
    directory = Path(name).expanduser()
    if not directory.is_dir() or (directory / "model.safetensors").exists():
        return None
    if not checkpoints.CHECKPOINT.fullmatch(directory.name) and not (directory / "config.json").exists():
        directory = checkpoints.newest(directory)[0] or directory
    return directory if (directory / SHARDS).is_dir() else None


def load(model_class: Any, config: PreTrainedConfig, checkpoint: Path) -> PreTrainedModel:
    """A plain model with the weights of a sharded `checkpoint`, read by this process alone."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load as read_shards
    from transformers import GenerationConfig

    require_plain_contents(checkpoint / SHARDS)
    model: PreTrainedModel = model_class(config)
    if model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint, local_files_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
            read_shards({"model": model.state_dict()}, checkpoint_id=checkpoint / SHARDS, no_dist=True)
    except (CheckpointException, RuntimeError, OSError) as error:
        raise ModelError(f"{checkpoint}: {str(error).splitlines()[-1]}", "take another checkpoint") from error
    return model


def require_plain_contents(shards: Path) -> None:
    """ModelError if the table of contents of shards would run code when torch reads it."""
    try:
        with (shards / ".metadata").open("rb") as file:
            _Contents(file).load()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{shards}: its .metadata can't be read: {error}", "take another checkpoint") from error


class _Contents(pickle.Unpickler):
    """Reads numbers, names and sizes, and knows no function to call."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if name in _PARTS.get(module, ()) or (module == "torch" and isinstance(vars(torch).get(name), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no part of a table of contents")
