"""Text from prompts, by decoders and encoder-decoders: one model, loaded once, and the answers it gives."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.sources import offline_for
from hfkit.errors import DataError, ModelError, UsageError
from hfkit.models.chat_template import ChatTemplate, set_template
from hfkit.models.config import DEFAULT_NEW_TOKENS, trained_suffix
from hfkit.system import compat, network
from hfkit.system.console import say, warn

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Generation, Model, Recipe

Messages = list[dict[str, Any]]  # {"role": "system", "user" or "assistant", "content": text}, oldest first

Prompt = str | Messages


@dataclasses.dataclass(frozen=True)
class Answer:
    """What follows one prompt."""

    text: str  # without the prompt, special tokens and the stop string
    ids: list[int]  # the new tokens, the EOS included
    finish_reason: str  # eos, stop (a stop string), or length (max_new_tokens)


def generate(recipe: Recipe, prompts: Sequence[Prompt]) -> list[str]:
    """The continuation of each prompt, or the answer to each message or conversation, by the model recipe.model.name.

    With num_return_sequences=n there are n texts for each prompt, in its place. Raises ModelError for a model that
    makes no text, UsageError if prompt and new tokens do not fit its positions.
    """
    if not prompts:
        return []
    generator = load_generator(recipe)
    ids = [generator.encode(prompt) for prompt in prompts]
    generator.warn_of_truncation()
    return [answer.text for answers in generator.answers(ids) for answer in answers]


def load_generator(recipe: Recipe, *, conversation: bool = False) -> Generator:
    """The model recipe.model.name, ready to answer; prints whether prompts are continued or answered.

    `conversation`: it is a chat model that is wanted; ModelError, before weights are read, for one without template.
    """
    with offline_for(recipe):
        return _load(with_number_type(recipe), conversation)


def _load(recipe: Recipe, conversation: bool) -> Generator:
    from hfkit.generation.decoding import decoding_settings
    from hfkit.models.config import load_config, own_new_tokens
    from hfkit.models.tokenizer import load_tokenizer

    unpacked = None
    if network.is_gguf(str(recipe.model.name)):
        unpacked, tokenizer = _unpacked(recipe)
    else:
        config = load_config(recipe.model)
        tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
    generation = recipe.generation
    if generation.chat_template is not None:
        set_template(tokenizer, generation.chat_template)
    completes = not unpacked and trained_suffix(config) is not None  # it was trained on prompts without a template
    is_chat = tokenizer.chat_template is not None and not generation.raw and not completes
    if conversation and not is_chat:
        fix = "hfkit generate, which continues a text"
        fix = fix if completes else f"--chat-template chatml or FILE.jinja, or {fix}"
        raise ModelError(f"{recipe.model.name} has no chat template to put messages into", fix)
    model = unpacked or load_model(recipe.model, config, tokenizer)
    own = own_new_tokens(model)
    settings = decoding_settings(model.generation_config, generation, tokenizer)
    settings.max_new_tokens = own
    _forget_own_settings(model)
    if is_chat and not conversation:
        say("a chat model: prompts are messages to it (--raw continues them instead)")
    assistant = None
    if generation.assistant_model is not None:
        assistant = _assistant(recipe, model, tokenizer)
    if generation.prompt_lookup_num_tokens is not None and model.config.is_encoder_decoder:
        warn("--prompt-lookup finds nothing in the prompt of an encoder-decoder, only in its answer", "leave it out")
    if generation.compile:
        _compile(model)
    generator = Generator(model, tokenizer, settings, generation, is_chat, assistant)
    if generator.prefix:
        say(f"before each prompt stands '{generator.prefix}', as in training (--raw leaves it out)")
    if generator.suffix:
        say(f"behind each prompt stands {json.dumps(generator.suffix)}, as in training (--raw leaves it out)")
    return generator


def _forget_own_settings(model: PreTrainedModel) -> None:
    """Leaves the model no generation settings but its special tokens: the library fills up with them what a call has
    turned off, such as stop strings that hfkit looks for itself."""
    from transformers import GenerationConfig

    own = model.generation_config
    ids = {name: value for name, value in own.to_dict().items() if name.endswith("_token_id")}
    model.generation_config = GenerationConfig(**ids)


def with_number_type(recipe: Recipe) -> Recipe:
    """With the model.dtype that this machine makes text fastest in, where none is given: each token reads all weights,
    which are half as many bytes in bfloat16, and only CPUs compute slower in it."""
    from hfkit.models.device import gpu_has_bfloat16

    if recipe.model.dtype is not None:
        return recipe
    fast = dataclasses.replace(recipe.model, dtype="bfloat16" if gpu_has_bfloat16() else "float32")
    if fast.dtype == "bfloat16":
        say("weights in bfloat16, the fast type of this GPU (--dtype float32 rounds less)")
    return dataclasses.replace(recipe, model=fast)


def _unpacked(recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file."""
    import torch

    from hfkit.models.device import to_device
    from hfkit.models.export import read_gguf

    name = str(recipe.model.name)
    model, tokenizer = read_gguf(Path(name).expanduser())
    say(f"{name}: its weights are unpacked each time (hfkit generate --convert DIR keeps a plain copy and uses it)")
    return to_device(model.to(getattr(torch, str(recipe.model.dtype)))), tokenizer


