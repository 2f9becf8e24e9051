"""METRICS: name -> metric; one definition gives both the value and its 95% bootstrap interval.

A metric turns rows into a `Sample`: statistics per row, and what their weighted sum comes to. Weights of one are the
value; weights drawn with replacement are a bootstrap; the same draws on two systems are a paired comparison.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from hfkit import console
from hfkit.errors import DataError, UsageError, did_you_mean

Array: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.intp]
Label: TypeAlias = str | int
Key = TypeVar("Key", bound=Hashable)

WEIGHTS_AT_ONCE = 4_000_000  # floats: a bootstrap takes some 32 MB, whatever the number of rows
ROWS_AT_ONCE = 1_000  # sacreBLEU holds every n-gram of the references it is given
Z95 = 1.959963984540054  # the normal distribution's 97.5th percentile
ECE_BINS = 15  # Guo et al. 2017, https://arxiv.org/abs/1706.04599
# Burmese, Chinese, Japanese, Khmer, Lao, Thai and Tibetan: no spaces between words. Korean has them.
SPACELESS = re.compile(
    "[\u0e01-\u0e4e\u0e81-\u0ece\u0f40-\u0fbc\u1000-\u103f\u1780-\u17d3\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)
# `\w` lacks the vowel signs of Hebrew, Arabic and the scripts of India, which would cut their words.
WORD = re.compile(
    f"{SPACELESS.pattern}|(?:(?!{SPACELESS.pattern})"
    "[^\\W_\u0300-\u036f]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff])+"
)
LETTER = re.compile(r"[^\W\d_]")
NON_ASCII_LETTER = re.compile(r"[^\W\d_a-zA-Z]")
TAG = re.compile(r"O|[BI]-.+")
ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
ROUGE_KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

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


@dataclass(frozen=True)
class Score:
    """A number with its 95% interval (None where there is none), the rows behind it and what it means."""

    value: float
    low: float | None
    high: float | None
    n: int
    definition: str


@dataclass(frozen=True)
class Sample:
    """A metric on given rows as a function of how often each row counts.

    `counts` (lines,) is how many rows each line of statistics stands for; `values` maps such weights
    (resamples, lines) to (resamples, keys), and to NaN where the metric is undefined. No `keys`: the metric's name.
    `hits` (rows,): where the metric is `scale` times a plain share of the rows, which of them have it.
    """

    counts: Array
    values: Callable[[Array], Array]
    definition: str
    keys: tuple[str, ...] = ()
    interval: bool = True
    hits: Array | None = None
    scale: float = 1


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


def scored(samples: Mapping[str, Sample], n: int, *, seed: int = 0, resamples: int = 1000) -> dict[str, Score]:
    """Value and interval of each sample over `n` rows, by key; no intervals where there are no `resamples`."""
    values = {name: defined(name, sample, n) for name, sample in samples.items()}
    uncertain = {name: sample for name, sample in samples.items() if resamples and sample.interval and n > 1}
    drawn = bootstrap({name: one for name, one in uncertain.items() if one.hits is None}, seed, resamples)
    scores = {}
    for name, sample in samples.items():
        ends: Sequence[tuple[float | None, float | None]] = [(None, None)] * len(values[name])
        how = ""
        if name in drawn:
            ends = percentiles(drawn[name])
            how = f"; {resamples} resamples of rows, seed {seed}"
        elif name in uncertain:
            ends = [wilson(value / sample.scale, n, sample.scale) for value in values[name]]
            how = "; Wilson's interval"
        for key, value, (low, high) in zip(sample.keys or (name,), values[name], ends, strict=True):
            scores[key] = Score(value, low, high, n, sample.definition + how)
    return scores


def loss_of(scores: Mapping[str, Score]) -> float | None:
    """The loss of an evaluation, the mean over all that is scored; None where no metric among `scores` tells it."""
    if "nll" in scores:
        parts = [scores[name] for name in ("nll", "eos_nll") if name in scores]
        tokens = sum(part.n for part in parts)
        pairs = scores["nsp_loss"].value if "nsp_loss" in scores else 0.0
        return sum(part.value * (part.n / tokens) for part in parts) + pairs
    if "rmse" in scores:
        return scores["rmse"].value ** 2
    return scores["log_loss"].value if "log_loss" in scores else None


def wilson(share: float, n: int, scale: float = 1) -> tuple[float, float]:
    """The 95% interval of a share of `n` rows, times `scale` (Wilson 1927, the score interval)."""
    z2 = Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return scale * max(0.0, middle - half), scale * min(1.0, middle + half)


def confusion_matrix(
    predictions: Sequence[Label], references: Sequence[Label], *, labels: Sequence[Label] | None = None
) -> tuple[list[Label], npt.NDArray[np.int64]]:
    """The classes, and how many rows of each (axis 0) were predicted as each (axis 1)."""
    data = Inputs(predictions, references, labels)
    size = len(data.classes)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (data.actual, data.predicted), 1)
    return data.classes, matrix


def ratio_interval(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> tuple[float, float] | None:
    """The 95% interval of sum(numerators) / sum(denominators) over their units (documents, blocks); None for one."""
    rows = np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], axis=1)
    if len(rows) < 2:
        return None
    sample = additive(np.ones(len(rows)), rows, lambda sums: sums[:, :1] / sums[:, 1:], "ratio of sums")
    return percentiles(bootstrap({"ratio": sample}, seed, resamples)["ratio"])[0]


def suggestion(name: str) -> str:
    return f"{did_you_mean(name, METRICS)} known: {', '.join(METRICS)}".strip()


def defined(name: str, sample: Sample, n: int) -> list[float]:
    """The metric's value for each of its keys; DataError where it has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values: list[float] = sample.values(sample.counts[np.newaxis])[0].tolist()
    if not all(map(math.isfinite, values)):
        raise DataError(f"{name} is undefined on these {n} rows ({sample.definition})", "leave it out")
    return values


