"""Merges task defaults, recipe file, flags and --set into one validated Recipe, or reports every mistake at once."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hfkit.errors import UsageError, did_you_mean
from hfkit.recipe import SETTINGS, Recipe, acts, is_list, is_mapping, setting_of
from hfkit.tasks import DEFAULT_TASKS, TASKS

MAX_RECIPE_BYTES = 1_000_000

_RECIPE = TypeAdapter(Recipe)

# Fields of TrainingArguments that hfkit decides or has a setting of its own for, with what to do instead.
_DECIDED = {
    "auto_find_batch_size": "set train.per_device_train_batch_size",
    "data_seed": "set train.seed",
    "dataloader_drop_last": "no row is ever dropped",
    "disable_tqdm": "hfkit prints its own progress",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint already",
    "eval_strategy": "set train.eval_steps",
    "hub_token": "run `hf auth login`",
    "ignore_data_skip": "a resume is always exact",
    "load_best_model_at_end": "not offered yet",
    "logging_nan_inf_filter": "a loss that is not a number stops the run",
    "logging_strategy": "set train.logging_steps",
    "push_to_hub": "not offered yet",
    "remove_unused_columns": "hfkit chooses the columns",
    "resume_from_checkpoint": "use --resume",
    "save_only_model": "a checkpoint is always complete",
    "save_strategy": "set train.save_steps",
    "train_sampling_strategy": "rows are shuffled, and ordered by length where that saves padding",
}

# Names that transformers 4 had and 5 has not.
_FORMER = {
    "adafactor": "set train.extra.optim: adafactor",
    "evaluation_strategy": "set train.eval_steps",
    "fp16_backend": "leave it out",
    "group_by_length": "leave it out: rows are ordered by length where that saves padding",
    "half_precision_backend": "leave it out",
    "logging_dir": "leave it out",
    "no_cuda": "set train.extra.use_cpu: true",
    "overwrite_output_dir": "use --overwrite",
    "per_gpu_eval_batch_size": "set train.per_device_eval_batch_size",
    "per_gpu_train_batch_size": "set train.per_device_train_batch_size",
    "warmup_ratio": "set train.warmup_steps to a share below 1",
}


def resolve(
    command: str,
    *,
    recipe: Path | Mapping[str, Any] | None = None,
    run: str | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Recipe:
    """The recipe of one `command`: task defaults < `recipe` (file or nested) < `flags` (dotted) < `sets` ("a.b=c").

    `run` names the model of predict, generate and evaluate; where it is a run of hfkit, the settings it was trained
    with come first. Raises UsageError naming every unknown, ill-typed or idle setting and where it was given.
    """
    given: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems: list[tuple[str, str]] = []

    def add(source: str, nested: Mapping[str, Any]) -> None:
        for key, value in _flatten(nested):
            setting = SETTINGS.get(key)
            if setting is not None and is_list(setting) and isinstance(value, str):
                value = [value]
            if key == "evaluation.metrics" and isinstance(value, list):
                value = [name for names in value for name in str(names).split(",")]  # bleu,rouge
            given[key], origin[key] = value, source

    run = run or (flags or {}).get("model.name")
    if run is not None and command not in DEFAULT_TASKS:
        if (flags or {}).get("model.name", run) != run:
            problems.append((f"two models are named: {run} and {(flags or {})['model.name']}", "name one"))
        given = _settings_of_run(run)
        if "data.test" in (flags or {}):  # other data than the run's own
            given = {key: value for key, value in given.items() if key not in ("data.train", "data.validation")}
    if isinstance(recipe, Path):
        add(f"{recipe}: ", read_yaml(recipe))
    elif recipe:
        add("", recipe)
    for key, value in (flags or {}).items():
        add(f"{SETTINGS[key].metadata['flags'][0]}: ", {key: value})
    for assignment in sets:
        key, equals, text = assignment.partition("=")
        if equals and key.strip():
            add("--set ", {key.strip(): _parse_yaml(text, f"--set {key}")})
        else:
            problems.append((f"--set {assignment}: not an assignment", "--set section.key=value"))

    task = given.get("task") or DEFAULT_TASKS.get(command)
    if task is not None and (task not in TASKS or (command in DEFAULT_TASKS and TASKS[task].command != command)):
        fits = [name for name, one in TASKS.items() if one.command == command or command not in DEFAULT_TASKS]
        problems.append(
            (
                f"{origin.get('task', '')}task '{task}' is not one of `hfkit {command}`: {', '.join(fits)}",
                did_you_mean(str(task), fits)
                or (f"hfkit {TASKS[task].command}" if task in TASKS else f"--task {fits[0]}"),
            )
        )
        task = None
    for key in origin:
        problem = _unknown_or_idle(command, task, key)
        if problem:
            problems.append((origin[key] + problem[0], problem[1]))
    if task is not None:
        for key, value in TASKS[task].defaults(given).items():
            if given.get(key) is None and acts(command, key, task):
                given[key] = value
        if "task" in SETTINGS and acts(command, "task"):
            given["task"] = task
    known = {key: value for key, value in given.items() if setting_of(key)}
    try:
        resolved: Recipe = _RECIPE.validate_python(_nest(known))
    except ValidationError as error:
        problems += [_invalid(detail, origin) for detail in error.errors()]
    if problems:
        raise UsageError.of(problems)
    return resolved


def _settings_of_run(run: str) -> dict[str, Any]:
    """By dotted key: what the run was trained with, where `run` is one of hfkit; it is the model itself now."""
    path = Path(run).expanduser() / "recipe.yaml"
    saved = dict(_flatten(read_yaml(path))) if path.exists() else {}
    return {key: value for key, value in saved.items() if not key.startswith("model.")} | {"model.name": run}


def dump_yaml(recipe: Recipe, command: str) -> str:
    """`recipe` as YAML that `hfkit <command>` takes back: the settings that act there and have a value."""
    values = {
        key: value
        for key, value in _flatten(dataclasses.asdict(recipe))
        if value is not None and value != [] and acts(command, setting_of(key) or key, recipe.task)
    }
    return yaml.safe_dump(_nest(values), sort_keys=False, allow_unicode=True, width=120)


def load_saved(path: Path) -> Recipe:
    """The recipe that a run directory holds, as it was resolved."""
    nested = read_yaml(path)
    try:
        recipe: Recipe = _RECIPE.validate_python(nested)
    except ValidationError as error:
        origin = {key: f"{path}: " for key, _ in _flatten(nested)}
        raise UsageError.of([_invalid(detail, origin) for detail in error.errors()]) from None
    return recipe


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors."""
    return _RECIPE.json_schema()


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; anything else, an alias or a key given twice is a UsageError naming the line."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_RECIPE_BYTES:,} bytes", "a recipe is a short YAML file")
        value = _parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "hfkit recipes list") from None
    if not isinstance(value, dict | None):
        raise UsageError(f"{path}: holds no settings", "write `section:` and `  key: value` lines")
    return value or {}


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number, only true and false are booleans, no key twice, no aliases."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own spelling
        first: [pair for pair in pairs if not pair[0].endswith((":bool", ":float", ":timestamp"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):  # an alias carries the anchor it points to
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.value in lines:
                problem = f"'{key_node.value}' is given twice, first on line {lines[key_node.value]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            lines[key_node.value] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise UsageError(f"{where}: {getattr(error, 'problem', None) or error}", "write `key: value`") from None


def _flatten(nested: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; sections and free-form mappings are no leaves."""
    for name, value in nested.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and (not (owner := setting_of(key)) or is_mapping(SETTINGS[owner])):
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        level = nested
        for name in path:
            level = level.setdefault(name, {})
        level[last] = value
    return nested


def _unknown_or_idle(command: str, task: str | None, key: str) -> tuple[str, str] | None:
    """What is wrong with giving `key` to `command`, and what to type instead; None where it acts."""
    name = setting_of(key)
    last = key.rpartition(".")[2]
    if name is None:
        if last in _FORMER:
            return f"{key}: transformers 5 has no '{last}'", _FORMER[last]
        namesakes = [known for known in SETTINGS if known.rpartition(".")[2] == last]
        fix = f"did you mean '{namesakes[0]}'?" if namesakes else did_you_mean(key, SETTINGS)
        if not fix and last in _training_arguments():
            fix = f"set train.extra.{last}"
        return f"{key}: unknown setting", fix or "hfkit recipes schema"
    if not acts(command, name):
        commands = [other for other in ("pretrain", "finetune", "predict", "generate", "evaluate") if acts(other, name)]
        return f"{key}: has no effect in `hfkit {command}`", f"leave it out; it acts in {', '.join(commands)}"
    if not acts(command, name, task):
        return f"{key}: has no effect for {task}", f"leave it out; it acts for {SETTINGS[name].metadata['tasks'][0]}"
    if name == "train.extra":
        own = [known for known in SETTINGS if known == f"train.{last}"]
        if own:
            return f"{key}: is a setting of its own", f"set {own[0]}"
        if last in _DECIDED:
            return f"{key}: is decided by hfkit", _DECIDED[last]
        if last in _FORMER:
            return f"{key}: transformers 5 has no '{last}'", _FORMER[last]
        arguments = _training_arguments()
        if key.split(".")[2] not in arguments:
            return f"{key}: no field of TrainingArguments", did_you_mean(last, arguments) or "hfkit recipes schema"
    return None


def _training_arguments() -> set[str]:
    """Field names of transformers.TrainingArguments, read from its source since importing it costs seconds."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return set()
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    (arguments,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return {
        node.target.id
        for node in arguments.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _invalid(detail: Any, origin: Mapping[str, str]) -> tuple[str, str]:
    """One pydantic error as message and fix."""
    path = [str(part) for part in detail["loc"]]
    key = next((".".join(path[:end]) for end in range(len(path), 0, -1) if ".".join(path[:end]) in SETTINGS), "")
    key = key or ".".join(path)
    source = next((where for given, where in origin.items() if given == key or given.startswith(key + ".")), "")
    message = detail["msg"][0].lower() + detail["msg"][1:]
    setting = SETTINGS.get(key)
    fix = ""
    if detail["type"] == "literal_error":
        fix = did_you_mean(str(detail["input"]), re.findall(r"'([^']*)'", message))
    elif setting is not None:
        fix = f"e.g. --set {key}={_example(setting)}"
    return f"{source}{key}: {message}, not {detail['input']!r}", fix


def _example(setting: dataclasses.Field[Any]) -> str:
    if setting.default not in (dataclasses.MISSING, None):
        return str(setting.default)
    kind = str(setting.type)
    return "0.1" if "float" in kind else "8" if "int" in kind else "[a, b]" if "list" in kind else "NAME"
