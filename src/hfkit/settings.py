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
    dtype: Literal["float32", "bfloat16", "float16"] | None = setting(
        None,
        "Number type of the weights: float32 (default), bfloat16 (half the memory, five times slower on most CPUs; "
        "default for text on GPUs) or float16.",
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
        None,
        "Column with the label; several 0/1 columns with commas between.",
        "--label-column",
        "--label-column-name",
        only=("finetune", "evaluate"),
    )
    target: str | None = setting(
        None,
        "Column with what an encoder-decoder should answer to the text: its perplexity is measured.",
        "--target-column",
        only=("evaluate",),
        tasks=("denoising",),
    )


@dataclass(frozen=True, kw_only=True)
class Csv(Section):
    """How .csv and .tsv files are written, where it is not as usual."""

    separator: str | None = setting(
        None, "What stands between fields: one character, or tab (default: the comma in .csv).", "--separator"
    )
    quoting: bool | None = setting(
        None,
        "Double quotes go around fields, or are characters like any other (default: they do in .csv alone).",
        "--quoting/--no-quoting",
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class Clean(Section):
    """Steps that change or leave out documents before training, all off; each says how much it removed."""

    unicode_nfc: bool = setting(False, "Unicode normal form C: one code for what looks the same.", only=("pretrain",))
    control_characters: bool = setting(False, "Leave out control characters but tab and line end.", only=("pretrain",))
    white_space: bool = setting(
        False,
        "One blank for several, none at the ends of lines and of the text, at most one empty line.",
        only=("pretrain",),
    )
    min_characters: int | None = setting(None, "Leave out shorter documents.", only=("pretrain",), ge=1)
    max_characters: int | None = setting(None, "Leave out longer documents.", only=("pretrain",), ge=1)
    deduplicate: bool = setting(False, "Keep the first of documents that are equal byte for byte.", only=("pretrain",))


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
    header: bool | None = setting(
        None,
        "The first line of .csv and .tsv files holds names; without, columns are named 0, 1, ... (default: a guess).",
        "--header/--no-header",
    )
    csv: Csv = field(default_factory=Csv)
    encoding: str = setting(
        "utf-8",
        "Of text files: utf-8, latin-1, ...; after commas further ones, each line in the first that fits it.",
        "--encoding",
        rare=True,
    )
    clean: Clean = field(default_factory=Clean)
    mixture: list[float] = setting(
        [],
        "Weights of the sources in data.train, in their order; small ones repeat until all were read once.",
        only=("pretrain",),
        unless=("data.streaming",),
    )
    documents: Literal["file", "blank-line", "row"] | None = setting(
        None,
        "What one document is in a .txt file: file, blank-line (a paragraph) or row (a line).",
        "--documents",
        only=("pretrain", "evaluate"),
    )
    block_size: int | None = setting(None, "Tokens in a training block.", "--block-size", only=("pretrain",), ge=2)
    document_masking: bool = setting(
        True,
        "Documents in one block don't see each other.",
        "--document-masking/--no-document-masking",
        only=("pretrain",),
        tasks=("clm",),
    )
    packing: bool = setting(
        True,
        "Fill blocks with several documents, or give each rows of its own, padded and ordered by length.",
        "--packing/--no-packing",
        only=("pretrain", "evaluate"),
        tasks=("mlm",),
        rare=True,
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = setting(
        None,
        "What a label is: single_label_classification, multi_label_classification (any number of labels a row) or "
        "regression (a number) (default: a guess).",
        "--problem-type",
        only=("finetune", "evaluate"),
        tasks=("text-classification",),
    )
    label_separator: str | None = setting(
        None,
        "What stands between the labels of a row.",
        "--label-separator",
        only=("finetune", "evaluate"),
        tasks=("text-classification",),
        rare=True,
    )
    long_documents: Literal["truncate", "window"] = setting(
        "truncate",
        "Rows beyond --max-length are cut, or read in windows whose logits are pooled; each trains as a row.",
        "--long-documents",
        only=("finetune", "predict", "evaluate"),
        tasks=("text-classification",),
    )
    window_overlap: int | None = setting(
        None,
        "Tokens that neighbouring windows share (default: an eighth of a window).",
        "--window-overlap",
        "--doc-stride",
        only=("finetune", "predict", "evaluate"),
        tasks=("text-classification",),
        needs="data.long_documents=window",
        rare=True,
        ge=0,
    )
    window_pooling: Literal["mean", "max"] = setting(
        "mean",
        "How the logits of a row's windows become one: their mean or, label by label, the largest.",
        "--window-pooling",
        only=("finetune", "predict", "evaluate"),
        tasks=("text-classification",),
        needs="data.long_documents=window",
        rare=True,
    )
    allow_truncation: bool = setting(
        False,
        "Go on although more than 5% of the rows are cut.",
        "--allow-truncation",
        only=("finetune", "evaluate"),
        tasks=("text-classification",),
    )
    max_length: int | None = setting(
        None,
        "Longest row in tokens; longer ones are cut and counted (default: the model's limit, at most 512).",
        "--max-length",
        "--max-seq-length",
        only=("finetune", "predict", "evaluate"),
        tasks=("text-classification", "denoising"),
        ge=2,
    )
    max_train_samples: int | None = setting(
        None,
        "Train on this many rows, drawn at random after the validation data was held out.",
        "--max-train-samples",
        only=("pretrain", "finetune"),
        unless=("data.streaming",),
        ge=1,
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
    masking: Literal["token", "whole-word", "span"] = setting(
        "token",
        "What mlm hides: single tokens, whole words, or spans of several words.",
        "--masking",
        only=("pretrain", "evaluate"),
        tasks=("mlm", "mlm-nsp"),
    )
    mask_probability: float = setting(
        0.15,
        "Share of the tokens that are hidden and predicted (0.15 as in BERT and T5).",
        "--mask-probability",
        "--mlm-probability",
        "--noise-density",
        only=("pretrain", "evaluate"),
        tasks=("mlm", "mlm-nsp", "denoising"),
        unless=("data.columns.target",),
        gt=0,
        lt=1,
    )
    mean_span_length: float = setting(
        3.0,
        "Mean tokens of a span that denoising hides (3 as in T5).",
        "--mean-span-length",
        only=("pretrain", "evaluate"),
        tasks=("denoising",),
        unless=("data.columns.target",),
        rare=True,
        ge=1,
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
    algorithm: Literal["bpe", "wordpiece", "unigram", "char"] | None = setting(
        None,
        "How a new tokenizer divides text: bpe (of bytes), wordpiece, unigram or char (default: as the model type's).",
        "--tokenizer-algorithm",
        only=("pretrain",),
        unless=("tokenizer.name", "model.name"),
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
    max_tokens: int | None = setting(
        None,
        "Tokens to train on, padding not counted; goes before --epochs.",
        "--max-tokens",
        only=("pretrain",),
        unless=("train.max_steps", "data.streaming"),
        ge=1,
    )
    max_time: str | None = setting(
        None,
        "Time to train for, such as 30m or 1h30m: the steps that fit are measured first; goes before --epochs.",
        "--max-time",
        unless=("train.max_steps", "train.max_tokens"),
        pattern=r"^(?:\d+(?:\.\d+)?[hms])+$",
    )
    global_batch_size: int | None = setting(
        None,
        "Rows in one step of the optimizer, over all processes; the two below follow from it.",
        "--global-batch-size",
        ge=1,
    )
    per_device_train_batch_size: int | Literal["auto"] | None = setting(
        None,
        "Rows in one pass on one device, or auto: as many as fit its memory.",
        "--batch-size",
        "--per-device-train-batch-size",
    )
    per_device_eval_batch_size: int | None = setting(
        None,
        "Rows in one evaluation pass; never changes a number.",
        "--eval-batch-size",
        "--per-device-eval-batch-size",
        rare=True,
        ge=1,
    )
    gradient_accumulation_steps: int | None = setting(
        None,
        "Passes per step: more rows a step in the same memory.",
        "--gradient-accumulation-steps",
        ge=1,
    )
    optimizer: str = setting(
        "adamw",
        "Optimizer: adamw, adafactor, sgd, or any other name that transformers knows.",
        "--optimizer",
        "--optim",
    )
    momentum: float = setting(0.9, "Momentum of sgd.", "--momentum", needs="train.optimizer=sgd", rare=True, ge=0, lt=1)
    adam_beta2: float | None = setting(
        None,
        "AdamW's memory of squared gradients; shorter for few, small steps.",
        needs="train.optimizer=adamw",
        rare=True,
        gt=0,
        lt=1,
    )
    class_weights: str | None = setting(
        None,
        "Weight of each class in the loss: balanced (rows / (classes * rows of the class)) or a mapping, e.g. "
        "'{spam: 3, ham: 1}'.",
        "--class-weights",
        only=("finetune",),
        tasks=("text-classification",),
    )
    label_smoothing: float = setting(
        0.0, "Share of each training label that is spread over all others.", "--label-smoothing", rare=True, ge=0, lt=1
    )
    gradient_checkpointing: bool = setting(
        False,
        "Compute activations again instead of keeping them: less memory, a third slower.",
        "--gradient-checkpointing/--no-gradient-checkpointing",
        rare=True,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "Number type of the arithmetic; auto takes bfloat16 where this machine is fast at it, else float32.",
        "--precision",
    )
    compile: bool = setting(
        False,
        "Compile the model (torch.compile): slow first steps, then often faster on GPUs.",
        "--compile/--no-compile",
        rare=True,
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
    best: str | None = setting(
        None,
        "Keep the model that was best on the validation data by this metric, not the last one.",
        "--best",
        "--metric-for-best-model",
    )
    early_stopping: int | None = setting(
        None,
        "Stop after this many evaluations without a better one; keeps the best model.",
        "--early-stopping",
        "--early-stopping-patience",
        ge=1,
    )
    samples: bool = setting(
        True,
        "Show what the model writes or fills in at each evaluation.",
        "--samples/--no-samples",
        only=("pretrain",),
        rare=True,
    )
    save_total_limit: int = setting(2, "Checkpoints kept; the newest always is.", "--save-total-limit", rare=True, ge=1)
    logging_steps: int | None = setting(
        None, "Steps between log lines (default: about twenty in a run).", "--logging-steps", rare=True, ge=1
    )
    dataloader_num_workers: int = setting(
        0, "Processes that prepare batches; rarely worth it for text.", "--dataloader-num-workers", rare=True, ge=0
    )
    report_to: list[str] = setting(
        [],
        "Trackers that get the numbers, too: tensorboard, wandb, ...; can be given several times (default: none).",
        "--report-to",
        rare=True,
    )
    push: str | None = setting(
        None,
        "Upload the finished model to this repository, OWNER/NAME, on the Hub; a new one is private.",
        "--push",
    )
    freeze: list[str] = setting(
        [],
        "Weights that stay as they are: embeddings, or layers:N (the first N); can be given several times.",
        "--freeze",
        unless=("lora.enabled",),
    )
    extra: dict[str, Any] = setting({}, "Any other field of transformers.TrainingArguments, by its name there.")


@dataclass(frozen=True, kw_only=True)
class Lora(Section):
    """Adapters: small matrices that are trained beside weights that stay as they are; the run holds them alone."""

    enabled: bool = setting(
        False,
        "Train small adapters and a new head, not the model's own weights; `hfkit export RUN --merge` makes it plain.",
        "--lora/--no-lora",
    )
    r: int = setting(8, "Rank of the adapters: larger ones learn more.", "--lora-r", needs="lora.enabled", ge=1)
    alpha: float = setting(
        16.0, "Their part is multiplied by alpha / r.", "--lora-alpha", needs="lora.enabled", rare=True, gt=0
    )
    dropout: float = setting(
        0.0, "Dropout of what goes into the adapters.", "--lora-dropout", needs="lora.enabled", rare=True, ge=0, lt=1
    )
    targets: list[str] = setting(
        ["all-linear"],
        "Layers with adapters, by the end of their names; can be given several times (default: all-linear).",
        "--lora-targets",
        needs="lora.enabled",
        rare=True,
    )


@dataclass(frozen=True, kw_only=True)
class Generation(Section):
    """How text is made; names and meaning of transformers.GenerationConfig; what is not given is the model's own."""

    max_new_tokens: int | None = setting(
        None, "Tokens to add at most (default: 128, in a chat 512, or what fits the model).", "--max-new-tokens", ge=1
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
    min_p: float | None = setting(
        None,
        "Draw from tokens this likely, as a share of the likeliest; sampling only.",
        "--min-p",
        ge=0,
        le=1,
    )
    typical_p: float | None = setting(
        None,
        "Draw from the most typical tokens that hold this probability; sampling only.",
        "--typical-p",
        rare=True,
        gt=0,
        le=1,
    )
    length_penalty: float | None = setting(
        None, "Above 0 beams prefer longer texts, below shorter ones.", "--length-penalty", rare=True
    )
    early_stopping: bool | None = setting(
        None, "Stop beams as soon as as many as there are have ended.", "--early-stopping", rare=True
    )
    min_new_tokens: int | None = setting(
        None, "Tokens before which no text may end.", "--min-new-tokens", rare=True, ge=1
    )
    num_return_sequences: int | None = setting(
        None, "Texts for each prompt.", "--num-return-sequences", only=("generate",), ge=1
    )
    stop: list[str] = setting([], "End before this text; can be given several times.", "--stop")
    bad_words: list[str] = setting([], "Never this word; can be given several times.", "--bad-words", rare=True)
    language: str | None = setting(
        None, "Language of the answer, for models that begin with its token: de_DE, deu_Latn.", "--language", rare=True
    )
    raw: bool = setting(
        False, "Continue the prompt also where the model has a chat template.", "--raw", only=("generate",)
    )
    chat_template: str | None = setting(
        None, "A Jinja file that makes the prompt of messages.", "--chat-template", unless=("generation.raw",)
    )
    batch_tokens: int = setting(
        8192,
        "Tokens in a batch at most, new ones and padding included; more is faster.",
        "--batch-tokens",
        only=("generate",),
        ge=1,
    )
    assistant_model: str | None = setting(
        None, "A small model of the same tokens that guesses ahead: faster, the same greedy text.", "--assistant-model"
    )
    prompt_lookup_num_tokens: int | None = setting(
        None, "Guess this many tokens ahead by looking into the prompt, the same greedy text.", "--prompt-lookup", ge=1
    )
    compile: bool = setting(False, "Compile the model first: a minute, then faster steps.", "--compile")
    seed: int = setting(
        42, "Seed of the draw; each text depends on it and on its own number alone.", "--seed", ge=0, le=MAX_SEED
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation(Section):
    """What is measured and how."""

    metrics: list[str] = setting(
        [],
        "What to measure, e.g. accuracy,mcc (default: the task's).",
        "--metrics",
        only=("finetune", "generate", "evaluate"),
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
    bos: Literal["auto", "yes", "no"] = setting(
        "auto",
        "A BOS token before each document: auto (where the tokenizer has one), yes or no.",
        "--bos",
        rare=True,
        only=("pretrain", "evaluate"),
        tasks=("clm",),
    )
    compat: Literal["lm-eval", "evaluate", "run-clm"] | None = setting(
        None,
        "Perplexity as another program defines it: lm-eval, evaluate or run-clm.",
        "--compat",
        unless=("evaluation.stride", "evaluation.bos"),
        only=("evaluate",),
        tasks=("clm",),
    )
    pseudo_perplexity: bool = setting(
        False,
        "Hide one token at a time and predict it from all others (arXiv 1910.14659): a pass for every token.",
        "--pseudo-perplexity",
        only=("evaluate",),
        tasks=("mlm",),
    )
    threshold: float | None = setting(
        None,
        "Probability from which a label of several is given (default: the model's own, 0.5 where it has none).",
        "--threshold",
        only=("finetune", "predict", "evaluate"),
        tasks=("text-classification",),
        ge=0,
        le=1,
    )
    tune_threshold: bool = setting(
        False,
        "Choose the threshold that is best for macro-F1 on the validation data, and keep it in the model.",
        "--tune-threshold",
        only=("finetune",),
        tasks=("text-classification",),
        unless=("evaluation.threshold",),
    )
    temperature_scaling: bool = setting(
        False,
        "Divide the logits by the number that suits the validation data best, and keep it in the model.",
        "--temperature-scaling",
        only=("finetune",),
        tasks=("text-classification",),
    )
    batch_size: int = setting(
        16,
        "Rows in one pass; never changes a number.",
        "--batch-size",
        only=("pretrain", "finetune", "predict", "evaluate"),
        ge=1,
    )
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
        None,
        "What is learned: clm (next word), mlm (hidden words), mlm-nsp (BERT's pairs), denoising (T5's spans), "
        "text-classification.",
        "--task",
        "--objective",
    )
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    train: Train = field(default_factory=Train)
    lora: Lora = field(default_factory=Lora)
    generation: Generation = field(default_factory=Generation)
    evaluation: Evaluation = field(default_factory=Evaluation)


# The sections that act in each command; a field's `only` and `tasks` narrow further.
SECTIONS: dict[str, tuple[str, ...]] = {
    "pretrain": ("task", "model", "data", "tokenizer", "train", "lora", "evaluation"),
    "finetune": ("task", "model", "data", "train", "lora", "evaluation"),
    "predict": ("model", "data", "evaluation"),
    "generate": ("model", "data", "generation", "evaluation"),
    "chat": ("model", "generation"),
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
