"""Merges task defaults, recipe file, flags and --set into one validated Recipe, or reports every mistake at once."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hfkit import permissions
from hfkit.console import say, warn
from hfkit.errors import UsageError, did_you_mean
from hfkit.readers import is_table
from hfkit.recipe import SECTIONS, SETTINGS, Recipe, acts, is_list, is_mapping, setting_of
from hfkit.tasks import DEFAULT_TASKS, TASKS

MAX_RECIPE_BYTES = 100_000

Problem = tuple[str, str]  # message and fix

_RECIPE = TypeAdapter(Recipe)

# Sections by dotted name, each with its first setting as an example.
_FIRST_SETTING = {key.rpartition(".")[0]: key.rpartition(".")[2] for key in reversed(SETTINGS) if "." in key}

# Fields of TrainingArguments that hfkit decides, with what to do instead.
_DECIDED = {
    "accelerator_config": "leave it out: hfkit divides the rows among processes",
    "auto_find_batch_size": "set train.per_device_train_batch_size",
    "batch_eval_metrics": "leave it out",
    "data_seed": "set train.seed",
    "dataloader_drop_last": "leave it out: no row is ever dropped",
    "disable_tqdm": "leave it out: hfkit prints its own progress",
    "do_eval": "leave it out: data.validation is evaluated where there is any",
    "do_predict": "leave it out: data.test is scored where it is given",
    "do_train": "leave it out",
    "enable_jit_checkpoint": "leave it out: SIGTERM saves a checkpoint already",
    "eval_delay": "set train.eval_steps",
    "eval_do_concat_batches": "leave it out",
    "eval_strategy": "set train.eval_steps",
    "greater_is_better": "leave it out",
    "hub_always_push": "leave it out",
    "hub_model_id": "set train.push",
    "hub_private_repo": "leave it out: a new repository is private, an existing one stays as it is",
    "hub_revision": "leave it out",
    "hub_strategy": "leave it out",
    "hub_token": "run `hf auth login`",
    "ignore_data_skip": "leave it out: a resume is always exact",
    "include_for_metrics": "set evaluation.metrics",
    "label_names": "set data.columns.label",
    "bf16": "set train.precision: bfloat16",
    "fp16": "set train.precision: float16",
    "label_smoothing_factor": "set train.label_smoothing",
    "length_column_name": "leave it out",
    "load_best_model_at_end": "set train.best",
    "local_rank": "leave it out",
    "logging_nan_inf_filter": "leave it out: a loss that is not a number stops the run",
    "logging_strategy": "set train.logging_steps",
    "metric_for_best_model": "set train.best",
    "optim": "set train.optimizer",
    "prediction_loss_only": "leave it out",
    "push_to_hub": "set train.push: OWNER/NAME",
    "remove_unused_columns": "leave it out: hfkit chooses the columns",
    "resume_from_checkpoint": "use --resume",
    "save_only_model": "leave it out: a checkpoint is always complete",
    "save_strategy": "set train.save_steps",
    "activation_checkpointing": "set train.gradient_checkpointing",
    "torch_compile": "set train.compile",
    "train_sampling_strategy": "leave it out: rows are shuffled, and ordered by length where that saves padding",
}

# Names that transformers 4 had and 5 has not: those with an exact successor are taken for it, with a note.
_SUCCESSORS = {
    "no_cuda": "train.extra.use_cpu",
    "per_gpu_eval_batch_size": "train.per_device_eval_batch_size",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "warmup_ratio": "train.warmup_steps",
}
_FORMER = {
    "adafactor": "set train.optimizer: adafactor",
    "evaluation_strategy": "set train.eval_steps",
    "fp16_backend": "leave it out",
    "group_by_length": "leave it out: rows are ordered by length where that saves padding",
    "half_precision_backend": "leave it out",
    "logging_dir": "leave it out",
    "overwrite_output_dir": "use --overwrite",
}

# What train.report_to takes, by the names of transformers.integrations: packages of which one must be installed.
TRACKERS: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml-core",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet-ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune", "neptune-client"),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}

HUB_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # OWNER/NAME

_EXAMPLES = {"float": "0.1", "int": "8", "list": "[a, b]", "dict": "{key: value}"}

# Pydantic's kinds of error in plain words; what is in braces comes from the limit.
_MUST_BE = {
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
        if problem := _unknown_or_idle(command, task, key, given.values):
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
    if isinstance(named_optimizer, str) and named_optimizer not in (optimizers := _optimizers()):
        fix = did_you_mean(named_optimizer, optimizers) or f"one of {', '.join(sorted(optimizers))}"
        problems.append((f"{given.where['train.optimizer']}: unknown optimizer '{named_optimizer}'", fix))
    if isinstance(trackers := given.values.get("train.report_to"), list):
        problems += [(f"{given.where['train.report_to']}: {what}", fix) for what, fix in _missing_trackers(trackers)]
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
        problems += [_invalid(detail, given.where) for detail in error.errors() if detail["loc"][-1] != auto]
    if problems:
        raise UsageError.of(problems)
    sources = [*resolved.data.train, *resolved.data.validation, *resolved.data.test]
    typed = given.where.get("data.documents", "")
    if typed.startswith("--") and sources and all(map(is_table, sources)):  # a recipe file may be for any data
        warn(f"{typed} has no effect: no source is a .txt file, and a row of a table is one document", "leave it out")
    return resolved


def _missing_trackers(names: Sequence[Any]) -> Iterator[Problem]:
    """A problem for each tracker that can't be used."""
    for name in map(str, names):
        packages = TRACKERS.get(name)
        if packages is None:
            fix = did_you_mean(name, TRACKERS) or f"one of {', '.join(TRACKERS)}"
            yield f"unknown tracker '{name}'", fix
        elif packages and not any(map(_is_installed, packages)):
            yield f"{name} needs the package {packages[0]}, which is not installed", f"pip install {packages[0]}"


