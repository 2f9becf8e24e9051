"""Answers to a file of prompts, made in batches of like length, given in the order of the file."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.conversations import Messages, messages_of, prompts_of, tools_of, values_of
from hfkit.data.lines import COMPRESSED, format_of, is_text, read_lines
from hfkit.data.readers import FIXED, FORMATS, TEXT, has_effect
from hfkit.errors import DataError, OutOfMemoryError, StoppedError, StorageError, UsageError
from hfkit.generation.answers_file import Partial, Row, facts_of
from hfkit.generation.generator import Answer, Generator, load_generator
from hfkit.system import processes
from hfkit.system.console import counted, is_main_process, say
from hfkit.system.signals import stop_signals

if TYPE_CHECKING:
    from datasets import Dataset

    from hfkit.metrics.sample import Score
    from hfkit.settings import Recipe

PROMPT_NAMES = (  # columns, the first that is there
    "prompt", "messages", "conversations", "text", "instruction", "question", "input", "source", "document", "article",
    "dialogue",
)  # fmt: skip

TOOLS = "tools"  # the column of tools that a conversation can use

REFERENCE = "reference"  # the column of references that come from a file of their own

SECONDS_BETWEEN_LINES = 30  # of progress, where there is no terminal


def generate_file(
    recipe: Recipe,
    file: str,
    output: Path | None,
    write: Callable[[Row], None],
    *,
    resume: bool = False,
    overwrite: bool = False,
    references: str | None = None,
) -> dict[str, Score]:
    """Answers every prompt in `file` (`-`: stdin), in order: each row to `write`, or all of them into `output`; the
    scores of recipe.evaluation.metrics against `references`, where either is given: a column, or a text file with a
    line for each prompt.

    `output` holds JSON lines, or the texts alone if its suffix is that of a text file, a line for each line of `file`.
    A row: {"id" (from 0), "prompt" or "messages", "text", "tokens", "finish_reason"}, with several texts a prompt also
    "sequence", with references "reference" or "references". Work that was stopped goes on with the same call; another
    model, input or setting is a UsageError then, unless `overwrite`. A finished `output` is kept with `resume`, written
    anew with `overwrite`. Several processes share the batches.
    """
    from hfkit.evaluation.row_metrics import usual_metrics

    _require_measurable(recipe.evaluation.metrics, references)
    if output is not None:
        _require_writable(output, file)
    prompts = read_prompts(recipe, file, references, aligned=output is not None and holds_texts(output))
    metrics = recipe.evaluation.metrics or usual_metrics(prompts.references or ())
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train=[] if file == "-" else [file]))
    if output is None:
        with tempfile.TemporaryDirectory(prefix="hfkit-") as scratch:
            made = Path(scratch) / "answers.jsonl"  # as JSON lines
            _answer(recipe, prompts, made, overwrite=False)
            for row in read_answers(made):
                write(row)
        return {}
    if output.exists() and not Partial(output).is_begun() and not overwrite:
        if not resume:
            raise UsageError(f"{output}: is there already", "--overwrite, or another --output")
        _require_answers_to(prompts, output)
        say(f"{output}: all {len(prompts):,} rows are there already, nothing to do")
    else:
        with _telling_of_a_stop(output, len(prompts)):
            _answer(recipe, prompts, output, overwrite=overwrite)
        say(f"{len(prompts):,} rows in {output}")
    return _scores(output, prompts, metrics) if metrics and is_main_process() else {}


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, texts or conversations, with references where a column of them was asked for."""

    name: str  # of the file
    column: str
    values: Sequence[Any]
    references: Sequence[Any] | None
    tools: Sequence[Any] | None  # that each conversation declares
    place: Callable[[int], str]  # where a row is, for messages
    aligned: bool  # whether every line of the file is a prompt, though it is blank: its answer is nothing

    def __len__(self) -> int:
        return len(self.values)

    def is_blank(self, number: int) -> bool:
        """Whether there is nothing to answer."""
        return self.aligned and not self.values[number].strip()

    def __iter__(self) -> Iterator[Row]:
        """What stands beside each answer in the output, but its id."""
        for value, reference in zip(self.values, self.references or itertools.repeat(None), strict=False):
            row: Row = {"messages": conversation(value)} if isinstance(value, list) else {"prompt": value}
            if reference is not None:
                row["references" if isinstance(reference, list) else "reference"] = reference
            yield row


