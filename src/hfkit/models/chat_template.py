"""Conversations as text and as tokens: the one renderer of training, evaluation and generation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.errors import DataError, ModelError, UsageError, first_line
from hfkit.system.console import say_once, short, warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]  # {"role": ..., "content": ...} and what else a template reads, such as "tool_calls"

Span = tuple[int, int]  # begin and end of a part of a text, in characters

CHATML = "chatml"  # the template that has a name

# END stands for what ends a turn. https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.tool_calls %}{{ raise_exception('chatml has no form for tool calls') }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + END + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

PROBES = ("Pr0be-S", "Pr0be-U", "Pr0be-A")  # a system message, a question and an answer


class Learned(NamedTuple):
    """A rendered conversation and the parts of it that are learned, in their order."""

    text: str
    spans: list[Span]


def set_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Gives the tokenizer the template `name`: chatml, or the one in a Jinja file; UsageError if it can't be read."""
    if name != CHATML:
        try:
            tokenizer.chat_template = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fix = "give chatml, or a file with a Jinja template"
            raise UsageError(f"--chat-template {name}: {first_line(error)}", fix) from error
        return
    end = "<|im_end|>"
    if tokenizer.convert_tokens_to_ids(end) in (None, tokenizer.unk_token_id):
        if tokenizer.eos_token is None:
            raise ModelError("the tokenizer has no token that ends a turn", "a model whose tokenizer has an eos_token")
        end = tokenizer.eos_token
        say_once(f"chatml: each turn ends with {end}, since the tokenizer has no token <|im_end|>")
    tokenizer.chat_template = CHATML_TEMPLATE.replace("END", json.dumps(end, ensure_ascii=False))


