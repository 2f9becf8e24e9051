"""Settings: where they come from, which wins, and what is said of those that are wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hfkit.errors import UsageError
from hfkit.recipe.effect import acts_for, description, idle_because
from hfkit.recipe.resolve import dump_yaml, json_schema, resolve
from hfkit.recipe.upstream import DECIDED, FORMER, SUCCESSORS, training_argument_types
from hfkit.recipe.yaml import MAX_RECIPE_BYTES, read_recipe
from hfkit.settings import SECTIONS, SETTINGS, Recipe, Schedule, acts
from hfkit.tasks import DEFAULT_TASKS, TASKS

SOURCE = Path(__file__).parents[2] / "src" / "hfkit"
COMMANDS = list(SECTIONS)
TRAINING = [(task.command, name) for name, task in TASKS.items()]


def problems(command: str = "pretrain", **given_: Any) -> list[str]:
    """The lines of the one error that these settings end in."""
    with pytest.raises(UsageError) as caught:
        resolve(command, **given_)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Layers.


def test_defaults_recipe_flags_and_set_win_in_this_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.yaml", "train: {seed: 1, max_steps: 1, eval_steps: 1}\nmodel: {name: from-file, config: {a: 1}}"
    )
    recipe = resolve(
        "finetune",
        recipe=path,
        flags={"train.max_steps": "2", "train.eval_steps": "2", "model.name": "from-flag"},
        sets=["train.eval_steps=3", "model.config.b.c=[1, 2]", "train.extra.adam_beta1=0.8"],
    )
    assert (recipe.train.seed, recipe.train.max_steps, recipe.train.eval_steps) == (1, 2, 3)
    assert recipe.model.name == "from-flag"
    assert recipe.model.config == {"a": 1, "b": {"c": [1, 2]}}
    assert recipe.train.extra == {"adam_beta1": 0.8}
    assert (recipe.train.learning_rate, recipe.train.lr_scheduler_type) == (5e-5, "linear")  # the task's
    assert recipe.task == "text-classification"


def test_later_value_replaces_the_mapping_or_the_key_it_overlaps() -> None:
    inner = {"model": {"config": {"rope": {"theta": 1, "type": "x"}}}}
    assert resolve("pretrain", recipe=inner, sets=["model.config.rope=5"]).model.config == {"rope": 5}
    assert resolve("pretrain", recipe=inner, sets=["model.config.rope={theta: 2}"]).model.config == {
        "rope": {"theta": 2, "type": "x"}
    }
    assert resolve("pretrain", sets=["model.config.rope=5", "model.config.rope.theta=2"]).model.config == {
        "rope": {"theta": 2}
    }
    assert resolve("pretrain", sets=["model.config.empty={}"]).model.config == {"empty": {}}


def test_a_whole_section_can_be_set_and_an_empty_one_is_none() -> None:
    assert resolve("pretrain", sets=["train={seed: 5, max_steps: 2}"]).train.seed == 5
    assert resolve("pretrain", recipe={"train": None, "data": {"columns": None}}) == resolve("pretrain")


def test_null_means_not_given() -> None:
    assert resolve("finetune", recipe={"train": {"learning_rate": None}}).train.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"data.train": "a.csv"}, ["a.csv"]),
        ({"data.train": ["a.csv", "b.csv"]}, ["a.csv", "b.csv"]),
    ],
)
def test_one_name_is_a_list_of_one(given_: dict[str, Any], expected: list[str]) -> None:
    assert resolve("pretrain", flags=given_).data.train == expected
    assert resolve("pretrain", sets=given_).data.train == expected


def test_metrics_are_divided_at_commas() -> None:
    expected = ["accuracy", "mcc", "f1"]
    assert resolve("finetune", flags={"evaluation.metrics": ["accuracy, mcc", "f1"]}).evaluation.metrics == expected


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("data.train=*.txt", "data.train", ["*.txt"]),  # an alias, to YAML
        ("data.train=[a.txt, b.txt]", "data.train", ["a.txt", "b.txt"]),
        ("model.revision=1234567", "model.revision", "1234567"),  # a commit, not a number
        ("model.revision=12e3", "model.revision", "12e3"),
        ("model.name=@x", "model.name", "@x"),
        ("data.columns.text=a: b", "data.columns.text", "a: b"),
        ("data.columns.text='yes'", "data.columns.text", "yes"),
        (" train.seed = 7 ", "train.seed", 7),
        ("train.learning_rate=3e-4", "train.learning_rate", 3e-4),
    ],
)
def test_set_takes_yaml_and_leaves_text_as_it_is(assignment: str, key: str, value: Any) -> None:
    recipe = resolve("pretrain" if "type" in key else "finetune", sets=[assignment])
    section, name = key.split(".", 1)
    found = recipe.data.columns.text if name == "columns.text" else getattr(getattr(recipe, section), name)
    assert found == value


def test_defaults_see_what_was_meant_not_what_was_written() -> None:
    """`from_scratch: no` is false: so the defaults of a continued model, though "no" is a text that isn't empty."""
    recipe = resolve("pretrain", recipe={"model": {"name": "gpt2", "from_scratch": "no"}})
    assert (recipe.model.from_scratch, recipe.train.learning_rate, recipe.model.type) == (False, 5e-5, None)
    recipe = resolve("pretrain", recipe={"model": {"name": "gpt2", "from_scratch": "yes"}})
    assert (recipe.model.from_scratch, recipe.train.learning_rate) == (True, 1e-3)


