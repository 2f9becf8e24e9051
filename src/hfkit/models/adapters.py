"""Which weights are trained: LoRA adapters beside a model that stays as it is, or all but a part that is frozen.

A model with adapters keeps its class: they are put into its layers. Its directory holds adapter_model.safetensors,
adapter_config.json, which names the base model, and the model's config as model_config.json: under the name of
config.json it would make transformers look for all weights there.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.errors import HfkitError, ModelError, UsageError, did_you_mean
from hfkit.models import hub
from hfkit.system import compat, network
from hfkit.system.console import say

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from hfkit.settings import Lora, Model, Recipe

SETTINGS, WEIGHTS, MODEL_CONFIG = "adapter_config.json", "adapter_model.safetensors", "model_config.json"

NAME = "default"  # of the adapter, as peft has it

PREFIX = "base_model.model."  # of the names in its file

ALL_LINEAR = "all-linear"

MERGED_TOLERANCE = 1e-4  # of a logit, once the adapter's product is added to the weights

Base = tuple[str, str | None]  # a directory or Hub name, and the commit of the latter


def check(recipe: Recipe, config: PreTrainedConfig) -> None:
    """UsageError if lora or train.freeze can't act on a model with this `config`."""
    if recipe.model.from_scratch and (recipe.lora.enabled or recipe.train.freeze):
        flag = "--lora" if recipe.lora.enabled else "--freeze"
        fix = "--model NAME" if recipe.model.name is None else "leave out --from-scratch"
        raise UsageError(f"{flag} keeps trained weights, and this model begins with fresh ones", fix)
    for part in recipe.train.freeze:
        if num_layers(part) > config.num_hidden_layers:
            raise UsageError(
                f"train.freeze: {part}, but the model has {config.num_hidden_layers} layers",
                f"--freeze layers:{config.num_hidden_layers} or fewer",
            )


def num_layers(part: str) -> int:
    """How many layers an entry of train.freeze names: N of layers:N, 0 of embeddings; UsageError for other words."""
    kind, _, count = part.partition(":")
    if part == "embeddings":
        return 0
    if kind == "layers" and count.isdecimal() and int(count) > 0:
        return int(count)
    near = did_you_mean(part, ["embeddings", "layers:2"])
    raise UsageError(f"train.freeze: '{part}' is neither embeddings nor layers:N", near or "--freeze layers:2")


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> None:
    """Takes the embeddings or the first layers out of training, and says how much that is."""
    frozen = {
        id(weight): weight.requires_grad_(False)
        for part in parts
        for weight in (_first_layers(model, num_layers(part)) if num_layers(part) else _embeddings(model))
    }
    say(f"frozen: {', '.join(parts)}: {_count(frozen.values()):,} of {_count(model.parameters()):,} parameters")


def _first_layers(model: PreTrainedModel, count: int) -> list[nn.Parameter]:
    from torch import nn

    total = model.config.num_hidden_layers
    stacks = (part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == total)
    layers = next(stacks, None)  # of an encoder-decoder: the encoder's
    if layers is None:
        raise UsageError(
            f"train.freeze: {model.config.model_type} has no list of {total} layers", "--freeze embeddings"
        )
    return list(layers[:count].parameters())


def _embeddings(model: PreTrainedModel) -> list[nn.Parameter]:
    """Tables of tokens and positions, and what BERT's kind has around them, but no tables inside layers, as T5 has."""
    from torch import nn

    inside = {id(w) for part in model.modules() if isinstance(part, nn.ModuleList) for w in part.parameters()}
    parts = [part for name, part in model.named_modules() if isinstance(part, nn.Embedding) or "embeddings" in name]
    return [weight for part in parts for weight in part.parameters() if id(weight) not in inside]


def attach(model: PreTrainedModel, settings: Lora, fresh: Collection[str]) -> None:
    """Puts new adapters into `model` and freezes the rest but the modules whose weights are new (`fresh`)."""
    from peft import LoraConfig
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    modules = {name.rpartition(".")[0] for name in fresh}
    whole = sorted(name for name in modules if not any(name.startswith(f"{other}.") for other in modules))
    shared = {id(weight) for weight in model.get_input_embeddings().parameters()}
    for name in whole:
        if any(id(weight) in shared for weight in model.get_submodule(name).parameters()):
            raise UsageError(f"--lora: {name} is new, and shares its weights with the embeddings", "leave out --lora")
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=ALL_LINEAR if settings.targets == [ALL_LINEAR] else settings.targets,
        modules_to_save=whole or None,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about layers of both kinds, and tied weights that whole modules untie
            model.add_adapter(config)
    except ValueError as error:
        parts = model.named_modules()
        linear = {name.rpartition(".")[2] for name, part in parts if isinstance(part, (nn.Linear, Conv1D))}
        near = next(filter(None, (did_you_mean(target, linear) for target in settings.targets)), "")
        raise UsageError(
            f"lora.targets: {model.config.model_type} has no layers named {', '.join(settings.targets)} that take one",
            near or f"--lora-targets {ALL_LINEAR}",
        ) from error
    trained, total = model.num_parameters(only_trainable=True), model.num_parameters()
    beside = f", {', '.join(whole)} whole" if whole else ""
    say(f"LoRA of rank {settings.r}{beside}: {trained:,} of {total:,} parameters are trained ({trained / total:.2%})")


