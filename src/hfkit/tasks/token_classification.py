"""Token classification: the entities in a sentence, or a tag for each of its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED, natural
from hfkit.data.lines import format_of
from hfkit.data.readers import TAGGED
from hfkit.data.tags import Entity, Scheme, entities, pairs_of_types
from hfkit.errors import DataError
from hfkit.system.console import say, warn
from hfkit.tasks.base import Batch, Examples, LossOptions, Task, finetuning_defaults
from hfkit.tasks.language_modeling import pad_blocks, token_loss
from hfkit.tasks.words import NONE, EncodedWords

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Measured, Row, Score
    from hfkit.settings import Evaluation, Recipe

BUILTIN_TAGGED = "builtin:python-names"

OF_ENTITIES = ("entity_f1", "entity_f1_strict", "entity_f1_partial", "entity_f1_type")

OF_WORDS = ("tag_accuracy", "log_loss")


class TokenClassification(Task):
    summary = "entities in texts, or tags of their words"
    command = "finetune"
    auto_model = "AutoModelForTokenClassification"
    roles = ("text", "label")
    questions = ("text", "tokens")
    aliases = ("ner", "pos", "tagging")
    metrics = (*OF_ENTITIES, *OF_WORDS)
    settings = frozenset({"data.max_length", "data.window_overlap", "data.subword_labels"})

    def next_step(self, run: str, is_adapter: bool) -> str:
        return f'hfkit predict {run} --text "..."'

    def usual_metrics(self, config: Any) -> Sequence[str]:
        return _usual_metrics(list(config.id2label.values()))

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return finetuning_defaults(given) | {"data.train": [BUILTIN_TAGGED]}

    def claims(self, sources: Sequence[str]) -> str:
        tagged = next((source for source in sources if format_of(Path(source))[0] in TAGGED), "")
        return f"{tagged} holds tagged words" if tagged else ""

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        from hfkit.data.loading import load_data
        from hfkit.data.splits import hold_out_known
        from hfkit.data.tagged import load_tagged

        splits = load_tagged(load_data(recipe.data), recipe.data)
        if "train" in splits and "validation" not in splits and recipe.data.validation_split > 0:
            held_out = hold_out_known(
                splits["train"], recipe.data.validation_split, recipe.train.seed, lambda rows: rows["tags"][:]
            )
            splits |= held_out
        for split, dataset in splits.items():
            say(f"{split}: {_counts(dataset)}")
        _require_entities(splits, recipe)
        return splits

    def model_config(self, splits: Mapping[str, Dataset], config: Any) -> dict[str, Any]:
        from hfkit.data.tagged import require_known

        names = [str(config.id2label[index]) for index in range(config.num_labels)]
        if "train" in splits:
            rows = splits["train"]["tags"][:]
            found = {tag for tags in rows for tag in tags}
            if len(found) < 2:
                problem = f"all words of the training data have the tag '{next(iter(found), 'none')}'"
                raise DataError(problem, "--label-column NAME, or add sentences with other tags")
            wanted = sorted(found, key=natural) if Scheme.of(rows).name is None else pairs_of_types(found)
            names = names if set(names) == set(wanted) else wanted  # a fine-tuned model keeps its own order
        require_known(splits, names)
        return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        rows = EncodedWords(dataset, tokenizer, model, recipe)
        if rows.tags is None:
            return rows
        if rows.num_long:
            found = f"{rows.num_long:,} of {len(dataset):,} sentences are longer than {rows.limit} tokens"
            say(f"{found} and make {len(rows):,} windows together with the others")
        if lost := int((rows.token_of_word == NONE).sum()):
            warn(f"the tokenizer has no token for {lost:,} of {len(rows.tags):,} words; they count as O")
        return rows

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return pad_blocks(examples, tokenizer)

    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        options: LossOptions = LossOptions(),  # noqa: B008
    ) -> torch.Tensor:
        """Cross-entropy in nats, divided by the labelled tokens of the whole optimizer step."""
        return token_loss(outputs["logits"], labels, num_items_in_batch, options)

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        """Of each token the likeliest label, its probability, and -ln(probability of its own label); (rows, tokens, 3).

        The last is 0 for a token without a label.
        """
        import torch

        logs = outputs[0].float().log_softmax(-1)
        best, ids = logs.max(-1)
        nll = torch.zeros_like(best)
        if labels.numel():
            own = -logs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            nll = torch.where(labels == IGNORED, nll, own)
        return torch.stack([ids.float(), best.exp(), nll], dim=-1)

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        assert isinstance(rows, EncodedWords)
        return _Answers(reduced, rows).scores(evaluation, by_type=False)

    def results(
        self, dataset: Dataset, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> Measured:
        """The scores, also of each type of entity, and the accuracy of always giving the commonest tag."""
        from hfkit.metrics.sample import Measured, Score

        assert isinstance(rows, EncodedWords)
        assert rows.tags is not None
        answers = _Answers(reduced, rows)
        if not len(rows.tags):
            raise DataError("the data has no word", "give sentences with words and tags")
        tag, count = Counter(rows.tags.tolist()).most_common(1)[0]
        share, said = count / len(rows.tags), f"tag_accuracy of always saying '{rows.names[tag]}'"
        baseline = {"majority_baseline": Score(share, None, None, len(rows.words), said)}
        return Measured(answers.scores(evaluation, by_type=True) | baseline, answers.kept(dataset))

    def answers(self, reduced: np.ndarray, rows: Examples, evaluation: Evaluation) -> Iterator[dict[str, Any]]:
        """One per text: "entities", or "words" without a BIO scheme, each with text, label, start, end and score.

        `start` and `end` count characters; the score is the mean probability of the tags of its words. Where the words
        were given as "tokens", "tags" has the tag of each, and the characters are those of the tokens with blanks
        between.
        """
        assert isinstance(rows, EncodedWords)
        given = _Answers(reduced, rows)
        for sentence, words in enumerate(rows.words):
            tags, shares = given.tags(sentence), rows.of_sentence(given.shares, sentence)
            each_word = (Entity(tag, place, place + 1) for place, tag in enumerate(tags))
            found = [
                {
                    "text": words.text[words.starts[start] : words.ends[end - 1]],
                    "label": kind,
                    "start": words.starts[start],
                    "end": words.ends[end - 1],
                    "score": float(f"{shares[start:end].mean():.9g}"),
                }
                for kind, start, end in (words.entities(tags) if given.is_bio else each_word)
            ]
            yield {"entities" if given.is_bio else "words": found} | ({"tags": tags} if rows.has_tokens else {})


class _Answers:
    """What a model says of the words of encoded sentences."""

    def __init__(self, reduced: np.ndarray, rows: EncodedWords) -> None:
        self.rows = rows
        self.ids, self.shares = rows.by_word(reduced)
        self.reduced = reduced
        self.is_bio = _is_bio(rows.names)

    def tags(self, sentence: int) -> list[str]:
        return [self.rows.names[index] for index in self.rows.of_sentence(self.ids, sentence).tolist()]

    @cached_property
    def tag_pairs(self) -> tuple[list[list[str]], list[list[str]]]:
        """The (predicted, right) tags of all sentences."""
        rows, sentences = self.rows, range(len(self.rows.words))
        assert rows.tags is not None
        given = [[rows.names[index] for index in rows.of_sentence(rows.tags, sentence)] for sentence in sentences]
        return list(map(self.tags, sentences)), given

    @cached_property
    def pairs(self) -> tuple[list[Any], list[Any]]:
        """As `tag_pairs`, but spans of characters where the data has them."""
        if self.rows.entities is None:
            return self.tag_pairs
        spans = [words.spans(tags) for words, tags in zip(self.rows.words, self.tag_pairs[0], strict=True)]
        return [[{"start": s, "end": e, "label": kind} for kind, s, e in one] for one in spans], self.rows.entities

    @cached_property
    def losses(self) -> tuple[np.ndarray, np.ndarray]:
        """The summed loss of each sentence in nats, and its labelled tokens; each of shape (sentences,)."""
        import numpy as np

        rows, size = self.rows, len(self.rows.words)
        sentence = np.repeat(np.arange(size), np.diff(rows.token_starts))
        labelled = rows.labels != IGNORED
        nll = self.reduced[rows.window_of_token, rows.column_of_token, 2]
        return (
            np.bincount(sentence[labelled], nll[labelled], size),
            np.bincount(sentence[labelled], minlength=size).astype(float),
        )

    def scores(self, evaluation: Evaluation, *, by_type: bool) -> dict[str, Score]:
        """The metrics over all sentences; `by_type`: also the F1 of each type of entity."""
        from dataclasses import replace

        import numpy as np

        from hfkit.metrics.inputs import Inputs, pair
        from hfkit.metrics.labels import entity_sample
        from hfkit.metrics.sample import ratio_sample, scored
        from hfkit.metrics.table import METRICS

        rows, names = self.rows, evaluation.metrics or _usual_metrics(self.rows.names)
        data = Inputs(*self.pairs)
        tags = data if rows.entities is None else Inputs(*self.tag_pairs)
        pair([data, tags])
        if set(names) & set(OF_ENTITIES) and not any(predicted | actual for predicted, actual in data.entities):
            warn("there are no entities, neither in the data nor in the predictions: they have no F1")
            names = [name for name in names if name not in OF_ENTITIES]
        said = "mean -ln(probability of the tag) of the labelled tokens, nats"
        samples = {}
        for name in names:
            if name == "log_loss":
                samples[name] = ratio_sample(data.rows, np.stack(self.losses, axis=1), said)
            else:
                samples[name] = METRICS[name].function(tags if name == "tag_accuracy" else data)
        found = Counter(entity.kind for _, actual in data.entities for entity in actual) if self.is_bio else Counter()
        for kind, count in found.most_common() if by_type and "entity_f1" in names else ():
            sample, said = entity_sample(data, kind=kind), f"F1 of the {count:,} entities '{kind}'"
            samples[f"entity_f1.{kind}"] = replace(sample, values=_last_of(sample.values), keys=(), definition=said)
        resamples = 1000 if evaluation.interval else 0
        return scored(samples, len(rows.words), seed=evaluation.seed, resamples=resamples)

    def kept(self, dataset: Dataset) -> Iterator[Row]:
        """Of each sentence "tokens" or "text", "reference", "prediction" and "loss", its mean in nats."""
        nll, labelled = self.losses
        column = "tokens" if "tokens" in dataset.column_names else "text"
        made, given = self.pairs
        for words, reference, prediction, loss in zip(
            dataset[column][:], given, made, (nll / labelled.clip(min=1)).tolist(), strict=True
        ):
            yield {column: words, "reference": reference, "prediction": prediction, "loss": float(f"{loss:.9g}")}


def _require_entities(splits: Mapping[str, Dataset], recipe: Recipe) -> None:
    """DataError if a metric of entities is asked for, and a split that is scored has none."""
    asked = [name for name in (*recipe.evaluation.metrics, recipe.train.best) if name in OF_ENTITIES]
    for split, dataset in splits.items() if asked else ():
        if split != "train" and not any(entities(tags) for tags in dataset["tags"] if Scheme.of([tags]).name):
            raise DataError(f"the {split} data has no entities, so it has no {asked[0]}", "--metrics tag_accuracy")


def _last_of(values: Any) -> Any:
    """The function `values`, of whose keys the last one is kept."""
    return lambda weights: values(weights)[:, -1:]


def _is_bio(names: Sequence[str]) -> bool:
    return Scheme.of([names]).name is not None


def _usual_metrics(names: Sequence[str]) -> tuple[str, ...]:
    return ("entity_f1", *OF_WORDS) if _is_bio(names) else OF_WORDS


def _counts(dataset: Dataset) -> str:
    """How many sentences, words and entities there are."""
    rows = dataset["tags"][:]
    is_bio = Scheme.of(rows).name is not None
    kinds = Counter(entity.kind for tags in rows for entity in entities(tags) if is_bio)
    counted = f"{len(rows):,} sentences, {sum(map(len, rows)):,} words"
    if not kinds:
        return counted
    some = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(8)) + ", ..." * (len(kinds) > 8)
    return f"{counted}, {kinds.total():,} entities: {some}"
