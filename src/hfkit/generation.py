"""Text from a prompt, by decoders and encoder-decoders."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfkit.console import detail, warn
from hfkit.errors import ModelError, UsageError
from hfkit.sources import stay_local

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.recipe import Generation, Recipe

DEFAULT_NEW_TOKENS = 128
SAMPLING_ONLY = ("temperature", "top_k", "top_p")


def generate(recipe: Recipe, prompts: Sequence[str]) -> list[str]:
    """The continuation of each prompt, without the prompt and without special tokens, by the model recipe.model.name.

    Raises ModelError for a model that makes no text, UsageError where prompt and new tokens do not fit its positions.
    """
    from transformers import set_seed

    from hfkit.inference import to_device
    from hfkit.models import (
        load_config,
        load_tokenizer,
        max_tokens,
        new_or_pretrained,
        quiet_libraries,
        was_saved_with,
    )

    stay_local(recipe)
    quiet_libraries()
    config = load_config(recipe)
    auto_model = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    if not was_saved_with(auto_model, config):
        kind = ", ".join(config.architectures or [config.model_type])
        raise ModelError(f"{recipe.model.name} makes no text, it is a {kind}", "choose a model such as gpt2")
    tokenizer = load_tokenizer(recipe, config)
    model = to_device(new_or_pretrained(auto_model, recipe, config, tokenizer, new_head=False))

    settings = generation_config(model.generation_config, recipe.generation)
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    detail(f"generation: {settings.to_diff_dict()}")
    inputs = [prompt_ids(prompt, tokenizer, decoder=not config.is_encoder_decoder) for prompt in prompts]
    positions, wanted = max_tokens(model), recipe.generation.max_new_tokens
    budgets = [new_tokens(len(ids), wanted, positions, apart=config.is_encoder_decoder) for ids in inputs]
    set_seed(recipe.generation.seed)
    texts = [""] * len(prompts)
    for budget in sorted(set(budgets)):  # together with a longer prompt, a text must not become shorter
        rows = [row for row, own in enumerate(budgets) if own == budget]
        settings.max_new_tokens = budget
        for row, text in zip(rows, _batch(model, tokenizer, settings, [inputs[row] for row in rows]), strict=True):
            texts[row] = text
    return texts


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, *, decoder: bool) -> list[int]:
    """Token ids of a prompt; an empty one becomes BOS, an EOS that the tokenizer adds at the end would end the text."""
    ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    if decoder and ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        ids = ids[:-1]
    if not ids:
        if tokenizer.bos_token_id is None:
            raise UsageError("the prompt is empty and the model has no token to begin with", "--prompt 'some text'")
        ids = [tokenizer.bos_token_id]
    return ids


def generation_config(base: GenerationConfig, wanted: Generation) -> GenerationConfig:
    """The model's own settings with those that were given on top; one that can't act is said aloud."""
    settings = copy.deepcopy(base)
    given = {name: value for name, value in dataclasses.asdict(wanted).items() if value is not None}
    settings.update(**{name: value for name, value in given.items() if name not in ("seed", "max_new_tokens")})
    settings.max_length = None  # max_new_tokens says it
    if not settings.do_sample:
        if idle := [name for name in SAMPLING_ONLY if name in given]:
            warn(f"{', '.join(idle)} has no effect without sampling", "--do-sample")
        for name in SAMPLING_ONLY:
            setattr(settings, name, None)
    return settings


def new_tokens(prompt: int, wanted: int | None, positions: int | None, *, apart: bool) -> int:
    """How many tokens may follow `prompt` tokens; `apart`: the answer has positions of its own."""
    if positions is None:
        return wanted or DEFAULT_NEW_TOKENS
    room = positions if apart and prompt <= positions else positions - prompt
    if room < (wanted or 1):
        fix = f"--max-new-tokens {room}" if room > 0 else f"a prompt of at most {positions - (not apart)} tokens"
        raise UsageError(f"prompt {prompt} + new {wanted or 1} > {positions} positions of the model", fix)
    return wanted or min(DEFAULT_NEW_TOKENS, room)


def _batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerationConfig,
    inputs: Sequence[Sequence[int]],
) -> list[str]:
    import torch

    width = max(map(len, inputs))
    padded = torch.full((len(inputs), width), tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(inputs):
        # a decoder's on the left, so that every continuation starts in one column; an encoder counts from the left
        first = 0 if model.config.is_encoder_decoder else width - len(ids)
        padded[row, first : first + len(ids)] = torch.tensor(ids)
        mask[row, first : first + len(ids)] = 1
    with torch.inference_mode():
        outputs = model.generate(
            input_ids=padded.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
        ).tolist()
    if model.config.is_encoder_decoder:
        return [tokenizer.decode(row, skip_special_tokens=True) for row in outputs]
    return [
        continuation(row[width - len(ids) :], len(ids), tokenizer) for row, ids in zip(outputs, inputs, strict=True)
    ]


def continuation(ids: list[int], prompt: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What follows the first `prompt` ids; decoded with them, since a token's text may depend on the one before."""
    before: str = tokenizer.decode(ids[:prompt], skip_special_tokens=True)
    whole: str = tokenizer.decode(ids, skip_special_tokens=True)
    alone: str = tokenizer.decode(ids[prompt:], skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else alone
