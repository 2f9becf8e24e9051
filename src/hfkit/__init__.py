"""hfkit: one command from raw text to a pretrained, fine-tuned, evaluated and usable model, over Hugging Face."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["HfkitError", "__version__", "compare", "evaluate", "generate", "load_recipe", "predict", "train"]

if TYPE_CHECKING:
    from hfkit.api import compare, evaluate, generate, load_recipe, predict, train
    from hfkit.errors import HfkitError


def __getattr__(name: str) -> Any:
    """The public names are imported when they are first used (PEP 562), since torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'hfkit' has no attribute '{name}'")
    if name == "HfkitError":
        from hfkit.errors import HfkitError

        return HfkitError
    from hfkit import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