def holds_texts(output: Path) -> bool:
    """Whether the texts alone are written there, a line each, and not JSON lines: by the suffix."""
    suffix = format_of(output)[0]
    return suffix == TEXT or bool(suffix and suffix not in FORMATS)


def read_prompts(recipe: Recipe, file: str, references: str | None = None, *, aligned: bool = False) -> Prompts:
    """The prompts in a file (`-`: stdin, one a line or a JSON object a line): the column data.columns.text, else the
    first of PROMPT_NAMES, else the only one with text. `aligned`: also the blank lines of a text file."""
    from hfkit.data.columns import input_column
    from hfkit.data.loading import read_input
    from hfkit.data.sources import listed
    from hfkit.system.console import short

    name = "stdin" if file == "-" else file
    data = dataclasses.replace(recipe.data, train=[name])  # for messages
    of_file = references is not None and is_text(Path(references).expanduser())
    aligned = (aligned or of_file) and (file == "-" or has_effect("documents", file))
    dataset, place = read_input(file, data, "line" if aligned else "row")
    names = dataset.column_names
    if of_file and references not in names:
        dataset, references = _beside(dataset, name, str(references)), REFERENCE
    elif references is not None and references not in names:
        fix = "--references COLUMN, or a file with a line for each prompt"
        raise DataError(f"{name} has no column '{references}', found: {listed(names)}", fix)
    others = dataset if references is None else dataset.remove_columns(references)
    column = input_column(others, data, "prompt", PROMPT_NAMES)
    expected = None if references is None else dataset[references]
    tools = values_of(dataset, TOOLS) if TOOLS in names and column != TOOLS else None
    prompts = Prompts(
        name, column, prompts_of(dataset, column, place), expected, tools, place, aligned and names[0] == "text"
    )
    if all(map(prompts.is_blank, range(len(prompts)))):
        raise DataError(f"{name}: every line is blank", "give text")
    for number, value in enumerate(prompts.references or ()):
        if not all(isinstance(one, str) for one in (value if isinstance(value, list) and value else [value])):
            message = "is empty" if value in (None, []) else f"{short(str(value))} is no text"
            raise DataError(f"{place(number)}: column '{references}': {message}", "correct it, or delete the row")
    return prompts


def _beside(dataset: Dataset, name: str, file: str) -> Dataset:
    """The prompts with the lines of a file of references in the column REFERENCE."""
    from datasets import concatenate_datasets

    from hfkit.data.loading import load_source

    lines = load_source([file], "line", layout=FIXED)
    if lines.column_names != ["text"]:
        raise DataError(f"{file}: holds a table, and references are read from text", "give a line for each prompt")
    if len(lines) != len(dataset):
        problem = f"{name} has {counted(len(dataset), 'prompt')} and {file} {counted(len(lines), 'line')}"
        raise DataError(problem, "give a line for each prompt")
    return concatenate_datasets([dataset, lines.rename_column("text", REFERENCE)], axis=1)


def encoded(generator: Generator, prompts: Prompts) -> list[array[int]]:
    """The token ids of every prompt; DataError naming the first that is empty, no prompt at all, or too long."""
    if generator.given.raw and isinstance(prompts.values[0], list):
        raise UsageError(f"--raw: column '{prompts.column}' holds messages, which need a chat template", "leave it out")
    found: list[array[int]] = []
    problems: list[tuple[int, str, str]] = []
    for number, value in enumerate(prompts.values):
        if prompts.is_blank(number):
            found.append(array("i"))
            continue
        try:
            tools = None if prompts.tools is None else tools_of(prompts.tools[number])
            ids = generator.encode(conversation(value) if isinstance(value, list) else _text(value), tools)
            generator.room(ids)
            found.append(array("i", ids))  # a tenth of a list
        except (DataError, UsageError) as error:
            problems.append((number, *error.problems[0]))
    if problems:
        number, message, fix = problems[0]
        others = f" (and {len(problems) - 1:,} other rows can't be answered)" if len(problems) > 1 else ""
        raise DataError(f"{prompts.place(number)}: column '{prompts.column}': {message}{others}", fix)
    generator.warn_of_truncation()
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str | None):
        raise DataError(f"{value} is neither text nor messages", "--text-column NAME")
    if value is None or not value.strip():
        raise DataError("the prompt is empty", "fill it in, or delete the row")
    return value


