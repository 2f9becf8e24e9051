"""A conversation with one model: what was said, what of it still fits, and how the next answer is made."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.errors import DataError, StorageError, UsageError
from hfkit.generation.generator import Answer, Generator, Messages, load_generator
from hfkit.recipe.resolve import resolve
from hfkit.settings import acts
from hfkit.system.console import say
from hfkit.system.files import write_atomically

if TYPE_CHECKING:
    from hfkit.settings import Recipe

ANSWER_TOKENS = 512  # of an answer at most by default; and a quarter of the model's positions

ROLES = ("system", "user", "assistant")

AT_LOADING = ("chat_template", "assistant_model", "compile")  # settings that act when the model is loaded


class ChatSession:
    """The messages of a conversation, oldest first, and the model that answers them.

    An answer that did not come to its own end has "finish_reason" beside "role" and "content": length (of
    max_new_tokens) or interrupted. All messages stay here, also the oldest turns that the model is no longer shown.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Loads the model recipe.model.name; ModelError if it has no chat template."""
        self.recipe = recipe
        self.generator = _with_room(load_generator(recipe, conversation=True))
        self.messages: Messages = []
        self.num_forgotten = 0  # turns that did not fit any more

    @property
    def system(self) -> Messages:
        """The system message, if there is one."""
        return [message for message in self.messages[:1] if message["role"] == "system"]

    @property
    def turns(self) -> list[Messages]:
        """What the user said and what was answered, turn by turn."""
        found: list[Messages] = []
        for message in self.messages[len(self.system) :]:
            if message["role"] == "user" or not found:
                found.append([])
            found[-1].append(message)
        return found

    def answer(self, text: str, write: Callable[[str], None] = lambda text: None) -> Answer:
        """The model's answer to the user's next message; `write` hears it as it is made.

        A KeyboardInterrupt passes through and leaves what was written so far as the answer; after any other error, or
        before the first word, the conversation is as if `text` had not been said. Raises UsageError if the message
        doesn't fit the model even without all earlier turns.
        """
        question = {"role": "user", "content": text}
        ids = self._prompt(question)
        written: list[str] = []

        def hear(part: str) -> None:
            written.append(part)
            write(part)

        streams = (self.generator.settings.num_beams or 1) == 1  # beams know their text at the end only
        try:
            ((answer,),) = self.generator.batch([len(self.turns)], [ids], write=hear if streams else None)
            if not streams:
                hear(answer.text)
        except KeyboardInterrupt:
            if written:
                said = {"role": "assistant", "content": "".join(written), "finish_reason": "interrupted"}
                self.messages += [question, said]
            raise
        cut = {"finish_reason": "length"} if answer.finish_reason == "length" else {}
        self.messages += [question, {"role": "assistant", "content": answer.text, **cut}]
        return answer

    def _prompt(self, question: dict[str, str]) -> list[int]:
        """The token ids of the conversation with `question`, without as many of the oldest turns as have to go."""
        turns, left_out = self.turns, self.num_forgotten
        while True:
            ids = self.generator.encode([*self.system, *itertools.chain(*turns[left_out:]), question])
            try:
                self.generator.room(ids)
                break
            except UsageError:
                if left_out == len(turns):
                    raise
                left_out += 1
        if left_out > self.num_forgotten:
            which = f"{left_out} oldest turns are" if left_out > 1 else "oldest turn is"
            say(f"(the conversation is longer than the model can read: the {which} left out from here on)")
        self.num_forgotten = left_out
        return ids

    def set_system(self, text: str) -> None:
        """Makes `text` the system message; an empty one removes it."""
        self.messages = [{"role": "system", "content": text}] * bool(text) + self.messages[len(self.system) :]

    def set(self, assignment: str) -> None:
        """Takes one `name=value` of the generation settings for all further answers; UsageError if it is none."""
        if "=" not in assignment:
            raise UsageError(f"{assignment}: not an assignment", "temperature=0.7")
        given = {
            name: value
            for name, value in dataclasses.asdict(self.recipe.generation).items()
            if acts("chat", f"generation.{name}") and value not in (None, [])
        }
        key = f"generation.{assignment.removeprefix('generation.')}"
        try:
            recipe = resolve("chat", recipe={"generation": given}, run=self.recipe.model.name, sets=[key])
        except UsageError as error:
            raise UsageError.of([(_short(what), _short(fix)) for what, fix in error.problems]) from error
        generation = recipe.generation
        for name in AT_LOADING:
            if getattr(generation, name) != getattr(self.recipe.generation, name):
                raise UsageError(f"{name} acts when the model is loaded", f"begin anew with --{name.replace('_', '-')}")

        from hfkit.generation.decoding import decoding_settings

        base = self.generator.model.generation_config
        settings = decoding_settings(base, generation, self.generator.tokenizer)
        self.recipe = dataclasses.replace(self.recipe, generation=generation)
        self.generator = _with_room(dataclasses.replace(self.generator, given=generation, settings=settings))

    def reset(self) -> None:
        """Forgets the conversation but for the system message."""
        self.messages, self.num_forgotten = self.system, 0

    def save(self, path: Path) -> int:
        """Writes the conversation into a file of conversations, one JSON object {"messages": [...]} a line, and returns
        how many there are now. It goes behind those that are there, or in place of its own beginning."""
        if not self.turns:
            raise UsageError("nothing has been said yet", "say something first")
        lines = _lines(path) if path.exists() else []
        if lines and (last := _messages(path, len(lines), lines[-1])) == self.messages[: len(last)]:
            lines.pop()
        lines.append(json.dumps({"messages": self.messages}, ensure_ascii=False))
        try:
            write_atomically(path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", "save it elsewhere") from error
        return len(lines)

    def load(self, path: Path) -> None:
        """Goes on with the last conversation in a file of conversations; DataError if there is none."""
        lines = _lines(path)
        if not lines:
            raise DataError(f"{path}: no conversation", 'give a file with {"messages": [...]} lines')
        self.messages, self.num_forgotten = _messages(path, len(lines), lines[-1]), 0


def _with_room(generator: Generator) -> Generator:
    """The generator with a limit to its answers, since what they may take is taken from the conversation."""
    from hfkit.models.config import max_tokens

    if generator.given.max_new_tokens is not None:
        return generator
    limit = min(ANSWER_TOKENS, (max_tokens(generator.model) or 4 * ANSWER_TOKENS) // 4)
    return dataclasses.replace(generator, given=dataclasses.replace(generator.given, max_new_tokens=limit))


def _short(text: str) -> str:
    """What was found wrong with a setting, without the section that goes without saying."""
    return text.replace("--set ", "").replace("generation.", "")


def _lines(path: Path) -> list[str]:
    """The lines of a text file that hold anything."""
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "give a file that was saved") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8", "give a file that was saved") from error


def _messages(path: Path, number: int, line: str) -> Messages:
    """The messages in line `number` of a file, answered to the last one."""
    try:
        messages: Messages = json.loads(line)["messages"]
        roles = [message["role"] for message in messages if isinstance(message["content"], str)]
        whole = len(roles) == len(messages) and roles[-1] == "assistant" and set(roles) <= set(ROLES)
    except (ValueError, TypeError, LookupError):
        whole = False
    if not whole:
        fix = f'{{"messages": [{{"role": "user", "content": "..."}}, ...]}}, roles {", ".join(ROLES)}, an answer last'
        raise DataError(f"{path}: line {number} is no conversation", fix)
    return messages