def _is_installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


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
    values, lines = _parse_yaml(text, f"{path}: ")
    if not isinstance(values, dict | None):
        raise UsageError(f"{path}: holds no settings", "write `section:` and `  key: value` lines")
    return values or {}, {key: f"{path}: line {line}: {key}" for key, line in lines.items()}


def dump_yaml(recipe: Recipe, command: str) -> str:
    """`recipe` as YAML that `hfkit <command>` takes back: the settings that act there and have a value."""
    values = {
        key: value
        for key, value in _flatten(dataclasses.asdict(recipe))
        if not (key in SETTINGS and value in (None, [])) and acts(command, setting_of(key) or key, recipe.task)
    }
    acting = {key: value for key, value in values.items() if not _idle_beside(key, values)}
    return yaml.dump(_nest(acting), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


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
        for key, value in _flatten(settings):
            place = (where or {}).get(key, key)
            if key not in _FIRST_SETTING:
                self._add(key, value, place)
            elif value is not None:  # None: a section with every line commented out
                fix = f"write its settings below it, such as {_FIRST_SETTING[key]}"
                self.problems.append((f"{place}: is a section, not {_shown(value)}", fix))

    def _add(self, key: str, value: Any, place: str) -> None:
        prefix, _, last = key.rpartition(".")
        if last in _SUCCESSORS and prefix in ("", "train", "train.extra"):
            key = _SUCCESSORS[last]
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
            value, _ = _parse_yaml(text, f"{place}: ")
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
    recipe: Recipe = _RECIPE.validate_python(_nest(values))
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
    saved = {key: value for key, value in _flatten(settings) if setting_of(key) and not key.startswith("model.")}
    where |= {key: lines[key] for key in saved.keys() & lines.keys() - where.keys()}
    return {**saved, "model.name": model}


class _Loader(yaml.SafeLoader):
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


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else than text, and what other readers of YAML would."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if any(end in text for end in "\x85\u2028\u2029") else None  # PyYAML folds them into blanks
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)
for _reader in (_Loader, _Dumper):
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