def conversation(messages: list[Any]) -> Messages:
    """The messages, of whatever form they were; DataError if the model has nothing to answer."""
    plain = messages_of(messages)
    if plain[-1]["role"] == "assistant":
        raise DataError("the last message is the assistant's: nothing to answer", "leave it out")
    return plain


def _answer(recipe: Recipe, prompts: Prompts, output: Path, *, overwrite: bool) -> None:
    """Writes `output`: the answers that are kept, and all others."""
    from hfkit.errors import is_out_of_memory

    with processes.distributed_inference(), closing(Partial(output)) as partial:
        generator = load_generator(recipe)
        if recipe.evaluation.metrics or prompts.references is not None:
            _require_one_text(generator, "can't be scored as one")
        if holds_texts(output):
            _require_one_text(generator, "don't go into one line")
        ids = encoded(generator, prompts)
        facts = facts_of(recipe.model.name, generator, prompts.name, prompts.values, ids)
        batches, done = processes.on_main_process(
            lambda: partial.begin(facts, lambda: _plan(generator, ids), overwrite)
        )
        left = processes.shard([batch for number, batch in enumerate(batches) if number not in done])
        progress = Progress(sum(map(len, left)), len(left))
        try:
            for batch in left:
                if prompts.is_blank(batch[0]):
                    answers = [[Answer("", [], "empty")] for _ in batch]
                else:
                    answers = generator.batch(batch, [ids[number] for number in batch])
                partial.append(batch, answers)
                progress.add(len(batch), sum(len(answer.ids) for several in answers for answer in several))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = f"no room for a batch of {recipe.generation.batch_tokens:,} tokens"
            raise OutOfMemoryError(message, f"--batch-tokens {recipe.generation.batch_tokens // 2}") from error
        finally:
            progress.end()
        processes.barrier()
        processes.on_main_process(lambda: partial.finish(prompts, len(prompts), _line_of(output)))


