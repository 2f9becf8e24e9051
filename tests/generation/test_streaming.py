"""Streaming: the parts of a text, as they come, are the text that there is at the end, for every kind of tokenizer."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hfkit
from hfkit.generation.generator import load_generator
from hfkit.models.new_tokenizer import train_tokenizer
from tiny_models import TEXT, make_speaker, make_word_tokenizer

ENGLISH = "the quick brown fox, this is a tiny model!"
WORLD = "hello 你好，世界 😀👩‍👩‍👧 שלום عالم né"


def llama_like():
    """Bytes for characters that it has no entry for, and a blank before the first word, as SentencePiece does it."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz,!"]
    backend = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def words():
    tokenizer = make_word_tokenizer()
    tokenizer.add_tokens(["the", "quick", "brown", "fox,", "this", "is", "a", "tiny", "model!"])
    return tokenizer


def cleaned():
    """Its `decode` takes the blank before punctuation away, as old BERT tokenizers' does."""
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["</s>", "hi", ",", "you", "!"])}))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=True)


CORPUS = [*TEXT, ENGLISH, WORLD] * 3
TOKENIZERS = {
    "byte-level bpe": lambda: train_tokenizer(CORPUS, "gpt2", 300),
    "byte-level bpe with merges": lambda: train_tokenizer(CORPUS, "roberta", 400),
    "wordpiece": lambda: train_tokenizer(CORPUS, "bert", 300),
    "wordpiece with case": lambda: train_tokenizer(CORPUS, "gpt2", 300, "wordpiece"),
    "unigram": lambda: train_tokenizer(CORPUS, "gpt2", 300, "unigram"),
    "t5": lambda: train_tokenizer(CORPUS, "t5", 300),
    "char": lambda: train_tokenizer(CORPUS, "gpt2", 300, "char"),
    "byte fallback": llama_like,
}


def answered(directory, tokenizer, text, prompt="the fox", stop=()):
    """The parts that were streamed, and the answer, of a model that says `text` after `prompt`."""
    before = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    make_speaker(directory, tokenizer, [ids[0]] * (before - 1) + ids + end + [ids[0]])
    settings = {"model.name": str(directory), "generation.stop": list(stop), "generation.max_new_tokens": len(ids)}
    generator = load_generator(hfkit.load_recipe("generate", **settings))
    parts: list[str] = []
    ((answer,),) = generator.batch([0], [generator.encode(prompt)], write=parts.append)
    return parts, answer


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_parts_are_the_text_whole_characters_each(tmp_path, kind):
    parts, answer = answered(tmp_path, TOKENIZERS[kind](), WORLD)
    assert "".join(parts) == answer.text
    assert len(parts) > 5
    assert not any("�" in part for part in parts)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_nothing_of_a_stop_string_is_streamed_though_tokens_end_within_it(tmp_path, kind):
    tokenizer = TOKENIZERS[kind]()
    stops = ["x, th", "own fox, thiz", "never"]
    parts, answer = answered(tmp_path, tokenizer, ENGLISH, stop=stops)
    assert "".join(parts) == answer.text
    assert answer.finish_reason == "stop"
    assert "".join(parts) == answer.text
    assert answer.text.endswith("brown fo") or answer.text.endswith("brown f")


def test_text_that_only_looked_like_a_stop_string_is_streamed_after_all(tmp_path):
    parts, answer = answered(
        tmp_path, train_tokenizer(CORPUS, "gpt2", 300, "char"), "a tiny tint", stop=["tinz", "int!"]
    )
    assert answer.finish_reason == "length"
    assert answer.text == "a tiny tint"
    assert "".join(parts) == answer.text
    assert parts[:3] == ["a", " ", "tiny"]  # what might have become tinz came at once when it could not any more


def test_words_without_a_decoder_are_streamed_with_their_blanks(tmp_path):
    parts, answer = answered(tmp_path, words(), ENGLISH, prompt="w1 w2")
    assert answer.text == " " + ENGLISH
    assert "".join(parts) == answer.text


def test_blanks_that_decoding_takes_away_are_not_streamed(tmp_path):
    parts, answer = answered(tmp_path, cleaned(), "hi, you! hi", prompt="hi")
    assert answer.text == " hi, you! hi"
    assert "".join(parts) == answer.text
