"""The generation settings that a model was saved with, as far as the installed library can follow them."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.system.console import warn

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

FILE = "generation_config.json"

# Ways of decoding that transformers 5 has no longer in itself, by their keys, with the value that asks for none.
GONE = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
}


# Fields of transformers.GenerationConfig that change nothing without sampling, or without beams.
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p")

BEAMS_ONLY = ("length_penalty", "early_stopping")


def drop_idle(settings: GenerationConfig) -> None:
    """Leaves out what changes nothing: settings of sampling where nothing is sampled, of beams where there is one."""
    idle = [() if settings.do_sample else SAMPLING_ONLY, BEAMS_ONLY if (settings.num_beams or 1) == 1 else ()]
    for name in itertools.chain.from_iterable(idle):
        setattr(settings, name, None)


def stored_generation(directory: Path, name: str) -> GenerationConfig | None:
    """The settings in `directory` without those that can't act, each named in a warning; None: the library's own way.

    `name`: of the model, for messages.
    """
    path = directory / FILE
    if not path.exists():
        return None
    try:
        values = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        warn(f"{name}: {FILE} can't be read and is ignored", "correct or delete it")
        return None
    for key, none in GONE.items():
        value = values.pop(key, none)
        if value not in (none, None):
            _warn(name, key, value, "transformers has that way of decoding no longer")
    return _valid(values, name)


def _valid(values: dict[str, Any], name: str) -> GenerationConfig:
    """The settings without those that the library refuses, one after the other."""
    from transformers import GenerationConfig

    temperature = values.get("temperature")
    if isinstance(temperature, int | float) and temperature <= 0:
        del values["temperature"]
        if values.get("do_sample"):
            values["do_sample"] = False
            _warn(name, "temperature", temperature, "there is no such temperature; the likeliest token is taken")
    while True:
        try:
            return GenerationConfig.from_dict(values)
        except (ValueError, TypeError) as error:
            named = [key for key in re.findall(r"\w+", str(error)) if key in values]
            if not named:
                raise
            _warn(name, named[0], values.pop(named[0]), "it has no meaning with the others")


def make_savable(model: PreTrainedModel, name: str) -> None:
    """Leaves out of the model's settings what the library refuses to save: those that are idle beside the others.

    Without this, a model that says `do_sample: false, temperature: 0.7` could be trained and not be saved.
    """
    settings = getattr(model, "generation_config", None)
    while settings is not None:
        try:
            settings.validate(strict=True)
            return
        except ValueError as error:
            named = [key for key in re.findall(r"`(\w+)`", str(error)) if getattr(settings, key, None) is not None]
            if not named:
                raise
            _warn(name, named[0], getattr(settings, named[0]), "it is idle, and the library saves no idle setting")
            setattr(settings, named[0], None)


def _warn(name: str, key: str, value: Any, reason: str) -> None:
    warn(f"{name}: {FILE} has {key} {json.dumps(value)}, which is left out: {reason}", f"delete {key} there", once=True)
