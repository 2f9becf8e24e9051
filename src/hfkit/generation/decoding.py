"""How tokens are chosen: the model's own generation settings with the given ones on top, and draws that repeat."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation import logits_process

from hfkit.errors import ModelError, UsageError, did_you_mean
from hfkit.models.stored_generation import BEAMS_ONLY, SAMPLING_ONLY, drop_idle
from hfkit.system.console import detail, warn

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from hfkit.settings import Generation

# What makes a distribution narrower, by its field, in the library's order, and the value at which it changes nothing.
WARPERS: dict[str, tuple[type[LogitsProcessor], Any]] = {
    "temperature": (logits_process.TemperatureLogitsWarper, 1.0),
    "top_h": (logits_process.TopHLogitsWarper, None),
    "top_k": (logits_process.TopKLogitsWarper, 0),
    "top_p": (logits_process.TopPLogitsWarper, 1.0),
    "min_p": (logits_process.MinPLogitsWarper, None),
    "typical_p": (logits_process.TypicalLogitsWarper, 1.0),
    "epsilon_cutoff": (logits_process.EpsilonLogitsWarper, 0.0),
    "eta_cutoff": (logits_process.EtaLogitsWarper, 0.0),
}

ARGUMENTS = {"epsilon_cutoff": "epsilon", "eta_cutoff": "epsilon", "typical_p": "mass"}  # where the class's differs

# Settings of recipe.Generation that are no field of GenerationConfig under the same name and meaning.
OWN = (
    "seed",
    "max_new_tokens",
    "stop",
    "bad_words",
    "language",
    "raw",
    "chat_template",
    "batch_tokens",
    "assistant_model",
    "compile",
)


def decoding_settings(
    base: GenerationConfig, wanted: Generation, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """The model's own settings with those that were given on top; prints those without effect.

    Raises UsageError if settings exclude each other, ModelError for a language that the tokenizer has no token of.
    """
    settings = copy.deepcopy(base)
    given = {name: value for name, value in dataclasses.asdict(wanted).items() if value not in (None, [], False)}
    if wanted.do_sample is False:
        given["do_sample"] = False
    changes = {name: value for name, value in given.items() if name not in OWN}
    for name, value in changes.items():
        own = getattr(base, name)
        if own not in (None, value):
            detail(f"{name}: {value} instead of the model's own {own}")
        setattr(settings, name, value)  # `update` would refuse what is refused below, in the library's words
    for flag, texts in (("--stop", wanted.stop), ("--bad-words", wanted.bad_words)):
        if "" in texts:
            raise UsageError(f"{flag} '': is empty, so it is in every text", "leave it out")
    if wanted.stop or isinstance(settings.stop_strings, str):
        settings.stop_strings = wanted.stop or [settings.stop_strings]
    if wanted.bad_words:
        settings.bad_words_ids = _token_sequences(wanted.bad_words, tokenizer)
    if wanted.language is not None:
        settings.forced_bos_token_id = _language_token(wanted.language, tokenizer)
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    settings.max_length = None  # max_new_tokens says it
    if not settings.do_sample and wanted.num_return_sequences is None:  # the model's own number is for sampling
        settings.num_return_sequences = 1
    _require_consistent(settings, wanted)
    if not settings.do_sample and (idle := [name for name in SAMPLING_ONLY if name in given]):
        warn(f"{', '.join(idle)} has no effect without sampling", "--do-sample")
    if (settings.num_beams or 1) == 1 and (idle := [name for name in BEAMS_ONLY if name in given]):
        warn(f"{', '.join(idle)} has no effect without beams", "--num-beams 4")
    drop_idle(settings)
    detail(f"generation: {settings.to_diff_dict()}")
    return settings


def _require_consistent(settings: GenerationConfig, wanted: Generation) -> None:
    """UsageError for what the library would refuse later, or ignore."""
    beams, sequences = settings.num_beams or 1, settings.num_return_sequences or 1
    if sequences > beams and not settings.do_sample:
        fix = "--do-sample" if beams == 1 else f"--num-beams {sequences}"
        raise UsageError(f"{sequences} sequences of one prompt would be the same text", fix)
    faster = [
        flag
        for flag, value in (
            ("--assistant-model", wanted.assistant_model),
            ("--prompt-lookup", wanted.prompt_lookup_num_tokens),
        )
        if value is not None
    ]
    if len(faster) == 2:
        raise UsageError(f"{' and '.join(faster)} exclude each other", "choose one")
    if faster and max(beams, sequences) > 1:
        raise UsageError(f"{faster[0]} makes one sequence without beams", "leave --num-beams and the like out")
    if (wanted.min_new_tokens or 0) > (wanted.max_new_tokens or np.inf):
        raise UsageError(f"min_new_tokens {wanted.min_new_tokens} > max_new_tokens {wanted.max_new_tokens}", "lower it")


def _token_sequences(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each word, as it begins a text and as it follows a blank: most tokenizers tell these apart."""
    spellings = [spelling for word in words for spelling in (word, f" {word.lstrip()}")]
    found = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    return [ids for place, ids in enumerate(found) if ids and ids not in found[:place]]