# What a run was trained with.


def make_run(folder: Path, command: str, **flags: Any) -> Path:
    folder.mkdir()
    recipe = resolve(command, sets={key.replace("__", "."): value for key, value in flags.items()})
    (folder / "recipe.yaml").write_text(dump_yaml(recipe, command))
    (folder / "run.json").write_text("{}")
    return folder


def test_a_run_brings_its_own_data_and_columns_and_is_the_model_itself(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        "finetune",
        model__name="bert",
        model__dtype="bfloat16",
        data__train=["t.csv"],
        data__columns__label="stars",
        train__seed=3,
    )
    recipe = resolve("evaluate", run=str(run))
    assert (recipe.model.name, recipe.model.dtype, recipe.task) == (str(run), None, "text-classification")
    assert (recipe.data.train, recipe.data.columns.label, recipe.train.seed) == (["t.csv"], "stars", 3)
    other = resolve("evaluate", run=str(run), flags={"data.test": ["dev.csv"]})
    assert (other.data.test, other.data.train, other.data.columns.label) == (["dev.csv"], [], "stars")
    assert resolve("evaluate", sets={"model.name": str(run)}) == recipe
    assert resolve("evaluate", flags={"model.name": str(run)}, run=str(run)) == recipe


def test_a_foreign_recipe_yaml_beside_a_model_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "recipe.yaml", "default_stage:\n  default_modifiers: &x {}\n")
    assert resolve("generate", run=str(tmp_path)).model.name == str(tmp_path)


def test_two_names_of_a_model_are_refused() -> None:
    assert problems("generate", run="a", flags={"model.name": "b"}) == ["two models are named: a and b (fix: name one)"]


# What is wrong, all of it at once.

MASKED = "mlm, mlm-nsp, denoising"  # the tasks that hide tokens
TUNED = "text-classification, token-classification, question-answering, seq2seq, completion, chat"

BAD = """\
task: clm
model: bert
modl: {name: x}
train:
  learning_rat: 1
  learning_rate: abc
  seed: true
  max_steps: -3
  lr_scheduler_type: cosin
  extra:
    adam_beta1: abc
    adam_beta3: 1
    seed: 3
    tf32: no
    eval_strategy: steps
data:
  train: [a, 3]
  mask_probability: 0.3
  validation_split: 2
  block_size: [1]
lr: 3e-4
adam_epsilon: 0.9
generation: {seed: 3}
tokenizer: {vocab_size: 1}
"""


