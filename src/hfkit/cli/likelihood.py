"""What `hfkit generate` prints of probabilities: of each token of a text, and of choices."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfkit.system import console

if TYPE_CHECKING:
    from rich.console import Console

    from hfkit.generation.choices import Choice, ScoredAnswer
    from hfkit.generation.generator import Generator

COLOURS = {0.8: "green", 0.4: "yellow", 0.1: "magenta", 0.0: "red"}  # of a token, from this probability on


def as_object(generator: Generator, prompt: str, ids: Sequence[int], scored: ScoredAnswer, *, each: bool) -> Any:
    """An answer as --json prints it; `each`: with every token and its alternatives."""
    from hfkit.generation.choices import token_text

    answer = scored.answer
    whole: dict[str, Any] = {"prompt": prompt, "text": answer.text, "tokens": len(answer.ids)}
    whole |= {"finish_reason": answer.finish_reason, "logprob": scored.logprob, "seconds": round(scored.seconds, 3)}
    if not each:
        return whole
    rows = []
    for before, token in _with_context(generator, ids, scored):
        facts = [
            {"token": token_text(number, before, generator.tokenizer), "id": number, "logprob": logprob}
            for number, logprob in [(token.id, token.logprob), *token.top]
        ]
        rows.append({**facts[0], "top": facts[1:]})
    return {**whole, "logprobs": rows}


def print_tokens(generator: Generator, ids: Sequence[int], scored: ScoredAnswer, num_top: int) -> None:
    """The text in the colours of its tokens' probabilities on a terminal that has colours; a line for each token where
    it has none, and where alternatives are asked for."""
    from rich.console import Console

    terminal = Console(highlight=False, soft_wrap=True)
    coloured = terminal.color_system is not None and not terminal.no_color
    if coloured:
        _print_coloured(terminal, generator, ids, scored)
    if not coloured or num_top:
        _print_table(generator, ids, scored)


def print_choices(prompt: str, choices: Sequence[Choice]) -> None:
    """The prompt and a line for each choice."""
    console.result(json.dumps(prompt, ensure_ascii=False))
    console.result("  logprob  per token  tokens   share  choice")
    for choice in choices:
        logprobs = f"{choice.logprob:9.3f}  {choice.logprob_per_token:9.3f}"
        console.result(f"{logprobs}  {choice.num_tokens:6}  {choice.share:6.1%}  {choice.text}")


def choices_object(prompt: str, choices: Sequence[Choice]) -> dict[str, Any]:
    """The choices as --json prints them."""
    rows = [
        {
            "choice": choice.text,
            "logprob": choice.logprob,
            "logprob_per_token": choice.logprob_per_token,
            "tokens": choice.num_tokens,
            "share": choice.share,
        }
        for choice in choices
    ]
    return {"prompt": prompt, "choices": rows}


def _print_coloured(terminal: Console, generator: Generator, ids: Sequence[int], scored: ScoredAnswer) -> None:
    """A character of several tokens has the colour of its last."""
    from rich.text import Text
    from tokenizers.decoders import DecodeStream

    console.say("probability of a token: " + ", ".join(f"{name} from {least:.0%}" for least, name in COLOURS.items()))
    text = Text()
    stream = DecodeStream(ids=list(ids) if generator.is_decoder else [], skip_special_tokens=True)
    for token in scored.tokens:
        part = stream.step(generator.tokenizer.backend_tokenizer, token.id) or ""
        colour = next(name for least, name in COLOURS.items() if math.exp(token.logprob) >= least)
        text.append(part, style=colour)
    terminal.print(text)


def _print_table(generator: Generator, ids: Sequence[int], scored: ScoredAnswer) -> None:
    from hfkit.generation.choices import token_text

    shown = [
        [
            json.dumps(token_text(number, before, generator.tokenizer), ensure_ascii=False)
            for number in (token.id, *(number for number, _ in token.top))
        ]
        for before, token in _with_context(generator, ids, scored)
    ]
    width = max((len(texts[0]) for texts in shown), default=0)
    has_top = any(token.top for token in scored.tokens)
    console.result(f"  logprob   share  {'token':<{width}}" + ("  likeliest here" if has_top else ""))
    for token, (own, *others) in zip(scored.tokens, shown, strict=True):
        top = ", ".join(f"{text} {math.exp(value):.1%}" for text, (_, value) in zip(others, token.top, strict=True))
        console.result(f"{token.logprob:9.3f}  {math.exp(token.logprob):6.1%}  {own:<{width}}  {top}".rstrip())


def _with_context(generator: Generator, ids: Sequence[int], scored: ScoredAnswer) -> Any:
    """Each token with the ids before it in its text."""
    before = list(ids) if generator.is_decoder else []
    for token in scored.tokens:
        yield before, token
        before = [*before, token.id]
