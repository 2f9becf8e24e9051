"""The unfinished part of a file of answers, so that the same command continues it after a stop.

OUT.partial.json holds the plan (the batches) and what it is of; OUT.partial-RANK.jsonl the answers that each process
has made, a prompt a line. Batches stay those of the plan however often the work is stopped, so the output is byte for
byte that of an unbroken run.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.errors import BusyError, StorageError, UsageError
from hfkit.generation.generator import Answer, Generator, warn_of_cut
from hfkit.system.console import say
from hfkit.system.files import lock_file, replacing, sync, to_disk

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from transformers import PreTrainedModel

SAMPLED_NUMBERS = 1024  # of each weight, which tell one model from another

# Settings of the library that stand in the recipe's words beside them, or decide nothing.
IN_OTHER_WORDS = ("stop_strings", "bad_words_ids", "transformers_version")

Row = dict[str, Any]


class Partial:
    """What is kept of an unfinished output; who begins has it alone until `close`."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.manifest = output.with_name(f"{output.name}.partial.json")
        self.own = output.with_name(f"{output.name}.partial-{os.environ.get('RANK', '0')}.jsonl")
        self.lock: BaseFileLock | None = None

    def is_begun(self) -> bool:
        return self.manifest.exists() and self.manifest.stat().st_size > 0

    def close(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def begin(
        self, facts: dict[str, Any], plan: Callable[[], list[list[int]]], overwrite: bool
    ) -> tuple[list[list[int]], set[int]]:
        """The batches, and which of them are done; BusyError if another process is at it, UsageError if what is
        kept is of something else."""
        with self._storage_errors():
            self.lock = lock_file(self.manifest)
            if self.lock is None:
                raise BusyError(f"{self.manifest}: another process works at it", "wait for it, or --output ANOTHER")
            try:
                before = json.loads(self.manifest.read_bytes())
            except ValueError:  # new, or killed while it was written, when no batch was begun
                before = None
            if before is not None and not overwrite:
                kept = self.kept()
                done = {number for number, batch in enumerate(before["batches"]) if kept.keys() >= set(batch)}
                if done and (others := _differences(before["facts"], facts)):
                    problem = f"{self.output}: its unfinished rows are of something else: {'; '.join(others)}"
                    raise UsageError(problem, "--overwrite, or go on with what it was")
                if done:
                    num_rows = sum(len(before["batches"][number]) for number in done)
                    say(f"{self.output}: going on, {num_rows:,} of {facts['rows']:,} rows are there")
                    return before["batches"], done
            for path in self._files():
                path.unlink()
            batches = plan()
            with self.manifest.open("wb") as file:
                file.write(json.dumps({"facts": facts, "batches": batches}).encode())
                to_disk(file)
            sync(self.output.parent)
            return batches, set()

    def append(self, batch: Sequence[int], answers: Sequence[Sequence[Answer]]) -> None:
        """Puts the answers to a batch on the disk, at once."""
        lines = b""  # each begins with a line end, for the one before may not have been written whole
        for number, several in zip(batch, answers, strict=True):
            made = [{"text": one.text, "tokens": len(one.ids), "finish_reason": one.finish_reason} for one in several]
            lines += b"\n" + json.dumps({"id": number, "answers": made}, ensure_ascii=False).encode()
        with self._storage_errors(), self.own.open("ab") as file:
            file.write(lines)
            to_disk(file)

    def finish(self, prompts: Iterable[Row], num_rows: int, line: Callable[[Row], str]) -> None:
        """Makes the output: a `line` for every row of `prompts` with an answer, in order; then nothing else is left."""
        ends = []
        with self._storage_errors():
            kept = self.kept()
            if missing := num_rows - len(kept):
                problem = f"{self.output}: the answers to {missing:,} rows are not here"
                raise StorageError(problem, "one folder for all machines, then the same command")
            with ExitStack() as files:
                parts = {path: files.enter_context(path.open("rb")) for path in self._files()}
                out = files.enter_context(replacing(self.output))
                for number, prompt in enumerate(prompts):
                    path, offset = kept[number]
                    parts[path].seek(offset)
                    answers = json.loads(parts[path].readline())["answers"]
                    for sequence, answer in enumerate(answers):
                        row = {"id": number} | ({"sequence": sequence} if len(answers) > 1 else {}) | prompt | answer
                        out.write(line(row).encode() + b"\n")
                        ends.append((answer["finish_reason"], answer["tokens"]))
            os.truncate(self.manifest, 0)  # from here on it is finished
            for path in [*self._files(), self.manifest]:
                path.unlink()
        warn_of_cut(ends)

    def kept(self) -> dict[int, tuple[Path, int]]:
        """By row that is on the disk: the file with its answers, and where in it."""
        found: dict[int, tuple[Path, int]] = {}
        for path in self._files():
            with path.open("rb") as file:
                start = 0
                for line in file:
                    with suppress(ValueError, TypeError, KeyError):  # of one that was not written whole
                        found[json.loads(line)["id"]] = (path, start)
                    start += len(line)
        return found

    def _files(self) -> list[Path]:
        return sorted(self.output.parent.glob(f"{glob.escape(self.output.name)}.partial-*.jsonl"))

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.output}: {error.strerror}", "make room, then the same command goes on"
            ) from error


def facts_of(
    model: str | None, generator: Generator, file: str, prompts: Sequence[Any], ids: Sequence[array[int]]
) -> dict[str, Any]:
    """All that decides the answers of `model` to the prompts in `file`: answers of other facts are not gone on with."""
    import xxhash

    texts, tokens = xxhash.xxh3_128(), xxhash.xxh3_128()
    for value, row in zip(prompts, ids, strict=True):
        texts.update(json.dumps(value).encode() + b"\n")
        tokens.update(f"{len(row)} ".encode() + row.tobytes())
    given = dataclasses.asdict(generator.given)
    settings = {name: value for name, value in generator.settings.to_diff_dict().items() if name not in IN_OTHER_WORDS}
    facts = {
        "input": file,
        "rows": len(prompts),
        "prompts": texts.hexdigest(),
        "tokens": tokens.hexdigest(),
        "model": model,
        "dtype": str(generator.model.dtype).removeprefix("torch."),
        "weights": fingerprint(generator.model),
        "settings": given | settings,
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return plain


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of some numbers of every weight: the same for every copy of a model, another one after any training."""
    import torch
    import xxhash

    digest = xxhash.xxh3_128()
    for name, weight in model.state_dict().items():
        numbers = weight.detach().flatten()
        some = numbers[:: max(1, len(numbers) // SAMPLED_NUMBERS)].contiguous().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return str(digest.hexdigest())


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What an unfinished output is of that this work is not of."""
    found = []
    if before["dtype"] != now["dtype"]:
        found.append(f"the number type was {before['dtype']} (--dtype {before['dtype']}), is {now['dtype']}")
    elif before["weights"] != now["weights"]:
        was, now_is = before["model"], now["model"]
        found.append(f"the weights of {was} are others" if was == now_is else f"the model was {was}, is {now_is}")
    if before["prompts"] != now["prompts"]:
        was, now_is = (f"{facts['input']} ({facts['rows']:,} rows)" for facts in (before, now))
        found.append(
            f"the prompts in {now['input']} are others" if was == now_is else f"the input was {was}, is {now_is}"
        )
    elif before["tokens"] != now["tokens"]:
        found.append("the tokens of the prompts are others")
    old, new = before["settings"], now["settings"]
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            found.append(f"{name} was {json.dumps(old.get(name))}, is {json.dumps(new.get(name))}")
    return found