def test_every_mistake_is_reported_with_its_line_and_its_fix(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", BAD)
    schedules = ", ".join(get_args(Schedule))
    lines = problems(
        recipe=path, flags={"train.warmup_steps": "x"}, sets=["foo", "train.sed=4", "train.eval_steps=[", "=1"]
    )
    assert [line.replace(f"{path}: ", "") for line in lines] == [
        "line 2: model: is a section, not 'bert' (fix: write its settings below it, such as name)",
        "--set foo: not an assignment (fix: --set section.key=value)",
        "--set train.eval_steps: line 1: expected the node content, but found '<stream end>' (fix: write `key: value`)",
        "--set =1: not an assignment (fix: --set section.key=value)",
        "line 3: modl.name: unknown setting (fix: did you mean 'model.name'?)",
        "line 5: train.learning_rat: unknown setting (fix: did you mean 'train.learning_rate'?)",
        "line 11: train.extra.adam_beta1: must be a number, not 'abc'",
        "line 12: train.extra.adam_beta3: not a field of TrainingArguments (fix: did you mean 'adam_beta2'?)",
        "line 13: train.extra.seed: is a setting of its own (fix: set train.seed)",
        "line 14: train.extra.tf32: must be true or false, not 'no'",
        "line 15: train.extra.eval_strategy: is decided by hfkit (fix: set train.eval_steps)",
        f"line 18: data.mask_probability: has no effect for clm (fix: leave it out; it acts for {MASKED})",
        "line 21: lr: unknown setting (fix: did you mean 'train.learning_rate'?)",
        "line 22: adam_epsilon: unknown setting (fix: set train.extra.adam_epsilon)",
        "line 23: generation.seed: has no effect in `hfkit pretrain` (fix: leave it out; it acts in generate, chat)",
        "--set train.sed: unknown setting (fix: did you mean 'train.seed'?)",
        'line 17: data.train: must be text, not 3 (fix: put it in quotes: "3")',
        "line 19: data.validation_split: must be below 1, not 2 (fix: e.g. 0.05)",
        "line 20: data.block_size: must be a whole number, not [1] (fix: e.g. 8)",
        "line 24: tokenizer.vocab_size: must be at least 300, not 1 (fix: e.g. 8192)",
        "line 7: train.seed: must be a whole number, not 'true' (fix: e.g. 42)",
        "line 8: train.max_steps: must be at least 1, not -3 (fix: e.g. 8)",
        "line 6: train.learning_rate: must be a number, not 'abc' (fix: e.g. 5e-5)",
        f"line 9: train.lr_scheduler_type: must be one of {schedules}, not 'cosin' (fix: did you mean 'cosine'?)",
        "--warmup-steps: must be a number, not 'x' (fix: e.g. 0.1)",
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.seed", None, "must be a whole number, not nothing (fix: e.g. 42)"),
        ("train.seed", -1, "must be at least 0, not -1 (fix: e.g. 42)"),
        ("train.seed", 2**32, "must be at most 4294967295, not 4294967296 (fix: e.g. 42)"),
        ("train.max_steps", 0, "must be at least 1, not 0 (fix: e.g. 8)"),
        ("train.max_steps", 1.5, "must be a whole number, not 1.5 (fix: e.g. 8)"),
        ("train.num_train_epochs", -3, "must be above 0, not -3 (fix: e.g. 3)"),
        ("train.num_train_epochs", "inf", "must be a finite number, not 'inf' (fix: e.g. 3)"),
        ("train.learning_rate", False, "must be a number, not 'false' (fix: e.g. 5e-5)"),
        ("train.learning_rate", [1e-4], "must be a number, not [0.0001] (fix: e.g. 5e-5)"),
        ("train.extra", 5, "must be `key: value` pairs, not 5 (fix: e.g. {key: value})"),
        ("model.from_scratch", "maybe", "must be true or false, not 'maybe' (fix: e.g. false)"),
        ("model.name", 7, 'must be text, not 7 (fix: put it in quotes: "7")'),
        ("model.dtype", "float23", "must be one of float32, bfloat16, float16, not 'float23'"
                                   " (fix: did you mean 'float32'?)"),
        ("train.per_device_train_batch_size", 0, "must be at least 1, or auto, not 0 (fix: e.g. 8)"),
        ("train.per_device_train_batch_size", "0.0", "must be at least 1, or auto, not 0.0 (fix: e.g. 8)"),
        ("train.per_device_train_batch_size", "all", "must be a whole number, not 'all' (fix: e.g. 8)"),
        ("train.optimizer", "adamv", "unknown optimizer 'adamv' (fix: did you mean 'adamw'?)"),
        ("train.push", "me", "'me' is not the name of a repository (fix: --push OWNER/NAME)"),
        ("train.report_to", "wandbb", "unknown tracker 'wandbb' (fix: did you mean 'wandb'?)"),
        ("data.train", {"a": 1}, "must be a list, not {'a': 1} (fix: e.g. [a, b])"),
        ("data.columns", "text", "is a section, not 'text' (fix: write its settings below it, such as text)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_it_must_be(key: str, value: Any, expected: str) -> None:
    assert problems("finetune", sets={key: value}) == [f"{key}: {expected}"]


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("train.extra.adam_beta1", True, "a number"),
        ("train.extra.torch_empty_cache_steps", 1.5, "a whole number"),
        ("train.extra.use_cpu", 1, "true or false"),
        ("train.extra.run_name", 3, "text"),
        ("train.extra.lr_scheduler_kwargs", 3, "a mapping"),
    ],
)
def test_types_of_training_arguments_are_checked(key: str, value: Any, kind: str) -> None:
    fix = " (fix: write {key: value})" if kind == "a mapping" else ""
    assert problems("pretrain", sets={key: value}) == [f"{key}: must be {kind}, not {json.dumps(value)}{fix}"]


def test_other_fields_of_training_arguments_pass_as_they_are() -> None:
    extra = {
        "adam_beta1": 0,
        "neftune_noise_alpha": None,
        "use_cpu": True,
        "lr_scheduler_kwargs": {"seed": 1},
        "adam_epsilon": 1e-6,
    }
    assert resolve("pretrain", sets={"train.extra": extra}).train.extra == extra


@pytest.mark.parametrize("name", sorted(FORMER))
@pytest.mark.parametrize("place", ["", "train.", "train.extra."])
def test_names_of_transformers_4_are_explained(name: str, place: str) -> None:
    expected = f"{place}{name}: transformers 5 has no '{name}' (fix: {FORMER[name]})"
    assert problems("finetune", sets={place + name: 1}) == [expected]


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("warmup_ratio", 0.1, "train.warmup_steps"),
        ("per_gpu_train_batch_size", 4, "train.per_device_train_batch_size"),
        ("per_gpu_eval_batch_size", 4, "train.per_device_eval_batch_size"),
        ("no_cuda", True, "train.extra.use_cpu"),
    ],
)
@pytest.mark.parametrize("place", ["", "train.", "train.extra."])
def test_names_of_transformers_4_with_a_successor_are_taken_with_a_note(
    name: str, value: Any, key: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve("finetune", sets={place + name: value}) == resolve("finetune", sets={key: value})
    assert capsys.readouterr().err == f"note: {place}{name}: {name} is {key} since transformers 5\n"


def test_tables_of_training_arguments_are_true() -> None:
    fields = {field.name for field in dataclasses.fields(import_training_arguments())}
    assert set(training_argument_types()) == fields
    assert DECIDED.keys() <= fields
    assert not (FORMER.keys() | SUCCESSORS.keys()) & fields
    assert not [name for name in DECIDED if f"train.{name}" in SETTINGS]


def import_training_arguments() -> Any:
    from transformers import TrainingArguments

    return TrainingArguments


def test_every_schedule_of_the_library_that_needs_no_metric_can_be_chosen() -> None:
    from transformers.trainer_utils import SchedulerType

    assert set(get_args(Schedule)) == {one.value for one in SchedulerType} - {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize(
    ("command", "key", "value", "expected"),
    [
        ("finetune", "data.block_size", 8, "has no effect in `hfkit finetune`"
                                           " (fix: leave it out; it acts in pretrain)"),
        ("predict", "train.seed", 1, "has no effect in `hfkit predict`"
                                     " (fix: leave it out; it acts in pretrain, finetune)"),
        ("predict", "evaluation.metrics", ["f1"], "has no effect in `hfkit predict`"
                                                  " (fix: leave it out; it acts in finetune, generate, evaluate)"),
        ("generate", "data.train", ["x"], "has no effect in `hfkit generate`"
                                          " (fix: leave it out; it acts in pretrain, finetune)"),
        ("pretrain", "data.mask_probability", 0.2, f"has no effect for clm (fix: leave it out; it acts for {MASKED})"),
    ],
)  # fmt: skip
def test_an_idle_setting_is_refused(command: str, key: str, value: Any, expected: str) -> None:
    assert problems(command, sets={"model.name": "x", key: value}) == [f"{key}: {expected}"]


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({"model.name": "gpt2", "model.type": "llama"}, "model.type: has no effect with model.name"),
        ({"model.name": "gpt2", "model.size": "mini"}, "model.size: has no effect with model.name"),
        ({"model.name": "gpt2", "tokenizer.vocab_size": 400}, "tokenizer.vocab_size: has no effect with model.name"),
        (
            {"tokenizer.name": "gpt2", "tokenizer.vocab_size": 400},
            "tokenizer.vocab_size: has no effect with tokenizer.name",
        ),
        (
            {"data.validation": ["v.txt"], "data.validation_split": 0.1},
            "data.validation_split: has no effect with data.validation",
        ),
    ],
)
def test_a_setting_that_another_one_overrules_is_refused(settings_: dict[str, Any], expected: str) -> None:
    assert problems("pretrain", sets=settings_) == [f"{expected} (fix: leave one of them out)"]


