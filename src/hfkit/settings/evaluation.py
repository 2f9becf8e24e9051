"""Settings of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hfkit.settings.section import MAX_SEED, Section, setting

# Two lines a setting: what it is, then its help.
# fmt: off


@dataclass(frozen=True, kw_only=True)
class Evaluation(Section):
    """What is measured and how."""

    metrics: list[str] = setting("--metrics", [], only="finetune generate evaluate", commas=True,
        unless="evaluation.pseudo_perplexity evaluation.compat",
        help="Metrics to compute, e.g. accuracy,mcc (default: those of the task).")
    context: int | None = setting("--context", only="pretrain evaluate", ge=2,
        help="Context length in tokens (default: the training block size, else the model's limit, at most 1024).")
    stride: int | None = setting("--stride", only="pretrain evaluate", rare=True, ge=1,
        help="Tokens by which the context moves; smaller is more accurate and slower (default: half the context).")
    bos: Literal["auto", "yes", "no"] = setting("--bos", "auto", only="pretrain evaluate", rare=True,
        help="A BOS token before each document: auto (if the tokenizer has one), yes or no.")
    compat: Literal["lm-eval", "evaluate", "run-clm"] | None = setting(
        "--compat", only="evaluate", unless="evaluation.stride evaluation.bos",
        help="Perplexity as another program defines it: lm-eval, evaluate or run-clm.")
    pseudo_perplexity: bool = setting("--pseudo-perplexity", False, only="evaluate",
        help="Mask one token at a time and predict it from all others (arXiv 1910.14659); one forward pass per token.")
    threshold: float | None = setting("--threshold", only="finetune predict evaluate", ge=0, le=1,
        help="In multi-label classification, the probability from which a label is predicted (default: the model's "
             "own, 0.5 if it has none).")
    max_answer_length: int = setting("--max-answer-length", 30, only="finetune predict evaluate", rare=True, ge=1,
        help="Maximum tokens of an answer in question answering.")
    no_answer_threshold: float | None = setting("--no-answer-threshold", only="finetune predict evaluate", rare=True,
        help="In question answering, how much larger the logit of no answer must be than that of the best span "
             "(default: the model's own, tuned on the validation data; without one there always is an answer).")
    tune_threshold: bool = setting("--tune-threshold", False, only="finetune", unless="evaluation.threshold",
        help="Choose the threshold with the best macro-F1 on the validation data, and save it in the model.")
    temperature_scaling: bool = setting("--temperature-scaling", False, only="finetune",
        help="Calibrate probabilities: fit a temperature for the logits on the validation data, and save it in the "
             "model.")
    num_beams: int | None = setting("--num-beams", only="finetune evaluate", ge=1,
        help="Number of beams in beam search when texts are generated (default: the model's own, 1 if it has none).")
    batch_size: int | None = setting("--batch-size", only="pretrain finetune predict evaluate", ge=1,
        help="Examples in a batch; does not change the results (default: as many as have 4,096 tokens on a CPU, "
             "32,768 on a GPU).")
    seed: int = setting("--seed", 0, only="pretrain finetune evaluate", ge=0, le=MAX_SEED,
        help="Seed of evaluation masks and bootstrap intervals.")
    interval: bool = setting("--interval/--no-interval", True, only="pretrain finetune evaluate", rare=True,
        help="95% bootstrap interval beside every number.")
