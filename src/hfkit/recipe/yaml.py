"""Reads YAML recipes strictly, and writes recipes that can be read back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hfkit.errors import UsageError
from hfkit.settings import SETTINGS, is_mapping, setting_of

MAX_RECIPE_BYTES = 100_000

# Sections by dotted name, each with its first setting as an example.
FIRST_SETTING = {key.rpartition(".")[0]: key.rpartition(".")[2] for key in reversed(SETTINGS) if "." in key}


def read_recipe(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings in a recipe file and, by dotted key, where each stands ("r.yaml: line 3: train.seed").

    Raises UsageError, with the line, unless the file is a short YAML mapping in UTF-8.
    """
    if path.is_fifo() and path.parent != Path("/dev/fd"):  # reading would wait for a writer
        raise UsageError(f"{path}: a pipe, not a file", "hfkit recipes list")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECIPE_BYTES + 1)
        if len(content) > MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_RECIPE_BYTES:,} bytes", "a recipe is a short YAML file")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}: line {line}: {content[error.start]:#04x} is not UTF-8", "save it as UTF-8") from None
    except OSError as error:
        fix = f"hfkit finetune --model {path}" if (path / "config.json").exists() else "hfkit recipes list"
        raise UsageError(f"{path}: {error.strerror}", fix) from None
    values, lines = parse_yaml(text, f"{path}: ")
    if not isinstance(values, dict | None):
        is_recipe = path.suffix in (".yaml", ".yml")
        fix = "write `section:` and `  key: value` lines" if is_recipe else "write --data before it, if it is data"
        raise UsageError(f"{path}: contains no settings", fix)
    return values or {}, {key: f"{path}: line {line}: {key}" for key, line in lines.items()}


def parse_yaml(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """The value of a YAML text, and the line of each dotted key. Raises UsageError; `source` begins its message."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = dict(_lines(node))
        return (None if node is None else loader.construct_document(node)), lines
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        problem = f"line {line}: the character {ord(text[error.position]):#04x} is not allowed"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = (f"line {mark.line + 1}: " if mark else "") + str(error.problem).removeprefix("but ")
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = str(error)
    fixes = {"'\\t'": "indent with spaces", "is given twice": "delete one of them"}
    fix = next((fix for sign, fix in fixes.items() if sign in problem), "write `key: value`")
    raise UsageError(f"{source}{problem}", fix)


def write_yaml(values: Mapping[str, Any]) -> str:
    """`values`, by dotted key, as YAML."""
    return yaml.dump(nest(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def flatten(nested: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf. An empty mapping is a leaf inside a free-form mapping, not as a section."""
    for name, value in nested.items():
        key = f"{prefix}{name}"
        owner = setting_of(key)
        inside = owner is None or is_mapping(SETTINGS[owner])
        if isinstance(value, Mapping) and inside and (value or key in SETTINGS or key in FIRST_SETTING):
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as nested mappings."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        level = nested
        for name in path:
            level = level.setdefault(name, {})
        level[last] = value
    return nested


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number, only true and false are booleans. Aliases and tags are errors."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own spelling
        first: [pair for pair in pairs if pair[0].endswith(":null")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):  # an alias carries the anchor it points to
            raise _error("anchors and aliases are not allowed", event.start_mark)
        if getattr(event, "tag", None):
            raise _error(f"tags are not allowed: {event.tag}", event.start_mark)
        return super().compose_node(parent, index)


def _lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Dotted key and line of every key in a tree of mappings; raises MarkedYAMLError for a duplicate key."""
    seen: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _error("a key must be a name", key.start_mark)
        if key.value in seen:
            raise _error(f"'{key.value}' is given twice, first on line {seen[key.value]}", key.start_mark)
        seen[key.value] = line
        yield prefix + key.value, line
        yield from _lines(value, f"{prefix}{key.value}.")
    for value in node.value if isinstance(node, yaml.SequenceNode) else ():
        yield from _lines(value, f"{prefix}-.")


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader`, or another YAML reader, would take for something else."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if any(end in text for end in "\x85\u2028\u2029") else None  # PyYAML folds them into blanks
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)

for _tag, _pattern, _first in [
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
]:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
