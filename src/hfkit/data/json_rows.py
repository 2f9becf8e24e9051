"""JSON files: one object a line, a list of objects, or an object with a list in it, such as a SQuAD file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hfkit.data.lines import RepeatedKeyError, format_of, parse_json, read_lines
from hfkit.errors import DataError
from hfkit.system.console import say_once

KINDS = {str: "text", bool: "true/false", int: "number", float: "number", list: "list", dict: "object"}

# Keys whose lists are one row's.
ROW_OF_LISTS = {"tokens", "words", "tags", "ner_tags", "entities", "spans", "answers", "messages", "conversations"}


MESSAGE_KEYS = {"role", "from", "function"}  # one of them is in each message, or tool


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a .json or .jsonl file, each with its place.

    They are one object a line, one list of objects, one object with such a list under "data", a table in the other
    forms of `_wrapped`, or the questions of a file in the form of SQuAD.
    """
    lines: Iterator[tuple[int, str]] = ((number, line) for number, line in read_lines(path) if line.strip())
    begin = list(itertools.islice(lines, 2))
    number, first = begin[0] if begin else (0, "")
    if first.lstrip().startswith("["):
        whole = "\n" * (number - 1) + "".join(line for _, line in (*begin, *lines))
        places: Iterable[tuple[str, Any]] = (
            (f"row {row}", value) for row, value in enumerate(_parse_json(path, 1, whole), 1)
        )
    elif begin and (len(begin) == 1 or not _is_json(first)):  # one object in the file
        rest = [*begin, *lines]
        found = _rows_of_object(path, "\n" * (number - 1) + "".join(line for _, line in rest))
        places = found if found is not None else _json_lines(path, rest)
    else:
        places = _json_lines(path, itertools.chain(begin, lines))
    for place, row in places:
        if not isinstance(row, dict):
            kind = KINDS.get(type(row), "null")
            raise DataError(f"{path}: {place}: {kind} instead of an object", 'write {"text": "..."} on each line')
        yield place, row


def has_nested_messages(value: Any) -> bool:
    """Whether the value is a list of messages or tools of which one holds more than texts."""
    if not isinstance(value, list) or not all(isinstance(one, dict) and MESSAGE_KEYS & one.keys() for one in value):
        return False
    return any(not isinstance(inner, str | None) for one in value for inner in one.values())


def _json_lines(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[str, Any]]:
    return ((f"line {number}", _parse_json(path, number, line.rstrip())) for number, line in lines)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _rows_of_object(path: Path, text: str) -> Iterable[tuple[str, Any]] | None:
    """The rows under "data" of an object, or the questions of a SQuAD file; None if `text` is no such object."""
    value = _parse_json(path, 1, text) if _is_json(text) else None
    if not isinstance(value, dict):
        return None
    data: Any = value.get("data")
    if not _are_objects(data):
        found = _wrapped(path, value)
        return None if found is None else [(f"row {number}", row) for number, row in enumerate(found, 1)]
    if not all("paragraphs" in one for one in data):
        return [(f"row {number}", row) for number, row in enumerate(data, 1)]
    try:
        return [
            (f"question {question.get('id')}", _question(article, paragraph, question))
            for article in data
            for paragraph in article["paragraphs"]
            for question in paragraph.get("qas", ())
        ]
    except (AttributeError, TypeError):
        problem = f"{path}: in the form of SQuAD, but paragraphs or qas are no lists of objects"
        raise DataError(problem, "correct them") from None


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _wrapped(path: Path, value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of an object that holds a table in another way, which is printed; None if it is a row itself.

    That is one list of objects under any key, a list for each column, or as pandas writes it, an object for each
    column with the same keys.
    """
    if format_of(path)[0] == ".jsonl" or ROW_OF_LISTS & value.keys():
        return None
    lists = [key for key, one in value.items() if _are_objects(one) and len(one) > 1]
    if len(lists) == 1:
        say_once(f"{path}: the rows are those under '{lists[0]}'")
        rows: list[dict[str, Any]] = value[lists[0]]
        return rows
    columns = [*value.values()]
    if len(value) > 1 and all(isinstance(one, list) for one in columns):
        sizes = {len(one) for one in columns}
        if len(sizes) == 1 and sizes.pop() > 1:
            say_once(f"{path}: a list for each column, read as rows")
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if len(value) > 1 and all(isinstance(one, dict) and len(one) > 1 for one in columns):
        keys = [*columns[0]]
        if all([*one] == keys for one in columns) and all(map(str.isdecimal, keys)):
            say_once(f"{path}: an object for each column, as pandas writes it, read as rows")
            return [{name: column[key] for name, column in value.items()} for key in keys]
    return None


def _question(article: dict[str, Any], paragraph: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    """A row of a SQuAD file; a question that is said to be impossible needs no list of answers."""
    return {
        "id": str(question.get("id")),
        "title": article.get("title"),
        "context": paragraph.get("context"),
        "question": question.get("question"),
        "answers": question.get("answers", [] if question.get("is_impossible") else None),
    }


def _parse_json(path: Path, number: int, text: str) -> Any:
    try:
        value = parse_json(text)
    except RepeatedKeyError as error:
        raise DataError(f"{path}: line {number}: {error}", "delete or rename one") from None
    except json.JSONDecodeError as error:
        line = number + error.lineno - 1
        message = f"{path}: line {line}, column {error.colno}: not JSON: {error.msg}"
        raise DataError(message, "write one whole JSON object on each line, or one list of objects") from None
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            escape = f"\\u{ord(error.object[error.start]):04x}"
            before = text[: text.lower().index(escape)]
            line, byte = number + before.count("\n"), len(before[before.rfind("\n") + 1 :].encode()) + 1
            message = f"{path}: line {line}, byte {byte}: {escape} is half a character, not UTF-8"
            raise DataError(message, "delete it, or write both halves") from None
    return value
