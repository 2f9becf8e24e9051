"""Options of the commands, made from the recipe's fields so that name, type, help and limits exist once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from hfkit import console
from hfkit.recipe import SETTINGS, acts, is_list, is_mapping


def _verbose(on: bool) -> bool:
    console.set_verbose(on)
    return on


RecipeArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RECIPE]", help="A recipe file, or the name of a shipped one.", show_default=False),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A run directory, a model directory or a Hub name.", show_default=False),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. train.seed=1.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]
Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="auto|PATH", help="Go on from the newest whole checkpoint, or from PATH."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Train again into a run directory that is in use.")]
AllowChanged = Annotated[bool, typer.Option("--allow-changed", help="Resume although data or settings have changed.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.", callback=_verbose)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

PANELS = {
    "data": "Data",
    "columns": "Data",
    "model": "Model",
    "tokenizer": "Model",
    "train": "Training",
    "generation": "Generation",
    "evaluation": "Evaluation",
}

# Other names of an option, as the example scripts have them: they work, but would make the help too long.
ALIASES = {
    alias: setting.metadata["flags"][0]
    for setting in SETTINGS.values()
    for alias in setting.metadata["flags"][1:]
    if len(alias) > len("--abc")
}


def without_aliases(arguments: Sequence[str]) -> list[str]:
    """The command line with every alias replaced by the option's own name; `_` and `-` are alike."""
    replaced = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        flag = ALIASES.get(flag.replace("_", "-"), flag) if flag.startswith("--") else flag
        replaced.append(f"{flag}{equals}{value}")
    return replaced


def with_settings(command: str, **renamed: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives the function an option for every setting that acts in `command`; those that were typed are its first
    parameter `settings`, by dotted key. `renamed`: other flags for a setting, its key with `__` for the dot."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        taken = {
            flag
            for parameter in own
            for info in getattr(parameter.annotation, "__metadata__", ())
            for flag in (getattr(info, "param_decls", None) or ())
        }
        keys: dict[str, str] = {}
        added = []
        for key, setting in SETTINGS.items():
            flags = renamed.get(key.replace(".", "__"), setting.metadata["flags"])
            flags = tuple(flag for flag in flags if flag not in taken)
            if not flags or is_mapping(setting) or not acts(command, key):
                continue
            taken.update(flags)
            name = key.replace(".", "_")
            keys[name] = key
            added.append(_parameter(name, key, flags))

        def run(**values: Any) -> None:
            settings = {keys[name]: values.pop(name) for name in keys}
            function({key: value for key, value in settings.items() if value not in (None, [])}, **values)

        run.__name__, run.__doc__ = function.__name__, inspect.getdoc(function)
        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
        return run

    return decorate


def _parameter(name: str, key: str, flags: tuple[str, ...]) -> inspect.Parameter:
    setting = SETTINGS[key]
    kind: Any = (
        bool if setting.type == "bool" or "bool" in str(setting.type) else list[str] if is_list(setting) else str
    )
    default = setting.default if not is_list(setting) and setting.default not in (None, "") else None
    option = typer.Option(
        *(flag for flag in flags if flag not in ALIASES),
        help=setting.metadata["description"] + (f" [{default}]" if default is not None and kind is str else ""),
        metavar=None if kind is bool else _metavar(str(setting.type)),
        rich_help_panel=PANELS.get(key.split(".")[0], "Task"),
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _metavar(kind: str) -> str:
    if kind.startswith("Literal["):
        return kind.removeprefix("Literal[").partition("]")[0].translate({34: None, 39: None}).replace(", ", "|")
    return "N" if kind.startswith("int") else "X" if kind.startswith("float") else "TEXT"