def _language_token(language: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the special token that stands for a language: `de_DE`, `__de__` or `deu_Latn`, as the model has it."""
    tokens = [token for token in tokenizer.all_special_tokens if token.strip("_<>") == language.strip("_<>")]
    if not tokens:
        raise ModelError(
            f"the model has no token for the language '{language}'",
            did_you_mean(language, tokenizer.all_special_tokens) or "leave --language out",
        )
    token_id: int = tokenizer.convert_tokens_to_ids(tokens[0])
    return token_id


def draws_each_row_apart(settings: GenerationConfig) -> bool:
    """Whether SeededDraw can do the sampling: not within beams."""
    return bool(settings.do_sample) and (settings.num_beams or 1) == 1


def seeded_draw(
    settings: GenerationConfig, seed: int, rows: Sequence[tuple[int, int]], device: torch.device
) -> tuple[GenerationConfig, LogitsProcessorList]:
    """`settings` as they look to the library, which then takes the likeliest token, and the processors that draw.

    `rows`: (number of the prompt, number of its sequence) of each row of the batch.
    """
    processors = []
    plain = copy.deepcopy(settings)
    plain.do_sample = False
    plain.num_return_sequences = None  # the rows are repeated by the caller
    for name, (warper, neutral) in WARPERS.items():
        value = getattr(settings, name)
        if value not in (None, neutral):
            more = {"device": device} if warper is logits_process.EtaLogitsWarper else {}
            processors.append(warper(**{ARGUMENTS.get(name, name): value}, **more))
        setattr(plain, name, None)
    return plain, LogitsProcessorList([*processors, SeededDraw(seed, rows, settings.max_new_tokens)])


class SeededDraw(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token of each row with random numbers of its own, so that a text depends on its prompt, its number
    and the seed, and not on what else is in the batch (beyond rounding of the model's outputs).

    The library's own draw gives each row the numbers that the rows before it have left.
    """

    def __init__(self, seed: int, rows: Sequence[tuple[int, int]], max_new_tokens: int) -> None:
        numbers = [np.random.default_rng([seed, *row]).random(max_new_tokens) for row in rows]
        self.uniform = torch.tensor(np.stack(numbers))  # (rows, max_new_tokens)
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores, shape (rows, vocabulary), of which the sampled token alone is not -inf: the inverse of the
        distribution function at the row's random number."""
        cumulative = scores.double().softmax(-1).cumsum(-1)
        uniform = self.uniform[:, self.step, None].to(scores.device) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, uniform, right=True)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


class StopText(StoppingCriteria):  # type: ignore[misc]
    """Ends each row whose text holds one of the stop strings.

    The library's own StopStringCriteria raises for tokenizers that have no letters, and counts the prompt's end in.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, first: int, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.first = self.seen = first  # the column where the answers begin, and the one up to which all was looked at
        self.reach = 4 * max(map(len, stops))  # a character is four bytes at most, and a byte may be a token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        """For each row whether it ends, shape (rows,)."""
        since = max(self.first, self.seen - self.reach)
        self.seen = input_ids.shape[1]
        texts = self.tokenizer.batch_decode(input_ids[:, since:], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)