def _parse_yaml(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """The value of a YAML text, and the line of each dotted key."""
    try:
        loader = _Loader(text)
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


def _flatten(nested: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; sections and free-form mappings are none, an empty one inside them is."""
    for name, value in nested.items():
        key = f"{prefix}{name}"
        owner = setting_of(key)
        inside = owner is None or is_mapping(SETTINGS[owner])
        if isinstance(value, Mapping) and inside and (value or key in SETTINGS or key in _FIRST_SETTING):
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


def _unknown_or_idle(command: str, task: str | None, key: str, values: Mapping[str, Any]) -> Problem | None:
    """What is wrong with giving `key` to `command`, and what to type instead; None where it acts."""
    name = setting_of(key)
    if name is None:
        return _unknown(command, key)
    if not acts(command, name):
        commands = [other for other in SECTIONS if acts(other, name)]
        return f"has no effect in `hfkit {command}`", f"leave it out; it acts in {', '.join(commands)}"
    if not acts(command, name, task):
        return f"has no effect for {task}", f"leave it out; it acts for {', '.join(SETTINGS[name].metadata['tasks'])}"
    if beside := _idle_beside(name, values):
        return beside
    is_extra = name == "train.extra" and key != name
    return _wrong_extra(key.removeprefix("train.extra."), values[key]) if is_extra else None


def _unknown(command: str, key: str) -> Problem:
    last = key.rpartition(".")[2]
    if last in _FORMER:
        return f"transformers 5 has no '{last}'", _FORMER[last]
    flag = "--" + last.replace("_", "-")
    if flag in (permissions.REMOTE_CODE, permissions.PICKLE):
        return "is a person's to allow, not a recipe's", f"type {flag} on the command line"
    near = [other for other in SETTINGS if acts(command, other)]
    same = [other for other in near if last == other.rpartition(".")[2] or flag in SETTINGS[other].metadata["flags"]]
    fix = f"did you mean '{same[0]}'?" if same else did_you_mean(key, near) or did_you_mean(key, SETTINGS)
    if not fix and last in _training_arguments():
        fix = f"set train.extra.{last}"
    return "unknown setting", fix or f"hfkit {command} --dry-run prints those there are"


def _idle_beside(name: str, values: Mapping[str, Any]) -> Problem | None:
    """Where another setting decides what `name` would."""
    metadata = SETTINGS[name].metadata if name in SETTINGS else {}
    for other in metadata.get("unless", ()):
        if values.get(other) not in (None, [], False):
            return f"has no effect beside {other}", "leave one of them out"
    needed, _, wanted = metadata.get("needs", "").partition("=")
    if needed and (values.get(needed, SETTINGS[needed].default) != wanted if wanted else not values.get(needed)):
        return f"has no effect without {needed}{wanted and f'={wanted}'}", f"--set {needed}={wanted or 'true'}"
    return None


def _wrong_extra(key: str, value: Any) -> Problem | None:
    """What is wrong with a field of TrainingArguments, `key`, or with a key inside one."""
    name = key.partition(".")[0]
    arguments = _training_arguments()
    if f"train.{name}" in SETTINGS:
        return "is a setting of its own", f"set train.{name}"
    if name in _DECIDED:
        return "is decided by hfkit", _DECIDED[name]
    if name in _FORMER:
        return f"transformers 5 has no '{name}'", _FORMER[name]
    if name not in arguments:
        return "no field of TrainingArguments", did_you_mean(name, arguments) or "leave it out"
    kinds: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "str": str}
    kind, _, rest = arguments[name].partition(" | ")
    if kind in kinds and rest in ("", "None") and not (rest and value is None):
        is_flag = isinstance(value, bool)
        if not isinstance(value, kinds[kind]) or is_flag != (kind == "bool"):
            return f"must be {_MUST_BE[kind]}, not {_shown(value)}", ""
    return None


def _training_arguments() -> dict[str, str]:
    """Names and types of the fields of TrainingArguments."""
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in _source_of_arguments().get("TrainingArguments", ())
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _optimizers() -> list[str]:
    """What train.optimizer may be: hfkit's short name and the values of OptimizerNames."""
    names = [
        node.value.value
        for node in _source_of_arguments().get("OptimizerNames", ())
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    return ["adamw", *map(str, names)]


@functools.cache
def _source_of_arguments() -> dict[str, list[ast.stmt]]:
    """The classes of transformers.training_args by name, from its source: importing it costs seconds."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}


def _invalid(detail: Any, where: Mapping[str, str]) -> Problem:
    """One pydantic error as message and fix."""
    path = [str(part) for part in detail["loc"]]
    key = next(key for end in range(len(path), 0, -1) if (key := ".".join(path[:end])) in SETTINGS)
    kind, value = detail["type"], detail["input"]
    wanted = _MUST_BE.get(kind) or _MUST_BE.get(kind.partition("_")[0], "")
    limits = detail.get("ctx", {}).items()
    wanted = wanted.format(**{name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in limits})
    if kind == "literal_error":
        wanted = wanted.replace("'", "").replace(" or ", ", ")
        fix = did_you_mean(str(value), wanted.removeprefix("one of ").split(", "))
    elif kind == "string_type" and isinstance(value, int | float):
        fix = f'put it in quotes: "{value}"'
    else:
        fix = f"e.g. {_example(SETTINGS[key])}"
    return f"{where.get(key, key)}: must be {wanted or detail['msg']}, not {_shown(value)}", fix


def _shown(value: Any) -> str:
    """The value as it stands in a recipe, on one line."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)


def _example(setting: dataclasses.Field[Any]) -> str:
    if setting.default not in (dataclasses.MISSING, None):
        return str(setting.default).lower()
    kind = str(setting.type)
    return next((example for word, example in _EXAMPLES.items() if word in kind), "a name")
