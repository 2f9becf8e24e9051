"""Texts or pairs as token ids: one example each, truncated at a length, or one for each of their windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.data.labels import MULTIPLE, SINGLE, kind_of, labels_of, problem_type_of
from hfkit.errors import DataError, ModelError, UsageError
from hfkit.system.console import warn
from hfkit.tasks.base import Batch, Examples
from hfkit.tasks.packing import token_store

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

MAX_CUT = 0.05  # share of texts that may be truncated before it takes a decision

MAX_LENGTH = 512  # the default: BERT's limit, and attention costs the square of it


class Frame(NamedTuple):
    """The special tokens before, between and after the texts of an example, with the type of every part."""

    ids: tuple[list[int], ...]  # before the first text, behind it and, of a pair, behind the second
    types: tuple[list[int], ...] | None  # of the special tokens; None if the model takes no token types
    text_types: tuple[int, ...]  # of the texts

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Frame:
        """What the tokenizer puts around `texts`, one or two that have tokens."""
        encoding = tokenizer.backend_tokenizer.encode(*texts, add_special_tokens=True)
        of_text = [-1 if sequence is None else sequence for sequence in encoding.sequence_ids]
        edges = [0, *(of_text.index(text) for text in range(len(texts))), len(of_text)]
        ends = [len(of_text) - of_text[::-1].index(text) for text in range(len(texts))]
        gaps = [slice(begin, end) for begin, end in zip([0, *ends], edges[1:], strict=True)]
        has_types = "token_type_ids" in tokenizer.model_input_names
        return cls(
            tuple(encoding.ids[gap] for gap in gaps),
            tuple(encoding.type_ids[gap] for gap in gaps) if has_types else None,
            tuple(encoding.type_ids[edge] for edge in edges[1:-1]),
        )

    @property
    def size(self) -> int:
        """Special tokens of an example."""
        return sum(map(len, self.ids))

    def around(self, bodies: Sequence[list[int]]) -> dict[str, list[int]]:
        """An example of the token ids of one or two texts."""
        example = {"input_ids": list(self.ids[0])}
        for body, behind in zip(bodies, self.ids[1:], strict=True):
            example["input_ids"] += body + behind
        if self.types is not None:
            example["token_type_ids"] = list(self.types[0])
            for body, kind, behind in zip(bodies, self.text_types, self.types[1:], strict=True):
                example["token_type_ids"] += [kind] * len(body) + behind
        return example


class EncodedTexts(Examples):
    """Texts or pairs with their labels: an example for each, truncated at a length, or one for each of its windows.

    The tokens lie in a memory map that is made once for a data set (see `token_store`). Truncating and dividing only
    say which part of it an example is.

    `owners`: which text each example is of, shape (examples,), windows of a text in order; `is_long`, `was_cut`: which
    texts are longer than an example, and which lost their end, shape (texts,); `longest`: tokens of the longest text;
    `limit`, `most`: tokens of an example at most, by the recipe and by the model; `labels`: of each example, int64
    class ids (examples,), float32 rows of 0 and 1 (examples, labels) or float32 numbers (examples,), None without any.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> None:
        import numpy as np

        self.config, self.pooling = model.config, recipe.data.window_pooling
        self.names = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
        self.limit, self.most = token_limits(tokenizer, model, recipe)
        columns = [name for name in ("text", "text_pair") if name in dataset.column_names]
        self.stores = [token_store(dataset, tokenizer, column=name) for name in columns]
        # tokens of each text, shape (1, examples), or (2, examples) of pairs
        counts = np.stack([np.diff(store.starts, append=len(store.tokens)) for store in self.stores])
        probes = [_first_with_tokens(dataset, *pair) for pair in zip(columns, counts, strict=True)]
        self.frame = Frame.of(tokenizer, probes)
        lengths = counts.sum(axis=0) + self.frame.size
        self.longest = int(lengths.max())
        self.is_long = lengths > self.limit
        self.was_cut = self.is_long & (recipe.data.long_documents == "truncate")
        self.owners = np.arange(len(lengths))
        self.begins, self.ends = np.zeros_like(counts), counts  # of each example in its texts, shape of `counts`
        if self.is_long.any():
            if recipe.data.long_documents == "window":
                self._divide(recipe.data.window_overlap)
            else:
                self._truncate(tokenizer.truncation_side)
        self.lengths = (self.ends - self.begins).sum(axis=0) + self.frame.size
        self.kind = problem_type_of(model.config)
        self.labels = self._labels(dataset) if kind_of(dataset) else None
        if recipe.train.class_weights is not None and self.labels is not None:
            self.class_weights = class_weights(recipe.train.class_weights, self.names, self.labels.tolist())

    def _truncate(self, side: str) -> None:
        """Takes tokens from the end (`side` "right") or the beginning of the longer text until an example fits.

        That is the strategy "longest_first" of the library (tokenizers, truncate_encodings).
        """
        import numpy as np

        room = self.limit - self.frame.size
        if len(self.ends) == 1:
            kept = np.minimum(self.ends, room)
        else:
            shorter = self.ends.min(axis=0)
            longer = np.where(shorter > room, shorter, np.maximum(shorter, room - shorter))
            both = shorter + longer > room
            shorter, longer = np.where(both, room // 2, shorter), np.where(both, room - room // 2, longer)
            kept = np.where(self.ends[0] > self.ends[1], [longer, shorter], [shorter, longer])
        kept = np.where(self.is_long, kept, self.ends)
        if side == "left":
            self.begins = self.ends - kept
        else:
            self.ends = kept

    def _divide(self, overlap: int | None) -> None:
        """Windows of `limit` tokens. Of pairs the text that is longer on average is divided, the other repeated."""
        import numpy as np

        overlap = self.limit // 8 if overlap is None else overlap
        counts = self.ends
        divided = int(len(counts) == 2 and counts[1].sum() > counts[0].sum())
        others = counts.sum(axis=0) - counts[divided]
        rooms = self.limit - self.frame.size - others  # tokens of the divided text in a window
        room = self.limit - self.frame.size
        require_room(overlap, room, self.limit)
        if (rooms[self.is_long] <= overlap).any():
            which = "first" if divided else "second"
            problem = f"a {which} text of a pair fills a whole window of {self.limit} tokens"
            raise DataError(problem, "--long-documents truncate, or a larger --max-length")
        steps = np.where(self.is_long, rooms - overlap, 1)
        windows = np.where(self.is_long, 1 + -(-(counts[divided] - rooms) // steps), 1)
        self.owners = np.repeat(np.arange(len(windows)), windows)
        within = np.arange(len(self.owners)) - np.repeat(np.cumsum(windows) - windows, windows)
        self.begins, self.ends = np.zeros_like(counts)[:, self.owners], counts[:, self.owners]
        self.begins[divided] = within * steps[self.owners] * self.is_long[self.owners]
        stops = np.where(self.is_long[self.owners], self.begins[divided] + rooms[self.owners], self.ends[divided])
        self.ends[divided] = np.minimum(stops, self.ends[divided])

    def _labels(self, dataset: Dataset) -> np.ndarray:
        import numpy as np

        labels = labels_of(dataset)
        if self.kind == SINGLE:
            values = np.array([self.config.label2id[label] for label in labels], dtype=np.int64)
        elif self.kind == MULTIPLE:
            table = [[name in given for name in self.names] for given in map(set, labels)]
            values = np.array(table, dtype=np.float32)
        else:
            values = np.array(labels, dtype=np.float32)
        owned: np.ndarray = values[self.owners]
        return owned

    def example(self, index: int, random: np.random.Generator | None = None) -> dict[str, Any]:
        """The token ids of an example, its token types if the model takes them, and its label."""
        owner = self.owners[index]
        bodies = []
        for store, begins, ends in zip(self.stores, self.begins, self.ends, strict=True):
            start = store.starts[owner]
            bodies.append(store.tokens[start + begins[index] : start + ends[index]].tolist())
        example: dict[str, Any] = self.frame.around(bodies)
        if self.labels is not None:
            example["labels"] = self.labels[index]
        return example

    def pooled(self, logits: np.ndarray) -> np.ndarray:
        """The logits of each text, (texts, k), from those of its windows, (examples, k): mean or, by label, maximum."""
        import numpy as np

        starts = self.starts
        if len(starts) == len(logits):
            return logits
        if self.pooling == "max":
            largest: np.ndarray = np.maximum.reduceat(logits, starts, axis=0)
            return largest
        counts = np.diff([*starts, len(logits)])[:, np.newaxis]
        means: np.ndarray = np.add.reduceat(logits, starts, axis=0) / counts
        return means

    @property
    def starts(self) -> np.ndarray:
        """The first example of each text, shape (texts,)."""
        import numpy as np

        first: np.ndarray = np.flatnonzero(np.diff(self.owners, prepend=-1))
        return first


def _first_with_tokens(dataset: Dataset, column: str, counts: np.ndarray) -> str:
    """A text of `column` that has tokens, of which there are `counts`; "a" if there is none."""
    import numpy as np

    found = np.flatnonzero(counts)
    return str(dataset[int(found[0])][column]) if len(found) else "a"


def require_room(overlap: int, room: int, limit: int, *, of: str = "") -> None:
    """UsageError where windows of `limit` tokens, with `room` for text, can't overlap by `overlap` tokens."""
    if overlap >= room:
        smaller = room > 4 and overlap > room // 4
        fix = f"--window-overlap {room // 4}" if smaller else f"--max-length {4 * limit}"
        raise UsageError(f"data.window_overlap {overlap}: a window has room for {room} tokens{of}", fix)


def padded(examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Examples as one batch, their labels stacked."""
    import numpy as np
    import torch

    tokens = [{name: values for name, values in one.items() if name != "labels"} for one in examples]
    # on the right whatever the tokenizer prefers: a classifier's positions count from the first column
    batch: Batch = dict(tokenizer.pad(tokens, padding_side="right", return_tensors="pt"))
    if "labels" in examples[0]:
        batch["labels"] = torch.from_numpy(np.stack([one["labels"] for one in examples]))
    return batch


def token_limits(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe, *, usual: int = MAX_LENGTH
) -> tuple[int, int]:
    """Tokens of a row at most, by the recipe (`usual` if it says nothing) and by the model."""
    from hfkit.models.config import NO_LIMIT, as_limit, max_tokens

    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no token to pad with", "choose another --model"
        )
    limits = [as_limit(tokenizer.model_max_length), max_tokens(model)]
    longest = min((one for one in limits if one is not None), default=NO_LIMIT)
    limit = recipe.data.max_length or min(usual, longest)
    if limit > longest:
        raise UsageError(
            f"data.max_length {limit} is longer than the model's {longest} tokens", f"--max-length {longest}"
        )
    return limit, longest


def say_truncation(found: str, share: float, ways: Sequence[str], *, decided: bool) -> None:
    """Warns that the texts that were `found` are truncated, once in a command; `ways`: what to type instead.

    DataError where they are so large a `share` of all that somebody has to decide, and nobody has.
    """
    if share > MAX_CUT and not decided:
        raise DataError(f"{found} and would be truncated", ", or ".join([*filter(None, ways), "--allow-truncation"]))
    warn(f"{found} and were truncated", ways[0], once=True)


def class_weights(wanted: str, names: Sequence[str], labels: Sequence[int]) -> list[float]:
    """The weight of each class: rows / (classes * rows of the class) for `balanced`, which is 1 in the mean over rows
    (King and Zeng 2001, as scikit-learn has it), or those of a mapping as YAML, 1 where it names none."""
    import yaml

    if wanted == "balanced":
        counts = Counter(labels)
        return [len(labels) / (len(counts) * counts[index]) if counts[index] else 1.0 for index in range(len(names))]
    try:
        weights = yaml.load(wanted, yaml.BaseLoader)  # noqa: S506 - every value stays text, so does the label `no`
        given = {str(name): float(weight) for name, weight in weights.items()}
        if min(given.values()) < 0 or max(given.values()) == 0:
            raise ValueError
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        problem = f"train.class_weights '{wanted}': neither balanced nor a mapping of labels to numbers"
        raise UsageError(problem, f"--class-weights balanced, or '{{{names[0]}: 2}}'") from None
    if strange := [name for name in given if name not in names]:
        known = ", ".join(names[:20])
        raise UsageError(f"train.class_weights names '{strange[0]}', no label of the data: {known}", "correct it")
    return [given.get(name, 1.0) for name in names]