def bootstrap(samples: Mapping[Key, Sample], seed: int, resamples: int) -> dict[Key, Array]:
    """Values (resamples, keys) of each sample; samples over the same rows share their draws."""
    values: dict[Key, list[Array]] = {name: [] for name in samples}
    for counts in {id(sample.counts): sample.counts for sample in samples.values()}.values():
        group = [name for name, sample in samples.items() if sample.counts is counts]
        for weights in draws(counts, seed, resamples):
            with np.errstate(divide="ignore", invalid="ignore"):
                for name in group:
                    values[name].append(samples[name].values(weights))
    return {name: np.concatenate(chunks) for name, chunks in values.items()}


def percentiles(values: Array) -> list[tuple[float, float]]:
    """The middle 95% of each column; where a metric is undefined the resample is left out."""
    low, high = np.nanpercentile(values, (2.5, 97.5), axis=0).tolist()
    return list(zip(low, high, strict=True))


def draws(counts: Array, seed: int, resamples: int) -> Iterator[Array]:
    """Weights (some resamples, lines): as many rows as there are, drawn with replacement and counted by line.

    Drawing rows and counting lines is a multinomial draw over lines, so a million rows in four confusion cells cost
    four numbers. Where each line is one row, counting drawn indices is the faster way to the same distribution.
    """
    rng = np.random.default_rng(seed)
    lines, n = len(counts), int(counts.sum())
    at_once = max(1, WEIGHTS_AT_ONCE // lines)
    for start in range(0, resamples, at_once):
        weights = np.empty((min(at_once, resamples - start), lines))
        for row in weights:
            drawn = np.bincount(rng.integers(n, size=n), minlength=n) if n == lines else rng.multinomial(n, counts / n)
            row[:] = drawn
        yield weights


class Inputs:
    """Predictions and references, checked once for all metrics that read them the same way."""

    def __init__(self, predictions: Any, references: Any, labels: Sequence[Label] | None = None) -> None:
        self.predictions, self._references, self.given_labels = predictions, references, labels
        self.systems: Sequence[Inputs] = [self]
        self.n = len(predictions)
        if self.n == 0:
            raise DataError("no rows to score", "give predictions that are not empty")
        if references is not None and len(references) != self.n:
            raise DataError(
                f"{self.n} predictions but {len(references)} references", "give one per prediction, in order"
            )

    @property
    def rows(self) -> Array:
        """Every row counted once: the `counts` of all metrics with a line per row, so that they share draws."""
        return self.systems[0].ones

    @cached_property
    def ones(self) -> Array:
        return np.ones(self.n)

    @property
    def references(self) -> Any:
        if self._references is None:
            raise UsageError("no references to compare with", "give --references")
        return self._references

    @cached_property
    def generated(self) -> list[str]:
        for row, text in enumerate(self.predictions, 1):
            if not isinstance(text, str):
                raise row_error("predictions", row, f"{text!r} is not text", "give texts, '' for no answer")
        return list(self.predictions)

    @cached_property
    def texts(self) -> list[tuple[str, Sequence[str]]]:
        """Prediction and references of each row."""
        references = [[given] if isinstance(given, str) else given for given in self.references]
        for row, given in enumerate(references, 1):
            if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
                raise row_error("references", row, f"{given!r} is not text", "give a text or a list of texts")
            if not given or not all(map(str.strip, given)):
                raise row_error("references", row, "empty", "fill it in, or remove the row from both sides")
        return list(zip(self.generated, references, strict=True))

    @property
    def tagged(self) -> bool:
        """Whether the references are a table of 0 and 1, one column a label."""
        return is_table(self.references) and np.asarray(self.references[0]).dtype.kind in "biuf"

    @cached_property
    def tags(self) -> tuple[Array, Array]:
        """Predicted and reference table (rows, labels) of 0 and 1."""
        if not self.tagged or not is_table(self.predictions):
            raise DataError("no tables of 0 and 1, a column for each label", "give them, or a metric of classes")
        tables = np.asarray(self.predictions, float), np.asarray(self.references, float)
        for side, table in zip(("predictions", "references"), tables, strict=True):
            if table.shape != tables[1].shape or table.ndim != 2 or not np.isin(table, (0, 1)).all():
                raise DataError(f"{side}: no table of 0 and 1, a column for each label", "apply a threshold")
        return tables

    @cached_property
    def word_tags(self) -> list[tuple[list[str], list[str]]]:
        """Predicted and reference tags of each row's words."""
        sides = {"predictions": self.predictions, "references": self.references}
        rows: dict[str, list[list[str]]] = {side: [] for side in sides}
        for side, given in sides.items():
            for row, value in enumerate(given, 1):
                tags = value.split() if isinstance(value, str) else value
                if not isinstance(tags, Sequence) or not all(map(TAG.fullmatch, map(str, tags))):
                    raise row_error(side, row, f"{value!r} are no tags", "O, B-TYPE and I-TYPE for each word")
                rows[side].append(list(tags))
        pairs = list(zip(*rows.values(), strict=True))
        for row, (predicted, actual) in enumerate(pairs, 1):
            if len(predicted) != len(actual):
                problem = f"{len(predicted)} tags for {len(actual)} words"
                raise row_error("predictions", row, problem, "give one for each word")
        return pairs

    @cached_property
    def tag_probabilities(self) -> Array:
        """Probabilities (rows, labels), each between 0 and 1 for itself."""
        if not self.tagged or not is_table(self.predictions):
            raise DataError("references are no table of 0 and 1, a column for each label", "give one")
        table = np.asarray(self.predictions, float)
        if table.shape != np.shape(self.references) or not ((table >= 0) & (table <= 1)).all():
            raise DataError("predictions are no probabilities, one for each label in every row", "apply sigmoid")
        return table

    @cached_property
    def classes(self) -> list[Label]:
        """All labels: the given ones in their order, the columns of a table, or those found, sorted."""
        if self.given_labels is not None:
            return list(self.given_labels)
        if is_table(self.predictions):
            return list(range(len(self.predictions[0])))
        sides = {"references": plain(self.references), "predictions": plain(self.predictions)}
        first = sides["references"][0]
        for side, labels in sides.items():
            for row, label in enumerate(labels, 1):
                if not isinstance(label, str if isinstance(first, str) else int):
                    problem = f"{label!r} is not a label, or not like the first of the references, {first!r}"
                    raise row_error(
                        side, row, problem, "write labels as text everywhere, or as whole numbers everywhere"
                    )
                if side == "references" and isinstance(label, str) and not label.strip():
                    raise row_error(side, row, "empty", "fill it in, or remove the row from both sides")
        return sorted({*sides["references"], *sides["predictions"]})

    @cached_property
    def actual(self) -> Codes:
        return self.codes(self.references, "references")

    @cached_property
    def predicted(self) -> Codes:
        if is_table(self.predictions):
            return np.asarray(self.probabilities.argmax(axis=1))
        return self.codes(self.predictions, "predictions")

    def codes(self, given: Any, side: str) -> Codes:
        """The position of each row's label in `classes`."""
        if is_table(given):
            raise DataError(f"{side} have several values a row", "f1_macro, f1_micro, f1_samples or subset_accuracy")
        position = {label: code for code, label in enumerate(self.classes)}
        labels = plain(given)
        for row, label in enumerate(labels, 1):
            if label not in position:
                known = ", ".join(map(repr, self.classes[:20])) + (", ..." if len(self.classes) > 20 else "")
                raise row_error(side, row, f"label {label!r} is not one of {known}", "correct it, or give all labels")
        return np.fromiter(map(position.__getitem__, labels), np.intp, self.n)

    @property
    def cells(self) -> tuple[Codes, Codes, Array]:
        """Predicted class, reference class and rows of each confusion cell that holds any, of all systems together."""
        first, counts = self.systems[0].joint_cells
        return self.predicted[first], self.actual[first], counts

    @cached_property
    def joint_cells(self) -> tuple[Codes, Array]:
        """The first of the rows that have the same reference and the same answers of all systems, and their number."""
        codes = self.actual
        for system in self.systems:
            codes = np.unique(codes * len(self.classes) + system.predicted, return_inverse=True)[1]
        _, first, counts = np.unique(codes, return_index=True, return_counts=True)
        return first, counts.astype(float)

    @cached_property
    def probabilities(self) -> Array:
        size = len(self.classes)
        if not is_table(self.predictions):
            raise DataError("predictions are no probabilities", "give one for each class in every row")
        for row, given in enumerate(self.predictions, 1):
            if len(given) != size:
                raise row_error(
                    "predictions", row, f"{len(given)} probabilities for {size} labels", "give one per label"
                )
        table = np.asarray(self.predictions, float)
        good = (table >= 0).all(axis=1) & (np.abs(table.sum(axis=1) - 1) < 1e-3)  # comparing NaN gives False
        if not good.all():
            row = int(good.argmin())
            problem = f"probabilities {table[row].tolist()} don't add up to 1"
            raise row_error("predictions", row + 1, problem, "apply softmax to logits; NaN: the model has diverged")
        return table

    @cached_property
    def numbers(self) -> tuple[Array, Array]:
        return self.finite(self.predictions, "predictions"), self.finite(self.references, "references")

    def finite(self, given: Any, side: str) -> Array:
        numbers = np.full(self.n, np.nan)
        for row, value in enumerate(plain(given)):
            with suppress(TypeError, ValueError):
                numbers[row] = value
            if not np.isfinite(numbers[row]):
                raise row_error(side, row + 1, f"{value!r} is not a finite number", "correct it")
        return numbers

    @property
    def errors(self) -> Array:
        return self.numbers[0] - self.numbers[1]


def pair(systems: Sequence[Inputs]) -> None:
    """Makes the samples of several systems on the same rows share their draws, so that differences can be drawn."""
    for one in systems:
        one.systems = systems


def row_error(side: str, row: int, problem: str, fix: str) -> DataError:
    return DataError(f"{side}, row {row}: {problem}", fix)


def is_table(values: Any) -> bool:
    return np.ndim(values[0]) == 1


def plain(values: Any) -> list[Any]:
    """A list of Python's own str, int and float, which hash alike whatever they came in."""
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def additive(
    counts: Array, rows: Array, aggregate: Callable[[Array], Array], definition: str, keys: tuple[str, ...] = ()
) -> Sample:
    """A metric of the summed `rows` (lines, statistics): `aggregate` maps (resamples, statistics) to values."""
    return Sample(counts, lambda weights: aggregate(weights @ rows), definition, keys)


def mean_sample(
    data: Inputs, values: npt.ArrayLike, definition: str, finish: Callable[[Array], Array] = lambda means: means
) -> Sample:
    rows = np.asarray(values, float)[:, np.newaxis]
    return additive(data.rows, rows, lambda sums: finish(sums / data.n), definition)


def share_sample(data: Inputs, hits: npt.ArrayLike, definition: str, scale: float = 1) -> Sample:
    """`scale` times the share of rows that are hits."""
    rows = np.asarray(hits, float)
    return replace(mean_sample(data, scale * rows, definition), hits=rows, scale=scale)


def accuracy_sample(data: Inputs, definition: str) -> Sample:
    hits = np.asarray(data.predicted == data.actual, float)
    return replace(label_sample(data, accuracy, definition), hits=hits)


def sacrebleu_sample(data: Inputs, kind: str, **options: Any) -> Sample:
    from sacrebleu import metrics

    metric = getattr(metrics, kind)(**options)
    predictions, references = zip(*data.texts, strict=True)
    num_references = {len(given) for given in references}
    if kind != "CHRF":
        warn_about_text(predictions, references, kind, metric.tokenizer_signature)
    streams = [[given[i] if i < len(given) else None for given in references] for i in range(max(num_references))]
    # Private, because chrF and TER show their statistics nowhere else; sacreBLEU's own significance tests go this way.
    rows: list[list[float]] = []
    for start in range(0, data.n, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        rows += metric._extract_corpus_statistics(predictions[part], [stream[part] for stream in streams])
    metric.num_refs = max(num_references) if len(num_references) == 1 else -1  # else the last part's

    def aggregate(sums: Array) -> Array:
        return np.array([[metric._compute_score_from_stats(row).score] for row in sums.tolist()])

    return additive(data.rows, np.array(rows, float), aggregate, f"sacreBLEU {kind} {metric.get_signature()}")


def warn_about_text(predictions: Sequence[str], references: Sequence[Sequence[str]], kind: str, tokenizer: str) -> None:
    """Says in one line what sacreBLEU logs in three (`force=True` there), and what it does not say."""
    if tokenizer not in ("zh", "char") and any(written_in(SPACELESS, text) for given in references for text in given):
        console.warn(f"{kind} counts words here, and the references have no spaces between them", "bleu_zh, chrf")
    if kind == "BLEU" and tokenizer != "none" and sum(text.endswith(" .") for text in predictions) >= 100:
        console.warn("predictions look tokenized (' .'), BLEU is for plain text", "detokenize both sides, or bleu_none")


def written_in(script: re.Pattern[str], text: str) -> bool:
    """True if most letters of the text are of the script."""
    return not text.isascii() and 2 * len(script.findall(text)) > len(LETTER.findall(text))


def rouge_sample(data: Inputs, *, stem: bool = False) -> Sample:
    """ROUGE of each row by rouge_score, whose own tokenizer keeps a-z and 0-9 only: other scripts get `WORD`.

    `stem`: words of more than three letters without their English endings (Porter), under keys of their own.
    """
    from rouge_score.rouge_scorer import RougeScorer

    other_script = any(written_in(NON_ASCII_LETTER, text) for _, given in data.texts for text in given)
    tokenizer = WordTokenizer() if other_script else None
    if stem and other_script:
        raise DataError("rouge_stem is for English, and most letters of a reference are others", "rouge")
    scorer = RougeScorer(ROUGE_KEYS, use_stemmer=stem, tokenizer=tokenizer)
    # of a single line, rougeLsum is rougeL
    line_scorer = RougeScorer(ROUGE_KEYS[:3], use_stemmer=stem, tokenizer=tokenizer)
    rows = np.empty((data.n, len(ROUGE_KEYS)))
    for row, (prediction, given) in enumerate(data.texts):
        several_lines = "\n" in prediction or any("\n" in text for text in given)
        scores = (scorer if several_lines else line_scorer).score_multi(given, prediction)
        rows[row] = [100 * scores[key if key in scores else "rougeL"].fmeasure for key in ROUGE_KEYS]
    tokens = "words, and characters of scripts without spaces" if other_script else "a-z0-9"
    definition = (
        f"rouge_score F1 0-100, mean over rows|best reference|tok:{tokens}|stem:{'yes' if stem else 'no'}|"
        f"version:{version('rouge_score')}"
    )
    keys = tuple(f"{key}_stem" for key in ROUGE_KEYS) if stem else ROUGE_KEYS
    return additive(data.rows, rows, lambda sums: sums / data.n, definition, keys)


class WordTokenizer:
    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


def of_best_reference(data: Inputs, score: Callable[[str, str], float]) -> Array:
    """The score of each row's prediction with the reference that suits it best."""
    return np.array([max(score(text, other) for other in given) for text, given in data.texts], float)


def exact(prediction: str, reference: str) -> float:
    return prediction.strip() == reference.strip()


def squad_exact(prediction: str, reference: str) -> float:
    return squad_words(prediction) == squad_words(reference)


def squad_f1(prediction: str, reference: str) -> float:
    """Shared words over all words; two answers without any ("The", "A") agree, as in the script of SQuAD 2.0."""
    predicted, actual = squad_words(prediction), squad_words(reference)
    if not predicted or not actual:
        return predicted == actual
    return 2 * (Counter(predicted) & Counter(actual)).total() / (len(predicted) + len(actual))


def squad_words(text: str) -> list[str]:
    """The words SQuAD compares: https://rajpurkar.github.io/SQuAD-explorer (evaluate-v2.0.py, normalize_answer)."""
    return words(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)))