def test_a_setting_that_needs_another_one_is_refused_without_it() -> None:
    assert problems("pretrain", sets={"data.shuffle_buffer": 5}) == [
        "data.shuffle_buffer: has no effect without data.streaming (fix: --set data.streaming=true)"
    ]
    given_ = {"data.shuffle_buffer": 5, "data.streaming": True}
    assert resolve("pretrain", sets=given_).data.shuffle_buffer == 5


@pytest.mark.parametrize(
    ("command", "task", "expected"),
    [
        ("pretrain", "clmm", f"'clmm' is not a task of `hfkit pretrain`: clm, {MASKED} (fix: did you mean 'clm'?)"),
        (
            "pretrain",
            "text-classification",
            f"'text-classification' is not a task of `hfkit pretrain`: clm, {MASKED} (fix: hfkit finetune)",
        ),
        ("finetune", "mlm", f"'mlm' is not a task of `hfkit finetune`: {TUNED} (fix: hfkit pretrain)"),
        ("finetune", "xyz", f"'xyz' is not a task of `hfkit finetune`: {TUNED}"
                            " (fix: --task text-classification)"),
        ("evaluate", "xyz", f"'xyz' is not a task of `hfkit evaluate`: clm, {MASKED}, {TUNED}"
                            " (fix: leave it out)"),
    ],
)  # fmt: skip
def test_a_wrong_task_is_refused(command: str, task: str, expected: str) -> None:
    assert problems(command, flags={"task": task}) == [f"--task: {expected}"]


