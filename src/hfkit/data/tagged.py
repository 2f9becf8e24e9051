"""Tagged sentences: words with a tag each, or a text with spans of characters, as one kind of data set."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfkit.data.columns import has_spans, place_of, tagged_columns
from hfkit.data.sources import type_name
from hfkit.data.tags import TAG, Entity, Scheme, Words, entities, iob2, of_dicts, tags_of_spans
from hfkit.errors import DataError
from hfkit.system.console import say, warn

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hfkit.settings import Data

# What annotation tools call the keys of a span.
SPAN_KEYS = {
    "start": ("start", "begin", "start_offset", "start_char"),
    "end": ("end", "end_offset", "end_char", "stop"),
    "label": ("label", "type", "entity", "entity_group", "tag"),
}


def load_tagged(loaded: DatasetDict | dict[str, Dataset], data: Data) -> dict[str, Dataset]:
    """The splits with the columns `tokens` and `tags`, or `text`, `entities` and the `tags` of its words.

    Tags are IOB2 then, whatever the scheme of the data, which is printed; tags without a scheme stay as they are.
    `entities` are spans {"start", "end", "label"} of characters. Raises DataError for a row whose tags don't fit.
    """
    splits = dict(loaded)
    words, tags = tagged_columns(splits, data)
    kinds = [has_spans(dataset, tags) for dataset in splits.values()]
    is_text = all(type_name(dataset, words) == "string" for dataset in splits.values())
    if all(kind is not False for kind in kinds) and (any(kinds) or is_text):
        return {split: _with_spans(dataset, words, tags, data, split) for split, dataset in splits.items()}
    rows = {split: _tokens_and_tags(dataset, words, tags, data, split) for split, dataset in splits.items()}
    _require_one_scheme(rows, data)
    scheme = Scheme.of(found for _, all_tags in rows.values() for found in all_tags)
    if scheme.name in ("IOB1", "BIOES"):
        say(f"tags: {scheme.name}, read as IOB2")
    if scheme.num_invalid:
        found = f"{scheme.num_invalid:,} I- tag{'s' * (scheme.num_invalid > 1)}"
        warn(f"tags: {found} without an entity to continue; each begins one, as conlleval and seqeval count them")
    return {
        split: _dataset(
            {
                "tokens": tokens,
                "tags": [iob2(len(one), entities(one)) for one in all_tags] if scheme.name else all_tags,
            },
            split,
        )
        for split, (tokens, all_tags) in rows.items()
    }


def _dataset(columns: Mapping[str, Any], split: str) -> Dataset:
    from datasets import Dataset, Features, List, Value

    text = Value("string")
    span = {"start": Value("int64"), "end": Value("int64"), "label": text}
    kinds = {"text": text, "tokens": List(text), "tags": List(text), "entities": List(span)}
    return Dataset.from_dict(dict(columns), Features({name: kinds[name] for name in columns}), split=split)


def _tokens_and_tags(
    dataset: Dataset, words: str, tags: str, data: Data, split: str
) -> tuple[list[list[str]], list[list[str]]]:
    """The words and tags of each row as lists of text."""
    names = getattr(getattr(dataset.features[tags], "feature", None), "names", None)
    sides: list[list[list[str]]] = []
    for column in (words, tags):
        values = dataset[column][:]
        is_tags = column == tags
        if values and isinstance(values[0], str):
            values = [None if value is None else value.split() for value in values]
        for row, value in enumerate(values):
            place = f"column '{column}'"
            if not isinstance(value, list):
                problem = f"holds {type_name(dataset, column)}, not a list" if value is not None else "is empty"
                fix = f"{'--label-column' if is_tags else '--text-column'} NAME, or a list for each row"
                raise DataError(f"{place_of(data, split, row)}: {place} {problem}", fix)
            if is_tags and names is not None:
                values[row] = value = [names[one] if isinstance(one, int) and one >= 0 else None for one in value]
            if not all(isinstance(one, str) for one in value):
                what = "a tag" if is_tags else "a word"
                problem = f"{place} holds {next(one for one in value if not isinstance(one, str))!r}, not {what}"
                fix = "write tags as text, such as B-PER" if is_tags else "write words as text"
                raise DataError(f"{place_of(data, split, row)}: {problem}", fix)
        sides.append(values)
    for row, (tokens, given) in enumerate(zip(*sides, strict=True)):
        if len(tokens) != len(given):
            problem = f"{len(tokens)} words but {len(given)} tags"
            raise DataError(f"{place_of(data, split, row)}: {problem}", "write one tag for each word")
    return sides[0], sides[1]


def _require_one_scheme(rows: Mapping[str, tuple[Any, list[list[str]]]], data: Data) -> None:
    """DataError at the first tag that is none of BIO's, where others are."""
    counts = {tag: None for _, all_tags in rows.values() for tags in all_tags for tag in tags}
    odd = {tag for tag in counts if not TAG.fullmatch(tag)}
    if counts.keys() - odd <= {"O"}:
        return
    for split, (_, all_tags) in rows.items():
        for row, tags in enumerate(all_tags):
            for tag in tags:
                if tag in odd:
                    near = difflib.get_close_matches(tag, counts.keys() - odd, n=1, cutoff=0.6)
                    known = f"did you mean '{near[0]}'?" if near else "write O, B-TYPE or I-TYPE"
                    raise DataError(f"{place_of(data, split, row)}: '{tag}' is not a BIO tag", known)


