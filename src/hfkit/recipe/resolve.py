"""Merges task defaults, recipe file, flags and --set into one validated Recipe, or reports every mistake at once."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hfkit.data.readers import UNLESS_NAMED, are_alike, has_effect, is_table
from hfkit.errors import Problem, UsageError, did_you_mean
from hfkit.recipe.checks import wrong_values
from hfkit.recipe.effect import acts_for, description, idle_because
from hfkit.recipe.explain import invalid, problem_with, shown
from hfkit.recipe.upstream import SUCCESSORS
from hfkit.recipe.yaml import FIRST_SETTING, flatten, nest, parse_yaml, read_recipe, write_yaml
from hfkit.settings import SETTINGS, Recipe, acts, is_list, setting_of
from hfkit.system.console import say, warn
from hfkit.system.files import read_json
from hfkit.tasks import DEFAULT_TASKS, TASKS

_RECIPE = TypeAdapter(Recipe)

SAVED = ("model.", "data.chat_template")  # settings of a run that its model holds


def resolve(
    command: str,
    *,
    recipe: Path | Mapping[str, Any] | None = None,
    run: str | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] | Mapping[str, Any] = (),
    files: Sequence[str] = (),
) -> Recipe:
    """The recipe of one `command`: task defaults < `recipe` (file or nested) < `flags` < `sets` ("a.b=c" or {a.b: c}).

    `run` is the model of predict, generate and evaluate; if it is a run of hfkit, the settings of its training come
    first, except those of another kind of file than `files`, which predict reads. Raises UsageError naming every
    setting that is unknown, has a wrong value or has no effect, and its place.
    """
    given = _Given()
    if isinstance(recipe, Path):
        given.add(*read_recipe(recipe))
    else:
        given.add(recipe or {})
    given.add(flags or {}, {key: SETTINGS[key].metadata["flags"][0].partition("/")[0] for key in flags or {}})
    if isinstance(sets, Mapping):
        given.add(sets)
    else:
        given.assign(sets)

    task = _task(command, given)
    typed = dict(given.where)
    values = _with_settings_of_run(command, run, given, files)
    known = str(task or values.get("task"))  # that of the run
    for key in typed:
        if problem := problem_with(command, known if known in TASKS else None, key, given.values):
            given.report(key, problem)
    for key, problem in wrong_values(given.values, known):
        given.report(key, problem)
    try:
        inherited = values.get("data.header") == UNLESS_NAMED and "data.header" not in given.values
        resolved: Recipe = _RECIPE.validate_python(nest(values | ({"data.header": None} if inherited else {})))
        if inherited:
            resolved = _replaced(resolved, {"data": {"header": UNLESS_NAMED}})
    except ValidationError as error:
        auto = "literal['auto']"  # the other half of `int | "auto"`: one error is enough
        given.problems += [invalid(detail, given.where) for detail in error.errors() if detail["loc"][-1] != auto]
    if given.problems:
        raise UsageError.of(given.problems)
    if task is not None:
        resolved = _with_defaults(resolved, command, task, values)
    _warn_of_documents(given, resolved)
    return resolved


def dump_yaml(recipe: Recipe, command: str) -> str:
    """`recipe` as YAML that `hfkit <command>` reads back: the settings that have a value and an effect there."""
    values = {}
    for key, value in flatten(dataclasses.asdict(recipe)):
        name = setting_of(key) or key
        if not (key in SETTINGS and value in (None, [])) and acts(command, name) and acts_for(recipe.task, name):
            values[key] = value
    return write_yaml({key: value for key, value in values.items() if not idle_because(key, values, recipe.task)})


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    schema = _RECIPE.json_schema()
    schema["properties"]["task"]["description"] = description("task")
    return schema


class _Given:
    """What the user gave: values by dotted key, a later one over an earlier, and where each was given."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.where: dict[str, str] = {}
        self.problems: list[Problem] = []

    def report(self, key: str, problem: Problem) -> None:
        """Adds a problem with the value of `key`."""
        self.problems.append((f"{self.where.get(key, key)}: {problem[0]}", problem[1]))

    def add(self, settings: Mapping[str, Any], where: Mapping[str, str] | None = None) -> None:
        """Takes nested or dotted settings; `where` each was given, by dotted key."""
        for key, value in flatten(settings):
            place = (where or {}).get(key, key)
            if key not in FIRST_SETTING:
                self._add(key, value, place)
            elif value is not None:  # None: a section with every line commented out
                fix = f"write its settings below it, such as {FIRST_SETTING[key]}"
                self.problems.append((f"{place}: is a section, not {shown(value)}", fix))

    def _add(self, key: str, value: Any, place: str) -> None:
        prefix, _, last = key.rpartition(".")
        if last in SUCCESSORS and prefix in ("", "train", "train.extra"):
            key = SUCCESSORS[last]
            say(f"note: {place}: {last} is {key} since transformers 5")
        for other in [other for other in self.values if (other + ".").startswith(key + ".")]:
            del self.values[other], self.where[other]
        for end in range(key.count("."), 0, -1):
            self.values.pop(parent := ".".join(key.split(".")[:end]), None)
            self.where.pop(parent, None)
        self.values[key], self.where[key] = _normalized(key, value), place

    def assign(self, assignments: Iterable[str]) -> None:
        """Takes each "section.key=value". Values are YAML; a text setting takes what is not YAML text as it is."""
        for assignment in assignments:
            key, equals, text = (part.strip() for part in assignment.partition("="))
            place = f"--set {key}"
            if not equals or not key:
                self.problems.append((f"--set {assignment}: not an assignment", "--set section.key=value"))
                continue
            is_text = key in SETTINGS and str(SETTINGS[key].type).startswith(("str", "list[str"))
            try:
                value, _ = parse_yaml(text, f"{place}: ")
            except UsageError as error:
                if not is_text:
                    self.problems += error.problems
                    continue
                value = text
            if is_text and not isinstance(value, str | list | None):
                value = text
            self.add({key: value}, {key: place})