def test_a_task_that_is_no_text_is_refused() -> None:
    assert problems("pretrain", recipe={"task": ["clm"]}) == [
        "task: '['clm']' is not a task of `hfkit pretrain`: clm, mlm, mlm-nsp, denoising (fix: did you mean 'clm'?)",
        "task: must be text, not ['clm'] (fix: e.g. a name)",
    ]


def test_unknown_metrics_are_refused_before_anything_is_trained() -> None:
    assert problems("finetune", flags={"evaluation.metrics": ["acuracy,perplexity"]}) == [
        f"--metrics: unknown metric '{name}', this task has: {', '.join(TASKS['text-classification'].metrics)}{fix}"
        for name, fix in [("acuracy", " (fix: did you mean 'accuracy'?)"), ("perplexity", "")]
    ]


# YAML.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e-3", 1e-3), ("1.5E-3", 1.5e-3), (".5", 0.5), ("+2.", 2.0), ("-3", -3), ("1_000", 1000),
        ("010", "010"), ("1:30", "1:30"), ("no", "no"), ("Yes", "Yes"), ("on", "on"), ("true", True), ("FALSE", False),
        ("null", None), ("~", None), ("", None), ("2020-01-01", "2020-01-01"), ("=", "="), (".inf", ".inf"),
        ('"1e-3"', "1e-3"), ("NA", "NA"), ("1e", "1e"), ("e5", "e5"), ("0x1F", "0x1F"),
    ],
)  # fmt: skip
def test_yaml_scalars_mean_what_people_mean(tmp_path: Path, text: str, value: Any) -> None:
    found = read_recipe(write(tmp_path / "r.yaml", f"a: {text}\n"))[0]["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  seed: 1\n  seed: 2\n", "line 3: 'seed' is given twice, first on line 2 (fix: delete one of them)"),
        ("train: {a: [{b: 1, b: 2}]}", "line 1: 'b' is given twice, first on line 1 (fix: delete one of them)"),
        ("train:\n\tseed: 1\n", "line 2: found character '\\t' that cannot start any token (fix: indent with spaces)"),
        ("a: &x 1\nb: *x\n", "line 1: anchors and aliases are not allowed (fix: write `key: value`)"),
        ("a: *x\n", "line 1: anchors and aliases are not allowed (fix: write `key: value`)"),
        (
            "a: !!python/object/apply:os.system [touch canary]\n",
            "line 1: tags are not allowed: tag:yaml.org,2002:python/object/apply:os.system (fix: write `key: value`)",
        ),
        ("a: !!int x\n", "line 1: tags are not allowed: tag:yaml.org,2002:int (fix: write `key: value`)"),
        ("? [a]\n: b\n", "line 1: a key must be a name (fix: write `key: value`)"),
        ("a: b: c\n", "line 1: mapping values are not allowed here (fix: write `key: value`)"),
        ("---\na: 1\n---\nb: 2\n", "line 3: found another document (fix: write `key: value`)"),
        ('a: 1\nb: "\x01"\n', "line 2: the character 0x01 is not allowed (fix: write `key: value`)"),
        ("- a\n", "contains no settings (fix: write `section:` and `  key: value` lines)"),
        ("train", "contains no settings (fix: write `section:` and `  key: value` lines)"),
        ("a: " + "[" * 5000, "nested too deeply (fix: write `key: value`)"),
        (b"a: 1\nb: \xe9\n", "line 2: 0xe9 is not UTF-8 (fix: save it as UTF-8)"),
        ("#" * 100_001, "larger than 100,000 bytes (fix: a recipe is a short YAML file)"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(recipe=write(Path("r.yaml"), text)) == [f"r.yaml: {expected}"]
    assert list(tmp_path.iterdir()) == [tmp_path / "r.yaml"]


def test_a_number_of_five_thousand_digits_is_refused(tmp_path: Path) -> None:
    (line,) = problems(recipe=write(tmp_path / "r.yaml", "train: {seed: " + "9" * 5000 + "}"))
    assert line.startswith(f"{tmp_path}/r.yaml: Exceeds the limit (4300 digits)")


def test_a_missing_recipe_a_directory_and_an_endless_file_are_refused(tmp_path: Path) -> None:
    assert problems(recipe=tmp_path / "no.yaml") == [
        f"{tmp_path}/no.yaml: No such file or directory (fix: hfkit recipes list)"
    ]
    assert problems(recipe=tmp_path) == [f"{tmp_path}: Is a directory (fix: hfkit recipes list)"]
    assert problems(recipe=Path("/dev/zero")) == [
        "/dev/zero: larger than 100,000 bytes (fix: a recipe is a short YAML file)"
    ]


def test_a_billion_laughs_and_the_largest_recipe_cost_little(tmp_path: Path) -> None:
    laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    dense = "a: [" + "1," * (MAX_RECIPE_BYTES // 2 - 10) + "1]"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text, end in [(f"a0: &a0 [lol]\n{laughs}\n", "aliases are not allowed"), (dense, "unknown setting")]:
        start = time.process_time()
        (line,) = problems(recipe=write(tmp_path / "r.yaml", text))
        assert end in line
        assert time.process_time() - start < 10  # far above what it takes: the machine may be slow
    scale = 1024 if sys.platform == "linux" else 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * scale < 500e6


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "\ufefftask: clm\n", "task: clm\r\ntrain:\r\n  seed: 42\r\n"]
)
def test_an_empty_file_a_byte_order_mark_and_windows_line_ends_are_taken(tmp_path: Path, text: str) -> None:
    assert resolve("pretrain", recipe=write(tmp_path / "r.yaml", text)) == resolve("pretrain")