def _with_spans(dataset: Dataset, text: str, spans: str, data: Data, split: str) -> Dataset:
    """The rows with `tags` for the words that the spans touch; spans that tags can't hold are counted."""
    columns: dict[str, list[Any]] = {"text": [], "tags": [], "entities": []}
    num_inside = num_left_out = num_spans = 0
    for row, (value, given) in enumerate(zip(dataset[text][:], dataset[spans][:], strict=True)):
        if not isinstance(value, str):
            problem = f"column '{text}' {'is empty' if value is None else 'is not text'}"
            raise DataError(f"{place_of(data, split, row)}: {problem}", "--text-column NAME")
        found = [_span(one, value, data, split, row) for one in given or ()]
        words = Words.of_text(value)
        tags, left_out = tags_of_spans(words, found)
        starts, ends = set(words.starts), set(words.ends)
        num_spans += len(found)
        num_left_out += left_out
        num_inside += sum(one.start not in starts or one.end not in ends for one in found)
        columns["text"].append(value)
        columns["tags"].append(tags)
        columns["entities"].append([{"start": one.start, "end": one.end, "label": one.kind} for one in found])
    if num_left_out:
        warn(f"{split}: {num_left_out:,} of {num_spans:,} entities share a word with a longer one and can't be learned")
    if num_inside:
        warn(f"{split}: {num_inside:,} of {num_spans:,} entities begin or end within a word and can't be found exactly")
    return _dataset(columns, split)


def _span(given: Mapping[str, Any] | None, text: str, data: Data, split: str, row: int) -> Entity:
    """A span of an annotation tool; DataError if it is not within its text."""
    values = {
        key: next((given[name] for name in names if given.get(name) is not None), None) if given else None
        for key, names in SPAN_KEYS.items()
    }
    if not isinstance(values["label"], str | int | None) or not all(
        isinstance(values[key], int | None) for key in ("start", "end")
    ):
        problem = f"an entity with a label that is no text, or a place that is no number: {dict(given or {})}"
        raise DataError(f"{place_of(data, split, row)}: {problem}", 'write {"start": 0, "end": 5, "label": "PER"}')
    if None in values.values():
        missing = ", ".join(key for key, value in values.items() if value is None)
        problem = f"an entity without {missing}: {dict(given or {})}"
        raise DataError(f"{place_of(data, split, row)}: {problem}", 'write {"start": 0, "end": 5, "label": "PER"}')
    (span,) = of_dicts([values])
    if not 0 <= span.start < span.end <= len(text):
        problem = f"an entity from {span.start} to {span.end} in a text of {len(text)} characters"
        raise DataError(f"{place_of(data, split, row)}: {problem}", "start and end count characters from 0")
    return span


def words_of(dataset: Dataset) -> list[Words]:
    """The words of each row of a data set with `tokens`, or with `text`."""
    if "tokens" in dataset.column_names:
        return list(map(Words.of_tokens, dataset["tokens"][:]))
    return list(map(Words.of_text, dataset["text"][:]))


def require_known(splits: Mapping[str, Dataset], names: Sequence[str]) -> None:
    """DataError at the first tag that is not one of `names`, the labels of the model."""
    known = set(names)
    whose = "training data" if "train" in splits else "model"
    for split, dataset in splits.items():
        for row, tags in enumerate(dataset["tags"][:], start=1):
            for tag in tags:
                if tag not in known:
                    some = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
                    near = difflib.get_close_matches(tag, names, n=1, cutoff=0.6)
                    fix = f"did you mean '{near[0]}'?" if near else "correct the tag"
                    raise DataError(f"{split} data, row {row}: tag '{tag}' is not one of the {whose}: {some}", fix)
