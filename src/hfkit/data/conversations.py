"""Conversations in the forms that people have: messages, prompts with completions, Alpaca's columns, ShareGPT's."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.columns import FLAGS, as_splits, named_column, place_of, shared_columns
from hfkit.data.lines import format_of, read_lines
from hfkit.data.readers import FORMATS, Layout, read_rows
from hfkit.data.sources import local_files
from hfkit.errors import DataError
from hfkit.system.console import say, short

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hfkit.settings import Data

Messages = list[dict[str, Any]]

ROLES = ("system", "user", "assistant", "tool", "developer", "function")

# What ShareGPT and its kin call them.
SHAREGPT_ROLES = {
    **{"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"},
    **{"bard": "assistant", "assistant": "assistant", "system": "system", "tool": "tool", "observation": "tool"},
    "function_call": "assistant",
}

LIST_NAMES = ("messages", "conversations", "conversation")

PROMPT, COMPLETION = "prompt", "completion"

INSTRUCTION, INPUT, OUTPUT = "instruction", "input", "output"

PEEKED = 1 << 20  # characters of a JSON file in which its first row has to end

EXAMPLE = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def form_of(row: Mapping[str, Any]) -> str:
    """The form of the conversations, by the first row: the column of messages, prompt, instruction, or "" for none.

    Prompts and completions that are plain texts count as well as messages.
    """
    lists = [name for name in LIST_NAMES if _are_objects(row.get(name))]
    if lists:
        return lists[0]
    if {PROMPT, COMPLETION} <= row.keys():
        return PROMPT
    return INSTRUCTION if {INSTRUCTION, OUTPUT} <= row.keys() else ""


def are_plain(row: Mapping[str, Any]) -> bool:
    """Whether the row is a prompt and its completion as texts, which need no chat template."""
    return form_of(row) == PROMPT and all(isinstance(row[name], str) for name in (PROMPT, COMPLETION))


def is_conversing(dataset: Dataset) -> bool:
    """Whether the data set holds conversations under their usual names."""
    row = dataset[0] if len(dataset) else {}
    return bool(form_of(row)) and not are_plain(row)


def has_labels(row: Mapping[str, Any]) -> bool:
    """Whether a label stands beside the texts of the row."""
    return not {"label", "labels"}.isdisjoint(row)


def first_row(sources: Sequence[str]) -> Mapping[str, Any]:
    """The first row of the first file, without reading the whole file; nothing where there is no file or no row."""
    try:
        files = local_files(sources[0]) if sources and not sources[0].startswith("builtin:") else []
        if not files or not files[0].is_file():
            return {}
        suffix = format_of(files[0])[0]
        if suffix in (".json", ".jsonl"):
            return _first_object(files[0])
        kind = FORMATS.get(suffix)
        if kind is not None and "separator" in kind.settings:  # the names say enough
            _, names = next(read_lines(files[0]), (0, ""))
            return {name.strip(' "\r\n'): "" for name in names.split(kind.separator)}
        return next(read_rows(files[0], Layout()))[1] if kind is not None and kind.is_columnar else {}
    except (DataError, OSError, StopIteration):
        return {}  # what is wrong is reported when the data is read


def _first_object(path: Path) -> Mapping[str, Any]:
    text = ""
    for _, line in read_lines(path):
        text += line
        if len(text) > PEEKED:
            break
    try:
        row, _ = json.JSONDecoder().raw_decode(text.lstrip("\ufeff \t\r\n[")[:PEEKED])
    except (json.JSONDecodeError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def load_conversations(loaded: DatasetDict | dict[str, Dataset], data: Data) -> dict[str, Dataset]:
    """The splits with the columns `messages` and `tools` (JSON texts), `text` and `target` (the last question and the
    last answer), `row` and `split` (where each was read).

    The form is printed. DataError at the first row that holds no conversation, with the number of all others.
    """
    splits = as_splits(loaded)
    names = shared_columns(splits)
    column = named_column(splits, data, "text")
    if column is None:
        column = form_of(next(iter(splits.values()))[0]) or next((name for name in LIST_NAMES if name in names), None)
        if column is None:
            found = ", ".join(names)
            fix = f"{FLAGS['text']} NAME, or the columns messages, prompt and completion, or instruction and output"
            raise DataError(f"{', '.join(data.train or data.test)}: no column holds conversations, found: {found}", fix)
        if "train" in splits or not data.train:
            say(f"conversations: {_described(column, names)}")
    return {split: _converted(dataset, column, data, split) for split, dataset in splits.items()}


def _described(form: str, names: Sequence[str]) -> str:
    if form == PROMPT:
        return f"columns {PROMPT} and {COMPLETION}"
    if form == INSTRUCTION:
        others = [name for name in ("system", INPUT, "history") if name in names]
        return f"columns {', '.join([INSTRUCTION, *others])} and {OUTPUT}"
    return f"column {form} (change with {FLAGS['text']})"


def _converted(dataset: Dataset, form: str, data: Data, split: str) -> Dataset:
    from datasets import Dataset

    convert = {PROMPT: _of_completion, INSTRUCTION: _of_instruction}.get(form, _of_messages)
    if form not in LIST_NAMES and data.columns.text is not None:
        convert = _of_messages
    columns: dict[str, list[Any]] = {name: [] for name in ("messages", "tools", "text", "target", "row", "split")}
    problems: list[tuple[int, DataError]] = []
    names = dataset.column_names
    for number, values in enumerate(zip(*(values_of(dataset, name) for name in names), strict=True)):
        row = dict(zip(names, values, strict=True))
        try:
            messages = convert(row, form)
            _require_answer(messages)
            tools = tools_of(row.get("tools"))
        except DataError as error:
            problems.append((number, error))
            continue
        last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        asked: dict[str, Any] = next((one for one in reversed(messages[:last]) if one["role"] == "user"), {})
        found = (json.dumps(messages), json.dumps(tools), text_of(asked), text_of(messages[last]), number, split)
        for column, value in zip(columns.values(), found, strict=True):
            column.append(value)
    if problems:
        raise first_of(problems, lambda row: place_of(data, split, row))
    return Dataset.from_dict(columns, split=split)


def values_of(dataset: Dataset, column: str) -> Sequence[Any]:
    """The values of a column, as they were written.

    Those that are kept as JSON are decoded here, since the library's decoder rounds numbers. In all others, keys
    without a value are left out: Arrow has them in each row that lacks what another one has.
    """
    from datasets import Json

    if not isinstance(dataset.features[column], Json):
        return [_without_none(value) for value in dataset[column]]
    texts = dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    return [None if text is None else json.loads(text) for text in texts]


def first_of(problems: Sequence[tuple[int, DataError]], place: Callable[[int], str]) -> DataError:
    """One error for all rows that have a problem: the first with its place, and how many others there are."""
    row, error = problems[0]
    others = f" (and {len(problems) - 1:,} other rows have a problem)" if len(problems) > 1 else ""
    return DataError(f"{place(row)}: {error.problems[0][0]}{others}", error.problems[0][1])


def _of_messages(row: Mapping[str, Any], column: str) -> Messages:
    messages = messages_of(row[column], column)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def _of_completion(row: Mapping[str, Any], _: str) -> Messages:
    parts = []
    for column, role in ((PROMPT, "user"), (COMPLETION, "assistant")):
        value = row[column]
        parts.append([{"role": role, "content": value}] if isinstance(value, str) else messages_of(value, column))
    if not text_of(parts[0][-1]).strip() and isinstance(row[PROMPT], str):
        raise DataError(f"column '{PROMPT}' is empty", "fill it in, or delete the row")
    return [*parts[0], *parts[1]]


def _of_instruction(row: Mapping[str, Any], _: str) -> Messages:
    """An instruction with its input, and the output; what was said before in `history`."""
    answer = _text(row, OUTPUT)
    if answer is None:
        raise DataError(f"column '{OUTPUT}' is empty", "fill it in, or delete the row")
    return [*_asked(row), {"role": "assistant", "content": answer}]


def _asked(row: Mapping[str, Any]) -> Messages:
    """The messages of a row with an instruction: a line feed stands between it and its input."""
    instruction, given, system = (_text(row, column) for column in (INSTRUCTION, INPUT, "system"))
    if not (instruction or "").strip():
        raise DataError(f"column '{INSTRUCTION}' is empty", "fill it in, or delete the row")
    first = [{"role": "system", "content": system}] if system else []
    turns = zip(itertools.cycle(("user", "assistant")), itertools.chain.from_iterable(_history(row)), strict=False)
    asked = {"role": "user", "content": "\n".join(part for part in (instruction, given) if part)}
    return [*first, *({"role": role, "content": text} for role, text in turns), asked]


def _history(row: Mapping[str, Any]) -> list[list[str]]:
    """Earlier questions with their answers, as a list or its JSON text."""
    found: Any = row.get("history") or []
    try:
        found = json.loads(found) if isinstance(found, str) and found.strip() else found
    except ValueError:
        found = None
    pairs = isinstance(found, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in found)
    if not pairs or not all(isinstance(text, str) for turn in found for text in turn):
        raise DataError("column 'history' holds no questions with their answers", 'write [["question", "answer"], ...]')
    turns: list[list[str]] = found
    return turns


def _text(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise DataError(f"column '{column}' is not text: {short(str(value))}", "write text")
    return value


def prompts_of(dataset: Dataset, column: str, place: Callable[[int], str]) -> Sequence[Any]:
    """What is asked in each row, a text or messages: the values of `column` with what training reads beside them."""
    beside = {INSTRUCTION: (INPUT, "history", "system"), **dict.fromkeys(LIST_NAMES, ("system",))}.get(column, ())
    names = [column, *(name for name in beside if name in dataset.column_names)]
    values = values_of(dataset, column)
    if len(names) == 1:
        return values
    found: list[Any] = []
    for number, row in enumerate(zip(*(values_of(dataset, name) for name in names), strict=True)):
        given = dict(zip(names, row, strict=True))
        try:
            if column != INSTRUCTION:
                found.append(_of_messages(given, column) if _are_objects(given[column]) else given[column])
                continue
            messages = _asked(given)
        except DataError as error:
            raise DataError(f"{place(number)}: {error.problems[0][0]}", error.problems[0][1]) from None
        found.append(messages if len(messages) > 1 else messages[0]["content"])
    return found


def messages_of(value: Any, column: str | None = None) -> Messages:
    """A list of messages in the form of the Hub, of whatever form it was; DataError with the reason if it is none.

    All keys that have a value stay, such as tool_calls. `column`: for the reason, if it is not named elsewhere.
    """
    fix, it = f"write {EXAMPLE}", "" if column is None else f"column '{column}' "
    if isinstance(value, str):
        raise DataError(f"{it}is text instead of a list of messages", f"{fix}, not a text of it")
    if not _are_objects(value or [{}]):
        raise DataError(f"{it}is no list of messages", fix)
    if not value:
        raise DataError(f"{it}has no messages", "fill it in, or delete the row")
    messages: Messages = [
        _message({key: inner for key, inner in one.items() if inner is not None}, number)
        for number, one in enumerate(value, 1)
    ]
    return messages


def _message(given: dict[str, Any], number: int) -> dict[str, Any]:
    """One message; number: its place in the conversation, from 1."""
    if "from" in given and "role" not in given:
        name, known, content = given.pop("from"), list(SHAREGPT_ROLES), given.pop("value", None)
        role = SHAREGPT_ROLES.get(str(name))
        given = {"role": role, "content": content, **given} if name != "function_call" else _call(content, number)
    else:
        name, known = given.get("role"), list(ROLES)
        role = name if name in ROLES else None
    if role is None:
        problem = f"message {number} has no role" if name is None else f"message {number} has the unknown role '{name}'"
        raise DataError(problem, f"one of {', '.join(known)}")
    content = given.get("content")
    if content and _are_objects(content) and all({"text"} <= part.keys() <= {"type", "text"} for part in content):
        given["content"] = content = "".join(str(part["text"]) for part in content)
    if content is None and not given.get("tool_calls"):
        raise DataError(f"message {number} ({name}) has no content", "fill it in, or delete the row")
    if content is not None and not isinstance(content, str) and not _are_objects(content):
        raise DataError(f"message {number} ({name}): its content is not text: {short(str(content))}", "write text")
    return given


def _call(content: Any, number: int) -> dict[str, Any]:
    """The message of ShareGPT's function_call, whose text is {"name": ..., "arguments": {...}} or a list of those."""
    try:
        calls = json.loads(content)
        calls = calls if isinstance(calls, list) else [calls]
        functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    except (ValueError, TypeError, LookupError):
        fix = 'write {"name": "...", "arguments": {...}}'
        raise DataError(f"message {number} (function_call) holds no call of a function", fix) from None
    tool_calls = [{"type": "function", "function": function} for function in functions]
    return {"role": "assistant", "content": "", "tool_calls": tool_calls}


def _require_answer(messages: Sequence[Mapping[str, Any]]) -> None:
    if all(message["role"] != "assistant" for message in messages[1:]):
        raise DataError("no message is an answer of the assistant", "add one, or delete the row")


def tools_of(tools: Any) -> list[Any] | None:
    """The tools that a row declares, a list or JSON text; DataError if they are neither."""
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools.strip() else tools or None
    except ValueError:
        tools = ""
    if tools is not None and not _are_objects(tools):
        raise DataError("column 'tools' holds no list of tools", 'write [{"type": "function", "function": {...}}]')
    found: list[Any] | None = tools or None
    return found


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message; its tool calls where it has none."""
    content = message.get("content")
    if isinstance(content, str) and content:
        return content
    if content:
        return "".join(str(part.get("text", "")) for part in content)
    return json.dumps(message["tool_calls"], ensure_ascii=False) if message.get("tool_calls") else ""


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _without_none(value: Any) -> Any:
    """The value without keys that have none, which Arrow adds where other rows have them."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value
