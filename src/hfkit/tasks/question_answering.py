"""Question answering: the span of a text that answers a question, or that there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.data.labels import IGNORED
from hfkit.errors import UsageError
from hfkit.system.console import say, warn
from hfkit.tasks.base import Batch, Examples, LossOptions, Predict, Task, finetuning_defaults
from hfkit.tasks.question_windows import EncodedQuestions, Span
from hfkit.tasks.windows import padded

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Measured, Score
    from hfkit.settings import Evaluation, Recipe

USUAL = ("squad_exact_match", "token_f1")

SHOWN = 3  # spans beside the best one in an answer


class QuestionAnswering(Task):
    summary = "answers to questions, as spans of a text"
    aliases = ("qa", "squad", "extractive-qa")
    command = "finetune"
    auto_model = "AutoModelForQuestionAnswering"
    roles = ("text", "text_pair", "label")
    questions = ("question", "context")
    metrics = (*USUAL, "log_loss")
    settings = frozenset(
        {"data.max_length", "data.window_overlap", "evaluation.max_answer_length", "evaluation.no_answer_threshold"}
    )

    def next_step(self, run: str, is_adapter: bool) -> str:
        return f'hfkit predict {run} --question "..." --context "..."'

    def usual_metrics(self, config: Any) -> Sequence[str]:
        return (*USUAL, "log_loss")

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As for texts, but with a longer warmup and smaller batches in evaluation: a window is long."""
        return finetuning_defaults(given) | {"train.per_device_eval_batch_size": 32, "train.warmup_steps": 0.1}

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        from hfkit.data.loading import load_data
        from hfkit.data.questions import load_questions
        from hfkit.data.splits import hold_out_groups

        if recipe.train.label_smoothing > 0:
            raise UsageError("train.label_smoothing has no effect for question-answering", "leave it out")
        splits = load_questions(load_data(recipe.data), recipe.data)
        if "train" in splits and "validation" not in splits and recipe.data.validation_split > 0:
            splits |= hold_out_groups(splits["train"], "context", recipe.data.validation_split, recipe.train.seed)
        for split, dataset in splits.items():
            num_open = sum(not texts for texts in dataset["answers"])
            some = f", {num_open:,} without an answer" if num_open else ""
            say(f"{split}: {len(dataset):,} questions about {len(set(dataset['context'])):,} texts{some}")
        return splits

    def model_config(self, splits: Mapping[str, Dataset], config: Any) -> dict[str, Any]:
        """Whether the model may say that there is no answer: if training has a question without one."""
        if "train" not in splits:
            return {}
        can_be_open = any(not texts for texts in splits["train"]["answers"])
        ends = {0: "start", 1: "end"}  # a model of another task may have any number of labels
        return {
            "no_answer_threshold": 0.0 if can_be_open else None,
            "id2label": ends,
            "label2id": {name: index for index, name in ends.items()},
        }

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        rows = EncodedQuestions(dataset, tokenizer, model, recipe)
        if rows.labels is not None and len(rows) > len(dataset):
            say(f"{len(dataset):,} questions make {len(rows):,} windows of at most {rows.limit} tokens")
        if rows.cut.any() and rows.labels is not None:  # `predict` counts over all its rows
            num_cut = int(rows.cut.sum())
            warn(f"{num_cut:,} of {len(dataset):,} questions were truncated to half a window", "a larger --max-length")
        return rows

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return padded(examples, tokenizer)

    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        options: LossOptions = LossOptions(),  # noqa: B008
    ) -> torch.Tensor:
        """The mean cross-entropy of the start and the end, summed over windows, by the windows of the whole step.

        Padding takes no part in it. (In the models' own loss it does, so that a window's loss depends on its batch.)
        """
        import torch
        from torch.nn import functional

        logits = outputs["start_logits"]
        is_padding = torch.arange(logits.shape[1], device=logits.device) >= labels[:, 2:]
        starts, ends = (
            functional.cross_entropy(
                outputs[f"{side}_logits"].float().masked_fill(is_padding, float("-inf")),
                labels[:, place],
                ignore_index=IGNORED,
                reduction="sum",
            )
            for place, side in enumerate(("start", "end"))
        )
        return (starts + ends) / (2 * (options.global_batch_size or len(labels)))

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        """The logits of the start and the end, shape (rows, tokens, 2)."""
        import torch

        return torch.stack([outputs[0].float(), outputs[1].float()], dim=-1)

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        assert isinstance(rows, EncodedQuestions)
        return _scores(_Chosen.of(reduced, rows, evaluation), reduced, rows, evaluation)

    def tune(self, model: PreTrainedModel, rows: Examples, evaluation: Evaluation, predict: Predict) -> None:
        """Sets the threshold from which there is no answer to the one with the best F1 on the validation data."""
        assert isinstance(rows, EncodedQuestions)
        rows.config = model.config  # the best model may have been loaded after the rows were encoded
        if evaluation.no_answer_threshold is not None:
            model.config.no_answer_threshold = evaluation.no_answer_threshold
        elif model.config.no_answer_threshold is not None and rows.answers is not None:
            model.config.no_answer_threshold = None  # each question's best span
            chosen = _Chosen.of(predict()[0], rows, evaluation)
            model.config.no_answer_threshold = _best_threshold(chosen, rows.answers)

    def results(
        self, dataset: Dataset, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> Measured:
        """The scores, also of the questions with and without an answer where there are both."""
        from hfkit.metrics.sample import Measured
        from hfkit.metrics.text import best_squad_f1

        assert isinstance(rows, EncodedQuestions)
        assert rows.answers is not None
        chosen = _Chosen.of(reduced, rows, evaluation)
        scores = _scores(chosen, reduced, rows, evaluation)
        kinds = {"answered": [bool(texts) for texts in rows.answers], "open": [not texts for texts in rows.answers]}
        for kind, members in kinds.items() if all(map(any, kinds.values())) else ():
            part = [place for place, is_member in enumerate(members) if is_member]
            names = [name for name in evaluation.metrics or USUAL if name in USUAL]
            found = _of_texts(names, [chosen.texts[p] for p in part], [rows.answers[p] for p in part], evaluation)
            scores |= {f"{name}.{kind}": score for name, score in found.items()}
        kept = (
            {
                "question": question,
                "context": context,
                "references": texts,
                "prediction": text,
                "f1": best_squad_f1(text, texts),
            }
            for question, context, texts, text in zip(
                dataset["question"], rows.contexts, rows.answers, chosen.texts, strict=True
            )
        )
        return Measured(scores, kept)

    def answers(self, reduced: np.ndarray, rows: Examples, evaluation: Evaluation) -> Iterator[dict[str, Any]]:
        """One per question: "answer", its characters "start" and "end", "score", and "others", the next likely ones.

        No answer is "" without characters. The score is the softmax over the likeliest spans and, if the model may give
        no answer, that.
        """
        assert isinstance(rows, EncodedQuestions)
        chosen = _Chosen.of(reduced, rows, evaluation)
        for question, context in enumerate(rows.contexts):
            ranked = chosen.ranked(question)
            found = [
                {
                    "answer": "" if span is None else context[span.start : span.end],
                    "start": None if span is None else span.start,
                    "end": None if span is None else span.end,
                    "score": float(f"{share:.9g}"),
                }
                for span, share in ranked
            ]
            yield {**found[0], "others": found[1 : 1 + SHOWN]} | ({"truncated": True} if rows.cut[question] else {})


class _Chosen(NamedTuple):
    """What a model says to each question: its best spans, and how much likelier no answer is than the best of them."""

    texts: list[str]  # the answers
    spans: list[list[Span]]
    nothing: np.ndarray  # logit of no answer
    threshold: float | None  # of that logit minus the best span's; None: there always is an answer

    @classmethod
    def of(cls, reduced: np.ndarray, rows: EncodedQuestions, evaluation: Evaluation) -> _Chosen:
        spans, nothing = rows.best_spans(reduced, evaluation.max_answer_length)
        threshold = evaluation.no_answer_threshold
        if threshold is None:
            threshold = getattr(rows.config, "no_answer_threshold", None)
        texts = [
            context[ranked[0].start : ranked[0].end] if ranked and not _is_open(ranked, logit, threshold) else ""
            for context, ranked, logit in zip(rows.contexts, spans, nothing.tolist(), strict=True)
        ]
        return cls(texts, spans, nothing, threshold)

    def ranked(self, question: int) -> list[tuple[Span | None, float]]:
        """The spans and their shares, the answer first; None: no answer."""
        import numpy as np

        spans: list[Span | None] = [*self.spans[question]]
        logits = [span.logit for span in self.spans[question]]
        if self.threshold is not None or not spans:
            spans.append(None)
            logits.append(float(self.nothing[question]))
        powers = np.exp(np.array(logits) - max(logits))
        ranked = sorted(zip(spans, (powers / powers.sum()).tolist(), strict=True), key=lambda pair: -pair[1])
        is_open = _is_open(self.spans[question], float(self.nothing[question]), self.threshold)
        answer = next(pair for pair in ranked if (pair[0] is None) == is_open)
        return [answer, *(pair for pair in ranked if pair is not answer)]


def _is_open(spans: Sequence[Span], nothing: float, threshold: float | None) -> bool:
    """Whether there is no answer."""
    return not spans or (threshold is not None and nothing - spans[0].logit > threshold)


def _scores(chosen: _Chosen, reduced: np.ndarray, rows: EncodedQuestions, evaluation: Evaluation) -> dict[str, Score]:
    assert rows.answers is not None
    names = list(evaluation.metrics or (*USUAL, "log_loss"))
    assert rows.labels is not None
    if "log_loss" in names and (rows.labels == IGNORED).all():
        warn("no answer is in its context, so there is no loss")
        names.remove("log_loss")
    scores = _of_texts([name for name in names if name in USUAL], chosen.texts, rows.answers, evaluation)
    if "log_loss" in names:
        scores["log_loss"] = _log_loss(reduced, rows, evaluation)
    return {name: scores[name] for name in names}


def _of_texts(
    names: Sequence[str], texts: list[str], answers: list[list[str]], evaluation: Evaluation
) -> dict[str, Score]:
    from hfkit.metrics.table import compute

    return compute(names, texts, answers, interval=evaluation.interval, seed=evaluation.seed)


def _log_loss(reduced: np.ndarray, rows: EncodedQuestions, evaluation: Evaluation) -> Score:
    """The mean loss of the windows; its interval resamples questions."""
    import numpy as np

    from hfkit.metrics.sample import ratio_sample, scored

    assert rows.labels is not None
    within = np.arange(reduced.shape[1]) < rows.lengths[:, np.newaxis]
    logits = np.where(within[:, :, np.newaxis], reduced, -np.inf).astype(np.float64)
    most = logits.max(axis=1, keepdims=True)
    logs = logits - most - np.log(np.exp(logits - most).sum(axis=1, keepdims=True))
    labelled = np.flatnonzero(rows.labels[:, 0] != IGNORED)
    nll = -(logs[labelled, rows.labels[labelled, 0], 0] + logs[labelled, rows.labels[labelled, 1], 1]) / 2
    owners = np.array([rows.windows[window].question for window in labelled])
    size = len(rows.questions)
    table = np.stack([np.bincount(owners, nll, size), np.bincount(owners, minlength=size)], axis=1).astype(float)
    said = "mean -ln(probability) of the start and the end, by window, nats"
    resamples = 1000 if evaluation.interval else 0
    return scored(
        {"log_loss": ratio_sample(np.ones(size), table, said)}, size, seed=evaluation.seed, resamples=resamples
    )["log_loss"]


def _best_threshold(chosen: _Chosen, answers: list[list[str]]) -> float:
    """The threshold with the largest sum of F1: the middle between the last answer that is given and the next one."""
    import numpy as np

    from hfkit.metrics.text import best_squad_f1

    best = np.array([spans[0].logit if spans else -np.inf for spans in chosen.spans])
    margins = chosen.nothing - best
    given = np.array([best_squad_f1(text, texts) for text, texts in zip(chosen.texts, answers, strict=True)])
    gains = given - np.array([float(not texts) for texts in answers])
    order = np.argsort(margins, kind="stable")
    sums = np.cumsum(np.append(0.0, gains[order]))
    last = int(sums.argmax())
    sorted_margins = margins[order]
    if last == 0:
        return float(sorted_margins[0] - 1)
    if last == len(order):
        return float(sorted_margins[-1] + 1)
    return float((sorted_margins[last - 1] + sorted_margins[last]) / 2)
