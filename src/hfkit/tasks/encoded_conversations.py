"""Conversations as token ids, and which of them are learned."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.data.columns import place_of
from hfkit.data.conversations import first_of
from hfkit.data.labels import IGNORED
from hfkit.errors import DataError, ModelError
from hfkit.models.chat_template import ChatTemplate, Learned, Message
from hfkit.system.console import say_once, warn
from hfkit.tasks.base import Examples
from hfkit.tasks.packing import fill, untruncated
from hfkit.tasks.windows import say_truncation, token_limits

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

BORDERS = 4  # answers of a conversation whose first token is looked at; the others begin alike

USUAL_LENGTH = 2048  # tokens of a conversation at most, the default, if the model has as many positions


class Conversation(NamedTuple):
    """A rendered conversation."""

    ids: np.ndarray  # int64, shape (tokens,)
    learned: np.ndarray  # bool, shape (tokens,)
    row: int  # of the data set
    text: str  # all that is learned


class EncodedConversations(Examples):
    """Conversations, or blocks of several with data.packing; `lengths` are the tokens of each example.

    `conversations`: in the order of the data set, which can have several for a row, or none. `ends`: the ids of the
    tokens that end an answer. `num_cut`, `num_dropped`: rows that lost their last turns, and rows without any answer
    that fits. `num_open`, `num_greeting`, `num_empty`: rows that end with a message without an answer, begin with the
    assistant, or have an answer without text.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> None:
        import numpy as np

        self.dataset, self.encoder = dataset, ConversationEncoder(tokenizer, recipe.data.train_on)
        self.limit, self.most = token_limits(tokenizer, model, recipe, usual=USUAL_LENGTH)
        self.longest = self.num_cut = self.num_dropped = self.num_open = self.num_greeting = self.num_empty = 0
        self.conversations: list[Conversation] = []
        self.ends = {*self.encoder.closing, *self.encoder.usual_end}
        problems: list[tuple[int, DataError]] = []
        for row, (messages, tools) in enumerate(zip(dataset["messages"], dataset["tools"], strict=True)):
            try:
                self._add(row, self.encoder.template.fitted(json.loads(messages)), json.loads(tools))
            except DataError as error:
                problems.append((row, error))
        if problems:
            raise first_of(problems, partial(_place, dataset, recipe))
        self._say_what_was_found(recipe)
        counts = [len(one.ids) for one in self.conversations]
        self.blocks = fill(counts, self.limit) if recipe.data.packing else None
        self.lengths = np.array(
            counts if self.blocks is None else [sum(counts[place] for place in block) for block in self.blocks]
        )

    def _add(self, row: int, messages: list[Message], tools: list[Any] | None) -> None:
        """Encodes a row, cut at a whole turn where it is too long."""
        import numpy as np

        self.encoder.template.require_calls(messages, tools)
        kept, length = self.encoder.fitting(messages, tools, self.limit)
        self.longest = max(self.longest, length)
        self.num_cut += bool(kept) and length > self.limit
        self.num_dropped += not kept
        self.num_open += messages[-1]["role"] != "assistant"
        self.num_greeting += messages[0]["role"] == "assistant"
        answers = [message for message in messages[1:] if message["role"] == "assistant"]
        self.num_empty += any(not message.get("content") and not message.get("tool_calls") for message in answers)
        for found in self.encoder.learned(kept, tools) if kept else ():
            ids, learned = self.encoder.tokens(found)
            if not learned[1 : len(ids) - len(self.encoder.closing)].any():
                raise DataError("no token of it is learned", "--train-on all, or a chat template that marks answers")
            places = np.flatnonzero(learned)
            last = places[np.append(np.diff(places) > 1, True)]  # of each answer
            if not (self.encoder.template.has_marks and self.encoder.usual_end):  # marks can also end within an answer
                self.ends |= self.encoder.special.intersection(ids[last].tolist())
            text = "".join(found.text[begin:end] for begin, end in found.spans)
            self.conversations.append(Conversation(ids, learned, row, text))

    def _say_what_was_found(self, recipe: Recipe) -> None:
        num_rows, num_long = len(self.dataset), self.num_cut + self.num_dropped
        self.encoder.template.say_own_system()
        self.encoder.say_split_tokens()
        if num_long:
            found = f"{num_long:,} of {num_rows:,} conversations ({num_long / num_rows:.1%}) are longer than"
            longer = f"--max-length {self.longest}" if self.longest <= self.most else ""
            if not self.conversations:
                raise DataError(f"{found} {self.limit} tokens up to the end of their first answer", longer)
            say_truncation(
                f"{found} {self.limit} tokens", num_long / num_rows, [longer], decided=recipe.data.allow_truncation
            )
            say_once(
                f"of these {self.num_cut:,} end with an earlier answer, {self.num_dropped:,} have no answer that fits "
                "and are left out"
            )
        if self.num_empty:
            found = f"{self.num_empty:,} of {num_rows:,} conversations have an empty answer"
            say_once(f"{found}: the model learns to end at once")
        if self.num_open and self.encoder.train_on != "all":
            found = f"{self.num_open:,} of {num_rows:,} conversations end with messages without an answer"
            say_once(f"{found}, and these messages are left out")
        if self.num_greeting and self.encoder.train_on != "all":
            say_once(f"{self.num_greeting:,} of {num_rows:,} conversations begin with the assistant: read, not learned")
        num_more = len(self.conversations) - (num_rows - self.num_dropped)
        if num_more:
            say_once(
                "the chat template renders earlier answers otherwise than the last one: "
                f"{num_more:,} more examples, in which answers are learned as the model will give them"
            )

    def example(self, index: int, random: np.random.Generator | None = None) -> dict[str, Any]:
        """Ids and labels; in a block also positions, which begin again with each conversation."""
        import numpy as np

        if self.blocks is None:
            return _example(self.conversations[index])
        rows = [_example(self.conversations[place]) for place in self.blocks[index]]
        joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return {**joined, "position_ids": np.concatenate([np.arange(len(row["input_ids"])) for row in rows])}


