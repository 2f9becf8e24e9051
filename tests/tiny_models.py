"""Real models of a few thousand parameters with real tokenizers, built in a second and without a download."""

from __future__ import annotations

import functools
from pathlib import Path

TEXT = ["hello world, this is a tiny model", "the quick brown fox jumps over the lazy dog", "你好，世界"] * 3


def save(model, tokenizer, directory: Path) -> None:
    """Model and tokenizer in `directory`, without the library's progress bar."""
    import transformers

    transformers.logging.disable_progress_bar()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_gpt2(directory: Path) -> Path:
    """A causal language model of GPT-2's type with a byte-level BPE tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXT, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = GPT2TokenizerFast(tokenizer_object=bpe._tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end
    )
    save(GPT2LMHeadModel(config), tokenizer, directory)
    return directory


def make_bert(directory: Path) -> Path:
    """A masked language model of BERT's type with a lower-case WordPiece tokenizer."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(TEXT, vocab_size=200, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=pieces._tokenizer)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    save(BertForMaskedLM(config), tokenizer, directory)
    return directory


def make_t5(directory: Path) -> Path:
    """An encoder-decoder of T5's type, its weights wide apart; its tokenizer is not T5's own Unigram kind, which comes
    out differently each time."""
    from transformers import T5Config, T5ForConditionalGeneration

    from hfkit.models.new_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(TEXT, "roberta", 300)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=ids["pad_token_id"], **ids, **sizes)
    save(spread(T5ForConditionalGeneration(config), seed=11), tokenizer, directory)
    return directory


def make_bart(directory: Path) -> Path:
    """An encoder-decoder of BART's type, its weights wide apart: positions are counted from the first column, padding
    or not, and targets begin with <s> after the start token </s>."""
    from transformers import BartConfig, BartForConditionalGeneration

    from hfkit.models.new_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(TEXT, "roberta", 300)
    names = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    sizes = dict.fromkeys(names, 2) | dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 16)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    ids |= {"decoder_start_token_id": ids["eos_token_id"], "forced_eos_token_id": None}
    config = BartConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes, **ids)
    save(spread(BartForConditionalGeneration(config)), tokenizer, directory)
    return directory


@functools.cache
def tokenizer_of(kind: str):
    """A tokenizer of the kind of this architecture, trained on TEXT, that can pad."""
    from hfkit.models.new_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(TEXT, kind, 300)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def make_word_tokenizer(num_words: int = 50, eos: str | None = "</s>"):
    """Words w0, w1, ... between blanks, ids from 1 on in their order; id 0 is `eos`, or one more word without it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [eos or "zero", *(f"w{number}" for number in range(num_words))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)


def make_word_text(length: int, start: int = 0) -> str:
    """So many words of `make_word_tokenizer`, in an order that does not repeat soon."""
    return " ".join(f"w{(start + 7 * place + place * place) % 49}" for place in range(length))


def make_causal_model(positions: int = 64, vocabulary: int = 64):
    """A Llama of a few thousand parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=positions, **sizes)
    return LlamaForCausalLM(config)


def spread(model, seed: int = 0):
    """The model with matrices drawn so wide that its answers differ from text to text, far beyond rounding."""
    import torch

    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.4)
    return model


def make_speaker(directory: Path, tokenizer, script: list[int]) -> Path:
    """A GPT-2 that heeds nothing but where it is: behind a text of n tokens it says script[n - 1], script[n], ..."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    positions = len(script)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=positions,
        n_inner=1,
        n_layer=1,
        n_head=1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if "ln_f" not in name:
            parameter.data.zero_()
    model.transformer.wpe.weight.data += torch.eye(positions)
    model.lm_head.weight.data[script, range(positions)] = 10.0  # far from all others, for draws too
    save(model, tokenizer, directory)
    return directory