def words(text: str) -> list[str]:
    """Words between blanks, and characters one by one in scripts without blanks."""
    return (text if text.isascii() else SPACELESS.sub(r" \g<0> ", text)).split()


def ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    tokens = words(text)
    return list(zip(*(tokens[start:] for start in range(size)), strict=False))


def length_ratio(data: Inputs) -> Sample:
    rows = np.empty((data.n, 2))
    for row, (prediction, given) in enumerate(data.texts):
        length = len(words(prediction))
        rows[row] = length, min((len(words(text)) for text in given), key=lambda other: (abs(other - length), other))
    definition = "words of all predictions over words of all references, the closest in length of several"
    return additive(data.rows, rows, lambda sums: sums[:, :1] / sums[:, 1:], definition)


def distinct(data: Inputs, size: int) -> Sample:
    """Li et al. 2016, https://aclanthology.org/N16-1014. Drawing a row twice adds no new n-gram: no bootstrap."""
    found = [ngram for text in data.generated for ngram in ngrams(text, size)]
    value = len(set(found)) / len(found) if found else np.nan
    definition = f"different {size}-grams of words over all, falls with the number of rows; no interval by resampling"
    return Sample(data.rows, lambda weights: np.full((len(weights), 1), value), definition, interval=False)


def repetition(data: Inputs) -> Sample:
    """seq-rep-4 of Welleck et al. 2020, https://arxiv.org/abs/1908.04319."""
    grams = (ngrams(text, 4) for text in data.generated)
    shares = [1 - len(set(row)) / len(row) if row else 0.0 for row in grams]
    return mean_sample(data, shares, "share of a row's 4-grams of words that it had before, mean over rows (seq-rep-4)")


