"""Every setting of hfkit, once: name, type, default, limits, help text, and the flag that sets it.

Plain dataclasses, so that `--help` can read them without importing pydantic; `hfkit.resolve` validates with
pydantic, which takes descriptions and limits from the field metadata. `None` means "decided by the task or the
data"; a resolved recipe has no `None` left where a task has a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal


def setting(
    default: Any,
    description: str,
    *flags: str,
    only: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """One field: default, help text, flags, the commands and tasks it acts in (none: all of its section's), limits."""
    metadata = {"description": description, "flags": flags, "only": only, "tasks": tasks, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - pydantic's own spelling


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """Which model, and whether its weights are used or only its architecture."""

    name: str | None = setting(None, "Model: a directory or a name on the Hub.", "--model", "--model-name-or-path")
    revision: str | None = setting(None, "Commit, tag or branch of a model on the Hub.", "--revision")
    type: str | None = setting(
        None,
        "Build a new model of this architecture (gpt2, llama, bert, ...); implies from_scratch.",
        "--model-type",
        only=("pretrain",),
    )
    size: Literal["tiny", "mini", "small", "base"] | None = setting(
        None,
        "Width and depth for model.type: tiny 2x128, mini 4x256, small 4x512, base 12x768.",
        "--size",
        only=("pretrain",),
    )
    config: dict[str, Any] = setting(
        {}, "Keys of the architecture's config, e.g. --set model.config.num_hidden_layers=6."
    )
    from_scratch: bool = setting(
        False,
        "Keep architecture and tokenizer of model.name, start from fresh weights.",
        "--from-scratch",
        only=("pretrain", "finetune"),
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        "Weights are loaded in this type; bfloat16 halves memory and is five times slower on most CPUs.",
        "--dtype",
    )


@dataclass(frozen=True, kw_only=True)
class Columns(Section):
    """Which columns play which part; a guess is printed where one is not named."""

    text: str | None = setting(None, "Column with the text.", "--text-column", "--text-column-name")
    text_pair: str | None = setting(
        None, "Column with the second text of a pair.", "--text-pair-column", only=("finetune", "predict", "evaluate")
    )
    label: str | None = setting(
        None, "Column with the label.", "--label-column", "--label-column-name", only=("finetune", "evaluate")
    )


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Where text comes from: files (.txt .csv .tsv .json .jsonl .parquet, also .gz), a Hub name or `builtin:NAME`."""

    train: list[str] = setting(
        [], "Training data: files, a Hub name or builtin:NAME; can be given several times.", "--data", "--train-file"
    )
    validation: list[str] = setting(
        [],
        "Validation data; without it a share of the training data is held out.",
        "--validation",
        "--validation-file",
        only=("pretrain", "finetune"),
    )
    test: list[str] = setting(
        [], "Test data, scored once at the end.", "--test", "--test-file", only=("pretrain", "finetune")
    )
    validation_split: float = setting(
        0.05,
        "Share of the training rows held out where data.validation is missing (seeded; 0: none).",
        "--validation-split",
        only=("pretrain", "finetune"),
        ge=0,
        lt=1,
    )
    columns: Columns = field(default_factory=Columns)
    documents: Literal["file", "blank-line", "row"] | None = setting(
        None,
        "What a document is in a .txt file: the file, a paragraph, a line (tables: always a row).",
        "--documents",
        only=("pretrain", "evaluate"),
    )
    block_size: int | None = setting(None, "Tokens in a training block.", "--block-size", only=("pretrain",), ge=2)
    max_length: int | None = setting(
        None,
        "Longest row in tokens; what is longer is cut and counted (None: the model's limit, at most 512).",
        "--max-length",
        "--max-seq-length",
        only=("finetune", "predict", "evaluate"),
        ge=2,
    )
    mask_probability: float = setting(
        0.15,
        "Share of the tokens to predict in masked language modelling (0.15 as in BERT).",
        "--mask-probability",
        "--mlm-probability",
        only=("pretrain", "evaluate"),
        tasks=("mlm",),
        gt=0,
        lt=1,
    )


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Section):
    """The tokenizer of a new model; a pretrained model brings its own."""

    name: str | None = setting(
        None,
        "Tokenizer: a directory or a Hub name (None: the model's, or a new one).",
        "--tokenizer",
        "--tokenizer-name",
        only=("pretrain",),
    )
    vocab_size: int = setting(
        8192, "Entries of a new tokenizer, special tokens included.", "--vocab-size", only=("pretrain",), ge=300
    )


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """How long, how fast, how often; `extra` takes any other field of transformers.TrainingArguments."""

    output_dir: str | None = setting(
        None, "Run directory (default: runs/<command>-<model>, then -2, -3, ...).", "--output-dir", "-o"
    )
    seed: int = setting(42, "Seed of weights, order, masks and dropout.", "--seed", ge=0)
    num_train_epochs: float | None = setting(
        None, "Passes over the training data; fractions count.", "--epochs", "--num-train-epochs", gt=0
    )
    max_steps: int | None = setting(None, "Optimizer steps; goes before num_train_epochs.", "--max-steps", ge=1)
    per_device_train_batch_size: int | None = setting(
        None, "Rows in one forward pass on one device.", "--batch-size", "--per-device-train-batch-size", ge=1
    )
    per_device_eval_batch_size: int = setting(
        32,
        "Rows in one evaluation pass; never changes a number.",
        "--eval-batch-size",
        "--per-device-eval-batch-size",
        ge=1,
    )
    gradient_accumulation_steps: int = setting(
        1,
        "Forward passes per optimizer step: more rows per step in the same memory.",
        "--gradient-accumulation-steps",
        ge=1,
    )
    learning_rate: float | None = setting(None, "Peak learning rate.", "--learning-rate", "--lr", gt=0)
    lr_scheduler_type: str | None = setting(
        None, "Shape of the learning rate: linear, cosine, constant_with_warmup, ...", "--lr-scheduler-type"
    )
    warmup_steps: float | None = setting(
        None, "Steps to the peak; below 1 it is a share of all steps.", "--warmup-steps", ge=0
    )
    weight_decay: float | None = setting(None, "AdamW's decay, not on norms and biases.", "--weight-decay", ge=0)
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm.", "--max-grad-norm", gt=0)
    dropout: float | None = setting(
        None,
        "Dropout everywhere in the model (None: 0 for new models, the model's own otherwise).",
        "--dropout",
        ge=0,
        lt=1,
    )
    eval_steps: int | None = setting(
        None, "Steps between evaluations (None: about five in a run).", "--eval-steps", ge=1
    )
    save_steps: int | None = setting(None, "Steps between checkpoints (None: as eval_steps).", "--save-steps", ge=1)
    save_total_limit: int = setting(2, "Checkpoints kept; the newest always is.", "--save-total-limit", ge=1)
    logging_steps: int | None = setting(
        None, "Steps between log lines (None: about fifty in a run).", "--logging-steps", ge=1
    )
    dataloader_num_workers: int = setting(
        0, "Processes that prepare batches; rarely worth it for text.", "--dataloader-num-workers", ge=0
    )
    extra: dict[str, Any] = setting({}, "Any other field of transformers.TrainingArguments, by its name there.")


@dataclass(frozen=True, kw_only=True)
class Generation(Section):
    """How text is made; names and meaning of transformers.GenerationConfig. None: the model's own setting."""

    max_new_tokens: int | None = setting(
        None, "Tokens to add at most (None: 128, or what fits the model).", "--max-new-tokens", ge=1
    )
    do_sample: bool | None = setting(None, "Draw tokens instead of taking the likeliest.", "--do-sample/--greedy")
    temperature: float | None = setting(None, "Below 1 safer, above 1 wilder; sampling only.", "--temperature", gt=0)
    top_k: int | None = setting(None, "Draw from the k likeliest tokens; sampling only.", "--top-k", ge=0)
    top_p: float | None = setting(
        None, "Draw from the likeliest tokens that hold this probability; sampling only.", "--top-p", gt=0, le=1
    )
    num_beams: int | None = setting(None, "Beam search over this many candidates.", "--num-beams", ge=1)
    repetition_penalty: float | None = setting(
        None, "Above 1 makes tokens that were already used less likely.", "--repetition-penalty", gt=0
    )
    no_repeat_ngram_size: int | None = setting(
        None, "No sequence of this many tokens comes twice.", "--no-repeat-ngram-size", ge=0
    )
    seed: int = setting(42, "Seed of the draw.", "--seed", ge=0)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Section):
    """What is measured and how."""

    metrics: list[str] = setting([], "Metrics, e.g. perplexity, accuracy, bleu,rouge (None: the task's).", "--metrics")
    context: int | None = setting(
        None,
        "Tokens a model sees at once for perplexity (None: the training block, else the model's limit, at most 1024).",
        "--context",
        ge=2,
    )
    stride: int | None = setting(
        None,
        "Tokens the window moves; smaller gives more context and costs more (None: half the context).",
        "--stride",
        ge=1,
    )
    batch_size: int = setting(16, "Rows in one forward pass; never changes a number.", "--batch-size", ge=1)
    seed: int = setting(0, "Seed of evaluation masks and of the bootstrap.", "--seed", ge=0)
    interval: bool = setting(True, "95% bootstrap interval beside every number.", "--interval/--no-interval")


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """All settings of one run."""

    task: str | None = setting(
        None, "What is learned: clm, mlm (pretrain), text-classification (finetune).", "--task", "--objective"
    )
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    train: Train = field(default_factory=Train)
    generation: Generation = field(default_factory=Generation)
    evaluation: Evaluation = field(default_factory=Evaluation)


# The sections that act in each command; a field's `only` and `tasks` narrow further.
SECTIONS: dict[str, tuple[str, ...]] = {
    "pretrain": ("task", "model", "data", "tokenizer", "train", "evaluation"),
    "finetune": ("task", "model", "data", "train", "evaluation"),
    "predict": ("model", "data", "evaluation"),
    "generate": ("model", "generation"),
    "evaluate": ("task", "model", "data", "evaluation"),
}


def _fields(section: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for one in dataclasses.fields(section):
        factory: Any = one.default_factory
        if dataclasses.is_dataclass(factory):
            yield from _fields(factory, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, one


SETTINGS: dict[str, dataclasses.Field[Any]] = dict(_fields(Recipe))  # by dotted key, in the order of this file


def setting_of(key: str) -> str | None:
    """The setting that `key` names or lies inside (`model.config.n_layer` -> `model.config`), None if unknown."""
    if key in SETTINGS:
        return key
    return next((name for name, one in SETTINGS.items() if is_mapping(one) and key.startswith(name + ".")), None)


def is_mapping(one: dataclasses.Field[Any]) -> bool:
    return str(one.type).startswith("dict[")


def is_list(one: dataclasses.Field[Any]) -> bool:
    return str(one.type).startswith("list[")


def acts(command: str, name: str, task: str | None = None) -> bool:
    """Whether the setting `name` changes anything in `command` (with `task`, where that is known)."""
    metadata = SETTINGS[name].metadata
    return (
        name.partition(".")[0] in SECTIONS[command]
        and (not metadata["only"] or command in metadata["only"])
        and (task is None or not metadata["tasks"] or task in metadata["tasks"])
    )
