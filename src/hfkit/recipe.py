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

MAX_SEED = 2**32 - 1  # numpy's

# The schedules of transformers.SchedulerType but reduce_lr_on_plateau and greedy, which need a metric at every step.
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]


def setting(
    default: Any,
    description: str,
    *flags: str,
    only: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    unless: tuple[str, ...] = (),
    needs: str = "",
    rare: bool = False,
    **limits: Any,
) -> Any:
    """One field: default, help text and flags; the commands and tasks it acts in (none: all of its section's); the
    settings beside which it has no effect, and the one without which; whether `--help` leaves it out; limits."""
    metadata: dict[str, Any] = {"description": description, "flags": flags, "only": only, "tasks": tasks}
    metadata |= {"unless": unless, "needs": needs, "rare": rare, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - pydantic's own spelling


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """Which model, and whether its weights are used or only its architecture."""

    name: str | None = setting(
        None, "A run, a model directory or a name on the Hub.", "--model", "--model-name-or-path"
    )
    revision: str | None = setting(None, "Commit, tag or branch of a model on the Hub.", "--revision")
    type: str | None = setting(
        None,
        "A new model of this architecture: gpt2, llama, bert, ...",
        "--model-type",
        only=("pretrain",),
        unless=("model.name",),
    )
    size: Literal["tiny", "mini", "small", "base"] | None = setting(
        None,
        "Layers and width of a new model: tiny 2x128, mini 4x256, small 4x512, base 12x768.",
        "--size",
        only=("pretrain",),
        unless=("model.name",),
    )
    config: dict[str, Any] = setting(
        {}, "Keys of the architecture's config, e.g. --set model.config.num_hidden_layers=6."
    )
    from_scratch: bool = setting(
        False,
        "Fresh weights in the architecture of --model, with its tokenizer.",
        "--from-scratch",
        only=("pretrain", "finetune"),
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        "Number type of the weights: float32, bfloat16 (half the memory, five times slower on most CPUs) or float16.",
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
        [],
        "Training data: a file, a folder, a Hub name or builtin:NAME; can be given several times.",
        "--data",
        "--train-file",
        only=("pretrain", "finetune"),
    )
    validation: list[str] = setting(
        [],
        "Validation data (default: a share of the training data is held out).",
        "--validation",
        "--validation-file",
        only=("pretrain", "finetune"),
    )
    test: list[str] = setting(
        [],
        "Data to score; in training once, at the end.",
        "--test",
        "--test-file",
        only=("pretrain", "finetune", "evaluate"),
    )
    validation_split: float = setting(
        0.05,
        "Share of the training data held out without --validation, 0 for none.",
        "--validation-split",
        only=("pretrain", "finetune"),
        unless=("data.validation",),
        ge=0,
        lt=1,
    )
    columns: Columns = field(default_factory=Columns)
    documents: Literal["file", "blank-line", "row"] | None = setting(
        None,
        "What one document is in a .txt file: file, blank-line (a paragraph) or row (a line).",
        "--documents",
        only=("pretrain", "evaluate"),
    )
    block_size: int | None = setting(None, "Tokens in a training block.", "--block-size", only=("pretrain",), ge=2)
    max_length: int | None = setting(
        None,
        "Longest row in tokens; longer ones are cut and counted (default: the model's limit, at most 512).",
        "--max-length",
        "--max-seq-length",
        only=("finetune", "predict", "evaluate"),
        ge=2,
    )
    streaming: bool = setting(
        False,
        "Read training data while training instead of loading it first; needs --max-steps.",
        "--streaming",
        only=("pretrain",),
    )
    shuffle_buffer: int = setting(
        10_000,
        "Rows that streaming holds in memory to shuffle.",
        "--shuffle-buffer",
        only=("pretrain",),
        needs="data.streaming",
        rare=True,
        ge=1,
    )
    mask_probability: float = setting(
        0.15,
        "Share of the tokens that mlm hides and predicts (0.15 as in BERT).",
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
        "Tokenizer: a directory or a Hub name (default: the model's, or a new one).",
        "--tokenizer",
        "--tokenizer-name",
        only=("pretrain",),
    )
    vocab_size: int = setting(
        8192,
        "Entries of a new tokenizer, special tokens included.",
        "--vocab-size",
        only=("pretrain",),
        unless=("tokenizer.name", "model.name"),
        ge=300,
    )


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """How long, how fast, how often; `extra` takes any other field of transformers.TrainingArguments."""

    output_dir: str | None = setting(
        None, "Run directory (default: runs/COMMAND-MODEL, then -2, -3, ...).", "--output-dir", "-o"
    )
    seed: int = setting(42, "Seed of weights, order, masks and dropout.", "--seed", ge=0, le=MAX_SEED)
    num_train_epochs: float | None = setting(
        None, "Passes over the training data; fractions count.", "--epochs", "--num-train-epochs", gt=0
    )
    max_steps: int | None = setting(None, "Steps of the optimizer; goes before --epochs.", "--max-steps", ge=1)
    per_device_train_batch_size: int | None = setting(
        None, "Rows in one pass on one device.", "--batch-size", "--per-device-train-batch-size", ge=1
    )
    per_device_eval_batch_size: int | None = setting(
        None,
        "Rows in one evaluation pass; never changes a number.",
        "--eval-batch-size",
        "--per-device-eval-batch-size",
        rare=True,
        ge=1,
    )
    gradient_accumulation_steps: int = setting(
        1,
        "Passes per step: more rows a step in the same memory.",
        "--gradient-accumulation-steps",
        ge=1,
    )
    learning_rate: float | None = setting(None, "Peak learning rate.", "--learning-rate", "--lr", gt=0)
    lr_scheduler_type: Schedule | None = setting(
        None, "Shape of the learning rate: linear, cosine, constant_with_warmup, ...", "--lr-scheduler-type"
    )
    warmup_steps: float | None = setting(
        None, "Steps to the peak; below 1 a share of all steps.", "--warmup-steps", "--warmup-ratio", ge=0
    )
    weight_decay: float | None = setting(
        None, "AdamW's decay, not on norms and biases.", "--weight-decay", rare=True, ge=0
    )
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm.", "--max-grad-norm", rare=True, gt=0)
    dropout: float | None = setting(
        None,
        "Dropout everywhere in the model (default: 0 for new models, the model's own otherwise).",
        "--dropout",
        rare=True,
        ge=0,
        lt=1,
    )
    eval_steps: int | None = setting(None, "Steps between evaluations (default: five in a run).", "--eval-steps", ge=1)
    save_steps: int | None = setting(
        None, "Steps between checkpoints (default: as --eval-steps).", "--save-steps", ge=1
    )
    save_total_limit: int = setting(2, "Checkpoints kept; the newest always is.", "--save-total-limit", rare=True, ge=1)
    logging_steps: int | None = setting(
        None, "Steps between log lines (default: about twenty in a run).", "--logging-steps", rare=True, ge=1
    )
    dataloader_num_workers: int = setting(
        0, "Processes that prepare batches; rarely worth it for text.", "--dataloader-num-workers", rare=True, ge=0
    )
    extra: dict[str, Any] = setting({}, "Any other field of transformers.TrainingArguments, by its name there.")


@dataclass(frozen=True, kw_only=True)
class Generation(Section):
    """How text is made; names and meaning of transformers.GenerationConfig; what is not given is the model's own."""

    max_new_tokens: int | None = setting(
        None, "Tokens to add at most (default: 128, or what fits the model).", "--max-new-tokens", ge=1
    )
    do_sample: bool | None = setting(None, "Draw tokens, or always take the likeliest.", "--do-sample/--greedy")
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
    seed: int = setting(42, "Seed of the draw.", "--seed", ge=0, le=MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Section):
    """What is measured and how."""

    metrics: list[str] = setting(
        [], "What to measure, e.g. accuracy,mcc (default: the task's).", "--metrics", only=("finetune", "evaluate")
    )
    context: int | None = setting(
        None,
        "Tokens a causal model sees at once (default: the training block, else its limit, at most 1024).",
        "--context",
        only=("pretrain", "evaluate"),
        tasks=("clm",),
        ge=2,
    )
    stride: int | None = setting(
        None,
        "Tokens its window moves; smaller is more exact and slower (default: half of them).",
        "--stride",
        rare=True,
        only=("pretrain", "evaluate"),
        tasks=("clm",),
        ge=1,
    )
    batch_size: int = setting(16, "Rows in one pass; never changes a number.", "--batch-size", ge=1)
    seed: int = setting(
        0,
        "Seed of evaluation masks and of intervals.",
        "--seed",
        only=("pretrain", "finetune", "evaluate"),
        ge=0,
        le=MAX_SEED,
    )
    interval: bool = setting(
        True,
        "95% bootstrap interval beside every number.",
        "--interval/--no-interval",
        only=("pretrain", "finetune", "evaluate"),
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """All settings of one run."""

    task: str | None = setting(
        None, "What is learned: clm (next word), mlm (hidden words), text-classification.", "--task", "--objective"
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