def problems_of(command: str, recipe: Any) -> list[tuple[str, str]]:
    """The problems with a recipe; none where it is right."""
    try:
        resolve(command, recipe=recipe)
    except UsageError as error:
        return error.problems
    return []


@settings(deadline=None)
@given(st.text() | st.binary())
def test_whatever_a_recipe_holds_it_is_taken_or_refused(tmp_path_factory: Any, content: str | bytes) -> None:
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(raw)
    assert all(len(message.splitlines()) == 1 for message, _ in problems_of("pretrain", path))


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from([*SECTIONS["pretrain"], "name", "config", "extra", "seed", "x"]),
                                      inner, max_size=4)))  # fmt: skip
def test_whatever_a_mapping_holds_it_is_taken_or_refused(value: Any) -> None:
    for command in COMMANDS:
        given_ = value if isinstance(value, dict) else {"train": value}
        assert problems_of(command, given_) or isinstance(resolve(command, recipe=given_), Recipe)


# There and back.


TRAPS = ["x", "no", "1e-3", "12e4567", "0x1F", "null", "010", "1:30", "2020-01-01", "~", "é 你", "a: b", "#", "- a",
         "true", ".5", "=", "<<", "'", '"', " x ", "a\nb", "a\x85b", "\u2028", "\ufeff"]  # fmt: skip


