"""Options of the commands, made from the recipe's fields so that name, type, help and limits exist once."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from hfkit.errors import UsageError
from hfkit.recipe.effect import description
from hfkit.settings import SETTINGS, acts, is_list, is_mapping
from hfkit.system import console, permissions
from hfkit.tasks import DEFAULT_TASKS, TASKS


def _verbose(on: bool) -> bool:
    console.set_verbose(on)
    return on


def _trust_remote_code(on: bool) -> bool:
    permissions.allow(permissions.REMOTE_CODE, on)
    return on


def _allow_pickle(on: bool) -> bool:
    permissions.allow(permissions.PICKLE, on)
    return on


# An empty metavar: typer would print <bool> after every switch.
RecipeArgument = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.", show_default=False),
]

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A run, a model directory or a model name on the Hub.", show_default=False),
]

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, by its key in a recipe.")
]

DryRun = Annotated[bool, typer.Option("--dry-run", metavar="", help="Print the complete recipe, and stop.")]

Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        metavar="",
        help="Print memory, disk, steps and time of the run, and stop; --num-processes 1,8,64 compares them.",
    ),
]

Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="[auto|PATH]", help="Continue from the newest complete checkpoint, or from PATH."),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", metavar="", help="Start over in an existing run directory.")]

AllowChanged = Annotated[
    bool, typer.Option("--allow-changed", metavar="", help="Resume even if data or settings have changed.")
]

Extend = Annotated[bool, typer.Option("--extend", metavar="", help="Resume with more steps than before.")]

Json = Annotated[bool, typer.Option("--json", metavar="", help="Print the result as one JSON object.")]

JsonLines = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object per line.")]

Verbose = Annotated[bool, typer.Option("-v", "--verbose", metavar="", help="Print more to stderr.", callback=_verbose)]

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        metavar="",
        help="Run code from the model's repository; a recipe can't allow it.",
        callback=_trust_remote_code,
        rich_help_panel="Model",
    ),
]

AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        metavar="",
        help="Load weights from pytorch_model.bin if there are no others; a recipe can't allow it.",
        callback=_allow_pickle,
        rich_help_panel="Model",
    ),
]

Debug = Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")]

# Switches of every command with settings; their callbacks, or `main`, act on them.
SWITCHES = {"verbose": Verbose, "debug": Debug, "trust_remote_code": TrustRemoteCode, "allow_pickle": AllowPickle}

# These say how a command is started, not what it computes. So they are not settings: a recipe runs unchanged in one
# process and in many. Every command whose function has a parameter `launch` has them.
_LAUNCH: list[tuple[str, Any, str, str]] = [
    ("num_processes", str, "N", "Number of processes, on all machines."),
    ("parallel", str, "KIND", "ddp (default), or fsdp2: sharded weights, on GPUs."),
    ("num_machines", int, "M", "Number of machines; start each with the same command."),
    ("machine_rank", int, "R", "Rank of this machine, from 0."),
    ("main_process_ip", str, "ADDRESS", "Address of machine 0."),
    ("main_process_port", int, "PORT", "Port of machine 0 (default: 29500)."),
    ("launcher_arguments", str, "", ""),  # hidden: the arguments after `--`
]
LAUNCH = {
    name: Annotated[
        kind | None,
        typer.Option(
            "--" + name.replace("_", "-"),
            metavar=metavar,
            help=text,
            hidden=not text,
            rich_help_panel="Several processes",
            show_default=False,
        ),
    ]
    for name, kind, metavar, text in _LAUNCH
}

_launched: set[str] = set()  # the commands that have these options

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

# Other names of an option, as in the example scripts of transformers; they work, but are not in the help.
ALIASES = {
    alias: setting.metadata["flags"][0]
    for setting in SETTINGS.values()
    for alias in setting.metadata["flags"][1:]
    if len(alias) > len("--abc") and alias != "--objective"
}


# Options of data, which can be several files.
FILE_OPTIONS = [SETTINGS[f"data.{split}"].metadata["flags"][0] for split in ("train", "validation", "test")]


def _is_data_file(argument: str) -> bool:
    """Whether this is a file, and neither a recipe nor a model."""
    return os.path.isfile(os.path.expanduser(argument)) and not argument.endswith((".yaml", ".yml", ".gguf"))


def _takes_files(before: Sequence[str]) -> bool:
    """Whether a file behind an option of files is one more value of it, by the command and what was typed so far.

    `hfkit data inspect` has arguments that are files, too: behind these, others can only be values.
    """
    if before[0] == "data":
        return len(before) > 2 and not before[2].startswith("-")
    return before[0] in (*DEFAULT_TASKS, "evaluate")


def without_aliases(arguments: Sequence[str]) -> list[str]:
    """The command line in the form that typer parses.

    Aliases are replaced by the option's own name (`_` and `-` are equal). --resume and --logprobs without a value get
    one. A file behind the value of an option of files is one more value of it: --data train.de train.en. The arguments
    after `--` for a launcher become one option.
    """
    replaced: list[str] = []
    files = ""  # the option whose values may follow
    for place, argument in enumerate(arguments):
        if files and place and not argument.startswith("-") and _is_data_file(argument):
            replaced += [files, argument] if replaced[-1] != files else [argument]
            continue
        if argument == "--":
            rest = list(arguments[place:])
            return replaced + ([f"--launcher-arguments={shlex.join(rest[1:])}"] if arguments[0] in _launched else rest)
        flag, equals, value = argument.partition("=")
        flag = ALIASES.get(flag.replace("_", "-"), flag) if flag.startswith("--") else flag
        replaced.append(f"{flag}{equals}{value}")
        if argument.startswith("-"):
            files = flag if flag in FILE_OPTIONS and _takes_files(arguments[:place]) else ""
        if argument == "--resume" and (place + 1 == len(arguments) or arguments[place + 1].startswith("-")):
            replaced.append("auto")
        if argument == "--logprobs" and not "".join(arguments[place + 1 : place + 2]).isdecimal():
            replaced.append("0")
    return replaced


def with_settings(
    command: str, options_of: Callable[..., None] | None = None, **renamed: tuple[str, ...]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a function the options of `options_of` (default: its own) and one for every setting that acts in `command`.

    Its first argument `settings` holds those that were typed, by dotted key. If the function has a parameter `launch`,
    the options of LAUNCH are added, and `launch` is a Launch if several processes are to be started, else None.
    `renamed`: other flags for a setting, by its key with `__` for the dot.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = dict(list(inspect.signature(options_of or function, eval_str=True).parameters.items())[1:])
        launches = own.pop("launch", None) is not None
        keys = dict(_keys(command, renamed))
        added = [_parameter(command, name, key, flags) for name, (key, flags) in keys.items()]
        kind = inspect.Parameter.KEYWORD_ONLY
        added += [inspect.Parameter(name, kind, default=False, annotation=one) for name, one in SWITCHES.items()]
        if launches:
            _launched.add(command)
            added += [inspect.Parameter(name, kind, default=None, annotation=one) for name, one in LAUNCH.items()]
            added.append(inspect.Parameter("context", kind, annotation=typer.Context))

        def run(**values: Any) -> None:
            if launches:
                from hfkit.system.launcher import launch_of

                line = values.pop("context").obj  # the command line
                values["launch"] = launch_of(line, {name: values.pop(name) for name in LAUNCH})
            for name in SWITCHES:
                del values[name]
            settings = {key: values.pop(name) for name, (key, _) in keys.items()}
            function({key: value for key, value in settings.items() if value not in (None, [])}, **values)

        run.__name__, run.__doc__ = function.__name__, inspect.getdoc(function)
        run.__signature__ = inspect.Signature([*own.values(), *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own.values(), *added]}
        return run

    return decorate


def _keys(command: str, renamed: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """Parameter name, key and flags of each setting with an option in `command`."""
    taken: set[str] = set()  # --seed is train.seed in training, evaluation.seed in evaluate
    for key, setting in SETTINGS.items():
        flags = renamed.get(key.replace(".", "__"), setting.metadata["flags"])
        if flags and acts(command, key) and not is_mapping(setting) and not taken & set(flags):
            taken |= set(flags)
            yield key.replace(".", "_"), (key, flags)


def require_file_options(
    input_: str | None,
    output: Path | None,
    resume: str | None,
    overwrite: bool,
    others: Mapping[str, Any] = MappingProxyType({}),
    *,
    several: bool,
) -> None:
    """Raises UsageError for options about a file of texts that don't go together. `others` also need --output;
    `several`: there will be several processes."""
    options = {"--output": output, "--resume": resume, "--overwrite": overwrite, **others}
    given = [flag for flag, value in options.items() if value]
    if resume not in (None, "auto"):  # which stands for a --resume alone
        raise UsageError(f"--resume {resume}: takes no value", "--output FILE.jsonl --resume")
    if input_ is None and given:
        raise UsageError(f"{given[0]} goes with --input", "--input FILE")
    if output is None and given:
        raise UsageError(f"{given[0]} has no effect without --output", "--output FILE.jsonl")
    if input_ == "-" and several:
        raise UsageError("stdin can't be read by several processes", "write it to a file: --input FILE")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other", "choose one")


def _parameter(command: str, name: str, key: str, flags: tuple[str, ...]) -> inspect.Parameter:
    setting = SETTINGS[key]
    kind: Any = bool if str(setting.type).startswith("bool") else list[str] if is_list(setting) else str
    option = typer.Option(
        *(flag for flag in flags if flag not in ALIASES),
        help=description(key) + _shown_default(command, key),
        metavar="" if kind is bool else _metavar(str(setting.type)),
        rich_help_panel=PANELS.get(key.split(".")[0], "Task"),
        show_default=False,
        hidden=setting.metadata["rare"],
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _shown_default(command: str, key: str) -> str:
    """The default of the setting in parentheses; empty if the description has it or the data decides."""
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