class Confusion(NamedTuple):
    """Rows by class (resamples, classes): rightly predicted, predicted, and in the references."""

    hits: Array
    predicted: Array
    actual: Array


def label_sample(data: Inputs, choose: Callable[[Confusion], Array], definition: str) -> Sample:
    predicted, actual, counts = data.cells
    size = len(data.classes)

    def values(weights: Array) -> Array:
        hits = by_code(weights * (predicted == actual), actual, size)
        return choose(Confusion(hits, by_code(weights, predicted, size), by_code(weights, actual, size)))[:, np.newaxis]

    return Sample(counts, values, definition)


def tag_sample(data: Inputs, choose: Callable[[Confusion], Array], definition: str) -> Sample:
    """As `label_sample`, with the rows of each label for itself."""
    predicted, actual = data.tags
    rows = np.stack([predicted * actual, predicted, actual])

    def aggregate(sums: Array) -> Array:
        return choose(Confusion(*np.split(sums, 3, axis=1)))[:, np.newaxis]

    return additive(data.rows, np.concatenate(list(rows), axis=1), aggregate, definition)


def class_or_tag_sample(data: Inputs, choose: Callable[[Confusion], Array], name: str) -> Sample:
    """The mean of `choose` over classes: those that occur, or, of tables, all columns, as scikit-learn has it."""
    if data.tagged:
        return tag_sample(data, lambda c: choose(c).mean(axis=-1), f"mean {name} of all labels, 0 where undefined")
    return label_sample(data, macro(choose), f"mean {name} of the classes that occur")


