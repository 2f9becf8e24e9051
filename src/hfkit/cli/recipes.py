"""`hfkit recipes`: the shipped recipes, and a check of your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hfkit.errors import StorageError, UsageError
from hfkit.recipe.shipped import find_recipe, headline, recipes_folder, shipped_recipes
from hfkit.system import console

recipes = typer.Typer(help="List, show, copy or check recipes, or print their schema.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of a shipped recipe, or a file.")]


@recipes.command("list")
def list_() -> None:
    """List the shipped recipes and what each does."""
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
    schema = f"$schema={recipes_folder() / 'schema.json'}"
    text = source.read_text(encoding="utf-8").replace("$schema=schema.json", schema, 1)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} exists", f"name another file: hfkit recipes copy {name} other.yaml") from None
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}", "name a file in a writable folder") from None
    console.result(str(target))


@recipes.command()
def check(name: Name) -> None:
    """Check a recipe, and print everything that is wrong with it."""
    from hfkit.recipe.resolve import resolve
    from hfkit.recipe.yaml import read_recipe
    from hfkit.tasks import TASKS

    path = find_recipe(name)
    settings, _ = read_recipe(path)
    task = settings.get("task")
    if "task" not in settings:
        raise UsageError(f"{path}: names no task", f"write `task:` and one of {', '.join(TASKS)}")
    if not isinstance(task, str) or task not in TASKS:
        raise UsageError(f"{path}: unknown task {task!r}", f"one of {', '.join(TASKS)}")
    command = TASKS[task].command
    resolve(command, recipe=path)
    console.result(f"{path}: valid; run it with: hfkit {command} {name}")


@recipes.command()
def schema() -> None:
    """Print the JSON schema of a recipe file."""
    from hfkit.recipe.resolve import json_schema

    console.result(json.dumps(json_schema(), indent=1))
