"""Questions with their contexts as examples: windows over contexts, labels of answers, and the best spans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.data.labels import IGNORED
from hfkit.data.questions import NOWHERE
from hfkit.tasks.base import Examples
from hfkit.tasks.packing import untruncated
from hfkit.tasks.windows import Frame, require_room, token_limits
from hfkit.tasks.words import trimmed_offsets

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

MAX_LENGTH = 384  # the default, and an overlap of a third, as the authors of BERT have it (run_squad.py)

BEST = 20  # starts, ends and spans that are looked at (run_squad.py, n_best_size)


class Span(NamedTuple):
    """A part of a context in characters, and the sum of the logits of its two ends."""

    start: int
    end: int
    logit: float


class Window(NamedTuple):
    """Some tokens of the context of a question; `counts`: whether it is read for answers, too."""

    question: int
    begin: int
    end: int
    counts: bool


class EncodedQuestions(Examples):
    """Questions with their contexts: an example for each window over a context.

    Each window has the whole question. The label is where the first answer begins and ends in it, or twice the place
    that stands for no answer (the CLS token) if it is not whole in the window. Where no window has an answer whole, one
    more has it in its middle; it is learned from but not read for answers, which must not know the right one.

    `labels`: columns of the start and the end of the answer, shape (windows, 2), IGNORED for an answer that the context
    does not have; None without answers. `cut`: which questions lost their end.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> None:
        import numpy as np

        self.config = model.config
        self.limit, _ = token_limits(tokenizer, model, recipe, usual=MAX_LENGTH)
        self.contexts: list[str] = dataset["context"][:]
        backend = untruncated(tokenizer)
        unique = list(dict.fromkeys(self.contexts))
        encodings = backend.encode_batch(unique, add_special_tokens=False)
        tokens = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        offsets = [
            np.array(list(trimmed_offsets(*one)), dtype=np.int64).reshape(-1, 2)
            for one in zip(unique, encodings, strict=True)
        ]
        place = {text: index for index, text in enumerate(unique)}
        self.tokens = [tokens[place[text]] for text in self.contexts]
        self.offsets = [offsets[place[text]] for text in self.contexts]
        questions: list[str] = dataset["question"][:]
        encodings = backend.encode_batch(questions, add_special_tokens=False)
        self.questions = [one.ids or [tokenizer.pad_token_id] for one in encodings]  # a window is never empty
        self.frame = Frame.of(tokenizer, [_first(questions, self.questions), _first(self.contexts, self.tokens)])
        longest = (self.limit - self.frame.size) // 2
        self.cut = np.array([len(ids) > longest for ids in self.questions])
        self.questions = [ids[:longest] for ids in self.questions]
        self.no_answer = _place_of(tokenizer.cls_token_id, self.frame)
        answers = _token_spans(dataset, self.offsets) if "starts" in dataset.column_names else None
        self.answers: list[list[str]] | None = dataset["answers"][:] if answers is not None else None
        self.windows = list(self._windows(recipe.data.window_overlap, answers))
        self.lengths = np.array(
            [one.end - one.begin + len(self.questions[one.question]) + self.frame.size for one in self.windows]
        )
        self.labels = None if answers is None else np.array([self._label(one, answers) for one in self.windows])

    def _windows(self, overlap: int | None, answers: list[tuple[int, int] | None] | None) -> Iterator[Window]:
        overlap = self.limit // 3 if overlap is None else overlap
        for question, ids in enumerate(self.questions):
            room = self.limit - self.frame.size - len(ids)
            require_room(overlap, room, self.limit, of=" of the context")
            size = len(self.tokens[question])
            begins = range(0, max(1, size - overlap), room - overlap)
            spans = [(begin, min(begin + room, size)) for begin in begins]
            yield from (Window(question, *span, counts=True) for span in spans)
            answer = answers[question] if answers is not None else None
            if answer is None or answer[0] < 0 or any(span[0] <= answer[0] and answer[1] < span[1] for span in spans):
                continue
            begin = max(0, min((sum(answer) - room) // 2, size - room))
            if answer[1] - answer[0] < room:
                yield Window(question, begin, begin + room, counts=False)

    def _label(self, window: Window, answers: list[tuple[int, int] | None]) -> tuple[int, int]:
        """The columns of the answer's ends in a window."""
        answer = answers[window.question]
        if answer is None or not (window.begin <= answer[0] and answer[1] < window.end):
            if answer is not None and answer[0] < 0:
                return IGNORED, IGNORED
            return (self.no_answer_column(window),) * 2
        first = self.first_column(window) - window.begin
        return first + answer[0], first + answer[1]

    def first_column(self, window: Window) -> int:
        """The column of the window's first token of the context."""
        return len(self.frame.ids[0]) + len(self.questions[window.question]) + len(self.frame.ids[1])

    def no_answer_column(self, window: Window) -> int:
        """The column that stands for no answer."""
        part, place = self.no_answer
        return place if part == 0 else self.first_column(window) + window.end - window.begin + place

    def example(self, index: int, random: np.random.Generator | None = None) -> dict[str, Any]:
        """The token ids of a window, its token types if the model takes them, and a label of three numbers.

        They are the columns of the answer's ends, and how many columns there are, so that a loss can leave out padding.
        """
        import numpy as np

        window = self.windows[index]
        body = self.tokens[window.question][window.begin : window.end].tolist()
        example: dict[str, Any] = self.frame.around([self.questions[window.question], body])
        if self.labels is not None:
            example["labels"] = np.append(self.labels[index], len(example["input_ids"]))
        return example

    def best_spans(self, logits: np.ndarray, max_tokens: int) -> tuple[list[list[Span]], np.ndarray]:
        """The BEST spans of each question, the best first, and the logit of no answer, shape (questions,).

        `logits` (windows, columns, 2): of the start and the end. A span has at most `max_tokens` tokens. No answer is
        as likely as in the window where it is least likely, as in the script of BERT's authors.
        """
        import numpy as np

        found: list[dict[tuple[int, int], float]] = [{} for _ in self.questions]
        nothing = np.full(len(self.questions), np.inf)
        for window, ends in zip(self.windows, logits, strict=True):
            if not window.counts:
                continue
            place = self.no_answer_column(window)
            nothing[window.question] = min(nothing[window.question], float(ends[place].sum()))
            first = self.first_column(window)
            part = ends[first : first + window.end - window.begin]
            starts, stops = (np.argsort(-part[:, side], kind="stable")[:BEST] for side in (0, 1))
            size = stops[np.newaxis] - starts[:, np.newaxis] + 1
            sums = part[starts, 0][:, np.newaxis] + part[stops, 1][np.newaxis]
            offsets, spans = self.offsets[window.question], found[window.question]
            for one, two in zip(*np.nonzero((size > 0) & (size <= max_tokens)), strict=True):
                begin, end = offsets[window.begin + starts[one]][0], offsets[window.begin + stops[two]][1]
                if begin < end:
                    key = (int(begin), int(end))
                    spans[key] = max(spans.get(key, -np.inf), float(sums[one, two]))
        ranked = [sorted(spans.items(), key=lambda pair: (-pair[1], pair[0]))[:BEST] for spans in found]
        return [[Span(*place, logit) for place, logit in spans] for spans in ranked], nothing


def _first(texts: list[str], tokens: Any) -> str:
    """The first text that has tokens; "a" if none has."""
    return next((text for text, ids in zip(texts, tokens, strict=True) if len(ids)), "a")


def _place_of(token: int | None, frame: Frame) -> tuple[int, int]:
    """Where a special token is: (0, its place before the question) or (2, its place after the context); else (0, 0)."""
    for part in (0, 2):
        if token in frame.ids[part]:
            return part, frame.ids[part].index(token)
    return 0, 0


def _token_spans(dataset: Dataset, offsets: list[np.ndarray]) -> list[tuple[int, int] | None]:
    """The first and the last token of the first answer to each question; None: no answer, negative: not there."""
    import numpy as np

    found: list[tuple[int, int] | None] = []
    columns = (dataset["context"][:], dataset["answers"][:], dataset["starts"][:], offsets)
    for context, texts, starts, places in zip(*columns, strict=True):
        located = [pair for pair in zip(texts, starts, strict=True) if pair[1] != NOWHERE]
        if not located:
            found.append((NOWHERE, NOWHERE) if texts else None)
            continue
        text, start = located[0]
        end = start + len(text if context.startswith(text, start) else text.strip())
        first = int(np.searchsorted(places[:, 1], start, side="right"))
        last = int(np.searchsorted(places[:, 0], end, side="left")) - 1
        found.append((first, last) if first <= last else (NOWHERE, NOWHERE))
    return found