def f1_pooled(c: Confusion) -> Array:
    return share(2 * total(c.hits), total(c.predicted) + total(c.actual))


def f1_of_rows(data: Inputs) -> Array:
    predicted, actual = data.tags
    return share(2 * total(predicted * actual), total(predicted) + total(actual))


def entity_sample(data: Inputs) -> Sample:
    """Entities found with their exact words and type, as conlleval counts them over all rows (Tjong Kim Sang and De
    Meulder 2003, https://aclanthology.org/W03-0419)."""
    found = [(entities(predicted), entities(actual)) for predicted, actual in data.word_tags]
    rows = np.array([[len(predicted & actual), len(predicted), len(actual)] for predicted, actual in found], float)

    def aggregate(sums: Array) -> Array:
        hits, predicted, actual = sums.T
        return np.stack([share(hits, predicted), share(hits, actual), 2 * hits / (predicted + actual)], axis=1)

    definition = "of entities with exact words and type, over all rows; an I- that continues nothing begins one"
    return additive(data.rows, rows, aggregate, definition, ("entity_precision", "entity_recall", "entity_f1"))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first word, word after the last) of each."""
    found, current, start = set(), "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if current and not (prefix == "I" and kind == current):
            found.add((current, start, place))
            current = ""
        if kind and not current:
            current, start = kind, place
    return found


def by_code(weights: Array, codes: Codes, size: int) -> Array:
    """Weights (resamples, lines) summed by the code of their line: (resamples, size)."""
    return np.stack([np.bincount(codes, row, size) for row in weights])


def total(values: Array) -> Array:
    """The sum over the last axis."""
    sums: Array = values.sum(axis=-1)
    return sums


def share(part: Array, whole: Array) -> Array:
    """part / whole, 0 where there is nothing (scikit-learn's zero_division=0)."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def accuracy(c: Confusion) -> Array:
    return total(c.hits) / total(c.actual)


def precision(c: Confusion) -> Array:
    return share(c.hits, c.predicted)


def recall(c: Confusion) -> Array:
    return share(c.hits, c.actual)


def f1(c: Confusion) -> Array:
    return share(2 * c.hits, c.predicted + c.actual)


def macro(by_class: Callable[[Confusion], Array]) -> Callable[[Confusion], Array]:
    """The mean over classes that occur, as scikit-learn: 0 where a class is only in predictions or references."""
    return lambda c: total(by_class(c)) / total(np.sign(c.predicted + c.actual))


def balanced_accuracy(c: Confusion) -> Array:
    return total(recall(c)) / total(np.sign(c.actual))


def f1_weighted(c: Confusion) -> Array:
    return total(f1(c) * c.actual) / total(c.actual)


def mcc(c: Confusion) -> Array:
    """Gorodkin 2004, as scikit-learn: correlation of the one-hot matrices of predictions and references."""
    n = total(c.actual)
    covariance = total(c.hits) * n - total(c.predicted * c.actual)
    predicted, actual = n**2 - total(c.predicted**2), n**2 - total(c.actual**2)
    return share(covariance, np.sqrt(predicted * actual))


def binary_sample(data: Inputs, choose: Callable[[Confusion], Array], name: str) -> Sample:
    """The score of the second class, in the order of `labels` or sorted: 1 of 0 and 1, 'spam' of 'ham' and 'spam'."""
    if len(data.classes) != 2:
        raise DataError(
            f"{name} is of one of two classes, and there are {len(data.classes)}", "f1_macro, f1_micro or f1_weighted"
        )
    return label_sample(data, lambda c: choose(c)[:, 1], f"{name} of the class {data.classes[1]!r}, 0 where undefined")


def log_loss(data: Inputs) -> Array:
    """-ln p of each row (of tables: mean over its labels); p = 0 is the smallest float64 step, as in scikit-learn."""
    epsilon = np.finfo(float).eps
    if data.tagged:
        right = np.where(np.asarray(data.references, bool), data.tag_probabilities, 1 - data.tag_probabilities)
        means: Array = -np.log(np.clip(right, epsilon, 1 - epsilon)).mean(axis=1)
        return means
    losses: Array = -np.log(np.clip(data.probabilities[np.arange(data.n), data.actual], epsilon, 1 - epsilon))
    return losses


def brier(data: Inputs) -> Sample:
    probabilities = data.probabilities
    of_reference = probabilities[np.arange(data.n), data.actual]
    squares = (probabilities**2).sum(axis=1) - of_reference**2 + (1 - of_reference) ** 2
    definition = "squared distance of probabilities and reference, mean over rows"
    if len(data.classes) == 2:  # as scikit-learn and Brier's rain forecasts: one class counts
        return mean_sample(data, squares / 2, definition + ", of one class")
    return mean_sample(data, squares, definition + ", sum over classes")


def ece(data: Inputs) -> Sample:
    confidence = data.probabilities.max(axis=1)
    gaps = (data.probabilities.argmax(axis=1) == data.actual) - confidence
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.intp) - 1, 0, ECE_BINS - 1)
    definition = (
        f"expected calibration error, top class, {ECE_BINS} equal bins, too high with few rows; no interval, since "
        "resamples raise it again"
    )
    return Sample(
        data.rows,
        lambda weights: np.abs(by_code(weights * gaps, bins, ECE_BINS)).sum(axis=1, keepdims=True) / data.n,
        definition,
        interval=False,
    )


