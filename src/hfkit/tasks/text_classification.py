"""Text classification: one class, several labels or a number for a text or a pair of texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hfkit.data.columns import is_asking, is_tagged, is_translating, words_column
from hfkit.data.labels import (
    COLUMNS,
    MULTIPLE,
    REGRESSION,
    SINGLE,
    check_known,
    class_names,
    flat,
    kind_of,
    label_columns,
    label_names,
    labels_of,
    name_classes,
    problem_type_of,
    with_labels,
)
from hfkit.errors import DataError, UsageError
from hfkit.system.console import say, warn
from hfkit.tasks.base import Batch, Examples, LossOptions, Predict, Task, finetuning_defaults
from hfkit.tasks.windows import EncodedTexts, padded, say_truncation

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Measured, Row, Score
    from hfkit.settings import Data, Evaluation, Recipe

BUILTIN_LABELLED = "builtin:python-docstrings"

THRESHOLD = 0.5  # of a label among several, where nothing else was chosen

METRICS = {
    SINGLE: (
        "accuracy", "balanced_accuracy", "precision", "recall", "f1", "precision_macro", "recall_macro", "f1_macro",
        "f1_micro", "f1_weighted", "mcc", "log_loss", "brier", "ece", "roc_auc", "average_precision",
    ),
    MULTIPLE: (
        "f1_macro", "f1_micro", "f1_weighted", "f1_samples", "precision_macro", "recall_macro", "subset_accuracy",
        "hamming_loss", "mean_average_precision", "log_loss", "brier", "ece", "roc_auc",
    ),
    REGRESSION: ("pearson", "spearman", "rmse", "mae"),
}  # fmt: skip


SETTINGS = frozenset(
    {
        "data.problem_type", "data.label_separator", "data.long_documents", "data.window_overlap",
        "data.window_pooling", "data.allow_truncation", "data.max_length", "train.class_weights",
        "evaluation.threshold", "evaluation.tune_threshold", "evaluation.temperature_scaling",
    }
)  # fmt: skip


class TextClassification(Task):
    summary = "labels of texts"
    aliases = ("classification", "sequence-classification", "sentiment-analysis", "glue", "regression")
    command = "finetune"
    auto_model = "AutoModelForSequenceClassification"
    roles = ("text", "text_pair", "label")
    metrics = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))
    settings = SETTINGS

    def next_step(self, run: str, is_adapter: bool) -> str:
        return f'hfkit predict {run} --text "..."'

    def usual_metrics(self, config: Any) -> Sequence[str]:
        from hfkit.metrics.table import DEFAULT_METRICS

        return DEFAULT_METRICS[problem_type_of(config)]

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return finetuning_defaults(given) | {"data.train": [BUILTIN_LABELLED]}

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        from hfkit.data.columns import classification_columns
        from hfkit.data.loading import load_data
        from hfkit.data.splits import hold_out_known
        from hfkit.models.config import load_config

        loaded = load_data(recipe.data)
        if recipe.data.columns.label is None and all(map(is_translating, loaded.values())):
            raise DataError("the data holds sources and targets, not texts with a label", "--task seq2seq")
        try:
            text, pair, label = classification_columns(loaded, recipe.data)
        except DataError:
            _refuse_others(next(iter(loaded.values())), recipe.data)
            raise
        texts = {text: "text"} | ({} if pair is None else {pair: "text_pair"})
        kept = [*texts, *label_columns(next(iter(loaded.values())), label)]
        splits = {name: part.select_columns(kept) for name, part in loaded.items()}
        config = None if "train" in splits or recipe.model.name is None else load_config(recipe.model)
        splits = with_labels(splits, label, recipe.data, config)
        renamed = {column: role for column, role in texts.items() if column != role}
        splits = {name: part.rename_columns(renamed) for name, part in splits.items()}
        _require_sense(recipe, kind_of(next(iter(splits.values()))) or SINGLE)
        if "train" in splits and "validation" not in splits and recipe.data.validation_split > 0:
            splits |= hold_out_known(splits["train"], recipe.data.validation_split, recipe.train.seed, _names_of)
        return splits

    def model_config(self, splits: Mapping[str, Dataset], config: Any) -> dict[str, Any]:
        kind = next(filter(None, map(kind_of, splits.values())), SINGLE)
        if "train" not in splits or kind == REGRESSION:
            labelled = next((dataset for dataset in splits.values() if kind_of(dataset)), None)
            if labelled is not None:
                name_classes(config, class_names(labelled, COLUMNS[kind]) or [])
            names = [config.id2label[index] for index in range(config.num_labels)]
        else:
            names = label_names(splits["train"], config)
        if kind == REGRESSION:
            names = [COLUMNS[REGRESSION]] if "train" in splits else names[:1]
        else:
            check_known(splits, names)
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": kind,
        }

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        rows = EncodedTexts(dataset, tokenizer, model, recipe)
        if rows.labels is not None:  # `predict` counts over all its rows
            say_long(len(dataset), rows, recipe)
        return rows

    def adapt(self, model: PreTrainedModel, batch: Batch, rows: Examples | None = None) -> None:
        """With several labels a text, the bias of a new head starts at the log-odds of each label.

        Most labels are rare. A head that starts at one half for each of them learns to say so through the text's
        features, which then all look alike (Lin et al. 2017, arXiv 1708.02002, section 3.3). On GoEmotions the loss
        that takes 1,500 steps from there is reached after 150.
        """
        if not isinstance(rows, EncodedTexts) or rows.kind != MULTIPLE or rows.labels is None:
            return
        import numpy as np
        import torch

        shares = (rows.labels.sum(0) + 1) / (len(rows) + 2)  # never 0 or 1 (Laplace's rule of succession)
        biases = [
            weights
            for name, weights in model.named_parameters()
            if weights.requires_grad and name.endswith("bias") and weights.shape == shares.shape
        ]
        if biases and not biases[-1].is_meta and not biases[-1].any():  # a trained one knows more
            with torch.no_grad():
                biases[-1].copy_(torch.as_tensor(np.log(shares / (1 - shares))))

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return padded(examples, tokenizer)

    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        options: LossOptions = LossOptions(),  # noqa: B008
    ) -> torch.Tensor:
        """The sum over examples divided by the examples of the whole optimizer step.

        The kind of label decides: cross-entropy for classes, binary cross-entropy for a table of 0 and 1 (divided by
        its labels, too), the squared error for numbers. Class weights multiply an example's loss. It is not divided by
        them as torch does it, where an example would count more in a batch of rare classes than in another.
        """
        import torch
        from torch.nn import functional

        logits = outputs["logits"].float()
        if labels.dim() == 2:
            total = functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
        elif labels.is_floating_point():
            total = functional.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
        else:
            given = options.class_weights
            weight = None if given is None else torch.tensor(given, device=logits.device)
            total = functional.cross_entropy(
                logits, labels, weight=weight, reduction="sum", label_smoothing=options.smoothing
            )
        rows = options.global_batch_size or len(labels)  # the labels of an example are all scored or none is
        return total / (rows * labels[0].numel())

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        return outputs[0].float()

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        import numpy as np

        from hfkit.metrics import table

        assert isinstance(rows, EncodedTexts)
        answers, labels = answered(reduced, rows), labels[rows.starts]
        names = list(evaluation.metrics or table.DEFAULT_METRICS[rows.kind])
        if rows.kind == REGRESSION and not evaluation.metrics and min(np.ptp(answers), np.ptp(labels)) == 0:
            warn("all answers are the same, or all labels: they have no correlation")
            names = [name for name in names if name not in ("pearson", "spearman")]
        references = labels if labels.ndim == 2 else labels.tolist()
        measured = partial(table.compute, references=references, interval=evaluation.interval, seed=evaluation.seed)
        if rows.kind != MULTIPLE:
            return measured(names, answers)
        decisions = (answers >= threshold_of(rows, evaluation)).astype(float)
        of_shares = [name for name in names if table.METRICS[name].needs == "probabilities"]
        found = measured(of_shares, answers) | measured([name for name in names if name not in of_shares], decisions)
        return {name: found[name] for name in names}

    def tune(self, model: PreTrainedModel, rows: Examples, evaluation: Evaluation, predict: Predict) -> None:
        """Sets the temperature and the threshold in the model's config, if they are asked for."""
        from hfkit.tasks import calibration

        assert isinstance(rows, EncodedTexts)
        rows.config = model.config  # the best model may have been loaded after the rows were encoded
        if not evaluation.tune_threshold and not evaluation.temperature_scaling:
            if evaluation.threshold is not None:
                model.config.classifier_threshold = evaluation.threshold
            return
        reduced, labels = predict()
        logits, labels = rows.pooled(reduced), labels[rows.starts]
        if evaluation.temperature_scaling:
            model.config.classifier_temperature = calibration.temperature(logits, labels)
        if evaluation.tune_threshold:
            model.config.classifier_threshold = calibration.threshold(answered(reduced, rows), labels)

    def results(
        self, dataset: Dataset, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> Measured:
        """The scores, with the score of always giving the same answer."""
        from hfkit.metrics.sample import Measured

        assert isinstance(rows, EncodedTexts)
        scores = {**self.scores(reduced, labels, rows, evaluation), **_baseline(dataset)}
        return Measured(scores, _prediction_rows(dataset, reduced, labels, rows, evaluation))

    def answers(self, reduced: np.ndarray, rows: Examples, evaluation: Evaluation) -> Iterator[dict[str, Any]]:
        """One per text: label, score and probabilities; labels and probabilities; or the number."""
        assert isinstance(rows, EncodedTexts)
        for row, is_cut in zip(answered(reduced, rows).tolist(), rows.was_cut.tolist(), strict=True):
            if rows.kind == REGRESSION:
                answer: dict[str, Any] = {"value": row}
            else:
                shares = dict(zip(rows.names, row, strict=True))
                best = max(shares, key=shares.__getitem__)
                if rows.kind == MULTIPLE:
                    threshold = threshold_of(rows, evaluation)
                    answer = {"labels": [name for name, share in shares.items() if share >= threshold]}
                else:
                    answer = {"label": best, "score": shares[best]}
                answer["probabilities"] = shares
            yield answer | ({"truncated": True} if is_cut else {})


def answered(reduced: np.ndarray, rows: EncodedTexts) -> np.ndarray:
    """What the model says of each text: probabilities (texts, labels), or numbers (texts,) of a regression."""
    import numpy as np

    from hfkit.tasks.calibration import probabilities

    logits = rows.pooled(reduced)
    if rows.kind == REGRESSION:
        numbers: np.ndarray = logits[:, 0]
        return numbers
    logits = logits / getattr(rows.config, "classifier_temperature", 1.0)
    # exp of a negative number alone, which can't overflow
    shares: np.ndarray = np.where(logits >= 0, 1.0, np.exp(-np.abs(logits))) / (1 + np.exp(-np.abs(logits)))
    return shares if rows.kind == MULTIPLE else probabilities(logits)


def _prediction_rows(
    dataset: Dataset, reduced: np.ndarray, labels: np.ndarray, rows: EncodedTexts, evaluation: Evaluation
) -> Iterator[Row]:
    """Of each text: "text" ("text_pair"), "reference", "prediction" and, but of a regression, "probabilities"."""
    texts = dataset.select_columns([name for name in ("text", "text_pair") if name in dataset.column_names])
    threshold = threshold_of(rows, evaluation)
    for text, actual, answer in zip(texts, labels[rows.starts], answered(reduced, rows), strict=True):
        if rows.kind == REGRESSION:
            yield {**text, "reference": float(actual), "prediction": float(answer)}
            continue
        reference: Any = rows.names[actual] if rows.kind == SINGLE else _chosen(rows.names, actual)
        given = rows.names[int(answer.argmax())] if rows.kind == SINGLE else _chosen(rows.names, answer >= threshold)
        shares = {name: float(f"{share:.9g}") for name, share in zip(rows.names, answer.tolist(), strict=True)}
        yield {**text, "reference": reference, "prediction": given, "probabilities": shares}


def _chosen(names: Sequence[str], flags: Any) -> list[str]:
    return [name for name, flag in zip(names, flags, strict=True) if flag]


def threshold_of(rows: EncodedTexts, evaluation: Evaluation) -> float:
    """The probability from which a label is given: evaluation.threshold, else the model's own."""
    if evaluation.threshold is not None:
        return evaluation.threshold
    return float(getattr(rows.config, "classifier_threshold", THRESHOLD))


def say_long(num_texts: int, rows: EncodedTexts, recipe: Recipe) -> None:
    """Says how many texts are longer than a row; DataError if so many are cut that somebody has to decide."""
    num_long = int(rows.is_long.sum())
    if num_long == 0:
        return
    share = num_long / num_texts
    found = f"{num_long:,} of {num_texts:,} examples ({share:.1%}) are longer than {rows.limit} tokens"
    if not rows.was_cut.any():
        say(f"{found} and make {len(rows):,} windows together with the others")
        return
    longer = f"--max-length {rows.longest}" if rows.longest <= rows.most else ""
    is_decided = rows.labels is None or recipe.data.allow_truncation
    say_truncation(found, share, [longer, "--long-documents window"], decided=is_decided)


def _require_sense(recipe: Recipe, kind: str) -> None:
    """UsageError naming every setting that has no effect on labels of this kind."""
    problems = [
        (f"unknown metric '{name}' for {kind}, which has: {', '.join(METRICS[kind])}", "name one of them")
        for name in [*recipe.evaluation.metrics, *([recipe.train.best] if recipe.train.best else [])]
        if name not in METRICS[kind]
    ]
    idle = {
        "train.class_weights": kind != SINGLE and recipe.train.class_weights is not None,
        "train.label_smoothing": kind != SINGLE and recipe.train.label_smoothing > 0,
        "evaluation.threshold": kind != MULTIPLE and recipe.evaluation.threshold is not None,
        "evaluation.tune_threshold": kind != MULTIPLE and recipe.evaluation.tune_threshold,
        "evaluation.temperature_scaling": kind == REGRESSION and recipe.evaluation.temperature_scaling,
    }
    problems += [(f"{key} has no effect for {kind}", "leave it out") for key, is_idle in idle.items() if is_idle]
    if problems:
        raise UsageError.of(problems)


def _refuse_others(dataset: Dataset, data: Data) -> None:
    """DataError for data of another task: words with tags, a text with spans, or questions with answers."""
    if is_asking(dataset):
        raise DataError("the columns are question, context and answers", "--task question-answering")
    if is_tagged(dataset, data):
        what = "words with tags" if words_column(dataset, data) else "spans of a text"
        raise DataError(f"the data holds {what}, not texts with a label", "--task token-classification")


def _names_of(dataset: Dataset) -> list[list[str]]:
    """The labels of each row; a number is no label."""
    if kind_of(dataset) == REGRESSION:
        return [[]] * len(dataset)
    return [flat([label]) for label in labels_of(dataset)]


def _baseline(dataset: Dataset) -> dict[str, Score]:
    """The score of the best answer that never changes."""
    from hfkit.metrics.sample import Score

    labels, n = labels_of(dataset), len(dataset)
    if kind_of(dataset) == REGRESSION:
        mean = sum(labels) / n
        spread = math.sqrt(sum((label - mean) ** 2 for label in labels) / n)
        return {"mean_baseline": Score(spread, None, None, n, f"rmse of always saying {mean:.4g}, the mean")}
    counts = Counter(flat(labels)).most_common(1)
    if kind_of(dataset) == MULTIPLE or not counts:
        return {}
    label, count = counts[0]
    return {"majority_baseline": Score(count / n, None, None, n, f"accuracy of always saying '{label}'")}
