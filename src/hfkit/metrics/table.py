"""METRICS: name -> metric; one definition gives both the value and its 95% bootstrap interval.

A metric turns rows into a `Sample`: statistics per row, and what their weighted sum comes to. Weights of one are the
value; weights drawn with replacement are a bootstrap; the same draws on two systems are a paired comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
    mcc,
    precision,
    recall,
    tag_sample,
)
from hfkit.metrics.numbers import pearson, spearman
from hfkit.metrics.probabilities import (
    average_precision,
    brier,
    ece,
    log_loss,
    mean_average_precision,
    ranking_sample,
    roc_auc,
)
from hfkit.metrics.sample import scored
from hfkit.metrics.text import (
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

# Of these the smallest value is the best, of all others the largest.
LOWER_IS_BETTER = {
    "nll", "perplexity", "bits_per_byte", "bits_per_character", "word_perplexity", "eos_nll", "nsp_loss",
    "log_loss", "brier", "ece", "mse", "rmse", "mae", "ter", "hamming_loss",
}  # fmt: skip

# Of text alone.
WITHOUT_REFERENCES = {"distinct_1", "distinct_2", "repetition"}

METRICS: dict[str, Callable[[Inputs], Sample]] = {
    # Text against one or several references.
    "bleu": lambda d: sacrebleu_sample(d, "BLEU", force=True),
    "bleu_zh": lambda d: sacrebleu_sample(d, "BLEU", force=True, tokenize="zh"),
    "bleu_char": lambda d: sacrebleu_sample(d, "BLEU", force=True, tokenize="char"),
    "bleu_intl": lambda d: sacrebleu_sample(d, "BLEU", force=True, tokenize="intl"),
    "bleu_none": lambda d: sacrebleu_sample(d, "BLEU", force=True, tokenize="none"),
    "chrf": lambda d: sacrebleu_sample(d, "CHRF"),
    "chrf++": lambda d: sacrebleu_sample(d, "CHRF", word_order=2),
    "ter": lambda d: sacrebleu_sample(d, "TER"),
    "rouge": lambda d: rouge_sample(d),
    "rouge_stem": lambda d: rouge_sample(d, stem=True),
    "exact_match": lambda d: share_sample(
        d, of_best_reference(d, exact), "% of rows equal to a reference, outer blanks aside", 100
    ),
    "squad_exact_match": lambda d: share_sample(
        d, of_best_reference(d, squad_exact), "% of rows equal to a reference, SQuAD-normalised", 100
    ),
    "token_f1": lambda d: mean_sample(
        d, 100 * of_best_reference(d, squad_f1), "F1 of SQuAD-normalised words 0-100, mean over rows"
    ),
    "length_ratio": lambda d: length_ratio(d),
    # Text alone.
    "distinct_1": lambda d: distinct(d, 1),
    "distinct_2": lambda d: distinct(d, 2),
    "repetition": lambda d: repetition(d),
    # Labels; predictions may also be probabilities (rows, classes), whose largest is the label.
    "accuracy": lambda d: accuracy_sample(d, "share of rows whose label equals the reference"),
    "balanced_accuracy": lambda d: label_sample(d, balanced_accuracy, "mean recall of the classes in the references"),
    "precision": lambda d: binary_sample(d, precision, "precision"),
    "recall": lambda d: binary_sample(d, recall, "recall"),
    "f1": lambda d: binary_sample(d, f1, "F1"),
    "precision_macro": lambda d: class_or_tag_sample(d, precision, "precision"),
    "recall_macro": lambda d: class_or_tag_sample(d, recall, "recall"),
    "f1_macro": lambda d: class_or_tag_sample(d, f1, "F1"),
    "f1_micro": lambda d: (
        tag_sample(d, f1_pooled, "F1 over all pairs of a row and a label")
        if d.tagged
        else accuracy_sample(d, "F1 over all classes: accuracy, as each row has one label")
    ),
    "f1_weighted": lambda d: (tag_sample if d.tagged else label_sample)(
        d, f1_weighted, "mean F1 of the classes, weighted by rows of the class"
    ),
    "mcc": lambda d: label_sample(d, mcc, "Matthews correlation, 0 where undefined"),
    # Tables (rows, labels) of 0 and 1: any number of labels a row. So can those above be whose names end in _macro,
    # _micro and _weighted.
    "f1_samples": lambda d: mean_sample(d, f1_of_rows(d), "F1 of each row's labels, mean over rows, 0 where undefined"),
    "subset_accuracy": lambda d: share_sample(
        d, (d.tags[0] == d.tags[1]).all(axis=1), "share of rows with exactly the labels of the reference"
    ),
    "hamming_loss": lambda d: mean_sample(
        d, (d.tags[0] != d.tags[1]).mean(axis=1), "share of wrong answers among all pairs of a row and a label"
    ),
    # Probabilities (rows, classes) against labels, or against such a table.
    "log_loss": lambda d: mean_sample(d, log_loss(d), "mean -ln(probability of the reference), nats"),
    "mean_average_precision": lambda d: mean_average_precision(d),
    "brier": lambda d: brier(d),
    "ece": lambda d: ece(d),
    "roc_auc": lambda d: ranking_sample(d, roc_auc, "area under the ROC curve"),
    "average_precision": lambda d: ranking_sample(d, average_precision, "average precision"),
    # Tags of the words of each row, as a list or with blanks between.
    "entity_f1": lambda d: entity_sample(d),
    # Numbers.
    "pearson": lambda d: pearson(d),
    "spearman": lambda d: spearman(d),
    "mae": lambda d: mean_sample(d, np.abs(d.errors), "mean absolute error"),
    "rmse": lambda d: mean_sample(d, d.errors**2, "root of the mean squared error", np.sqrt),
}


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

    Texts take one reference or a list of them a row; labels are str or int; probabilities are (rows, classes), in the
    order of `labels`, without which references are column numbers. The interval of a plain share of the rows, such as
    accuracy, is Wilson's (1927), which holds near 0% and 100%, too; of other metrics the percentile bootstrap over rows
    (Efron 1979), too narrow where nearly all rows are alike. Resamples where a metric is undefined (ROC-AUC without
    positives) are left out. One row has no interval: it says nothing of how rows vary. Draws depend on seed and rows
    alone, never on the other metrics.

    Raises UsageError for unknown names, DataError for rows that no number should be computed from.
    """
    unknown = [(f"unknown metric '{name}'", suggestion(name)) for name in names if name not in METRICS]
    if unknown:
        raise UsageError.of(unknown)
    data = Inputs(predictions, references, labels)
    samples = {name: METRICS[name](data) for name in names}
    return scored(samples, data.n, seed=seed, resamples=resamples if interval else 0)


def suggestion(name: str) -> str:
    return f"{did_you_mean(name, METRICS)} known: {', '.join(METRICS)}".strip()
