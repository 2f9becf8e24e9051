"""A tiny decoder and the chat templates of known families, as small as they can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_models import TEXT, save, spread

CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]", "<think>", "</think>",
)  # fmt: skip

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# As that of SmolLM2, which has a system message of its own.
OWN_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nhello world<|im_end|>\\n' }}{% endif %}" + CHATML
)

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# The end of a turn stands behind the marks.
MARKED_WITHOUT_END = MARKED.replace("m.content + '<|im_end|>' }}{% endgen", "m.content }}{% endgen").replace(
    "{% endgeneration %}", "{% endgeneration %}<|im_end|>"
)

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)

# Thoughts before answers are left out of all turns but those behind the last question.
QWEN = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

PLAIN = (  # no token ends an answer
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def chat_tokenizer(template: str | None, *, control: bool = True, more: Sequence[str] = ()):
    """A byte-level BPE tokenizer that begins texts with BOS and trims blanks off the offsets of tokens.

    Its pad token is its EOS. With `control` it has the control tokens of all templates. It learns from TEXT and `more`.
    """
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
    from transformers import GPT2TokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([*TEXT, *more], vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    bos = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
    bpe._tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=True), bos])
    tokenizer = GPT2TokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", unk_token="</s>", pad_token="</s>"
    )
    if control:
        tokenizer.add_special_tokens({"extra_special_tokens": list(CONTROL)})
    tokenizer.chat_template = template
    return tokenizer


def make_chat_model(directory: Path, template: str | None, *, control: bool = True, positions: int = 128) -> Path:
    """A Llama of a few thousand parameters, its weights wide apart, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = chat_tokenizer(template, control=control)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    save(spread(LlamaForCausalLM(config)), tokenizer, directory)
    return directory
