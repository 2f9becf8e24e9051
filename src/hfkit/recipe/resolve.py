"""Merges task defaults, recipe file, flags and --set into one validated Recipe, or reports every mistake at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hfkit.data.readers import is_table
from hfkit.errors import UsageError, did_you_mean
from hfkit.recipe.explain import idle_beside, invalid, shown, unknown_or_idle
from hfkit.recipe.upstream import SUCCESSORS, missing_trackers, optimizer_names
from hfkit.recipe.yaml import FIRST_SETTING, Dumper, Loader, flatten, nest, parse_yaml, read_recipe
from hfkit.settings import SETTINGS, Recipe, acts, is_list, setting_of
from hfkit.system.console import say, warn
from hfkit.tasks import DEFAULT_TASKS, TASKS

if TYPE_CHECKING:
    from hfkit.errors import Problem

_RECIPE = TypeAdapter(Recipe)

HUB_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # OWNER/NAME


def resolve(
    command: str,
    *,
    recipe: Path | Mapping[str, Any] | None = None,
    run: str | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] | Mapping[str, Any] = (),
) -> Recipe:
    """The recipe of one `command`: task defaults < `recipe` (file or nested) < `flags` < `sets` ("a.b=c" or {a.b: c}).

    `run` names the model of predict, generate and evaluate; where it is a run of hfkit, the settings it was trained
    with come first. Raises UsageError naming every unknown, ill-typed or idle setting and where it was given.
    """
    given = _Given()
    if isinstance(recipe, Path):
        given.add(*read_recipe(recipe))
    elif recipe:
        given.add(recipe)
    given.add(flags or {}, {key: SETTINGS[key].metadata["flags"][0].partition("/")[0] for key in flags or {}})
    if isinstance(sets, Mapping):
        given.add(sets)
    else:
        for assignment in sets:
            given.assign(assignment)

    problems = given.problems
    task = given.values.get("task") or DEFAULT_TASKS.get(command)
    choices = [name for name, one in TASKS.items() if one.command == command or command not in DEFAULT_TASKS]
    if task is not None and task not in choices:
        known = TASKS.get(str(task))
        fix = did_you_mean(str(task), choices) or (f"hfkit {known.command}" if known else f"--task {choices[0]}")
        problems.append((f"{given.where['task']}: '{task}' is no task of `hfkit {command}`: {', '.join(choices)}", fix))
        task = None
    for key, where in given.where.items():
        if problem := unknown_or_idle(command, task, key, given.values):
            problems.append((f"{where}: {problem[0]}", problem[1]))

    named = given.values.get("model.name", run)
    if run is not None and named != run:
        problems.append((f"two models are named: {run} and {named}", "name one"))
    if named is None and command in ("predict", "generate", "chat"):
        problems.append(("no model is named", f"hfkit {command} MODEL ..."))
    values: dict[str, Any] = {}
    if command not in DEFAULT_TASKS and isinstance(named, str):
        values = _settings_of_run(named, given.where)
        if command in ("generate", "chat"):  # prompts are no training data, and any text can be scored
            values = {
                key: value for key, value in values.items() if not key.startswith(("data.", "evaluation.", "task"))
            }
        if "data.test" in given.values:  # other data than the run's own
            values |= {"data.train": [], "data.validation": []}
    values |= {key: value for key, value in given.values.items() if setting_of(key)}
    measuring = TASKS.get(str(task or values.get("task")))
    if measuring is not None and isinstance(values.get("evaluation.metrics"), list):
        problems += measuring.unknown_metrics(values["evaluation.metrics"])
    if measuring is not None and (best := given.values.get("train.best")) is not None:
        watched = measuring.watched or measuring.metrics
        if best not in watched:
            problems.append((f"train.best: no evaluation while training has '{best}': {', '.join(watched)}", ""))
    named_optimizer = given.values.get("train.optimizer")
    if isinstance(named_optimizer, str) and named_optimizer not in (optimizers := optimizer_names()):
        fix = did_you_mean(named_optimizer, optimizers) or f"one of {', '.join(sorted(optimizers))}"
        problems.append((f"{given.where['train.optimizer']}: unknown optimizer '{named_optimizer}'", fix))
    if isinstance(trackers := given.values.get("train.report_to"), list):
        problems += [(f"{given.where['train.report_to']}: {what}", fix) for what, fix in missing_trackers(trackers)]
    repository = given.values.get("train.push")
    if isinstance(repository, str) and not HUB_REPOSITORY.fullmatch(repository):
        problems.append((f"{given.where['train.push']}: '{repository}' is no repository", "--push OWNER/NAME"))
    try:
        resolved = _validate(values)
        if task is not None:
            values = {key: _value(resolved, key) for key in values}
            defaults = {key: value for key, value in TASKS[task].defaults(values).items() if values.get(key) is None}
            values |= {key: value for key, value in defaults.items() if acts(command, key, task)}
            resolved = _validate({**values, "task": task})
        rows = resolved.train.per_device_train_batch_size
        if isinstance(rows, int) and rows < 1:  # pydantic has no limits for what is a number or a word
            where = given.where["train.per_device_train_batch_size"]
            problems.append((f"{where}: must be at least 1, or auto, not {rows}", "e.g. 8"))
    except ValidationError as error:
        auto = "literal['auto']"  # what isn't that is no number either, which is told
        problems += [invalid(detail, given.where) for detail in error.errors() if detail["loc"][-1] != auto]
    if problems:
        raise UsageError.of(problems)
    sources = [*resolved.data.train, *resolved.data.validation, *resolved.data.test]
    typed = given.where.get("data.documents", "")
    if typed.startswith("--") and sources and all(map(is_table, sources)):  # a recipe file may be for any data
        warn(f"{typed} has no effect: no source is a .txt file, and a row of a table is one document", "leave it out")
    return resolved


def dump_yaml(recipe: Recipe, command: str) -> str:
    """`recipe` as YAML that `hfkit <command>` takes back: the settings that act there and have a value."""
    values = {
        key: value
        for key, value in flatten(dataclasses.asdict(recipe))
        if not (key in SETTINGS and value in (None, [])) and acts(command, setting_of(key) or key, recipe.task)
    }
    acting = {key: value for key, value in values.items() if not idle_beside(key, values)}
    return yaml.dump(nest(acting), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    return _RECIPE.json_schema()


class _Given:
    """What the user gave: values by dotted key, a later one over an earlier, and where each was given."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.where: dict[str, str] = {}
        self.problems: list[Problem] = []

    def add(self, settings: Mapping[str, Any], where: Mapping[str, str] | None = None) -> None:
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
        self.values[key], self.where[key] = _as_meant(key, value), place

    def assign(self, assignment: str) -> None:
        """Takes one "section.key=value", whose value is YAML; for a text anything that is no YAML text as it is."""
        key, equals, text = (part.strip() for part in assignment.partition("="))
        place = f"--set {key}"
        if not equals or not key:
            self.problems.append((f"--set {assignment}: not an assignment", "--set section.key=value"))
            return
        is_text = key in SETTINGS and str(SETTINGS[key].type).startswith(("str", "list[str"))
        value: Any = None
        try:
            value, _ = parse_yaml(text, f"{place}: ")
        except UsageError as error:
            if not is_text:
                self.problems += error.problems
                return
            value = text
        if is_text and not isinstance(value, str | list | None):
            value = text
        self.add({key: value}, {key: place})


