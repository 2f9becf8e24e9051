"""Text from a prompt, by decoders and encoder-decoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfkit import hub
from hfkit.console import detail, warn
from hfkit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from hfkit.recipe import Generation, Recipe

DEFAULT_NEW_TOKENS = 128
SAMPLING_ONLY = ("temperature", "top_k", "top_p")


def generate(recipe: Recipe, prompts: Sequence[str]) -> list[str]:
    """The continuation of each prompt, without the prompt and without special tokens, by the model recipe.model.name.

    Raises ModelError for a model that makes no text, UsageError where prompt and new tokens do not fit its positions.
    """
    import torch
    from transformers import set_seed

    from hfkit.models import load_config, load_tokenizer, new_or_pretrained, quiet_libraries

    hub.stay_local(recipe)
    quiet_libraries()
    config = load_config(recipe)
    auto_model = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    if (
        "CausalLM" not in (names := " ".join(config.architectures or []))
        and "LMHead" not in names
        and not config.is_encoder_decoder
    ):
        raise ModelError(
            f"{recipe.model.name} makes no text, it is a {names or config.model_type}", "choose a model such as gpt2"
        )
    tokenizer = load_tokenizer(recipe, config)
    model = new_or_pretrained(auto_model, recipe, config, tokenizer).eval()
    inputs = [prompt_ids(prompt, tokenizer, decoder=not config.is_encoder_decoder) for prompt in prompts]
    positions = None if config.is_encoder_decoder else getattr(config, "max_position_embeddings", None)
    settings = generation_config(
        model.generation_config, recipe.generation, longest=max(map(len, inputs)), positions=positions
    )
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    detail(f"generation: {settings.to_diff_dict()}")

    width = max(map(len, inputs))
    padded = torch.full((len(inputs), width), tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(inputs):  # on the left, so that every continuation starts in the same column
        padded[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    set_seed(recipe.generation.seed)
    with torch.inference_mode():
        outputs = model.generate(input_ids=padded, attention_mask=mask, generation_config=settings)
    if config.is_encoder_decoder:
        return [tokenizer.decode(row, skip_special_tokens=True) for row in outputs]
    return [
        continuation(row[width - len(ids) :].tolist(), len(ids), tokenizer)
        for row, ids in zip(outputs, inputs, strict=True)
    ]


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


def generation_config(
    base: GenerationConfig, wanted: Generation, *, longest: int, positions: int | None
) -> GenerationConfig:
    """The model's own settings with those that were given on top; one that can't act is said aloud."""
    import copy

    settings = copy.deepcopy(base)
    given = {name: value for name, value in dataclasses.asdict(wanted).items() if value is not None and name != "seed"}
    settings.update(**{name: value for name, value in given.items() if name != "max_new_tokens"})
    room = None if positions is None else positions - longest
    new = given.get("max_new_tokens")
    if room is not None and room < (new or 1):
        raise UsageError(
            f"prompt {longest} + new {new or 1} > {positions} positions of the model",
            f"--max-new-tokens {room}" if room > 0 else f"a prompt of fewer than {positions} tokens",
        )
    settings.max_length = None
    settings.max_new_tokens = new or min(DEFAULT_NEW_TOKENS, room or DEFAULT_NEW_TOKENS)
    if not settings.do_sample:
        idle = [name for name in SAMPLING_ONLY if name in given]
        if idle:
            warn(f"{', '.join(idle)} has no effect without sampling", "--do-sample")
        for name in SAMPLING_ONLY:
            setattr(settings, name, None)
    return settings


def continuation(ids: list[int], prompt: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What follows the first `prompt` ids; decoded with them, since a token's text may depend on the one before."""
    before: str = tokenizer.decode(ids[:prompt], skip_special_tokens=True)
    whole: str = tokenizer.decode(ids, skip_special_tokens=True)
    alone: str = tokenizer.decode(ids[prompt:], skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else alone
