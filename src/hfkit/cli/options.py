"""Options of the commands, made from the recipe's fields so that name, type, help and limits exist once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from hfkit import console
from hfkit.recipe import SETTINGS, acts, is_list, is_mapping
from hfkit.tasks import DEFAULT_TASKS, TASKS


def _verbose(on: bool) -> bool:
    console.set_verbose(on)
    return on


# An empty metavar: typer would write <bool> behind every switch.
RecipeArgument = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.", show_default=False),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A run, a model directory or a name on the Hub.", show_default=False),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, by its recipe key.")]
DryRun = Annotated[bool, typer.Option("--dry-run", metavar="", help="Print the recipe as it would run, and stop.")]
Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="[auto|PATH]", help="Go on from the newest whole checkpoint, or from PATH."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", metavar="", help="Start again in a run directory in use.")]
AllowChanged = Annotated[
    bool, typer.Option("--allow-changed", metavar="", help="Resume although data or settings have changed.")
]
Extend = Annotated[bool, typer.Option("--extend", metavar="", help="Resume with more steps than before.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print the result as one JSON object.")]
JsonLines = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object a line.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", metavar="", help="Say more on stderr.", callback=_verbose)]
Debug = Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")]

PANELS = {
    "data": "Data",
    "columns": "Data",
    "model": "Model",
    "tokenizer": "Model",
    "train": "Training",
    "lora": "Training",
    "generation": "Generation",
    "evaluation": "Evaluation",
}

# Other names of an option, as the example scripts have them: they work, but would make the help too long.
ALIASES = {
    alias: setting.metadata["flags"][0]
    for setting in SETTINGS.values()
    for alias in setting.metadata["flags"][1:]
    if len(alias) > len("--abc") and alias != "--objective"
}


def without_aliases(arguments: Sequence[str]) -> list[str]:
    """The command line with every alias replaced by the option's own name (`_` and `-` are alike), and the value
    `auto` put after a --resume that has none."""
    replaced: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            return replaced + list(arguments[place:])
        flag, equals, value = argument.partition("=")
        flag = ALIASES.get(flag.replace("_", "-"), flag) if flag.startswith("--") else flag
        replaced.append(f"{flag}{equals}{value}")
        if argument == "--resume" and (place + 1 == len(arguments) or arguments[place + 1].startswith("-")):
            replaced.append("auto")
    return replaced


def with_settings(command: str, **renamed: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives the function an option for every setting that acts in `command`; those that were typed are its first
    parameter `settings`, by dotted key. `renamed`: other flags for a setting, its key with `__` for the dot."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        keys: dict[str, str] = {}
        taken: set[str] = set()  # --seed is train.seed in training, evaluation.seed in evaluate
        added = []
        for key, setting in SETTINGS.items():
            flags = renamed.get(key.replace(".", "__"), setting.metadata["flags"])
            if flags and acts(command, key) and not is_mapping(setting) and not taken & set(flags):
                taken |= set(flags)
                name = key.replace(".", "_")
                keys[name] = key
                added.append(_parameter(command, name, key, flags))

        def run(**values: Any) -> None:
            settings = {keys[name]: values.pop(name) for name in keys}
            function({key: value for key, value in settings.items() if value not in (None, [])}, **values)

        run.__name__, run.__doc__ = function.__name__, inspect.getdoc(function)
        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
        return run

    return decorate


def _parameter(command: str, name: str, key: str, flags: tuple[str, ...]) -> inspect.Parameter:
    setting = SETTINGS[key]
    kind: Any = bool if str(setting.type).startswith("bool") else list[str] if is_list(setting) else str
    option = typer.Option(
        *(flag for flag in flags if flag not in ALIASES),
        help=setting.metadata["description"] + _shown_default(command, key),
        metavar="" if kind is bool else _metavar(str(setting.type)),
        rich_help_panel=PANELS.get(key.split(".")[0], "Task"),
        show_default=False,
        hidden=setting.metadata["rare"],
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _shown_default(command: str, key: str) -> str:
    """What the setting is where nobody gives it, in brackets; empty where the description tells or nothing does."""
    if key == "task":
        return f" (default: {DEFAULT_TASKS[command]})" if command in DEFAULT_TASKS else ""
    defaults = [SETTINGS[key].default] * 2
    if command in DEFAULT_TASKS:
        task = TASKS[DEFAULT_TASKS[command]]
        defaults = [task.defaults(given).get(key, SETTINGS[key].default) for given in ({}, {"model.name": "any"})]
    new, pretrained = (f"{value}" if type(value) in (str, int, float) else "" for value in defaults)
    if not new or "(default: " in SETTINGS[key].metadata["description"]:
        return ""
    if new == pretrained or key.startswith("model."):
        return f" (default: {new})"
    return f" (default: {new} for new models, else {pretrained})"


def _metavar(kind: str) -> str:
    return "N" if kind.startswith("int") else "X" if kind.startswith("float") else "TEXT"