class ChatTemplate:
    """The chat template of a tokenizer, and what it does with system messages and ends of turns.

    `keeps_system`: whether it has a system role; `has_answers`: whether it writes what the assistant says; `end`: the
    token behind each answer, "" if there is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """ModelError if the tokenizer has no template."""
        if tokenizer.chat_template is None:
            fix = "--chat-template chatml, or --chat-template FILE.jinja"
            raise ModelError("the model has no chat template to put messages into", fix)
        self.tokenizer = tokenizer
        self.has_marks = "endgeneration" in str(tokenizer.chat_template)
        system, user, answer = (
            {"role": role, "content": probe}
            for role, probe in zip(("system", "user", "assistant"), PROBES, strict=True)
        )
        with_system, alone, answered = map(self._probe, ([system, user], [user], [user, answer]))
        self.keeps_system = not alone or PROBES[0] in with_system
        self.has_answers = PROBES[2] in answered
        self.end = self._end_of(answered.rpartition(PROBES[2])[2]) if self.has_answers else ""
        self.own_system = _own_system(with_system, alone)

    def _probe(self, messages: Sequence[Message]) -> str:
        """The messages as text; nothing if the template refuses them."""
        try:
            return self._render(messages)[0]
        except DataError:
            return ""

    def _end_of(self, tail: str) -> str:
        """The first special token in the text behind an answer."""
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if not str(token).isspace()}
        ends = [(tail.find(token), -len(token), token) for token in added if token in tail]
        return min(ends)[2] if ends else ""

    def fitted(self, messages: Sequence[Message]) -> list[Message]:
        """The messages; a system message at the beginning of the first question where the template has no such role."""
        found = list(messages)
        if self.keeps_system or not found or found[0]["role"] not in ("system", "developer"):
            return found
        system, *others = found
        first = next((place for place, message in enumerate(others) if message["role"] == "user"), None)
        if first is None or not isinstance(others[first].get("content"), str):
            return found
        say_once("the chat template has no system role: system messages go to the beginning of the first user message")
        others[first] = {**others[first], "content": f"{system['content']}\n\n{others[first]['content']}"}
        return others

    def require_calls(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """DataError if the template leaves out tool calls; a warning if it leaves out the tools."""
        if any(message.get("tool_calls") for message in messages) and not self._writes_calls:
            fix = "--chat-template FILE, with a form for them"
            raise DataError("the chat template leaves out tool calls, which are answers", fix)
        if tools and not self._writes_tools:
            fix = "--chat-template FILE, with a form for them"
            warn("the chat template leaves out the tools that conversations declare", fix, once=True)

    @cached_property
    def _writes_calls(self) -> bool:
        call = {"type": "function", "id": "call00000", "function": {"name": PROBES[2], "arguments": {}}}
        asked = {"role": "user", "content": PROBES[1]}
        answers = [{"role": "assistant", "content": content, "tool_calls": [call]} for content in ("", None)]
        return any(PROBES[2] in self._probe([asked, answer]) for answer in answers)

    @cached_property
    def _writes_tools(self) -> bool:
        function = {"name": PROBES[2], "description": "", "parameters": {"type": "object", "properties": {}}}
        try:
            return PROBES[2] in self.render(
                [{"role": "user", "content": PROBES[1]}], [{"type": "function", "function": function}]
            )
        except DataError:
            return False

    def say_own_system(self) -> None:
        """Prints the system message that the template puts before conversations without one."""
        if self.own_system:
            shown = json.dumps(short(self.own_system, 80), ensure_ascii=False)
            say_once(f"the chat template puts a system message before conversations without one: {shown}")

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, *, generation_prompt: bool = False
    ) -> str:
        """The messages as text; `generation_prompt`: up to where an answer begins. DataError if they are refused."""
        return self._render(messages, tools, generation_prompt)[0]

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The token ids that a model reads before it answers. The template has written all special tokens."""
        text = self.render(self.fitted(messages), tools, generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        generation_prompt: bool = False,
        marked: bool = False,
    ) -> tuple[str, list[Span]]:
        """The text and, if `marked`, the characters between generation marks.

        As tokenizer.apply_chat_template renders; that one gives the marks as tokens, and wrong ones where a mark ends
        on stripped blanks (https://github.com/huggingface/transformers/issues/47325, seen in 5.23).
        """
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        tools = list(tools) if tools else None
        try:
            texts, spans = render_jinja_template(
                [plain],
                tools=tools,
                chat_template=self.tokenizer.get_chat_template(None, tools),
                return_assistant_tokens_mask=marked,
                add_generation_prompt=generation_prompt,
                **self.tokenizer.special_tokens_map,
            )
        except TemplateSyntaxError as error:
            fix = "correct it, or --chat-template chatml"
            raise ModelError(f"the chat template is broken: line {error.lineno}: {first_line(error)}", fix) from error
        except Exception as error:  # templates are programs that raise what they like
            what = f"the chat template refuses the messages: {first_line(error)}"
            raise DataError(what, "correct the messages, or --chat-template FILE") from error
        return texts[0], spans[0] if marked else []

    def learned(self, messages: Sequence[Message], tools: Sequence[Any] | None, train_on: str) -> Iterator[Learned]:
        """The conversation (`fitted`) as it is learned: once, and again up to an answer that it renders otherwise.

        `train_on`: all, assistant (all answers) or last (the last answer). Each answer is learned in a text that begins
        with what a model reads before it gives this answer, which is checked by rendering. A template that leaves out
        thoughts in earlier turns has such answers in examples of their own. DataError for an answer that can't be
        learned so. Templates with generation marks are trusted.
        """
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant" and place]
        if train_on == "all":
            text = self.render(messages, tools)
            yield Learned(text, [(0, len(text))])
            return
        left = answers[-1:] if train_on == "last" else answers
        parts = {} if self.has_marks else {place: self._around(messages, tools, place) for place in left}
        while left:
            text, marks = self._render(messages[: left[-1] + 1], tools, marked=self.has_marks)
            if self.has_marks:
                read = left[-1] if train_on == "last" else int(messages[0]["role"] == "assistant")
                first = self._shared(messages[:read], tools, text) if read else 0
                yield Learned(text, [self._with_end(text, *mark) for mark in marks if mark[0] >= first])
                return
            spans = {place: self._span(*parts[place], text) for place in left}
            if spans[left[-1]] is None:
                problem = "the chat template renders the beginning of an answer otherwise when a model is to give it"
                raise DataError(problem, "a template with generation marks: --chat-template FILE")
            yield Learned(text, [span for span in spans.values() if span is not None])
            left = [place for place in left if spans[place] is None]

    def _shared(self, messages: Sequence[Message], tools: Sequence[Any] | None, text: str) -> int:
        """The characters at the beginning of `text` that the rendered messages share."""
        pairs = zip(text, self.render(messages, tools), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _around(self, messages: Sequence[Message], tools: Sequence[Any] | None, place: int) -> tuple[str, str]:
        """The conversation up to where the answer at `place` begins, and up to its end."""
        return (
            self.render(messages[:place], tools, generation_prompt=True),
            self.render(messages[: place + 1], tools),
        )

    def _span(self, before: str, after: str, text: str) -> Span | None:
        """An answer in a rendered conversation, with its end; None if `text` begins otherwise than the conversation up
        to the answer (`before`), or up to its end (`after`)."""
        if not text.startswith(before):
            return None
        _, end = self._with_end(after, len(before), len(after))
        return (len(before), end) if text.startswith(after[:end]) else None

    def _with_end(self, text: str, begin: int, end: int) -> Span:
        """An answer in `text` up to the token that ends it, without blanks behind that."""
        if not self.end:
            return begin, end
        inner = text[begin:end].rstrip()
        if inner.endswith(self.end):
            return begin, begin + len(inner)
        rest = text[end:].lstrip()
        return (begin, len(text) - len(rest) + len(self.end)) if rest.startswith(self.end) else (begin, end)


def _own_system(with_system: str, alone: str) -> str:
    """The system message that a template adds by itself: what stands in place of the probe."""
    before, probe, after = with_system.partition(PROBES[1])[0].partition(PROBES[0])
    head = alone.partition(PROBES[1])[0]
    has_own = head.startswith(before) and head.endswith(after) and len(head) > len(before) + len(after)
    return head[len(before) : len(head) - len(after)].strip() if probe and has_own and before.strip() else ""
