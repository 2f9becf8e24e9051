"""Settings of text generation."""

from __future__ import annotations

from dataclasses import dataclass

from hfkit.settings.section import MAX_SEED, Section, setting

# Two lines a setting: what it is, then its help.
# fmt: off


@dataclass(frozen=True, kw_only=True)
class Generation(Section):
    """How text is generated: the names of transformers.GenerationConfig; the default of each is the model's own."""

    max_new_tokens: int | None = setting("--max-new-tokens", ge=1,
        help="Maximum number of new tokens (default: the model's own, else 128, in a chat 512, or what "
             "fits the model).")
    do_sample: bool | None = setting("--do-sample/--greedy", help="Sample tokens, or always take the most likely one.")
    temperature: float | None = setting("--temperature", gt=0,
        help="Sampling temperature: lower is more predictable, higher more varied.")
    top_k: int | None = setting("--top-k", ge=0, help="Sample from the k most likely tokens.")
    top_p: float | None = setting("--top-p", gt=0, le=1,
        help="Sample from the most likely tokens whose probabilities add up to p.")
    num_beams: int | None = setting("--num-beams", ge=1, help="Number of beams in beam search.")
    repetition_penalty: float | None = setting("--repetition-penalty", gt=0,
        help="Above 1, tokens that already occurred become less likely.")
    no_repeat_ngram_size: int | None = setting("--no-repeat-ngram-size", ge=0,
        help="No n-gram of this size occurs twice.")
    min_p: float | None = setting("--min-p", ge=0, le=1,
        help="Minimum probability of a sampled token, relative to the most likely one.")
    typical_p: float | None = setting("--typical-p", rare=True, gt=0, le=1,
        help="Locally typical sampling with this probability mass.")
    length_penalty: float | None = setting("--length-penalty", rare=True,
        help="Above 0, beam search prefers longer texts; below 0, shorter ones.")
    early_stopping: bool | None = setting("--early-stopping", rare=True,
        help="Stop beam search as soon as num_beams complete candidates exist.")
    min_new_tokens: int | None = setting("--min-new-tokens", rare=True, ge=1, help="Minimum number of new tokens.")
    num_return_sequences: int | None = setting("--num-return-sequences", only="generate", ge=1,
        help="Number of texts per prompt.")
    stop: list[str] = setting("--stop", [], help="Stop string: generation ends before it; repeatable.")
    bad_words: list[str] = setting("--bad-words", [], rare=True, help="A word that must not be generated; repeatable.")
    language: str | None = setting("--language", rare=True,
        help="Target language, for models whose output begins with a language token: de_DE, deu_Latn.")
    raw: bool = setting("--raw", False, only="generate",
        help="Continue the prompt as it is, even if the model has a chat template.")
    chat_template: str | None = setting("--chat-template", unless="generation.raw",
        help="Chat template to use: chatml, or a Jinja file (default: the tokenizer's own).")
    batch_tokens: int = setting("--batch-tokens", 8192, only="generate", ge=1,
        help="Maximum tokens in a batch, including new tokens and padding; more is faster.")
    assistant_model: str | None = setting("--assistant-model",
        help="A smaller model with the same tokenizer for assisted generation: faster, same greedy text.")
    prompt_lookup_num_tokens: int | None = setting("--prompt-lookup", ge=1,
        help="Prompt lookup decoding: propose this many tokens from the prompt; same greedy text.")
    compile: bool = setting("--compile", False,
        help="Compile the model first: takes about a minute, then each step is faster.")
    seed: int = setting("--seed", 42, ge=0, le=MAX_SEED,
        help="Sampling seed; each text depends only on its prompt, its number and this seed.")