def values_of(key: str) -> st.SearchStrategy[Any]:
    """Right values of a setting, texts among them that YAML takes for something else."""
    setting = SETTINGS[key]
    limits, kind = setting.metadata, str(setting.type)
    text = st.sampled_from(TRAPS) | st.text(min_size=1)
    if key in ("task", "evaluation.metrics", "train.best", "train.report_to"):
        return st.nothing()
    if key == "train.optimizer":
        return st.sampled_from(["adamw", "adafactor", "sgd", "lion_32bit"])
    if key == "train.push":
        return st.from_regex(r"[a-z0-9]{1,5}/[a-z0-9]{1,5}", fullmatch=True)
    if key == "train.per_device_train_batch_size":
        return st.just("auto") | st.integers(1, 10**6)
    if key == "train.max_time":
        return st.from_regex(limits["pattern"].replace(r"\d", "[0-9]"), fullmatch=True)
    if kind.startswith("Literal"):
        return st.sampled_from(re.findall(r"['\"]([^'\"]+)['\"]", kind))
    if kind.startswith("Schedule"):
        return st.sampled_from(get_args(Schedule))
    if kind.startswith("bool"):
        return st.booleans()
    if kind.startswith("int"):
        return st.integers(limits["ge"], limits.get("le", 10**6))
    if kind.startswith("float"):
        low, high = limits.get("gt", limits.get("ge")), limits.get("lt", limits.get("le"))
        return st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits,
                         allow_nan=False, allow_infinity=False)  # fmt: skip
    if key == "train.extra":
        return st.fixed_dictionaries({}, optional={"adam_beta1": st.floats(0, 1), "use_cpu": st.booleans(),
                                                   "run_name": text, "tf32": st.booleans()})  # fmt: skip
    if kind.startswith("dict"):
        inner = text | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
        return st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True), inner | st.lists(inner))
    if kind == "list[float]":
        return st.lists(st.floats(0.1, 9), min_size=1)
    return st.lists(text, min_size=1) if kind.startswith("list") else text


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize(("command", "task"), TRAINING)
def test_a_printed_recipe_gives_the_same_recipe_again(
    tmp_path_factory: Any, command: str, task: str, data: Any
) -> None:
    possible = {
        key: values_of(key)
        for key in SETTINGS
        if acts(command, key) and acts_for(task, key) and not values_of(key).is_empty
    }
    chosen = data.draw(st.fixed_dictionaries({}, optional=possible))
    for key in list(chosen):
        if idle_because(key, chosen, task):
            del chosen[key]
    chosen = {key: value for key, value in chosen.items() if not idle_because(key, chosen, task)}  # what needed those
    recipe = resolve(command, sets={**chosen, "task": task})
    path = tmp_path_factory.getbasetemp() / "again.yaml"
    path.write_text(dump_yaml(recipe, command), encoding="utf-8")
    assert resolve(command, recipe=path) == recipe
    assert dump_yaml(resolve(command, recipe=path), command) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("command", "task"), TRAINING)
def test_a_printed_recipe_is_yaml_for_every_reader(command: str, task: str) -> None:
    text = dump_yaml(resolve(command, sets={"task": task, "model.revision": "1e3", "data.columns.text": "no"}), command)
    read = yaml.safe_load(text)
    assert (read["task"], read["model"]["revision"], read["data"]["columns"]["text"]) == (task, "1e3", "no")