def ranking_sample(data: Inputs, area: Callable[[Array, Array], Array], definition: str) -> Sample:
    """A metric of the order of probabilities: of the second of two classes, else the mean of each against the rest.

    No sums per row suffice here; `area` gets the weights of positives and negatives (resamples, values) by ascending
    probability, equal ones together.
    """
    classes, probabilities, actual = data.classes, data.probabilities, data.actual
    columns = [1] if len(classes) == 2 else list(range(len(classes)))
    ranked = []
    for column in columns:
        positive = actual == column
        if positive.all() or not positive.any():
            found = "every" if positive.all() else "no"
            raise DataError(
                f"{found} reference is {classes[column]!r}: {definition} needs rows of each class", "add some"
            )
        distinct_values, codes = np.unique(probabilities[:, column], return_inverse=True)
        ranked.append((positive, codes, len(distinct_values)))

    def values(weights: Array) -> Array:
        areas = [
            area(by_code(weights * positive, codes, size), by_code(weights * ~positive, codes, size))
            for positive, codes, size in ranked
        ]
        means: Array = np.mean(areas, axis=0)
        return means[:, np.newaxis]

    of = f"of the class {classes[1]!r}" if len(classes) == 2 else "of each class against the rest, mean over classes"
    return Sample(data.rows, values, f"{definition} {of}")


