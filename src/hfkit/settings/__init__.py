"""Every setting of hfkit, declared once: name, type, default, limits, help text and flags.

They are plain dataclasses, so that `--help` needs no pydantic. `hfkit.recipe` validates them with pydantic, which
reads descriptions and limits from the field metadata. `None` means that the task or the data decides; a resolved
recipe has no `None` where the task has a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hfkit.settings.data import Clean, Columns, Csv, Data
from hfkit.settings.evaluation import Evaluation
from hfkit.settings.generation import Generation
from hfkit.settings.model import Model, Tokenizer
from hfkit.settings.section import Section, setting
from hfkit.settings.train import Lora, Schedule, Train

__all__ = [
    "SECTIONS",
    "SETTINGS",
    "Clean",
    "Columns",
    "Csv",
    "Data",
    "Evaluation",
    "Generation",
    "Lora",
    "Model",
    "Recipe",
    "Schedule",
    "Tokenizer",
    "Train",
    "acts",
    "is_list",
    "is_mapping",
    "setting_of",
]


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """All settings of one run."""

    task: str | None = setting("--task --objective", help="Training objective.")
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    train: Train = field(default_factory=Train)
    lora: Lora = field(default_factory=Lora)
    generation: Generation = field(default_factory=Generation)
    evaluation: Evaluation = field(default_factory=Evaluation)


# The sections that act in each command; a setting's `only` narrows them further.
SECTIONS: dict[str, tuple[str, ...]] = {
    "pretrain": ("task", "model", "data", "tokenizer", "train", "lora", "evaluation"),
    "finetune": ("task", "model", "data", "tokenizer", "train", "lora", "evaluation"),
    "predict": ("model", "data", "evaluation"),
    "generate": ("model", "data", "generation", "evaluation"),
    "chat": ("model", "generation"),
    "evaluate": ("task", "model", "data", "evaluation"),
}


def _fields(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for one in dataclasses.fields(section):
        factory: Any = one.default_factory
        if dataclasses.is_dataclass(factory):
            yield from _fields(factory, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, one


SETTINGS: dict[str, dataclasses.Field[Any]] = dict(_fields(Recipe))  # by dotted key, in the order of declaration


def setting_of(key: str) -> str | None:
    """The setting that `key` names or lies inside (`model.config.n_layer` -> `model.config`), None if unknown."""
    if key in SETTINGS:
        return key
    return next((name for name, one in SETTINGS.items() if is_mapping(one) and key.startswith(name + ".")), None)


def is_mapping(one: dataclasses.Field[Any]) -> bool:
    """Whether the setting takes a mapping with keys of its own."""
    return str(one.type).startswith("dict[")


def is_list(one: dataclasses.Field[Any]) -> bool:
    """Whether the setting takes a list."""
    return str(one.type).startswith("list[")


def acts(command: str, name: str) -> bool:
    """Whether the setting `name` has an effect in `command`, for some task at least."""
    only = SETTINGS[name].metadata["only"]
    return name.partition(".")[0] in SECTIONS[command] and (not only or command in only)
