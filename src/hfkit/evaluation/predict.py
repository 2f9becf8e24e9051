"""Answers for texts: a list in memory, or a file of any length, chunk by chunk, that goes on where it was stopped.

A task takes part with three methods: `encode` texts without labels, `reduce` the model's outputs, `answers` in words.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from hfkit.data.columns import are_words, input_column, pair_column, text_column, words_column
from hfkit.data.lines import read_stdin
from hfkit.data.loading import read_input
from hfkit.data.sources import offline_if_local
from hfkit.errors import DataError, StorageError, UsageError, did_you_mean
from hfkit.evaluation.inference import predict_rows
from hfkit.evaluation.task import predicting_task
from hfkit.metrics.sample import asked
from hfkit.models.config import load_config
from hfkit.models.loading import open_model
from hfkit.models.tokenizer import load_tokenizer
from hfkit.settings import Columns, Recipe
from hfkit.system.console import is_main_process, say, warn
from hfkit.system.files import to_disk
from hfkit.system.processes import distributed_inference, on_main_process

CHUNK = 512  # texts that are sorted by length, answered and written together

SAME = 1e-3  # largest difference of a text's probabilities between batches

PAIRS = (("text", "text_pair"), ("question", "context"))  # what two texts are called

Question = dict[str, Any]  # "text", and "text_pair" of a pair; or the "tokens" of a sentence

Answer = dict[str, Any]


def predict(recipe: Recipe, texts: Sequence[str | Sequence[str]], pairs: Sequence[str] | None = None) -> list[Answer]:
    """One {"text", ("text_pair"), **answer} per text, in order, from the model recipe.model.name.

    A classifier answers with "label", "score" and "probabilities" {label: p}; with several labels per text, "labels"
    and "probabilities"; a regression, "value". "truncated" is true if the end of the text was cut off. A token
    classifier answers with "entities" [{"text", "label", "start", "end", "score"}], or "words" in the same form.
    A text for it can be a list of words.
    `pairs`: the second texts, for a model of pairs, or the texts that the questions are about; one is for all. Raises
    ModelError if the model has no such task.
    """
    if not texts:
        raise DataError("there is no text to classify", "--text 'some text' or --input FILE")
    if pairs and len(pairs) == 1:
        pairs = [*pairs] * len(texts)  # several questions about one text
    if pairs and len(pairs) != len(texts):
        raise UsageError(f"{len(texts)} texts and {len(pairs)} second texts", "give one --text-pair for each --text")
    rows: list[Question] = [{"text": text} if isinstance(text, str) else {"tokens": [*text]} for text in texts]
    for row, pair in zip(rows, pairs or (), strict=False):
        row["text_pair"] = pair
    with distributed_inference():
        return list(answers(recipe, rows, chunk=len(texts)))


def predict_file(
    recipe: Recipe, file: str, write: Callable[[Answer], None], output: Path | None, *, resume: bool, overwrite: bool
) -> None:
    """Answers every row of `file` (`-`: stdin), in order: passes each to `write`, or writes JSON lines to `output`.

    Each chunk of `output` is on disk before the next one starts. `resume` keeps the lines that are there, checks that
    they belong to the same texts and the same model, and continues after them. Several processes share each chunk, and
    the first one writes.
    """
    with distributed_inference():
        _predict_file(recipe, file, write, output, resume=resume, overwrite=overwrite)


def _predict_file(
    recipe: Recipe, file: str, write: Callable[[Answer], None], output: Path | None, *, resume: bool, overwrite: bool
) -> None:
    with offline_if_local([recipe.model.name, recipe.tokenizer.name]):  # the data of the training is not needed
        names = predicting_task(load_config(recipe.model), recipe.model.name).questions
    if output is None:
        for answer in answers(recipe, read_questions(recipe, file, names)):
            write(answer)
        return
    if output.exists() and file != "-" and os.path.exists(file) and output.samefile(file):
        raise UsageError(f"{output} is the input", "--output ANOTHER.jsonl")
    done = on_main_process(lambda: _kept(output, resume, overwrite))
    rows = read_questions(recipe, file, names)
    last = _skip(rows, output, done) if done else None
    if done:
        say(f"{output}: {done:,} rows are there already")
    ahead = next(rows, None)
    if ahead is None and done:
        say("nothing to do")
        return
    rows = itertools.chain([] if ahead is None else [ahead], rows)
    if last is not None:
        _require_same_model(recipe, last, output)
    given = answers(recipe, rows)
    first = next(given)  # before the file is opened, so that a failure overwrites nothing
    if not is_main_process():
        for _ in given:
            pass  # the first process writes the answers of all
        return
    try:
        with output.open("ab" if done else "wb") as out:
            for number, answer in enumerate(itertools.chain([first], given), start=done + 1):
                out.write((json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n").encode())
                if (number - done) % CHUNK == 0:
                    to_disk(out)
                    say(f"{number:,} rows")
            to_disk(out)
    except OSError as error:
        raise StorageError(f"{output}: {error.strerror}", "make room, then add --resume") from error
    say(f"{number:,} rows in {output}")


def answers(recipe: Recipe, questions: Iterable[Question], chunk: int | None = None) -> Iterator[Answer]:
    """The answer to each question, in order; the model is loaded once, `chunk` (CHUNK) of them are in memory."""
    with offline_if_local([recipe.model.name, recipe.tokenizer.name]):
        config = load_config(recipe.model)
        task = predicting_task(config, recipe.model.name)
        tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
        model = open_model(task.auto_model, recipe.model, config, tokenizer)
    questions, total, cut = iter(questions), 0, 0
    while some := list(itertools.islice(questions, chunk or CHUNK)):
        if any(question.keys() != some[0].keys() for question in some):
            raise DataError("some rows have words and others texts", "give either to all")
        names = as_asked(some[0], task.questions)
        columns = {name: [question[given] for question in some] for given, name in names.items()}
        if "context" in task.questions and "context" not in columns:
            fix = "--question '...' --context '...', or a file with the columns question and context"
            raise UsageError(f"{recipe.model.name} answers questions about texts, and no text is given", fix)
        if strange := [name for name in columns if name not in task.questions]:
            fix = "leave out --text-pair" if "text_pair" in strange else "give texts"
            raise UsageError(f"{recipe.model.name} can't read {' and '.join(strange)}", fix)
        rows = task.encode(Dataset.from_dict(columns), tokenizer, model, recipe)
        reduced, _ = predict_rows(task, model, tokenizer, rows, batch_size=recipe.evaluation.batch_size)
        for place, answer in enumerate(task.answers(reduced, rows, recipe.evaluation)):
            total, cut = total + 1, cut + answer.get("truncated", False)
            yield {name: column[place] for name, column in columns.items()} | answer
    if cut:
        fix = "a larger --max-length" if "context" in task.questions else "--long-documents window"
        warn(f"{cut:,} of {total:,} texts ({cut / total:.1%}) were truncated at the end", fix)


def as_asked(question: Question, names: Sequence[str]) -> dict[str, str]:
    """The keys of a question, and what a task with these `names` calls them; two texts go by their place."""
    if tuple(names) in PAIRS and tuple(question) in PAIRS:
        return dict(zip(question, names, strict=True))
    return {name: name for name in question}


def read_questions(recipe: Recipe, file: str, asked_for: Sequence[str]) -> Iterator[Question]:
    """The texts in a file, with the second texts for a model of pairs, or lists of words; columns as in training.

    `asked_for`: what the task reads, by the names of Task.questions.
    """
    if file == "-":
        yield from _read_stdin(recipe, asked_for)
        return
    data, columns = dataclasses.replace(recipe.data, train=[file]), recipe.data.columns
    dataset, place = read_input(file, data)
    if "tokens" in asked_for and (words := words_column(dataset, data)):
        for number, tokens in enumerate(dataset[words]):
            if not are_words(tokens):
                raise DataError(
                    f"{place(number)}: column '{words}' is no list of words", 'write {"tokens": ["a", "b"]}'
                )
            yield {"tokens": tokens}
        return
    names = ["text"]  # a .txt file has no column of any other name
    if columns.text is None and "context" in asked_for and set(asked_for) <= set(dataset.column_names):
        names = ["question", "context"]
    elif dataset.column_names != ["text"] or columns.text_pair is not None:
        names = [name for name in (input_column(dataset, data), pair_column(dataset, data)) if name is not None]
    for name in names if not names == dataset.column_names == ["text"] else ():  # checks its rows
        text_column(dataset, dataclasses.replace(data, columns=Columns(text=name)))
    for start in range(0, len(dataset), CHUNK):
        part = dataset[start : start + CHUNK]
        for row in zip(*(part[name] for name in names), strict=True):
            yield dict(zip(("text", "text_pair"), row, strict=False))


def _read_stdin(recipe: Recipe, asked_for: Sequence[str]) -> Iterator[Question]:
    """Texts from stdin: one per line, or one JSON object per line with columns as in training."""
    text, pair = recipe.data.columns.text or "text", recipe.data.columns.text_pair
    for number, row in read_stdin():
        if isinstance(row, str):
            if pair is not None:
                raise DataError("stdin: this model takes pairs", f'write {{"{text}": "...", "{pair}": "..."}} lines')
            yield {"text": row}
            continue
        if "tokens" in asked_for and are_words(words := row.get("tokens", row.get(text))):
            yield {"tokens": words}
            continue
        if "context" in asked_for and recipe.data.columns.text is None:
            text, pair = asked_for
        wanted = [name for name in (text, pair) if name is not None]
        if missing := [name for name in wanted if name not in row]:
            near = did_you_mean(missing[0], row) or f"found: {', '.join(row)}"
            raise DataError(f"stdin: line {number}: no key '{missing[0]}'", near)
        texts = [row[name] for name in wanted]
        if not all(isinstance(one, str) for one in texts):
            example = ", ".join(f'"{name}": "..."' for name in wanted)
            raise DataError(f"stdin: line {number}: {texts} is not text", f"write {{{example}}}")
        yield dict(zip(("text", "text_pair"), texts, strict=False))


def _kept(output: Path, resume: bool, overwrite: bool) -> int:
    """The number of complete lines of `output` to keep; cuts off an incomplete last line."""
    if not output.exists() or overwrite:
        if output.is_dir():
            raise StorageError(f"{output}: is a folder", "--output FILE.jsonl")
        return 0
    if not resume:
        raise UsageError(f"{output}: is there already", "--resume to go on with it, or --overwrite")
    done = whole = 0
    with output.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                done, whole = done + 1, whole + len(line)
    if whole < output.stat().st_size:
        say(f"{output}: its last line was not finished and is written again")
        os.truncate(output, whole)
    return done


def _skip(rows: Iterator[Question], output: Path, done: int) -> Answer | None:
    """Skips the rows that `output` answers, and returns the last answer. Raises DataError if they do not match."""
    last: Answer | None = None
    with output.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                last = dict(json.loads(line))
            except (ValueError, TypeError):
                raise DataError(f"{output}: line {number} is no answer of hfkit predict", "--overwrite") from None
            row = next(rows, None)
            if row is None:
                raise DataError(f"{output} has {done:,} lines, and the input only {number - 1:,} rows", "--overwrite")
            if [*asked(last).values()] != [*row.values()]:
                raise DataError(f"{output}: line {number} is of another text than that row of the input", "--overwrite")
    return last


def _require_same_model(recipe: Recipe, last: Answer, output: Path) -> None:
    """Raises DataError if this model's answer differs from the last line."""
    (again,) = answers(recipe, [asked(last)])
    before, now = (dict(_numbers(answer)) for answer in (last, again))
    if before.keys() != now.keys() or any(abs(before[name] - now[name]) > SAME for name in now):
        raise DataError(f"{output}: its last line is not what {recipe.model.name} answers", "--overwrite")


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in an answer, with the keys that lead to them."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{place}.{key}")
    elif isinstance(value, int | float):
        yield place, float(value)