def load_model(model: Model, config: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The decoder or encoder-decoder that `config` describes; ModelError if it is neither."""
    from hfkit.models.config import was_saved_with
    from hfkit.models.loading import open_model

    auto_model = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    if not was_saved_with(auto_model, config):
        kind = ", ".join(config.architectures or [config.model_type])
        raise ModelError(f"{model.name} makes no text, it is a {kind}", "choose a model such as gpt2")
    return open_model(auto_model, model, config, tokenizer)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model that answers prompts, as often as it is asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: GenerationConfig
    given: Generation
    is_chat: bool  # whether a prompt is a message, put into the chat template
    assistant: PreTrainedModel | None = None
    truncated: list[int] = dataclasses.field(default_factory=list)  # tokens of the prompts that lost their end

    @property
    def num_sequences(self) -> int:
        """Texts that are computed at once for a prompt: those that are returned, or beams."""
        return (self.settings.num_return_sequences or 1) * (self.settings.num_beams or 1)

    @property
    def is_decoder(self) -> bool:
        return not self.model.config.is_encoder_decoder

    @property
    def prefix(self) -> str:
        """What stands before every prompt, as it did in training; nothing where the prompt is taken as it is."""
        from hfkit.models.config import trained_prefix

        return "" if self.given.raw else trained_prefix(self.model.config)

    @property
    def suffix(self) -> str:
        """What stands behind every prompt, as it did in training."""
        return "" if self.given.raw else trained_suffix(self.model.config) or ""

    @property
    def one_by_one(self) -> bool:
        """Whether the library can't take prompts together: speculative decoding can't."""
        return self.assistant is not None or self.settings.prompt_lookup_num_tokens is not None

    def encode(self, prompt: Prompt, tools: Sequence[Any] | None = None) -> list[int]:
        """The token ids of a prompt as the model will see it; UsageError for an empty one that it can't begin with.

        `tools`: that a conversation declares to its chat template.
        """
        if isinstance(prompt, str) and not self.is_chat:
            return self._truncated(
                prompt_ids(f"{self.prefix}{prompt}{self.suffix}", self.tokenizer, decoder=self.is_decoder)
            )
        if not isinstance(prompt, str):
            return self.template.prompt_ids(prompt, tools)
        try:
            return self.template.prompt_ids([{"role": "user", "content": prompt}], tools)
        except DataError as error:
            raise DataError(error.problems[0][0], "--raw") from None

    def _truncated(self, ids: list[int]) -> list[int]:
        """The prompt as training truncated its sources, the special tokens behind it kept."""
        limit = None if self.given.raw else getattr(self.model.config, "max_source_length", None)
        if limit is None or len(ids) <= limit:
            return ids
        self.truncated.append(len(ids))
        if self.suffix:
            tail = self.tokenizer.backend_tokenizer.encode(self.suffix, add_special_tokens=False).ids
            return [*ids[: limit - len(tail)], *tail]
        special = set(self.tokenizer.all_special_ids)
        behind = len(ids) - next(place for place in range(len(ids), 0, -1) if ids[place - 1] not in special)
        return ids[: limit - behind] + ids[len(ids) - behind :]

    def warn_of_truncation(self) -> None:
        """Says how many prompts lost their end, and forgets it."""
        if self.truncated:
            limit = self.model.config.max_source_length
            what = "the prompt was" if len(self.truncated) == 1 else f"{len(self.truncated):,} prompts were"
            warn(f"{what} truncated to {limit} tokens, as in training", "--raw reads all of it, without a prefix")
            self.truncated.clear()

    @cached_property
    def template(self) -> ChatTemplate:
        """How messages become text; ModelError if the model has no template."""
        return ChatTemplate(self.tokenizer)

    @cached_property
    def positions(self) -> int | None:
        """Tokens that the model and its assistant can read, None: without a limit; found once, in all their modules."""
        from hfkit.models.config import max_tokens

        limits = [max_tokens(model) for model in (self.model, self.assistant) if model is not None]
        return min((limit for limit in limits if limit is not None), default=None)

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens may follow the prompt; UsageError if they would not fit the model's positions."""
        usual = self.settings.max_new_tokens or DEFAULT_NEW_TOKENS
        return new_tokens(len(prompt), self.given.max_new_tokens, self.positions, usual, apart=not self.is_decoder)

    def batches(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The places of the prompts, divided into batches of like length of at most `batch_tokens` tokens, padding and
        new ones included; the longest first, since what does not fit the memory had better show at once."""
        rooms = [self.room(prompt) for prompt in prompts]  # beside a longer prompt, a text must not become shorter
        order = sorted(range(len(prompts)), key=lambda place: (rooms[place], len(prompts[place])), reverse=True)
        sequences = self.settings.num_return_sequences or 1
        batches: list[list[int]] = []
        for place in order:
            if batches and not self.one_by_one and rooms[place] == rooms[batches[-1][0]]:
                widest = len(prompts[batches[-1][0]]) + rooms[place]
                if (len(batches[-1]) + 1) * sequences * widest <= self.given.batch_tokens:
                    batches[-1].append(place)
                    continue
            batches.append([place])
        return batches

    def answers(
        self, prompts: Sequence[Sequence[int]], done: Callable[[int], None] = lambda num_prompts: None
    ) -> list[list[Answer]]:
        """The answers to each prompt (num_return_sequences of them), in order; `done` hears of each batch."""
        found: list[list[Answer]] = [[] for _ in prompts]
        for batch in self.batches(prompts):
            for place, answers in zip(batch, self.batch(batch, [prompts[place] for place in batch]), strict=True):
                found[place] = answers
            done(len(batch))
        warn_of_cut((answer.finish_reason, len(answer.ids)) for answers in found for answer in answers)
        return found

    def batch(
        self, numbers: Sequence[int], prompts: Sequence[Sequence[int]], write: Callable[[str], None] | None = None
    ) -> list[list[Answer]]:
        """The answers to prompts that have the same room, computed together; `numbers`, theirs in the whole input,
        decide what is sampled. `write` gets the text of a single prompt as it is generated."""
        import torch
        from transformers import set_seed

        from hfkit.generation.decoding import StopText, draws_each_row_apart, seeded_draw
        from hfkit.generation.text_stream import TextStream

        settings = copy.deepcopy(self.settings)
        stops, settings.stop_strings = settings.stop_strings or (), None
        settings.max_new_tokens = room = self.room(prompts[0])
        sequences = settings.num_return_sequences or 1
        options: dict[str, Any] = {"generation_config": settings}
        inputs = prompts
        if draws_each_row_apart(settings) and not self.one_by_one:
            rows = [(number, sequence) for number in numbers for sequence in range(sequences)]
            inputs = [prompt for prompt in prompts for _ in range(sequences)]
            options["generation_config"], options["logits_processor"] = seeded_draw(
                settings, self.given.seed, rows, self.model.device
            )
        elif settings.do_sample:
            set_seed(self.given.seed)
        padded, mask = self._padded(inputs)
        first = padded.shape[1] if self.is_decoder else 1  # an encoder-decoder's answer begins with a start token
        if stops:
            options["stopping_criteria"] = [StopText(self.tokenizer, first, stops)]
        if self.assistant is not None:
            options["assistant_model"] = self.assistant
        stream = None
        if write is not None:
            before = prompts[0] if self.is_decoder else ()
            stream = options["streamer"] = TextStream(self.tokenizer, before, stops, write)
        with torch.inference_mode():
            outputs = self.model.generate(input_ids=padded, attention_mask=mask, **options).tolist()
        texts = [
            self._answer(outputs[place * sequences + sequence][first:], prompt, room)
            for place, prompt in enumerate(prompts)
            for sequence in range(sequences)
        ]
        if stream is not None:
            stream.finish(texts[0].text)
        return [texts[start : start + sequences] for start in range(0, len(texts), sequences)]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Ids and attention mask, shape (prompts, longest). A decoder's padding is on the left, so that every
        continuation starts in one column; an encoder counts its positions from the left."""
        import torch

        width = max(map(len, prompts))
        padded = torch.full((len(prompts), width), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(padded)
        for row, ids in enumerate(prompts):
            first = width - len(ids) if self.is_decoder else 0
            padded[row, first : first + len(ids)] = torch.tensor(ids)
            mask[row, first : first + len(ids)] = 1
        return padded.to(self.model.device), mask.to(self.model.device)

    def _answer(self, ids: list[int], prompt: Sequence[int], room: int) -> Answer:
        """The answer in one row of the output: up to its EOS, without the padding behind, cut before a stop string."""
        eos = self.settings.eos_token_id
        ends = set(eos) if isinstance(eos, list) else {eos}
        end = next((place + 1 for place, token in enumerate(ids) if token in ends), None)
        if end is not None:
            ids = ids[:end]
        else:
            while ids and ids[-1] == self.settings.pad_token_id and len(ids) < room:
                ids = ids[:-1]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if self.is_decoder:
            text = continuation([*prompt, *ids], len(prompt), self.tokenizer)
        stops = [text.find(stop) for stop in self.settings.stop_strings or () if stop in text]
        if stops:
            return Answer(text[: min(stops)], ids, "stop")
        return Answer(text, ids, "length" if end is None else "eos")


def warn_of_cut(ends: Iterable[tuple[str, int]]) -> None:
    """Says how many texts ended only because they had to; `ends`: why each ended, and after how many tokens."""
    ends = list(ends)
    cut = [length for reason, length in ends if reason == "length"]
    if cut:
        which = "the text was" if len(ends) == 1 else f"{len(cut):,} of {len(ends):,} texts were"
        warn(f"{which} cut after {max(cut)} tokens", f"--max-new-tokens {2 * max(cut)}")


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


def new_tokens(
    prompt: int, wanted: int | None, positions: int | None, usual: int = DEFAULT_NEW_TOKENS, *, apart: bool
) -> int:
    """How many tokens may follow `prompt` tokens, `usual` if none are wanted; `apart`: the answer has positions of its
    own."""
    if positions is None:
        return wanted or usual
    room = positions if apart and prompt <= positions else positions - prompt
    if room < (wanted or 1):
        fix = f"--max-new-tokens {room}" if room > 0 else f"a prompt of at most {positions - (not apart)} tokens"
        raise UsageError(f"prompt {prompt} + new {wanted or 1} > {positions} positions of the model", fix)
    return wanted or min(usual, room)


def continuation(ids: list[int], prompt: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """What follows the first `prompt` ids; decoded with them, since a token's text may depend on the one before."""
    before: str = tokenizer.decode(ids[:prompt], skip_special_tokens=True)
    whole: str = tokenizer.decode(ids, skip_special_tokens=True)
    alone: str = tokenizer.decode(ids[prompt:], skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else alone


def _compile(model: PreTrainedModel) -> None:
    """Has the model compiled when it is first used; UsageError if this machine can't do that."""
    if compat.require_compiler() is not None:
        raise UsageError("--compile needs a C++ compiler, and there is none", "leave it out, or install g++")
    model.compile()


def _assistant(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The small model that guesses ahead; ModelError if its tokens are others, or its kind."""
    from hfkit.models.config import load_config
    from hfkit.models.tokenizer import load_tokenizer

    name = recipe.generation.assistant_model
    own = dataclasses.replace(recipe.model, name=name, revision=None)
    config = load_config(own)
    assistant = load_tokenizer(recipe.tokenizer, own)
    same_kind = config.is_encoder_decoder == model.config.is_encoder_decoder
    if not same_kind or assistant.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"{name} has other tokens or parts than {recipe.model.name}", "choose a smaller model of its family"
        )
    return load_model(own, config, assistant)
