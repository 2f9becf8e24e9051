"""`hfkit recipes`: the recipes that come with hfkit, and a check of your own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from hfkit import console
from hfkit.errors import UsageError
from hfkit.shipped import find_recipe, headline, shipped_recipes

recipes = typer.Typer(
    help="Recipes: list, show, copy or check them, or print the schema of a recipe file.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="A shipped recipe's name, or a file.")]


@recipes.command("list")
def list_() -> None:
    """The shipped recipes, a line each."""
    names = shipped_recipes()
    width = max(map(len, names), default=0)
    for name, path in names.items():
        console.result(f"{name:<{width}}  {headline(path)}")


@recipes.command()
def show(name: Name) -> None:
    """Print a recipe."""
    console.result(find_recipe(name).read_text(encoding="utf-8"), end="")


@recipes.command()
def copy(
    name: Name, to: Annotated[Path | None, typer.Argument(help="Target file (default: NAME.yaml).")] = None
) -> None:
    """Copy a recipe to a file of your own."""
    source = find_recipe(name)
    target = to or Path(source.name)
    if target.exists():
        raise UsageError(f"{target} exists", "name another file: hfkit recipes copy NAME other.yaml")
    shutil.copyfile(source, target)
    console.result(str(target))


@recipes.command()
def check(name: Name) -> None:
    """Say whether a recipe is right, or everything that is wrong with it."""
    from hfkit.resolve import read_yaml, resolve
    from hfkit.tasks import TASKS

    path = find_recipe(name)
    task = read_yaml(path).get("task")
    if task not in TASKS:
        raise UsageError(f"{path}: task: {task!r} is none of {', '.join(TASKS)}", f"task: {next(iter(TASKS))}")
    command = TASKS[task].command
    resolve(command, recipe=path)
    console.result(f"{path}: right; run it with: hfkit {command} {name}")


@recipes.command()
def schema() -> None:
    """Print the JSON schema of a recipe file."""
    from hfkit.resolve import json_schema

    console.result(json.dumps(json_schema(), indent=1))
