"""Words as subwords: which token shows a word's tag, and windows over sentences that are too long."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.data.tagged import words_of
from hfkit.tasks.base import Examples
from hfkit.tasks.packing import untruncated
from hfkit.tasks.windows import Frame, require_room, token_limits

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from tokenizers import Encoding
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

BLANK = "\u2581"  # SentencePiece's sign for the blank before a word

NONE = -1  # the token of a word without one, and the word of a token without one


class EncodedWords(Examples):
    """Sentences as examples, one for each of their windows; every word has its tag at the first token that touches it.

    Tokens and words are found by their characters, so any fast tokenizer fits. A token belongs to the first word that
    it touches. In the overlap of two windows the nearer middle of a window decides which of them a token counts in,
    so that each counts once in the loss and has one answer.

    `words`: of each sentence; `has_tokens`: the data has them as a list; `names`: the labels of the model; `tags`: ids
    of all words in them, shape (words,), None without any; `entities`: the spans of characters that the data has in
    place of tags; `token_of_word`: shape (words,); `num_long`: sentences that are longer than a window; `limit`: tokens
    of a window at most.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> None:
        import numpy as np

        config = model.config
        self.names = [str(config.id2label[index]) for index in range(config.num_labels)]
        self.limit, _ = token_limits(tokenizer, model, recipe)
        self.words, self.has_tokens = words_of(dataset), "tokens" in dataset.column_names
        self.word_starts = _starts([len(one.starts) for one in self.words])
        self._tokenize(tokenizer)
        probe = next((one.text for one, size in zip(self.words, np.diff(self.token_starts), strict=True) if size), "a")
        self.frame, self.filler = Frame.of(tokenizer, [probe]), tokenizer.pad_token_id  # a window is never empty
        self._divide(recipe.data.window_overlap)
        self.tags: np.ndarray | None = None
        self.entities = dataset["entities"][:] if "entities" in dataset.column_names else None
        if "tags" in dataset.column_names:
            ids = {name: index for index, name in enumerate(self.names)}
            self.tags = np.array([ids[tag] for tags in dataset["tags"][:] for tag in tags], dtype=np.int64)
            self.labels = self._labels(every=recipe.data.subword_labels == "all")

    def _tokenize(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets `tokens`, `token_starts` (sentences + 1,), `token_of_word` and `word_of_token`.

        Characters are numbered through all sentences, so that a search in one array finds the words of all tokens.
        """
        import numpy as np

        backend = untruncated(tokenizer)
        ids: list[int] = []
        begins: list[int] = []
        ends: list[int] = []
        sizes: list[int] = []
        shifts = _starts([len(one.text) + 1 for one in self.words])
        texts = [one.text for one in self.words]
        for shift, text, encoding in zip(
            shifts[:-1].tolist(), texts, backend.encode_batch(texts, add_special_tokens=False), strict=True
        ):
            ids += encoding.ids
            sizes.append(len(encoding.ids))
            for begin, end in trimmed_offsets(text, encoding):
                begins.append(shift + begin)
                ends.append(shift + end)
        self.tokens, self.token_starts = np.array(ids, dtype=np.int32), _starts(sizes)
        first, last = np.array(begins, dtype=np.int64), np.array(ends, dtype=np.int64)
        shifts_of_words = np.repeat(shifts[:-1], np.diff(self.word_starts))
        word_begins = shifts_of_words + np.array([s for one in self.words for s in one.starts], dtype=np.int64)
        word_ends = shifts_of_words + np.array([e for one in self.words for e in one.ends], dtype=np.int64)
        self.token_of_word = _touching(word_begins, word_ends, first, last)
        self.word_of_token = _touching(first, last, word_begins, word_ends)

    def _divide(self, overlap: int | None) -> None:
        """Windows of `limit` tokens, and for each token the window and the column where it counts."""
        import numpy as np

        room = self.limit - self.frame.size
        overlap = self.limit // 8 if overlap is None else overlap
        require_room(overlap, room, self.limit)
        sizes = np.diff(self.token_starts)
        self.num_long = int((sizes > room).sum())
        windows = 1 + np.maximum(0, -(-(sizes - room) // (room - overlap)))
        self.owners = np.repeat(np.arange(len(sizes)), windows)
        within = np.arange(len(self.owners)) - np.repeat(np.cumsum(windows) - windows, windows)
        self.begins = within * (room - overlap)
        self.ends = np.minimum(self.begins + room, sizes[self.owners])
        self.lengths = np.maximum(self.ends - self.begins + self.frame.size, 1)
        # a window counts from the middle of the overlap before it to the middle of the one behind it
        is_first, is_last = within == 0, within == windows[self.owners] - 1
        froms = np.where(is_first, 0, (self.begins + np.roll(self.ends, 1)) // 2)
        tos = np.where(is_last, self.ends, np.roll(froms, -1))
        counted = tos - froms
        self.window_of_token = np.repeat(np.arange(len(counted)), counted)
        place = np.arange(len(self.tokens)) - np.repeat(np.cumsum(counted) - counted, counted)
        self.column_of_token = place + np.repeat(froms - self.begins, counted) + len(self.frame.ids[0])

    def _labels(self, *, every: bool) -> np.ndarray:
        """The label of each token where it counts: the tag of a word at its first token; `every`: at all of them."""
        import numpy as np

        assert self.tags is not None
        labels = np.full(len(self.tokens), IGNORED, dtype=np.int64)
        has_word = self.word_of_token != NONE
        if every:
            labels[has_word] = self.inner[self.tags[self.word_of_token[has_word]]]
        shown = self.token_of_word != NONE
        # reversed: of several words that begin in one token the first one counts
        labels[self.token_of_word[shown][::-1]] = self.tags[shown][::-1]
        return labels

    @property
    def inner(self) -> np.ndarray:
        """The label of the tokens that continue a word with a label: I- where that is B-; shape (labels,)."""
        import numpy as np

        ids = {name: index for index, name in enumerate(self.names)}
        return np.array([ids.get(f"I-{name[2:]}", index) if name[:2] == "B-" else index for name, index in ids.items()])

    def example(self, index: int, random: np.random.Generator | None = None) -> dict[str, Any]:
        """The token ids of a window, its token types if the model takes them, and a label for each token."""
        import numpy as np

        start = self.token_starts[self.owners[index]]
        part = slice(start + self.begins[index], start + self.ends[index])
        example: dict[str, Any] = self.frame.around([self.tokens[part].tolist()])
        example["input_ids"] = example["input_ids"] or [self.filler]
        if self.tags is not None:
            labels = np.full(len(example["input_ids"]), IGNORED, dtype=np.int64)
            counts = np.flatnonzero(self.window_of_token[part] == index)
            labels[counts + len(self.frame.ids[0])] = self.labels[part][counts]
            example["labels"] = labels
        return example

    def by_word(self, reduced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(label ids, their probabilities) of all words from (windows, tokens, 2 or more), each of shape (words,).

        A word that begins within a token that shows another word continues that one's entity. A word without a token,
        such as one of control characters, is O, or else the first label, with probability 1.
        """
        import numpy as np

        shown = self.token_of_word != NONE
        tokens = self.token_of_word[shown]
        found = reduced[self.window_of_token[tokens], self.column_of_token[tokens]]
        ids = np.full(len(shown), self.names.index("O") if "O" in self.names else 0)
        shares = np.ones(len(shown))
        ids[shown], shares[shown] = found[:, 0].astype(np.int64), found[:, 1]
        continues = np.zeros(len(shown), dtype=bool)
        continues[shown] = self.word_of_token[tokens] != np.flatnonzero(shown)
        ids[continues] = self.inner[ids[continues]]
        return ids, shares

    def of_sentence(self, values: np.ndarray, sentence: int) -> np.ndarray:
        """The part of `values` (words,) that belongs to one sentence."""
        part: np.ndarray = values[self.word_starts[sentence] : self.word_starts[sentence + 1]]
        return part


def trimmed_offsets(text: str, encoding: Encoding) -> Iterator[tuple[int, int]]:
    """The first character of each token and the one after its last, without blanks before it.

    Marks that a tokenizer strips, such as accents, belong to the character before them.
    """
    for piece, (begin, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        while end < len(text) and unicodedata.category(text[end])[0] == "M":
            end += 1
        while begin < end and text[begin].isspace():  # byte-level tokens have the blank before a word
            begin += 1
        # a lone sign before the first word has the characters of that word
        yield begin, begin if piece == BLANK else end


def _starts(sizes: list[int]) -> np.ndarray:
    """Where each part begins, and the end of the last one; shape (parts + 1,)."""
    import numpy as np

    return np.cumsum([0, *sizes], dtype=np.int64)


def _touching(begins: np.ndarray, ends: np.ndarray, others: np.ndarray, other_ends: np.ndarray) -> np.ndarray:
    """For each range of characters the first of the other ranges that shares a character with it, else NONE."""
    import numpy as np

    place = np.searchsorted(other_ends, begins, side="right")
    inside = place < len(others)
    shares = np.zeros(len(begins), dtype=bool)
    shares[inside] = (others[place[inside]] < ends[inside]) & (begins[inside] < ends[inside])
    return np.where(shares, place, NONE)