def _as_meant(key: str, value: Any) -> Any:
    """`value` as the setting means it: one text as a list of it, metrics divided at commas."""
    setting = SETTINGS.get(key)
    if setting is None:
        return value
    kind = str(setting.type)
    if is_list(setting) and isinstance(value, str):
        value = [value]
    if key == "evaluation.metrics" and isinstance(value, list):
        value = [name.strip() for names in value for name in str(names).split(",")]  # bleu,rouge
    if key == "train.report_to" and value == ["none"]:  # as the example scripts have it
        value = []
    if key in ("train.freeze", "train.report_to", "lora.targets") and isinstance(value, list):
        value = [part.strip() for parts in value for part in str(parts).split(",")]  # embeddings,layers:2
    if key == "train.class_weights" and isinstance(value, Mapping):
        value = yaml.safe_dump(dict(value), default_flow_style=True).strip()
    if kind.startswith(("int", "float")) and isinstance(value, bool):
        value = str(value).lower()  # for pydantic, true is the number 1
    return value


def _validate(values: Mapping[str, Any]) -> Recipe:
    recipe: Recipe = _RECIPE.validate_python(nest(values))
    return recipe


def _value(recipe: Recipe, key: str) -> Any:
    """The value of a dotted key, inside a mapping too."""
    value: Any = recipe
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def _settings_of_run(model: str, where: dict[str, str]) -> dict[str, Any]:
    """By dotted key: what a run of hfkit was trained with; it is the model itself now."""
    path = Path(model).expanduser()
    if not all((path / name).exists() for name in ("recipe.yaml", "run.json")):
        return {"model.name": model}
    settings, lines = read_recipe(path / "recipe.yaml")
    saved = {key: value for key, value in flatten(settings) if setting_of(key) and not key.startswith("model.")}
    where |= {key: lines[key] for key in saved.keys() & lines.keys() - where.keys()}
    return {**saved, "model.name": model}


Dumper.add_representer(str, Dumper.represent_text)

for _reader in (Loader, Dumper):
    _reader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    _reader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
        list("-+0123456789."),
    )
    _reader.add_implicit_resolver(
        "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
    )