def _normalized(key: str, value: Any) -> Any:
    """`value` in the form of the setting: one text as a list of it, lists divided at commas."""
    setting = SETTINGS.get(key)
    if setting is None:
        return value
    if is_list(setting) and isinstance(value, str):
        value = [value]
    if setting.metadata["commas"] and isinstance(value, list):
        value = [part.strip() for parts in value for part in str(parts).split(",")]  # bleu,rouge
    if key == "train.report_to" and value == ["none"]:  # as the example scripts have it
        value = []
    if key == "train.class_weights" and isinstance(value, Mapping):
        value = yaml.safe_dump(dict(value), default_flow_style=True).strip()
    if str(setting.type).startswith(("int", "float")) and isinstance(value, bool):
        value = str(value).lower()  # for pydantic, true is the number 1
    return value


def _task(command: str, given: _Given) -> str | None:
    """The task that was given, or that of the files, or the default of `command`.

    None, and a problem, if `command` does not have it.
    """
    choices = [name for name, one in TASKS.items() if one.command == command or command not in DEFAULT_TASKS]
    task = given.values.get("task") or DEFAULT_TASKS.get(command)
    if task is not None and "task" not in given.values:
        task = _task_of_files(given, choices) or task
    if task is None or task in choices:
        return task
    known = TASKS.get(str(task))
    usual = choices[0] if command in DEFAULT_TASKS else None  # else the model tells its task
    called = next((name for name in choices if str(task) in TASKS[name].aliases), usual)
    fix = did_you_mean(str(task), choices) or (f"hfkit {known.command}" if known else "")
    fix = fix or (f"--task {called}" if called else "leave it out")
    given.report("task", (f"'{task}' is not a task of `hfkit {command}`: {', '.join(choices)}", fix))
    return None


def _task_of_files(given: _Given, choices: Sequence[str]) -> str | None:
    """The one of `choices` whose kind of file the training data has, which is printed; None if none is told by it."""
    sources = given.values.get("data.train")
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        return None  # which is reported later
    for name in choices:
        if all(acts_for(name, key) for key in given.values) and (reason := TASKS[name].claims(sources)):
            say(f"task: {name}, because {reason} (change with --task)")
            return name
    return None