def mean_average_precision(data: Inputs) -> Sample:
    probabilities, actual = data.tag_probabilities, np.asarray(data.references, bool)
    columns = np.flatnonzero(actual.any(axis=0))
    coded = [np.unique(probabilities[:, column], return_inverse=True) for column in columns]

    def values(weights: Array) -> Array:
        areas = [
            average_precision(
                by_code(weights * actual[:, column], codes, len(found)),
                by_code(weights * ~actual[:, column], codes, len(found)),
            )
            for column, (found, codes) in zip(columns, coded, strict=True)
        ]
        means: Array = np.nanmean(areas, axis=0)
        return means[:, np.newaxis]

    return Sample(data.rows, values, "average precision of each label, mean over those that the references have")


def roc_auc(positives: Array, negatives: Array) -> Array:
    below = np.cumsum(negatives, axis=1) - negatives / 2
    return total(positives * below) / (total(positives) * total(negatives))


def average_precision(positives: Array, negatives: Array) -> Array:
    """Precision at each threshold weighted by the recall it adds, not interpolated, as in scikit-learn."""
    positives, negatives = positives[:, ::-1], negatives[:, ::-1]
    hits = np.cumsum(positives, axis=1)
    return total(positives * share(hits, hits + np.cumsum(negatives, axis=1))) / total(positives)