def has_adapter(model: PreTrainedModel) -> bool:
    return compat.has_adapter(model)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds adapters alone, and the weights they belong to lie elsewhere."""
    whole = ("model.safetensors", "model.safetensors.index.json")
    return (directory / SETTINGS).exists() and not any((directory / name).exists() for name in whole)


def base_of(directory: Path) -> Base:
    """The base model that the adapter in `directory` names."""
    try:
        settings = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
        name, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError):
        name = revision = None
    if not isinstance(name, str) or not name:
        raise ModelError(f"{directory / SETTINGS} names no base model", "set base_model_name_or_path there")
    return name, revision


def locate_base(directory: Path, weights: bool = True) -> Path:
    """Where the base model of the adapter in `directory` lies; ModelError that names both where it is not there."""
    name, revision = base_of(directory)
    try:
        return hub.locate_model(f"hf:{name}" if revision else name, revision, weights)
    except HfkitError as error:
        raise ModelError(
            f"{directory} is an adapter to {name}, which can't be read: {error.problems[0][0]}",
            f"put it back, or name its new place in {directory / SETTINGS} (base_model_name_or_path)",
        ) from error


def config_source(directory: Path) -> Path:
    """Where the config of the model in `directory` is to be read from."""
    if not is_adapter(directory):
        return directory
    own = directory / MODEL_CONFIG
    return own if own.exists() else locate_base(directory, weights=False)


def load(model: PreTrainedModel, directory: Path) -> set[str]:
    """Puts the adapter in `directory` into its base `model`; the names of the model's weights that it replaces."""
    from peft import PeftConfig
    from safetensors import safe_open

    config = PeftConfig.from_pretrained(str(directory))
    if config.peft_type != "LORA":
        raise ModelError(
            f"{directory}: its adapter is of the kind {config.peft_type}", "LoRA is the one kind supported"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `attach`
        model.add_adapter(config)
    read(model, directory)
    with safe_open(directory / WEIGHTS, "pt") as file:
        return {name.removeprefix(PREFIX) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def read(model: PreTrainedModel, directory: Path) -> None:
    """Gives the adapters of `model` the weights in `directory`; ModelError if they are not the same adapters."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        weights = {name.removeprefix(PREFIX): weight for name, weight in load_file(directory / WEIGHTS).items()}
        result = set_peft_model_state_dict(model, weights)
        wrong = [*result.unexpected_keys, *(name for name in result.missing_keys if f".{NAME}" in name)]
    except Exception as error:  # a key that is not there, a tensor of another shape, a damaged file
        raise ModelError(f"{directory / WEIGHTS}: can't be read: {error}", "take another checkpoint") from error
    if wrong:
        raise ModelError(f"{directory / WEIGHTS}: {len(wrong)} weights don't fit, first '{wrong[0]}'", "save it again")


def base_for(model: Model) -> Base:
    """How an adapter names this model to be found from anywhere: by its whole path, or by its commit on the Hub."""
    assert model.name is not None
    directory = hub.locate_model(model.name, model.revision)
    if network.is_local(model.name):
        return str(directory.absolute()), None
    return model.name.removeprefix("hf:"), directory.name


def complete(directory: Path, model: PreTrainedModel, base: Base) -> None:
    """Adds what save_pretrained leaves out of an adapter: the model's config, its settings of generation, and where its
    base is to be found."""
    model.config.to_json_file(directory / MODEL_CONFIG)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
    settings = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base[0], "revision": base[1]}
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()  # peft has a set there, and its order is another in each process
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def logits(model: PreTrainedModel) -> Tensor:
    """What the model answers to the sample batch of its class, whatever its task."""
    import torch

    was_training = model.training
    model.eval()
    inputs = {name: value.to(model.device) for name, value in model.dummy_inputs.items()}
    if model.config.is_encoder_decoder and inputs.keys() == {"input_ids"}:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.inference_mode():
        answer: Tensor = model(**inputs)[0]
    model.train(was_training)
    return answer.float().cpu()


def require_same(before: Tensor, after: Tensor, what: str, tolerance: float) -> None:
    """ModelError if two answers to the sample batch differ by more than `tolerance` of the largest logit.

    Rounding grows with the largest numbers of a model: the small logits of SmolLM2-135M are 5e-4 off in float32, where
    its largest is 39.
    """
    difference = (before - after).abs().max()
    if not difference <= tolerance * before.abs().max().clamp(min=1):
        raise ModelError(f"{what}: logits differ by {difference:.2g}: nothing is saved", "report this as a bug")


def merge(model: PreTrainedModel) -> None:
    """Adds every adapter to the weights beside it, which makes `model` a plain one of the same answers."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    before = logits(model)
    for name, part in list(model.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge(safe_merge=True)
            model.set_submodule(name, part.get_base_layer())
        elif isinstance(part, ModulesToSaveWrapper):
            model.set_submodule(name, part.modules_to_save[NAME])
    compat.forget_adapters(model)
    require_same(before, logits(model), "the merged model is not the one with adapters", MERGED_TOLERANCE)


def _count(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)
