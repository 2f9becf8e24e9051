"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hfkit.settings.section import MAX_SEED, Section, setting

# The schedules of transformers.SchedulerType, except reduce_lr_on_plateau and greedy: those need a metric at each step.
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

# Two lines a setting: what it is, then its help.
# fmt: off


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    """Length, speed and checkpoints of training; `extra` takes any other field of transformers.TrainingArguments."""

    output_dir: str | None = setting("--output-dir -o",
        help="Run directory (default: runs/COMMAND-MODEL, then -2, -3, ...).")
    seed: int = setting("--seed", 42, ge=0, le=MAX_SEED,
        help="Seed of weight initialization, data order, masking and dropout.")
    num_train_epochs: float | None = setting("--epochs --num-train-epochs", gt=0,
        help="Epochs over the training data; may be a fraction.")
    max_steps: int | None = setting("--max-steps", ge=1, help="Optimizer steps; overrides --epochs.")
    max_tokens: int | None = setting("--max-tokens", only="pretrain", unless="train.max_steps data.streaming", ge=1,
        help="Tokens to train on, padding not counted; overrides --epochs.")
    max_time: str | None = setting(
        "--max-time", unless="train.max_steps train.max_tokens", pattern=r"^(?:\d+(?:\.\d+)?[hms])+$",
        help="Training time, e.g. 30m or 1h30m; the number of steps is estimated from timed steps; overrides --epochs.")
    global_batch_size: int | None = setting("--global-batch-size", ge=1,
        help="Examples per optimizer step, over all processes; decides the per-device batch size and gradient "
             "accumulation.")
    per_device_train_batch_size: int | Literal["auto"] | None = setting("--batch-size --per-device-train-batch-size",
        help="Examples in a micro-batch on one device, or auto: as many as fit its memory.")
    per_device_eval_batch_size: int | None = setting("--eval-batch-size --per-device-eval-batch-size", rare=True, ge=1,
        help="Examples in an evaluation batch; does not change the results.")
    gradient_accumulation_steps: int | None = setting("--gradient-accumulation-steps", ge=1,
        help="Micro-batches per optimizer step: a larger global batch in the same memory.")
    optimizer: str = setting("--optimizer --optim", "adamw",
        help="Optimizer: adamw, adafactor, sgd, or any other name that transformers knows.")
    momentum: float = setting("--momentum", 0.9, needs="train.optimizer=sgd", rare=True, ge=0, lt=1,
        help="Momentum of sgd.")
    adam_beta2: float | None = setting(needs="train.optimizer=adamw", rare=True, gt=0, lt=1,
        help="Adam's beta2; use a smaller value for short runs with small batches.")
    class_weights: str | None = setting("--class-weights", only="finetune",
        help="Weight of each class in the loss: balanced (examples / (classes * examples of the class)) or a mapping, "
             "e.g. '{spam: 3, ham: 1}'.")
    label_smoothing: float = setting("--label-smoothing", 0.0, rare=True, ge=0, lt=1,
        help="Fraction of the label's probability that is spread over all other labels.")
    gradient_checkpointing: bool = setting("--gradient-checkpointing/--no-gradient-checkpointing", False, rare=True,
        help="Recompute activations instead of storing them: less memory, about a third slower.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting("--precision", "auto",
        help="dtype of the computation in training; auto is bfloat16 where it is measured to be faster, else float32. "
             "Weights and final scores are float32.")
    compile: bool = setting("--compile/--no-compile", False, rare=True,
        help="Compile the model (torch.compile): slow first steps, then often faster on GPUs.")
    learning_rate: float | None = setting("--learning-rate --lr", gt=0, help="Peak learning rate.")
    lr_scheduler_type: Schedule | None = setting("--lr-scheduler-type",
        help="Learning rate schedule: linear, cosine, constant_with_warmup, ...")
    warmup_steps: float | None = setting("--warmup-steps --warmup-ratio", ge=0,
        help="Warmup steps; below 1 a fraction of all steps.")
    weight_decay: float | None = setting("--weight-decay", rare=True, ge=0,
        help="Weight decay of AdamW, not applied to norms and biases.")
    max_grad_norm: float = setting("--max-grad-norm", 1.0, rare=True, gt=0, help="Gradients are clipped to this norm.")
    dropout: float | None = setting("--dropout", rare=True, ge=0, lt=1,
        help="Dropout everywhere in the model (default: 0 for new models, the model's own otherwise).")
    eval_steps: int | None = setting("--eval-steps", ge=1,
        help="Steps between evaluations (default: five per run; without --best fewer, or on a sample of the validation "
             "data, where they would cost more than 10% of training).")
    save_steps: int | None = setting("--save-steps", ge=1,
        help="Steps between checkpoints (default: as --eval-steps, else five per run).")
    best: str | None = setting("--best --metric-for-best-model",
        help="Keep the model with the best validation score by this metric instead of the last one.")
    early_stopping: int | None = setting("--early-stopping --early-stopping-patience", ge=1,
        help="Stop after this many evaluations without improvement, and keep the best model.")
    samples: bool = setting("--samples/--no-samples", True, only="pretrain finetune", rare=True,
        help="Print a sample of the model's output at each evaluation.")
    save_total_limit: int = setting("--save-total-limit", 2, rare=True, ge=1,
        help="Checkpoints to keep; the newest is always kept.")
    logging_steps: int | None = setting("--logging-steps", rare=True, ge=1,
        help="Steps between log lines (default: about twenty lines per run).")
    dataloader_num_workers: int = setting("--dataloader-num-workers", 0, rare=True, ge=0,
        help="Worker processes that prepare batches; rarely useful for text.")
    report_to: list[str] = setting("--report-to", [], rare=True, commas=True,
        help="Experiment trackers: tensorboard, wandb, ...; repeatable (default: none).")
    push: str | None = setting("--push",
        help="Upload the finished model to this repository on the Hub, OWNER/NAME; a new one is private.")
    freeze: list[str] = setting("--freeze", [], unless="lora.enabled", commas=True,
        help="Parameters to freeze: embeddings, or layers:N (the first N layers); repeatable.")
    extra: dict[str, Any] = setting(default={}, help="Any other field of transformers.TrainingArguments, by its name.")


@dataclass(frozen=True, kw_only=True)
class Lora(Section):
    """LoRA adapters: small trainable matrices beside frozen weights; the run contains only the adapters."""

    enabled: bool = setting("--lora/--no-lora", False,
        help="Train small adapters and a new head instead of the model's own weights; `hfkit export RUN --merge` "
             "makes a plain model.")
    r: int = setting("--lora-r", 8, needs="lora.enabled", ge=1,
        help="Rank of the adapters; a higher rank has more capacity.")
    alpha: float = setting("--lora-alpha", 16.0, needs="lora.enabled", rare=True, gt=0,
        help="LoRA alpha; the adapter output is scaled by alpha / r.")
    dropout: float = setting("--lora-dropout", 0.0, needs="lora.enabled", rare=True, ge=0, lt=1,
        help="Dropout on the adapter input.")
    targets: list[str] = setting("--lora-targets", ["all-linear"], needs="lora.enabled", rare=True, commas=True,
        help="Layers that get adapters, by the end of their names; repeatable (default: all-linear).")
