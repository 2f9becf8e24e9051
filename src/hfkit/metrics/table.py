"""METRICS: name -> metric; one definition gives both the value and its 95% bootstrap interval.

A metric turns rows into a `Sample`: statistics per row, and what their weighted sum comes to. Weights of one are the
value; weights drawn with replacement are a bootstrap; the same draws on two systems are a paired comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hfkit.data.labels import MULTIPLE, REGRESSION, SINGLE
from hfkit.errors import UsageError, did_you_mean
from hfkit.metrics.inputs import Inputs, mean_sample, share_sample
from hfkit.metrics.labels import (
    accuracy_sample,
    balanced_accuracy,
    binary_sample,
    class_or_tag_sample,
    entity_sample,
    f1,
    f1_of_rows,
    f1_pooled,
    f1_weighted,
    label_sample,
    loose_entity_sample,
    mcc,
    precision,
    recall,
    tag_sample,
    tag_sample_of_words,
)
from hfkit.metrics.numbers import pearson, spearman
from hfkit.metrics.probabilities import (
    average_precision,
    bits,
    brier,
    ece,
    log_loss,
    mean_average_precision,
    nats_per,
    ranking_sample,
    roc_auc,
)
from hfkit.metrics.sample import scored
from hfkit.metrics.text import (
    ROUGE_EN_KEYS,
    ROUGE_KEYS,
    ROUGE_STEM_KEYS,
    distinct,
    exact,
    length_ratio,
    of_best_reference,
    repetition,
    rouge_sample,
    sacrebleu_sample,
    squad_exact,
    squad_f1,
)

if TYPE_CHECKING:
    from hfkit.metrics.sample import Label, Sample, Score


class Metric(NamedTuple):
    """A metric: its sample of given inputs, which values are better, and what it needs beside predictions.

    `needs`: "references"; "probabilities", as predictions, in place of decisions; "text", if the predictions suffice;
    or of likelihoods the unit of text that nats are divided by.
    """

    function: Callable[[Inputs], Sample]
    lower_is_better: bool = False
    needs: str = "references"


OF_TEXTS: dict[str, Metric] = {
    # Text against one or several references.
    "bleu": Metric(lambda d: sacrebleu_sample(d, "BLEU", force=True)),
    "bleu_zh": Metric(lambda d: sacrebleu_sample(d, "BLEU", force=True, tokenize="zh")),
    "bleu_char": Metric(lambda d: sacrebleu_sample(d, "BLEU", force=True, tokenize="char")),
    "bleu_intl": Metric(lambda d: sacrebleu_sample(d, "BLEU", force=True, tokenize="intl")),
    "bleu_lc": Metric(lambda d: sacrebleu_sample(d, "BLEU", force=True, lowercase=True)),
    "bleu_none": Metric(lambda d: sacrebleu_sample(d, "BLEU", force=True, tokenize="none")),
    "chrf": Metric(lambda d: sacrebleu_sample(d, "CHRF")),
    "chrf++": Metric(lambda d: sacrebleu_sample(d, "CHRF", word_order=2)),
    "ter": Metric(lambda d: sacrebleu_sample(d, "TER"), lower_is_better=True),
    "rouge": Metric(rouge_sample),
    "rouge_en": Metric(lambda d: rouge_sample(d, english=True)),
    "rouge_stem": Metric(lambda d: rouge_sample(d, stem=True)),
    "exact_match": Metric(
        lambda d: share_sample(
            d, of_best_reference(d.texts, exact), "% of rows equal to a reference, outer blanks aside", 100
        )
    ),
    "squad_exact_match": Metric(
        lambda d: share_sample(
            d, of_best_reference(d.answers, squad_exact), "% of rows equal to a reference, SQuAD-normalised", 100
        )
    ),
    "token_f1": Metric(
        lambda d: mean_sample(
            d, 100 * of_best_reference(d.answers, squad_f1), "F1 of SQuAD-normalised words 0-100, mean over rows"
        )
    ),
    "length_ratio": Metric(length_ratio),
    # Text alone.
    "distinct_1": Metric(lambda d: distinct(d, 1), needs="text"),
    "distinct_2": Metric(lambda d: distinct(d, 2), needs="text"),
    "repetition": Metric(repetition, needs="text"),
}

OF_LABELS: dict[str, Metric] = {
    # Labels; predictions may also be probabilities (rows, classes), whose largest is the label.
    "accuracy": Metric(lambda d: accuracy_sample(d, "share of rows whose label equals the reference")),
    "balanced_accuracy": Metric(
        lambda d: label_sample(d, balanced_accuracy, "mean recall of the classes in the references")
    ),
    "precision": Metric(lambda d: binary_sample(d, precision, "precision")),
    "recall": Metric(lambda d: binary_sample(d, recall, "recall")),
    "f1": Metric(lambda d: binary_sample(d, f1, "F1")),
    "precision_macro": Metric(lambda d: class_or_tag_sample(d, precision, "precision")),
    "recall_macro": Metric(lambda d: class_or_tag_sample(d, recall, "recall")),
    "f1_macro": Metric(lambda d: class_or_tag_sample(d, f1, "F1")),
    "f1_micro": Metric(
        lambda d: (
            tag_sample(d, f1_pooled, "F1 over all pairs of a row and a label")
            if d.tagged
            else accuracy_sample(d, "F1 over all classes: accuracy, as each row has one label")
        )
    ),
    "f1_weighted": Metric(
        lambda d: (tag_sample if d.tagged else label_sample)(
            d, f1_weighted, "mean F1 of the classes, weighted by rows of the class"
        )
    ),
    "mcc": Metric(lambda d: label_sample(d, mcc, "Matthews correlation, 0 where undefined")),
    # Tables (rows, labels) of 0 and 1: any number of labels a row. So can those above be whose names end in _macro,
    # _micro and _weighted.
    "f1_samples": Metric(
        lambda d: mean_sample(d, f1_of_rows(d), "F1 of each row's labels, mean over rows, 0 where undefined")
    ),
    "subset_accuracy": Metric(
        lambda d: share_sample(
            d, (d.tags[0] == d.tags[1]).all(axis=1), "share of rows with exactly the labels of the reference"
        )
    ),
    "hamming_loss": Metric(
        lambda d: mean_sample(
            d, (d.tags[0] != d.tags[1]).mean(axis=1), "share of wrong answers among all pairs of a row and a label"
        ),
        lower_is_better=True,
    ),
    # Probabilities (rows, classes) against labels, or against such a table.
    "log_loss": Metric(
        lambda d: mean_sample(d, log_loss(d), "mean -ln(probability of the reference), nats"),
        lower_is_better=True,
        needs="probabilities",
    ),
    "mean_average_precision": Metric(mean_average_precision, needs="probabilities"),
    "brier": Metric(brier, lower_is_better=True, needs="probabilities"),
    "ece": Metric(ece, lower_is_better=True, needs="probabilities"),
    "roc_auc": Metric(lambda d: ranking_sample(d, roc_auc, "area under the ROC curve"), needs="probabilities"),
    "average_precision": Metric(
        lambda d: ranking_sample(d, average_precision, "average precision"), needs="probabilities"
    ),
}

OF_TAGS: dict[str, Metric] = {
    # Tags of the words of each row, as a list or with blanks between; or {"start", "end", "label"} for each entity.
    "entity_f1": Metric(entity_sample),
    "entity_f1_strict": Metric(lambda d: entity_sample(d, strict=True)),
    "entity_f1_partial": Metric(lambda d: loose_entity_sample(d, "partial")),
    "entity_f1_type": Metric(lambda d: loose_entity_sample(d, "type")),
    "tag_accuracy": Metric(tag_sample_of_words),
}

OF_NUMBERS: dict[str, Metric] = {
    "pearson": Metric(pearson),
    "spearman": Metric(spearman),
    "mae": Metric(lambda d: mean_sample(d, np.abs(d.errors), "mean absolute error"), lower_is_better=True),
    "rmse": Metric(
        lambda d: mean_sample(d, d.errors**2, "root of the mean squared error", np.sqrt), lower_is_better=True
    ),
}

METRICS: dict[str, Metric] = {**OF_TEXTS, **OF_LABELS, **OF_TAGS, **OF_NUMBERS}

KEYS = {
    "rouge": ROUGE_KEYS,
    "rouge_en": ROUGE_EN_KEYS,
    "rouge_stem": ROUGE_STEM_KEYS,
}  # of the metrics that are several numbers


def metric_of(key: str) -> str:
    """The metric that gives the number `key`: rouge of rougeL."""
    return next((name for name, keys in KEYS.items() if key in keys), key)


# Of the likelihoods of texts: rows with "nll" in nats, and the sizes of the text in several units.
LIKELIHOODS: dict[str, Metric] = {
    "perplexity": Metric(lambda d: nats_per(d, "tokens", np.exp), lower_is_better=True, needs="tokens"),
    "nll": Metric(lambda d: nats_per(d, "tokens"), lower_is_better=True, needs="tokens"),
    "bits_per_byte": Metric(lambda d: nats_per(d, "bytes", bits), lower_is_better=True, needs="bytes"),
    "bits_per_character": Metric(lambda d: nats_per(d, "characters", bits), lower_is_better=True, needs="characters"),
    "word_perplexity": Metric(lambda d: nats_per(d, "words", np.exp), lower_is_better=True, needs="words"),
}

# What is measured if no metric is named, by the kind of label.
DEFAULT_METRICS = {
    SINGLE: ("accuracy", "f1_macro", "log_loss"),
    MULTIPLE: ("f1_macro", "f1_micro", "subset_accuracy", "log_loss"),
    REGRESSION: ("pearson", "spearman", "rmse", "mae"),
}

ANSWER_METRICS = ("squad_exact_match", "token_f1")  # of answers to questions, if no metric is named

ENTITY_METRICS = ("entity_f1",)  # of BIO tags of words, if no metric is named

TAG_METRICS = ("tag_accuracy",)  # of other tags


def lower_is_better(name: str) -> bool:
    """Whether the smallest value of the metric is the best. What only training measures is a loss or a share."""
    metric = METRICS.get(name) or LIKELIHOODS.get(name)
    return name.endswith("_loss") if metric is None else metric.lower_is_better


def compute(
    names: Sequence[str],
    predictions: Sequence[Any] | npt.NDArray[Any],
    references: Sequence[Any] | npt.NDArray[Any] | None,
    *,
    labels: Sequence[Label] | None = None,
    interval: bool = True,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Score]:
    """The metrics `names` of `predictions` against `references`, by key (rouge gives four), in the order asked.

    Texts have one reference per row or a list of them; labels are str or int; probabilities have the shape (rows,
    classes), in the order of `labels`; without `labels` references are column numbers. The interval of a share of the
    rows, such as accuracy, is Wilson's (1927), which also holds near 0% and 100%; that of other metrics is the BCa
    bootstrap over rows (see `sample.intervals`), which is too narrow if nearly all rows are alike. Resamples in which a
    metric is undefined (ROC-AUC without positives) are left out. One row has no interval. Draws depend on the seed and
    the rows only, not on the other metrics.

    Raises UsageError for unknown names, DataError for rows without a meaningful score.
    """
    require_known(names)
    data = Inputs(predictions, references, labels)
    samples = {name: METRICS[name].function(data) for name in names}
    return scored(samples, data.n, seed=seed, resamples=resamples if interval else 0)


def require_known(names: Iterable[str]) -> None:
    """Raises UsageError if a name is not in METRICS."""
    if unknown := [(f"unknown metric '{name}'", suggestion(name)) for name in names if name not in METRICS]:
        raise UsageError.of(unknown)


def suggestion(name: str) -> str:
    """The fix for an unknown name: the most similar one, if any, and all that are known."""
    return f"{did_you_mean(name, METRICS)} known: {', '.join(METRICS)}".strip()
