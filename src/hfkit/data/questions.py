"""Questions about texts, with the answers in them: SQuAD files, the layout of the Hub, and plain columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.data.columns import place_of, question_columns
from hfkit.errors import DataError
from hfkit.system.console import warn

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hfkit.settings import Data

NOWHERE = -1  # the start of an answer that its context does not have


class Answers(NamedTuple):
    """The right answers to one question, and where each begins in its context; none: the text does not say."""

    texts: list[str]
    starts: list[int]


def load_questions(loaded: DatasetDict | dict[str, Dataset], data: Data) -> dict[str, Dataset]:
    """The splits with the columns `question`, `context`, `answers` (lists of text) and `starts` (NOWHERE: not in it).

    Training questions whose answers are all not in their context are left out. Both are counted in a warning.
    """
    splits = dict(loaded)
    names = question_columns(splits, data)
    return {split: _with_answers(dataset, names, data, split) for split, dataset in splits.items()}


def _with_answers(dataset: Dataset, names: tuple[str, str, str], data: Data, split: str) -> Dataset:
    from datasets import Dataset, Features, List, Value

    question, context, _ = names
    columns: dict[str, list[Any]] = {"question": [], "context": [], "answers": [], "starts": []}
    strange: list[int] = []
    rows = zip(*(dataset[name][:] for name in names), strict=True)
    for row, (asked, text, given) in enumerate(rows):
        for name, value in ((question, asked), (context, text)):
            if not isinstance(value, str) or not value.strip():
                problem = f"column '{name}' {'is empty' if not value or isinstance(value, str) else 'is not text'}"
                raise DataError(f"{place_of(data, split, row)}: {problem}", "fill it in, or delete the row")
        found = _located(text, _given(given, lambda row=row: place_of(data, split, row)))
        if found.starts and max(found.starts) == NOWHERE:
            strange.append(row)
            if split == "train":
                continue
        for name, value in zip(columns, (asked, text, *found), strict=True):
            columns[name].append(value)
    if strange:
        problem = f"{split}: the answers to {len(strange):,} of {len(dataset):,} questions are not in their context"
        what = "they are left out" if split == "train" else "no span can equal them"
        first = place_of(data, split, strange[0])
        warn(f"{problem}, first {first}; {what}", "copy each answer from its context, letter by letter")
    text = Value("string")
    kinds = {"question": text, "context": text, "answers": List(text), "starts": List(Value("int64"))}
    return Dataset.from_dict(columns, Features(kinds), split=split)


def _given(value: Any, place: Any) -> Iterator[tuple[str, int | None]]:
    """Text and start of each answer, however they are written; DataError if they are not."""
    if value is None:
        raise DataError(f"{place()}: the question has no answers", "write [] where the text has no answer")
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # the Hub: {"text": [...], ...}
        starts = value.get("answer_start")
        starts = starts if isinstance(starts, list) else [starts]
        pairs = itertools.zip_longest(value["text"], starts[: len(value["text"])])
        value = [{"text": text, "answer_start": start} for text, start in pairs]
    for one in value if isinstance(value, list) else [value]:
        text, start = (one.get("text"), one.get("answer_start")) if isinstance(one, Mapping) else (one, None)
        if not isinstance(text, str) or not isinstance(start, int | None):
            raise DataError(f"{place()}: {one!r} is no answer", 'write {"text": "...", "answer_start": 0}')
        if text.strip():
            yield text, None if start is None or start < 0 else start


def _located(context: str, given: Iterator[tuple[str, int | None]]) -> Answers:
    """The answers with their places: where they are said to be, else the nearest place, without a hint the first."""
    found = Answers([], [])
    for text, hint in given:
        start = hint if hint is not None and context.startswith(text, hint) else NOWHERE
        if start == NOWHERE:
            places = list(_places(context, text)) or list(_places(context, text.strip()))
            start = min(places, key=lambda place: abs(place - (hint or 0)), default=NOWHERE)
        found.texts.append(text)
        found.starts.append(start)
    return found


def _places(context: str, text: str) -> Iterator[int]:
    place = context.find(text)
    while place >= 0:
        yield place
        place = context.find(text, place + 1)
