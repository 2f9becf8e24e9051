"""Training arguments, optimizers and trackers of the installed transformers."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from hfkit.errors import Problem, did_you_mean

# Fields of TrainingArguments that hfkit decides, with what to do instead.
DECIDED = {
    "accelerator_config": "leave it out: hfkit shards the data among processes",
    "auto_find_batch_size": "set train.per_device_train_batch_size",
    "batch_eval_metrics": "leave it out",
    "data_seed": "set train.seed",
    "dataloader_drop_last": "leave it out: no example is ever dropped",
    "disable_tqdm": "leave it out: hfkit prints its own progress",
    "do_eval": "leave it out: data.validation is evaluated if there is any",
    "do_predict": "leave it out: data.test is scored if it is given",
    "do_train": "leave it out",
    "enable_jit_checkpoint": "leave it out: SIGTERM saves a checkpoint already",
    "eval_delay": "set train.eval_steps",
    "eval_do_concat_batches": "leave it out",
    "eval_strategy": "set train.eval_steps",
    "greater_is_better": "leave it out",
    "hub_always_push": "leave it out",
    "hub_model_id": "set train.push",
    "hub_private_repo": "leave it out: a new repository is private, an existing one stays as it is",
    "hub_revision": "leave it out",
    "hub_strategy": "leave it out",
    "hub_token": "run `hf auth login`",
    "ignore_data_skip": "leave it out: a resume is always exact",
    "include_for_metrics": "set evaluation.metrics",
    "label_names": "set data.columns.label",
    "bf16": "set train.precision: bfloat16",
    "fp16": "set train.precision: float16",
    "label_smoothing_factor": "set train.label_smoothing",
    "length_column_name": "leave it out",
    "load_best_model_at_end": "set train.best",
    "local_rank": "leave it out",
    "logging_nan_inf_filter": "leave it out: a loss that is not a number stops the run",
    "logging_strategy": "set train.logging_steps",
    "metric_for_best_model": "set train.best",
    "optim": "set train.optimizer",
    "prediction_loss_only": "leave it out",
    "push_to_hub": "set train.push: OWNER/NAME",
    "remove_unused_columns": "leave it out: hfkit chooses the columns",
    "resume_from_checkpoint": "use --resume",
    "save_only_model": "leave it out: a checkpoint is always complete",
    "save_strategy": "set train.save_steps",
    "activation_checkpointing": "set train.gradient_checkpointing",
    "torch_compile": "set train.compile",
    "train_sampling_strategy": "leave it out: examples are shuffled, and grouped by length if that saves padding",
}

# Names of transformers 4 that 5 no longer has. One with an exact successor is read as that, with a note.
SUCCESSORS = {
    "no_cuda": "train.extra.use_cpu",
    "per_gpu_eval_batch_size": "train.per_device_eval_batch_size",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "warmup_ratio": "train.warmup_steps",
}

FORMER = {
    "adafactor": "set train.optimizer: adafactor",
    "evaluation_strategy": "set train.eval_steps",
    "fp16_backend": "leave it out",
    "group_by_length": "leave it out: examples are grouped by length if that saves padding",
    "half_precision_backend": "leave it out",
    "logging_dir": "leave it out",
    "overwrite_output_dir": "use --overwrite",
}

# Values of train.report_to, as in transformers.integrations; one of the packages must be installed.
TRACKERS: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml-core",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet-ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune", "neptune-client"),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def missing_trackers(names: Sequence[Any]) -> Iterator[Problem]:
    """A problem for each tracker that is unknown or not installed."""
    for name in map(str, names):
        packages = TRACKERS.get(name)
        if packages is None:
            fix = did_you_mean(name, TRACKERS) or f"one of {', '.join(TRACKERS)}"
            yield f"unknown tracker '{name}'", fix
        elif packages and not any(map(_is_installed, packages)):
            yield f"{name} needs the package {packages[0]}, which is not installed", f"pip install {packages[0]}"


def _is_installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def training_argument_types() -> dict[str, str]:
    """Names and types of the fields of TrainingArguments."""
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in _source_of_arguments().get("TrainingArguments", ())
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def optimizer_names() -> list[str]:
    """Valid values of train.optimizer: hfkit's short name and those of OptimizerNames."""
    names = [
        node.value.value
        for node in _source_of_arguments().get("OptimizerNames", ())
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    return ["adamw", *map(str, names)]


@functools.cache
def _source_of_arguments() -> dict[str, list[ast.stmt]]:
    """The classes of transformers.training_args by name. They are read from its source; importing it takes seconds."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
