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
        help="Maximum number of new tokens (default: 128, in a chat 512, or what fits the model).")
    do_sample: bool | None = setting("--do-sample/--greedy", help="Sample tokens, or always take the most likely one.")
    temperature: float | None = setting("--temperature", gt=0,
        help="Below 1 more predictable, above 1 more varied; for sampling.")
    top_k: int | None = setting("--top-k", ge=0, help="Sample from the k most likely tokens.")
    top_p: float | None = setting("--top-p", gt=0, le=1,
        help="Sample from the most likely tokens whose probabilities add up to this.")
    num_beams: int | None = setting("--num-beams", ge=1, help="Beam search with this many beams.")
    repetition_penalty: float | None = setting("--repetition-penalty", gt=0,
        help="Above 1 makes tokens that already occurred less likely.")
    no_repeat_ngram_size: int | None = setting("--no-repeat-ngram-size", ge=0,
        help="No sequence of this many tokens occurs twice.")
    min_p: float | None = setting("--min-p", ge=0, le=1,
        help="Sample from tokens with at least this fraction of the highest probability.")
    typical_p: float | None = setting("--typical-p", rare=True, gt=0, le=1,
        help="Sample from the most typical tokens whose probabilities add up to this.")
    length_penalty: float | None = setting("--length-penalty", rare=True,
        help="For beams: above 0 prefers longer texts, below 0 shorter ones.")
    early_stopping: bool | None = setting("--early-stopping", rare=True,
        help="Stop beam search once as many texts as there are beams are complete.")
    min_new_tokens: int | None = setting("--min-new-tokens", rare=True, ge=1, help="Minimum number of new tokens.")
    num_return_sequences: int | None = setting("--num-return-sequences", only="generate", ge=1,
        help="Texts per prompt.")
    stop: list[str] = setting("--stop", [], help="Stop before this text; repeatable.")
    bad_words: list[str] = setting("--bad-words", [], rare=True, help="Never generate this word; repeatable.")
    language: str | None = setting("--language", rare=True,
        help="Target language, for models whose output begins with a language token: de_DE, deu_Latn.")
    raw: bool = setting("--raw", False, only="generate",
        help="Continue the prompt as it is, even if the model has a chat template.")
    chat_template: str | None = setting("--chat-template", unless="generation.raw",
        help="A Jinja file that formats messages as a prompt.")
    batch_tokens: int = setting("--batch-tokens", 8192, only="generate", ge=1,
        help="Maximum tokens in a batch, including new tokens and padding; more is faster.")
    assistant_model: str | None = setting("--assistant-model",
        help="A small model with the same tokenizer that drafts tokens: the same greedy text, faster.")
    prompt_lookup_num_tokens: int | None = setting("--prompt-lookup", ge=1,
        help="Draft this many tokens by looking them up in the prompt: the same greedy text, faster.")
    compile: bool = setting("--compile", False, help="Compile the model first: a minute, then faster steps.")
    seed: int = setting("--seed", 42, ge=0, le=MAX_SEED,
        help="Random seed; each text depends only on it and on the number of the text.")
