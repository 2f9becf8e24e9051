"""The recipes that come with hfkit."""

from __future__ import annotations

import os
from pathlib import Path

from hfkit.errors import UsageError, did_you_mean


def recipes_folder() -> Path:
    """The recipes of the source tree if there is one (an editable install has an old copy), else those of the wheel."""
    source_tree = Path(__file__).parents[3] / "recipes"
    return source_tree if (source_tree.parent / "pyproject.toml").exists() else Path(__file__).parents[1] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name and file of every training recipe."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: `name` is a path or the name of a shipped recipe. Raises UsageError if there is none."""
    if os.path.exists(name):  # Path.exists raises at a name of 300 letters
        return Path(name)
    known = shipped_recipes()
    stem = name.removesuffix(".yaml")
    if stem in known:
        return known[stem]
    raise UsageError(f"{name}: no such recipe", did_you_mean(stem, known) or "hfkit recipes list")


def headline(path: Path) -> str:
    """The first comment line after the schema line: what the recipe does."""
    lines = [
        line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    return next((line for line in lines if line and not line.startswith("yaml-language-server")), "")
