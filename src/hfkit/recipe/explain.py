"""Problems with a setting, and what to type instead."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

from hfkit.errors import Problem, did_you_mean
from hfkit.recipe.effect import acts_for, idle_because, tasks_with
from hfkit.recipe.upstream import DECIDED, FORMER, training_argument_types
from hfkit.settings import SECTIONS, SETTINGS, acts, setting_of
from hfkit.system import permissions
from hfkit.tasks import DEFAULT_TASKS

OWN_EXAMPLES = {"learning_rate": "5e-5", "num_train_epochs": "3", "max_time": "30m"}

EXAMPLES = {"float": "0.1", "int": "8", "list": "[a, b]", "dict": "{key: value}"}

# pydantic's types of error in plain words; braces are filled with the limit.
MUST_BE = {
    "bool": "true or false",
    "dict": "`key: value` pairs",
    "finite_number": "a finite number",
    "float": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int": "a whole number",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "list": "a list",
    "literal_error": "one of {expected}",
    "str": "text",
    "string": "text",
    "string_pattern_mismatch": "a time such as 90s, 30m or 1h30m",
}


def problem_with(command: str, task: str | None, key: str, values: Mapping[str, Any]) -> Problem | None:
    """The problem with giving `key` to `command`: it is unknown or has no effect. None if it has."""
    name = setting_of(key)
    if name is None:
        return _unknown(command, key)
    if not acts(command, name):
        commands = [other for other in SECTIONS if acts(other, name)]
        return f"has no effect in `hfkit {command}`", f"leave it out; it acts in {', '.join(commands)}"
    if not acts_for(task, name):
        return f"has no effect for {task}", f"leave it out; it acts for {', '.join(tasks_with(name))}"
    if idle := idle_because(name, values, task):
        return idle
    is_extra = name == "train.extra" and key != name
    return _wrong_extra(key.removeprefix("train.extra."), values[key]) if is_extra else None


def _unknown(command: str, key: str) -> Problem:
    last = key.rpartition(".")[2]
    if last in FORMER:
        return f"transformers 5 has no '{last}'", FORMER[last]
    flag = "--" + last.replace("_", "-")
    if flag in (permissions.REMOTE_CODE, permissions.PICKLE):
        return "can't be allowed by a recipe", f"type {flag} on the command line"
    near = [other for other in SETTINGS if acts(command, other)]
    same = [other for other in near if last == other.rpartition(".")[2] or flag in SETTINGS[other].metadata["flags"]]
    fix = f"did you mean '{same[0]}'?" if same else did_you_mean(key, near) or did_you_mean(key, SETTINGS)
    if not fix and last in training_argument_types():
        fix = f"set train.extra.{last}"
    shows = "--dry-run prints the settings" if command in DEFAULT_TASKS else "--help lists them"
    return "unknown setting", fix or f"hfkit {command} {shows}"


def _wrong_extra(key: str, value: Any) -> Problem | None:
    """The problem with `key`, a field of TrainingArguments or a key inside one; None if it is right."""
    name = key.partition(".")[0]
    arguments = training_argument_types()
    if f"train.{name}" in SETTINGS:
        return "is a setting of its own", f"set train.{name}"
    if name in DECIDED:
        return "is decided by hfkit", DECIDED[name]
    if name in FORMER:
        return f"transformers 5 has no '{name}'", FORMER[name]
    if name not in arguments:
        return "not a field of TrainingArguments", did_you_mean(name, arguments) or "leave it out"
    kinds: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "str": str}
    kind, _, rest = arguments[name].partition(" | ")
    if kind in kinds and rest in ("", "None") and not (rest and value is None):
        is_flag = isinstance(value, bool)
        if not isinstance(value, kinds[kind]) or is_flag != (kind == "bool"):
            return f"must be {MUST_BE[kind]}, not {shown(value)}", ""
    if key == name and kind.startswith("dict") and not isinstance(value, dict | str | None):
        return f"must be a mapping, not {shown(value)}", "write {key: value}"
    return None


def invalid(detail: Any, where: Mapping[str, str]) -> Problem:
    """A pydantic error as message and fix; `where` each setting was given, by dotted key."""
    path = [str(part) for part in detail["loc"]]
    key = next(key for end in range(len(path), 0, -1) if (key := ".".join(path[:end])) in SETTINGS)
    kind, value = detail["type"], detail["input"]
    wanted = MUST_BE.get(kind) or MUST_BE.get(kind.partition("_")[0], "")
    limits = detail.get("ctx", {}).items()
    wanted = wanted.format(**{name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in limits})
    if kind == "literal_error":
        wanted = wanted.replace("'", "").replace(" or ", ", ")
        fix = did_you_mean(str(value), wanted.removeprefix("one of ").split(", "))
    elif kind == "string_type" and isinstance(value, int | float):
        fix = f'put it in quotes: "{value}"'
    else:
        fix = f"e.g. {_example(SETTINGS[key])}"
    return f"{where.get(key, key)}: must be {wanted or detail['msg']}, not {shown(value)}", fix


def shown(value: Any) -> str:
    """The value as written in a recipe, on one line."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)


def _example(setting: dataclasses.Field[Any]) -> str:
    if setting.default not in (dataclasses.MISSING, None):
        return str(setting.default).lower()
    kind = str(setting.type)
    usual = next((example for word, example in EXAMPLES.items() if word in kind), "a name")
    return OWN_EXAMPLES.get(setting.name, usual)