def pearson(data: Inputs) -> Sample:
    x, y = (standardised(values) for values in data.numbers)
    rows = np.stack([x, y, x * x, y * y, x * y], axis=1)

    def aggregate(sums: Array) -> Array:
        mean_x, mean_y, xx, yy, xy = sums.T / data.n
        variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
        r = (xy - mean_x * mean_y) / np.sqrt(variance_x * variance_y)
        return np.where(np.minimum(variance_x, variance_y) > 1e-12, r, np.nan)[:, np.newaxis]  # all drawn rows equal

    return additive(data.rows, rows, aggregate, "Pearson correlation, undefined where one side is constant")


def standardised(values: Array) -> Array:
    spread = values.std() if np.ptp(values) > 0 else np.inf  # rounding gives constants a spread of their own
    scaled: Array = (values - values.mean()) / spread
    return scaled


def spearman(data: Inputs) -> Sample:
    coded = [np.unique(values, return_inverse=True) for values in data.numbers]

    def values(weights: Array) -> Array:
        x, y = (centred_ranks(weights, codes, len(found)) for found, codes in coded)
        r = total(weights * x * y) / np.sqrt(total(weights * x * x) * total(weights * y * y))
        return r[:, np.newaxis]

    return Sample(data.rows, values, "Spearman rank correlation, ties share, undefined where one side is constant")


def centred_ranks(weights: Array, codes: Codes, size: int) -> Array:
    """Ranks (resamples, rows) within each resample, from which the mean rank is taken away."""
    ties = by_code(weights, codes, size)
    ranks: Array = (np.cumsum(ties, axis=1) - ties / 2 - weights.sum(axis=1, keepdims=True) / 2)[:, codes]
    return ranks