def _example(conversation: Conversation) -> dict[str, np.ndarray]:
    import numpy as np

    labels = np.where(conversation.learned, conversation.ids, IGNORED)
    labels[0] = IGNORED  # nothing stands before it, or in a block another conversation
    return {"input_ids": conversation.ids, "labels": labels}


def _place(dataset: Dataset, recipe: Recipe, row: int) -> str:
    return place_of(recipe.data, dataset["split"][row], dataset["row"][row])


class ConversationEncoder:
    """From messages to token ids and what of them is learned, by the position of each token in the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: str) -> None:
        self.template, self.train_on = ChatTemplate(tokenizer), train_on
        self.backend = _with_whole_offsets(tokenizer)
        self.special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.usual_end = [tokenizer.convert_tokens_to_ids(end) for end in [self.template.end] if end]
        self.num_split = self.num_texts = 0
        self.closing: list[int] = []
        if not self.template.has_answers:
            raise ModelError("the chat template leaves out what the assistant says", "--chat-template chatml, or FILE")
        if not self.template.end:
            if tokenizer.eos_token_id is None:
                problem = "neither the chat template nor the tokenizer has a token that ends an answer"
                raise ModelError(problem, "--chat-template FILE, or a model whose tokenizer has an eos_token")
            self.closing = [tokenizer.eos_token_id]
            say_once(f"the chat template ends no answer: {tokenizer.eos_token} is added behind each conversation")

    def fitting(self, messages: list[Message], tools: list[Any] | None, limit: int) -> tuple[list[Message], int]:
        """The messages up to the last answer with which they have at most `limit` tokens, and the tokens of them all.

        None where no answer fits. Of `train_on` last: all or none, since another answer would be the last one.
        """
        ends = [place + 1 for place, message in enumerate(messages) if message["role"] == "assistant" and place]
        if not ends:
            raise DataError("no message is an answer of the assistant", "add one, or delete the row")
        if self.train_on == "all":
            ends = sorted({*ends, len(messages)})
        whole = self._length(messages[: ends[-1]], tools)
        if whole <= limit:
            return messages[: ends[-1]], whole
        low, high = 0, 0 if self.train_on == "last" else len(ends) - 1  # the first `low` fit, more than `high` don't
        while low < high:
            middle = (low + high + 1) // 2
            if self._length(messages[: ends[middle - 1]], tools) <= limit:
                low = middle
            else:
                high = middle - 1
        return messages[: ends[low - 1]] if low else [], whole

    def _length(self, messages: list[Message], tools: list[Any] | None) -> int:
        text = self.template.render(messages, tools)
        return len(self.backend.encode(text, add_special_tokens=False)) + len(self.closing)

    def prompt_ids(self, messages: list[Message], tools: list[Any] | None) -> list[int]:
        """What a model reads before the last answer."""
        last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        return self.template.prompt_ids(messages[:last], tools)

    def learned(self, messages: list[Message], tools: list[Any] | None) -> list[Learned]:
        return list(self.template.learned(messages, tools, self.train_on))

    def tokens(self, found: Learned) -> tuple[np.ndarray, np.ndarray]:
        """Ids and whether each is learned, shape (tokens,): a token that holds any character of a span is.

        The text is tokenized once and as a whole. What stands before an answer can then have other tokens than when a
        model is to give the answer; the first BORDERS answers of each conversation are compared, and counted.
        """
        import numpy as np

        encoding = self.backend.encode(found.text, add_special_tokens=False)
        ids = np.array([*encoding.ids, *self.closing], dtype=np.int64)
        learned = np.zeros(len(ids), dtype=bool)
        learned[len(encoding) :] = True
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        begins, ends = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
        is_split = False
        for number, (begin, end) in enumerate(span for span in found.spans if span[0] < span[1]):
            inside = (begins < end) & (ends > begin)
            learned[: len(encoding)] |= inside
            if number < BORDERS and not is_split:
                before = self.backend.encode(found.text[:begin], add_special_tokens=False).ids
                is_split = before != encoding.ids[: int(inside.argmax())]
            is_split |= bool((inside & (begins < begin)).any()) or _holds_more(found.text, end, ends[inside])
        self.num_texts += 1
        self.num_split += is_split
        return ids, learned

    def say_split_tokens(self) -> None:
        """Warns of conversations with other tokens at the border of an answer than when a model gives it."""
        if self.num_split:
            warn(
                f"in {self.num_split:,} of {self.num_texts:,} conversations a model reads other tokens before it "
                "answers than it learned from, since the tokens at the border depend on the answer",
                "a chat template whose answers begin and end with special tokens",
                once=True,
            )


def _holds_more(text: str, end: int, ends: np.ndarray) -> bool:
    """Whether the last token of a span holds more of the text than blanks behind it, which a special token can eat."""
    return bool(len(ends)) and bool(text[end : int(ends.max())].strip())


def _with_whole_offsets(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer's backend, whose offsets hold all characters of a token: post-processors trim blanks off them."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(untruncated(tokenizer).to_str())
    backend.post_processor = None
    return backend