# The declarations in hfkit.settings and hfkit.tasks.


def test_the_schema_describes_every_setting_and_refuses_others() -> None:
    schema = json_schema()
    definitions = schema["$defs"]

    def walk(node: dict[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
        assert node["additionalProperties"] is False, prefix
        assert node["description"], prefix
        found = {}
        for name, inner in node["properties"].items():
            if "$ref" in inner:
                found |= walk(definitions[inner["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
            else:
                found[prefix + name] = inner
        return found

    settings_ = walk(schema, "")
    assert list(settings_) == list(SETTINGS)
    for key, inner in settings_.items():
        assert inner["description"] == description(key)
    assert settings_["train.learning_rate"]["anyOf"] == [{"exclusiveMinimum": 0, "type": "number"}, {"type": "null"}]
    assert settings_["model.dtype"]["anyOf"] == [
        {"enum": ["float32", "bfloat16", "float16"], "type": "string"},
        {"type": "null"},
    ]
    assert settings_["train.seed"]["default"] == 42


def test_every_shipped_recipe_is_right_and_fits_the_shipped_schema() -> None:
    folder = SOURCE.parents[1] / "recipes"
    paths = sorted(folder.glob("*.yaml"))
    assert paths
    for path in paths:
        command = TASKS[read_recipe(path)[0]["task"]].command
        assert resolve(command, recipe=path, sets={"train.max_steps": 2}).train.max_steps == 2
        assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")
    assert json.loads((folder / "schema.json").read_text(encoding="utf-8")) == json_schema(), (
        "hfkit recipes schema > recipes/schema.json"
    )


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_described_and_acts_somewhere(key: str) -> None:
    setting = SETTINGS[key]
    metadata = setting.metadata
    assert re.fullmatch(r"(?:[A-Z0-9]|dtype|beta2).*(?:[.)]|\.\.\.)", metadata["description"]), metadata["description"]
    assert all(re.fullmatch(r"--[a-z-]+(/--[a-z-]+)?|-o", flag) for flag in metadata["flags"])
    assert any(acts(command, key) for command in COMMANDS)
    assert set(metadata["only"]) <= set(COMMANDS)
    assert {*metadata["unless"], *filter(None, [metadata["needs"].partition("=")[0]])} <= SETTINGS.keys()
    name = key.rpartition(".")[2]
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.parent.name != "settings")
    if key.startswith("generation."):
        from transformers import GenerationConfig

        if hasattr(GenerationConfig(), name):  # these are handed over as a whole
            return
    wanted = rf'"{name}":' if key.startswith("data.clean.") else rf"\w\.{name}\b"  # cleaning steps go by their names
    assert re.search(wanted, code), f"nothing reads {key}"


@pytest.mark.parametrize("task", TASKS)
def test_the_settings_of_a_task_exist(task: str) -> None:
    assert TASKS[task].settings <= SETTINGS.keys()
    assert TASKS[task].summary


@pytest.mark.parametrize("key", SETTINGS)
def test_the_docs_list_every_setting_with_its_flags(key: str) -> None:
    lines = (SOURCE.parents[1] / "docs" / "settings.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(f"| `{key}` |")]
    assert any(all(f"`{flag}`" in row for flag in SETTINGS[key].metadata["flags"]) for row in rows)


def test_training_data_that_is_no_list_is_refused() -> None:
    (problem,) = problems("finetune", recipe={"data": {"train": 5}})
    assert problem.startswith("data.train: must be a list, not 5")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_means_one_thing_in_a_command_but_where_training_goes_before_evaluation(command: str) -> None:
    owners: dict[str, list[str]] = {}
    for key, setting in SETTINGS.items():
        for flag in setting.metadata["flags"] if acts(command, key) else ():
            owners.setdefault(flag, []).append(key)
    shared = {flag: keys for flag, keys in owners.items() if len(keys) > 1}
    both = {"--batch-size": ["train.per_device_train_batch_size", "evaluation.batch_size"],
            "--seed": ["train.seed", "evaluation.seed"]}  # fmt: skip
    assert shared == (both if command in DEFAULT_TASKS else {})
