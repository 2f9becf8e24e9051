"""Cleaning of documents before training: the steps of `settings.Clean` in their order, each with what it removed."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfkit.data.cache import digest_json
from hfkit.errors import DataError
from hfkit.system import console
from hfkit.system.compat import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from hfkit.settings import Clean

VERSION = 1  # part of the result's fingerprint: raise it when a step gives other text

# CR LF, CR, vertical tab, form feed and those of Unicode: removing them would join two words.
LINE_END = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")

CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")  # category Cc without tab and line ends


def clean(documents: Dataset, settings: Clean) -> Dataset:
    """The rows after every step that is on; prints what each step did. DataError if no row is left."""
    steps = _steps(settings)

    def batch(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [_through(steps, text) for text in rows["text"]]
        kept = [index for index, text in enumerate(texts) if text is not None]
        return {name: [values[index] for index in kept] for name, values in {**rows, "text": texts}.items()}

    cleaned = documents.map(
        batch,
        batched=True,
        features=documents.features,
        load_from_cache_file=False,  # which would count nothing
        new_fingerprint=digest_json([VERSION, fingerprint(documents), dataclasses.asdict(settings)]),
    )
    _say(steps, len(cleaned))
    return cleaned


def clean_stream(documents: IterableDataset, settings: Clean) -> IterableDataset:
    """The same row by row. Each epoch finds its own duplicates and prints at its end what was removed.

    The result is one shard, because duplicates are found across all rows.
    """
    from datasets import IterableDataset

    return IterableDataset.from_generator(_stream, gen_kwargs={"documents": documents, "settings": settings})


def _stream(documents: IterableDataset, settings: Clean) -> Iterator[dict[str, str]]:
    steps, kept = _steps(settings), 0
    for row in documents:
        if (text := _through(steps, row["text"])) is not None:
            kept += 1
            yield {"text": text}
    _say(steps, kept)


@dataclass
class Step:
    """One step and what it did: `act` returns the new text, or None to drop the document."""

    name: str
    act: Callable[[str], str | None]
    edits: bool
    changed: int = 0
    rows: int = 0
    bytes: int = 0


def _steps(settings: Clean) -> list[Step]:
    import xxhash

    seen: set[bytes] = set()

    def first_of_its_kind(text: str) -> str | None:
        digest = xxhash.xxh3_128_digest(text.encode())
        if digest in seen:
            return None
        seen.add(digest)
        return text

    low, high = settings.min_characters or 0, settings.max_characters
    edits: dict[str, Callable[[str], str | None]] = {
        "unicode_nfc": lambda text: unicodedata.normalize("NFC", text) or None,
        "control_characters": lambda text: CONTROL.sub("", LINE_END.sub("\n", text)) or None,
        "white_space": lambda text: _white_space(text) or None,
    }
    filters: dict[str, Callable[[str], str | None]] = {
        "min_characters": lambda text: text if len(text) >= low else None,
        "max_characters": lambda text: text if high is None or len(text) <= high else None,
        "deduplicate": first_of_its_kind,
    }
    steps = edits | filters
    return [Step(name, steps[name], name in edits) for name, value in dataclasses.asdict(settings).items() if value]


def _white_space(text: str) -> str:
    """Runs of blanks become one space; blanks at the ends of lines and of the text are removed."""
    lines = re.sub(r"[^\S\n]+", " ", LINE_END.sub("\n", text)).replace(" \n", "\n")
    return re.sub(r"\n{3,}", "\n\n", lines).strip(" \n")


def _through(steps: list[Step], text: str) -> str | None:
    """`text` after all steps; None if a step drops it, as an edit does that leaves no character."""
    for step in steps:
        after = step.act(text)
        if after is None:
            step.rows += 1
            step.bytes += len(text.encode())
            return None
        if after != text:
            step.changed += 1
            step.bytes += len(text.encode()) - len(after.encode())
            text = after
    return text


def _say(steps: list[Step], kept: int) -> None:
    for step in steps:
        changed = f"changed {step.changed:,} documents, " if step.edits else ""
        # normal form C is longer for a few characters
        size = f"and {step.bytes:,} bytes" if step.bytes >= 0 else f"and added {-step.bytes:,} bytes"
        console.say(f"clean: {step.name} {changed}removed {step.rows:,} rows {size}")
    if not kept:
        most = max(steps, key=lambda step: step.rows)
        message = f"cleaning left no document: {most.name} removed {most.rows:,}"
        raise DataError(message, f"change data.clean.{most.name}, or leave it out")
