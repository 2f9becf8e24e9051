"""How likely a model finds given tokens after a prompt, in nats: its raw distribution, at temperature 1 and before
penalties, top-k and all else that generation settings change."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from hfkit.errors import UsageError
from hfkit.generation.generator import Answer, Generator, continuation, prompt_ids, warn_of_cut
from hfkit.metrics.likelihood import Passage, token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hfkit.metrics.likelihood import Token

# After these no blank belongs: Chinese and Japanese signs and their punctuation.
WITHOUT_BLANK = re.compile(r"[\s\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer and how likely the model finds each of its tokens."""

    answer: Answer
    tokens: list[Token]
    seconds: float  # that the batch took in which it was made

    @property
    def logprob(self) -> float:
        return math.fsum(token.logprob for token in self.tokens)


@dataclass(frozen=True)
class Choice:
    """One of several continuations of a prompt."""

    text: str
    logprob: float  # of all its tokens
    num_tokens: int
    share: float  # of the probability that all choices have together

    @property
    def logprob_per_token(self) -> float:
        return self.logprob / self.num_tokens


def passages(
    generator: Generator, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[Passage]:
    """Each continuation after its prompt, as the model reads them when it generates."""
    if generator.is_decoder:
        return [Passage(prompt, ids) for prompt, ids in zip(prompts, continuations, strict=True)]
    settings = generator.settings
    start = settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id
    return [Passage([start], ids, prompt) for prompt, ids in zip(prompts, continuations, strict=True)]


def scored_answers(
    generator: Generator, prompts: Sequence[Sequence[int]], num_top: int = 0
) -> list[list[ScoredAnswer]]:
    """The answers to each prompt, in order, their tokens scored with `num_top` alternatives each."""
    found: list[list[ScoredAnswer]] = [[] for _ in prompts]
    for batch in generator.batches(prompts):
        begun = time.perf_counter()
        made = generator.batch(batch, [prompts[place] for place in batch])
        seconds = time.perf_counter() - begun
        asked = [prompts[place] for place, of_prompt in zip(batch, made, strict=True) for _ in of_prompt]
        ids = [answer.ids for of_prompt in made for answer in of_prompt]
        tokens = iter(token_logprobs(generator.model, passages(generator, asked, ids), num_top))
        for place, of_prompt in zip(batch, made, strict=True):
            found[place] = [ScoredAnswer(answer, next(tokens), seconds) for answer in of_prompt]
    answers = [scored.answer for of_prompt in found for scored in of_prompt]
    warn_of_cut((answer.finish_reason, len(answer.ids)) for answer in answers)
    return found


def ranked(generator: Generator, prompt: str, choices: Sequence[str]) -> list[Choice]:
    """The choices as continuations of a prompt, the likeliest first.

    A decoder reads prompt and choice as one text, with a blank between them where there is none and the script has
    blanks; scored are the tokens from the first one at which the prompt and any of the choices part, so that the
    choices of one prompt compare even where a token spans the seam. White space at the end of the prompt counts with
    the choice. Where no token spans the seam this is how lm-eval scores multiple choice (`add_bos_token` as the
    tokenizer has it). In a chat the choice is the beginning of the answer; an encoder-decoder makes it as its text,
    special tokens around it seen but not scored. No EOS is asked for. Raises UsageError if it does not fit.
    """
    before, wholes = _parted(generator, prompt, choices) if generator.is_decoder else _targets(generator, choices)
    asked = before if generator.is_decoder else generator.encode(prompt)
    _require_room(generator, asked, wholes)
    first = 0 if generator.is_decoder else len(before)
    scored = token_logprobs(generator.model, passages(generator, [asked] * len(choices), wholes))
    rows = [tokens[first:] for tokens in scored]
    sums = [math.fsum(token.logprob for token in tokens) for tokens in rows]
    scale = [math.exp(value - max(sums)) for value in sums]
    found = [
        Choice(text, value, len(tokens), part / math.fsum(scale))
        for text, value, tokens, part in zip(choices, sums, rows, scale, strict=True)
    ]
    return sorted(found, key=lambda choice: choice.logprob, reverse=True)


def token_text(token: int, before: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that a token adds to those before it; its name in the vocabulary where that is part of a character."""
    near = list(before[-4:])  # a character has four bytes at most
    text = continuation([*near, token], len(near), tokenizer)
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def _parted(generator: Generator, prompt: str, choices: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens that the prompt and its continuations by all choices begin with, and what then follows for each."""
    tokenizer = generator.tokenizer
    if generator.is_chat:
        message = [{"role": "user", "content": prompt}]
        alone = generator.encode(prompt)
        begun = generator.template.render(message, generation_prompt=True)
        wholes = [tokenizer(begun + choice, add_special_tokens=False)["input_ids"] for choice in choices]
    else:
        alone = prompt_ids(prompt.rstrip(), tokenizer, decoder=True)
        wholes = [prompt_ids(_joined(prompt, choice), tokenizer, decoder=True) for choice in choices]
    same = takewhile(lambda column: len(set(column)) == 1, zip(alone, *wholes, strict=False))
    common = [column[0] for column in same]
    return common or prompt_ids("", tokenizer, decoder=True), [ids[len(common) :] for ids in wholes]


def _joined(prompt: str, choice: str) -> str:
    close = not prompt or WITHOUT_BLANK.match(prompt[-1]) or WITHOUT_BLANK.match(choice)
    return prompt + choice if close else f"{prompt} {choice}"


def _targets(generator: Generator, choices: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The special tokens that a target begins with, and the tokens of each choice as a target, without its EOS."""
    tokenizer = generator.tokenizer
    forced, special = generator.settings.forced_bos_token_id, set(tokenizer.all_special_ids)
    targets = [tokenizer(text_target=choice)["input_ids"] for choice in choices]
    own = list(takewhile(special.__contains__, targets[0]))
    leading = own if forced is None else [forced]
    plain = [tokenizer(text_target=choice, add_special_tokens=False)["input_ids"] for choice in choices]
    return leading, [[*leading, *ids] for ids in plain]


def _require_room(generator: Generator, asked: Sequence[int], wholes: Sequence[Sequence[int]]) -> None:
    from hfkit.models.config import max_tokens

    positions, longest = max_tokens(generator.model), max(map(len, wholes))
    needed = len(asked) + longest if generator.is_decoder else max(len(asked), 1 + longest)
    if positions is not None and needed > positions:
        raise UsageError(f"prompt and choice have {needed} tokens, the model {positions} positions", "a shorter prompt")
