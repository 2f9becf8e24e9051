"""BERT's own pretraining: hidden words, and whether a second text follows the first (arXiv 1810.04805, appendix A.2).

A segment is a line of a document; a pair is made of whole segments. As in BERT's data half of the second texts are the
true continuation, half come from another document. Unlike there, these choices are drawn anew whenever a row comes,
and lines are divided where they are too long instead of being cut off.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.errors import DataError, ModelError, UsageError
from hfkit.system.console import say_once
from hfkit.tasks.base import Batch, Examples, LossOptions
from hfkit.tasks.language_modeling import OF_LANGUAGE_MODELS, nll_scores, pad_blocks, token_statistics
from hfkit.tasks.masked_head import add_positions
from hfkit.tasks.masking import Masking, hide, masked_definition
from hfkit.tasks.mlm import MaskedLM
from hfkit.tasks.packing import block_size_for, token_store

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Score
    from hfkit.settings import Evaluation, Recipe
    from hfkit.tasks.packing import TokenStore

FOLLOWS, RANDOM = 0, 1  # BertForPreTraining's classes


class MaskedLMWithPairs(MaskedLM):
    """The label of a pair stands in column 0 of `labels`, where [CLS] has none of its own."""

    auto_model = "AutoModelForPreTraining"
    metrics = ("perplexity", "token_accuracy", "nll", "nsp_accuracy", "nsp_loss")
    summary = "BERT's masked tokens and sentence pairs"
    settings = OF_LANGUAGE_MODELS | {"data.masking", "data.mask_probability"}

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        if recipe.data.streaming:
            raise UsageError(
                "mlm-nsp takes its pairs from all documents, a stream has one at a time", "leave out --streaming"
            )
        return super().load(recipe)

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        masking = Masking(tokenizer, model, recipe)
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no [CLS] and [SEP], so it can't learn mlm-nsp",
                "--objective mlm",
            )
        size = block_size_for(model, recipe.data.block_size)
        if size < 5:
            raise UsageError(f"data.block_size {size} has no room for a pair", "--block-size 128")
        lines = dataset.map(_lines, batched=True, with_indices=True, remove_columns=dataset.column_names)
        store = token_store(lines, tokenizer, words=recipe.data.masking != "token")
        return _Pairs(store, lines["document"][:], size - 3, masking, tokenizer)

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        batch = pad_blocks(examples, tokenizer)
        _, tokens = _apart(batch["labels"])
        return {**add_positions({**batch, "labels": tokens}), "labels": batch["labels"]}

    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        options: LossOptions = LossOptions(),  # noqa: B008
    ) -> torch.Tensor:
        """The mean over the hidden tokens plus the mean over the pairs, each over the whole optimizer step.

        `num_items_in_batch` counts labels, so a row's hidden tokens and its pair.
        """
        import torch

        follows, tokens = _apart(labels)
        count = labels.ne(IGNORED).sum()
        items = count if num_items_in_batch is None else num_items_in_batch
        rows = (
            options.global_batch_size or len(labels) * items / count
        )  # in evaluation those of all ranks, taken to be like this one's
        of_tokens = super().loss({"logits": outputs["prediction_logits"]}, tokens, items - rows, options)
        of_pairs = torch.nn.functional.cross_entropy(
            outputs["seq_relationship_logits"].float(), follows, reduction="sum", label_smoothing=options.smoothing
        )
        return of_tokens + of_pairs / rows

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        import torch

        follows, tokens = _apart(labels)
        nll = torch.nn.functional.cross_entropy(outputs[1].float(), follows, reduction="none").double()
        right = (outputs[1].argmax(-1) == follows).double()
        return torch.cat([token_statistics(outputs[0], tokens), nll[:, None], right[:, None]], dim=1)

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        import numpy as np

        from hfkit.metrics.sample import Score, ratio_interval

        assert isinstance(rows, _Pairs)
        how = f"pairs drawn once from seed {evaluation.seed}, resampled by pair"

        def score(values: np.ndarray, what: str) -> Score:
            wanted = evaluation.interval
            ends = ratio_interval(values, np.ones(len(values)), seed=evaluation.seed) if wanted else None
            low, high = ends or (None, None)
            return Score(float(values.mean()), low, high, len(values), f"{what}; {how}")

        return {
            **nll_scores(reduced[:, :3], evaluation, masked_definition(rows.masking, evaluation.seed)),
            "nsp_accuracy": score(reduced[:, 4], "share of pairs told apart, true or random continuation"),
            "nsp_loss": score(reduced[:, 3], "nats per pair"),
        }


class _Pairs(Examples):
    """Examples of consecutive segments of a document, `room` tokens at most, from which pairs are drawn.

    A segment is a line, or a piece of one where that is longer than half the room: so any segment fits beside a first
    text of half the room, and nothing is ever cut off.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: Sequence[int],
        room: int,
        masking: Masking,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        import numpy as np

        self.store, self.room, self.masking = store, room, masking
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        lengths = np.diff(store.starts, append=len(store.tokens))
        pieces = -(-lengths // (room // 2))  # of each line; none of one without tokens
        within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self.first = np.repeat(store.starts, pieces) + within * (room // 2)  # token where each segment begins
        self.ends = np.append(self.first[1:], len(store.tokens))  # and where it ends
        self.document = np.repeat(np.asarray(documents, dtype=np.int64), pieces)
        # the first segment of a document is where another one stood before
        begins = np.flatnonzero(np.diff(self.document, prepend=-1))
        self.begins = np.append(begins, len(self.document))
        self.rows = [row for bounds in itertools.pairwise(self.begins) for row in self._cut(*bounds)]
        self._check(int((pieces > 1).sum()))
        self.lengths = np.array([self.ends[stop - 1] - self.first[start] + 3 for start, stop in self.rows])

    def _cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(first segment, end) of the rows of one document, filled greedily; two segments at least, so a last one that
        is left alone comes with the one before it once more."""
        import numpy as np

        rows = []
        while start < stop - 1:
            end = min(int(np.searchsorted(self.ends, self.first[start] + self.room, side="right")), stop)
            rows.append((start, end))
            start = end
        if rows and start < stop:
            rows.append((start - 1, stop))
        return rows

    def _check(self, num_divided: int) -> None:
        import numpy as np

        sizes = np.diff(self.begins)
        alone, total = int((sizes == 1).sum()), len(sizes)
        if total < 2 or alone == total:
            what = "one document" if total == 1 else f"{total:,} documents, each of one line"
            raise DataError(
                f"mlm-nsp needs two documents, one of them with two lines, and this data has {what}",
                "one sentence a line with an empty line between documents, or --documents file, or --objective mlm",
            )
        if alone or num_divided:
            say_once(
                f"pairs: {len(self.rows):,} examples from {total:,} documents; of one line, so only ever random second "
                f"texts: {alone:,}; lines of more than {self.room // 2} tokens, divided: {num_divided:,}"
            )

    def example(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        """A pair, with a true continuation in half of the draws; its tokens hidden as in mlm."""
        pair = self.draw(index, random)
        inputs, labels = hide(pair, random)
        labels[0] = pair["next"]
        return {"input_ids": inputs, "labels": labels, "token_type_ids": pair["token_type_ids"]}

    def draw(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        """A pair from row `index`: [CLS] A [SEP] B [SEP] as `hide` takes it, `token_type_ids`, and its class `next`."""
        import numpy as np

        start, stop = self.rows[index]
        fitting = int(np.searchsorted(self.ends[start : stop - 1] - self.first[start], self.room // 2, side="right"))
        middle = start + int(random.integers(1, fitting + 1))
        follows = random.random() < 0.5
        second = (middle, stop) if follows else self._elsewhere(start, middle, stop, random)
        a, b = (np.arange(self.first[begin], self.ends[end - 1]) for begin, end in ((start, middle), second))
        tokens = self.store.tokens
        cls, sep = [self.cls], [self.sep]
        pair = {
            "input_ids": np.concatenate([cls, tokens[a], sep, tokens[b], sep]).astype(np.int64),
            "token_type_ids": np.repeat([0, 1], [len(a) + 2, len(b) + 1]),
            "next": FOLLOWS if follows else RANDOM,
        }
        if self.store.words is not None:
            words, edge = self.store.words, [True]
            pair["words"] = np.concatenate([edge, words[a], edge, words[b], edge])
        return self.masking.row(pair)

    def _elsewhere(self, start: int, middle: int, stop: int, random: np.random.Generator) -> tuple[int, int]:
        """Segments of another document, each first one as likely as any other: about as long as the true ones."""
        import numpy as np

        own = int(np.searchsorted(self.begins, start, side="right")) - 1
        before, after = int(self.begins[own]), int(self.begins[own + 1])
        begin = int(random.integers(len(self.first) - (after - before)))
        begin += 0 if begin < before else after - before
        limit = int(self.begins[np.searchsorted(self.begins, begin, side="right")])
        wanted = self.ends[stop - 1] - self.first[middle]
        room = self.room - (self.ends[middle - 1] - self.first[start])
        enough = int(np.searchsorted(self.ends, self.first[begin] + wanted, side="left")) + 1
        fitting = int(np.searchsorted(self.ends, self.first[begin] + room, side="right"))
        end = min(enough, fitting, limit)
        return begin, end


def _lines(batch: dict[str, list[str]], indices: list[int]) -> dict[str, list[Any]]:
    """The non-empty lines of documents, each with the number of its document."""
    found = [
        (line, number)
        for text, number in zip(batch["text"], indices, strict=True)
        for line in text.splitlines()
        if line.strip()
    ]
    return {"text": [line for line, _ in found], "document": [number for _, number in found]}


def _apart(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(class of each pair, labels of the tokens) of `labels` as collated."""
    tokens = labels.clone()
    tokens[:, 0] = IGNORED
    return labels[:, 0], tokens