def _with_settings_of_run(command: str, run: str | None, given: _Given, files: Sequence[str]) -> dict[str, Any]:
    """The given values of known settings, over those the model was trained with if it is a run of hfkit."""
    model = given.values.get("model.name", run)
    if run is not None and model != run:
        given.problems.append((f"two models are named: {run} and {model}", "name one"))
    if model is None and command in ("predict", "generate", "chat"):
        given.problems.append(("no model is named", f"hfkit {command} MODEL ..."))
    values: dict[str, Any] = {}
    if command not in DEFAULT_TASKS and isinstance(model, str):
        path = Path(model).expanduser()
        if all((path / name).exists() for name in ("recipe.yaml", "run.json")):
            settings, lines = read_recipe(path / "recipe.yaml")
            known = {key: value for key, value in flatten(settings) if setting_of(key)}
            values = {key: value for key, value in known.items() if not key.startswith(SAVED)}
            values |= _from_where_typed(values, read_json(path / "run.json").get("directory"))
            given.where = {key: lines[key] for key in values.keys() & lines.keys()} | given.where
        if command in ("generate", "chat"):  # a prompt is not training data, and any text can be scored
            foreign = ("data.", "evaluation.", "task")
            values = {key: value for key, value in values.items() if not key.startswith(foreign)}
        if command == "predict" or "data.test" in given.values:
            values |= _of_new_files(values, files or given.values.get("data.test") or [])
        if "data.test" in given.values:  # other data than the run's own
            values |= {"data.train": [], "data.validation": []}
        values["model.name"] = model
    return values | {key: value for key, value in given.values.items() if setting_of(key)}


def _of_new_files(values: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """How the files of a run are written, as far as it may hold for others, too: how one is written is its own fact.

    A first line that names columns is a header also where the training data had none, and text is UTF-8 where it can
    be, unless text in the encoding of the run is always valid UTF-8, too.
    """
    found: dict[str, Any] = {}
    if files and not are_alike(files, values.get("data.train") or []):
        found |= {"data.csv.quoting": None, "data.csv.separator": None}
    if files and not any(has_effect("header", file) for file in files):
        found["data.header"] = None
    if values.get("data.header") is False:
        found["data.header"] = UNLESS_NAMED
    encoding = values.get("data.encoding")
    if isinstance(encoding, str) and "utf-8" not in encoding.split(",") and not _is_seven_bit(encoding):
        found["data.encoding"] = f"utf-8,{encoding}"
    return found


def _is_seven_bit(encoding: str) -> bool:
    """Whether one of these encodings writes all text as ASCII bytes, as ISO-2022-JP, HZ and UTF-7 do."""
    try:
        written = ["éжαאก漢あ한".encode(name, "ignore") for name in encoding.split(",")]
        return any(text and text.isascii() for text in written)
    except LookupError:  # said when the data is read
        return False


def _from_where_typed(values: Mapping[str, Any], directory: Any) -> dict[str, Any]:
    """The data of a run whose relative paths lead to files from `directory`, where its command was typed, alone."""
    found: dict[str, Any] = {}
    for key in ("data.train", "data.validation", "data.test") if isinstance(directory, str) else ():
        sources = values.get(key)
        if isinstance(sources, list):
            found[key] = [_from(directory, source) for source in sources]
    return found


def _from(directory: str, source: str) -> str:
    """`source` as it is found from here: a relative path beside `directory` in full, anything else unchanged."""
    path = Path(directory, source).expanduser()
    is_there = path.exists() or (glob.has_magic(source) and bool(glob.glob(str(path), recursive=True)))
    same = Path(directory) == Path.cwd() or Path(source).is_absolute() or source.startswith(("~", "builtin:"))
    return str(path) if is_there and not same else source


def _with_defaults(recipe: Recipe, command: str, task: str, given: Iterable[str]) -> Recipe:
    """`recipe` with the task's defaults for the settings that are not among `given` or are None."""
    values = {key: reduce(_item, key.split("."), recipe) for key in given}
    defaults = {
        key: value
        for key, value in TASKS[task].defaults(values).items()
        if values.get(key) is None and acts(command, key) and acts_for(task, key)
    }
    replaced: Recipe = _replaced(recipe, nest({**defaults, "task": task}))
    return replaced


def _warn_of_documents(given: _Given, recipe: Recipe) -> None:
    """Warns if --documents was typed and all data is in tables."""
    sources = [*recipe.data.train, *recipe.data.validation, *recipe.data.test]
    typed = given.where.get("data.documents", "")
    if typed.startswith("--") and sources and all(map(is_table, sources)):  # a recipe file may be for any data
        warn(f"{typed} has no effect: no source is a .txt file, and a row of a table is one document", "leave it out")


def _item(section: Any, name: str) -> Any:
    return section[name] if isinstance(section, dict) else getattr(section, name)


def _replaced(section: Any, values: Mapping[str, Any]) -> Any:
    """`section` with nested `values` in the place of its own."""
    new = {}
    for name, value in values.items():
        old = getattr(section, name)
        new[name] = _replaced(old, value) if dataclasses.is_dataclass(old) else value
    return dataclasses.replace(section, **new)