def _plan(generator: Generator, ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """The batches, and the blank prompts as one more."""
    written = [number for number, one in enumerate(ids) if len(one)]
    batches = [[written[place] for place in batch] for batch in generator.batches([ids[number] for number in written])]
    blank = [number for number, one in enumerate(ids) if not len(one)]
    return [*batches, *([blank] if blank else [])]


def _line_of(output: Path) -> Callable[[Row], str]:
    """How a row is written: as JSON, or its text alone in one line."""
    if holds_texts(output):
        return lambda row: " ".join(str(row["text"]).splitlines())
    return lambda row: json.dumps(row, ensure_ascii=False)


@contextmanager
def _telling_of_a_stop(output: Path, num_rows: int) -> Iterator[None]:
    """Inside, Ctrl-C, SIGHUP and SIGTERM end in an error that says what is kept."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        with stop_signals() as signals:
            if not signals.caught:
                raise
            message = f"stopped by {signals.name}; {len(Partial(output).kept()):,} of {num_rows:,} rows are kept"
            raise StoppedError(signals.caught, message, "the same command goes on") from None


class Progress:
    """Says how far the first process is: in a terminal a line that changes, elsewhere a new one now and then."""

    def __init__(self, num_rows: int, num_batches: int) -> None:
        self.num_rows, self.num_batches = num_rows, num_batches
        self.rows = self.batches = self.tokens = 0
        self.start = self.said = time.monotonic()

    def add(self, rows: int, tokens: int) -> None:
        """Counts a finished batch with so many rows and new tokens."""
        self.rows, self.batches, self.tokens = self.rows + rows, self.batches + 1, self.tokens + tokens
        now = time.monotonic()
        seconds = now - self.start
        left = seconds / self.batches * (self.num_batches - self.batches)  # batches are of about the same size
        minutes, rest = divmod(round(left), 60)
        line = (
            f"{self.rows:,} of {self.num_rows:,} rows, {self.tokens / seconds:,.0f} tokens/s, {minutes}:{rest:02} left"
        )
        if sys.stderr.isatty():
            if is_main_process():
                print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif now - self.said > SECONDS_BETWEEN_LINES:
            self.said = now
            say(line)

    def end(self) -> None:
        """Leaves an empty line to whatever comes next."""
        if sys.stderr.isatty() and is_main_process() and self.rows:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def read_answers(output: Path) -> Iterator[Row]:
    """The rows of a finished output; of one that holds texts alone, these and their numbers."""
    if holds_texts(output):
        yield from ({"id": number - 1, "text": text.removesuffix("\n")} for number, text in read_lines(output))
        return
    with output.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not {"id", "text"} <= row.keys():
                raise DataError(f"{output}: line {number} is no answer of hfkit generate", "--overwrite")
            yield row


def _require_answers_to(prompts: Prompts, output: Path) -> None:
    """DataError if a finished output is of another input."""
    beside = enumerate(prompts)
    number, prompt = -1, Row()
    for line, row in enumerate(read_answers(output), start=1):
        if row["id"] != number:
            number, prompt = next(beside, (-1, {}))
        if row["id"] != number or any(row.get(name, value) != value for name, value in prompt.items()):
            raise DataError(f"{output}: line {line} is of another prompt than that row of the input", "--overwrite")
    if number + 1 != len(prompts):
        raise DataError(f"{output} has {number + 1:,} rows, and the input {len(prompts):,}", "--overwrite")


def _scores(output: Path, prompts: Prompts, metrics: Sequence[str]) -> dict[str, Score]:
    from hfkit.evaluation.row_metrics import score

    rows = [{"prediction": row["text"]} for row in read_answers(output)]
    for row, reference in zip(rows, prompts.references or (), strict=False):
        row["references" if isinstance(reference, list) else "reference"] = reference
    blank = {number for number in range(len(prompts)) if prompts.is_blank(number)}
    if blank:
        say(f"{counted(len(blank), 'blank line')} not scored")
    return score([row for number, row in enumerate(rows) if number not in blank], metrics)


def _require_measurable(metrics: Sequence[str], references: str | None) -> None:
    """UsageError for what could not be measured once all is done."""
    from hfkit.metrics.table import METRICS, require_known

    require_known(metrics)
    if references is None and (without := [name for name in metrics if METRICS[name].needs != "text"]):
        raise UsageError(f"--metrics {','.join(without)} needs references", "--references COLUMN")


def _require_one_text(generator: Generator, problem: str) -> None:
    if (generator.settings.num_return_sequences or 1) > 1:
        raise UsageError(f"several texts of one prompt {problem}", "--num-return-sequences 1")


def _require_writable(output: Path, file: str) -> None:
    suffix = format_of(output)[0]
    if output.suffix.lower() in COMPRESSED:
        plain = output.with_suffix("")
        raise UsageError(f"{output}: the output is not compressed", f"--output {plain}, then compress it")
    if suffix in FORMATS and suffix not in (TEXT, ".json", ".jsonl"):
        raise UsageError(f"{output}: answers are written as JSON lines or as text, not as {suffix}", "--output F.jsonl")
    if output.is_dir():
        raise StorageError(f"{output}: is a folder", "--output FILE.jsonl")
    if not output.parent.is_dir():
        raise StorageError(f"{output.parent}: no such folder", "make it, or --output FILE.jsonl")
    if file != "-" and output.exists() and os.path.exists(file) and output.samefile(file):
        raise UsageError(f"{output} is the input", "--output ANOTHER.jsonl")
