"""Recipes as YAML: read strictly, written so that they can be fed back."""

from __future__ import annotations

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

    Raises UsageError for what is no short YAML mapping in UTF-8, naming the line.
    """
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
        raise UsageError(f"{path}: {error.strerror}", "hfkit recipes list") from None
    values, lines = parse_yaml(text, f"{path}: ")
    if not isinstance(values, dict | None):
        raise UsageError(f"{path}: holds no settings", "write `section:` and `  key: value` lines")
    return values or {}, {key: f"{path}: line {line}: {key}" for key, line in lines.items()}


class Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number, only true and false are booleans, no key twice, no aliases, no tags."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own spelling
        first: [pair for pair in pairs if pair[0].endswith(":null")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):  # an alias carries the anchor it points to
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"tags are not allowed: {event.tag}", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def lines(self, node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Dotted key and line of everything in a tree of mappings; a key given twice is an error."""
        seen: dict[str, int] = {}
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a name", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"'{key.value}' is given twice, first on line {seen[key.value]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[key.value] = line
            yield prefix + key.value, line
            yield from self.lines(value, f"{prefix}{key.value}.")
        for value in node.value if isinstance(node, yaml.SequenceNode) else ():
            yield from self.lines(value, f"{prefix}-.")


class Dumper(yaml.SafeDumper):
    """Quotes what `Loader` would read as something else than text, and what other readers of YAML would."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if any(end in text for end in "\x85\u2028\u2029") else None  # PyYAML folds them into blanks
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


def parse_yaml(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """The value of a YAML text, and the line of each dotted key."""
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        lines = dict(loader.lines(node))
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
    raise UsageError(f"{source}{problem}", "indent with spaces" if "'\\t'" in problem else "write `key: value`")


def flatten(nested: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; sections and free-form mappings are none, an empty one inside them is."""
    for name, value in nested.items():
        key = f"{prefix}{name}"
        owner = setting_of(key)
        inside = owner is None or is_mapping(SETTINGS[owner])
        if isinstance(value, Mapping) and inside and (value or key in SETTINGS or key in FIRST_SETTING):
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        level = nested
        for name in path:
            level = level.setdefault(name, {})
        level[last] = value
    return nested
