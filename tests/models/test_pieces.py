"""A long text in pieces has the tokens, and gives the tokenizer, of the whole text."""

import itertools

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from hfkit.data.sources import load_builtin
from hfkit.models.new_tokenizer import train_tokenizer
from hfkit.models.pieces import pieces, token_units, word_units
from hfkit.tasks import packing
from tiny_models import TEXT, tokenizer_of

CHINESE = "你好，世界！这是一个很长的句子，没有空格。" * 40

TEXTS = {
    "prose": "\n\n".join(f"{text} — naïve café, don't 1,234.5!  {number}" for number, text in enumerate(TEXT * 20)),
    "code": "def f(x):\n    return  x\t+ 1  # ok\n\n\n" * 60,
    "Chinese": CHINESE,
    "mixed": "".join(f"{a}{b} 😀👨‍👩‍👧 e\u0301\u0302 你好，世。" for a, b in itertools.product("abc \n", "xy\t ")) * 9,
    "special": "one <|endoftext|> two</s><pad>[SEP] three  <extra_id_0>" * 40,
    "blanks": " " * 400 + "a" + "\n" * 300 + "b   " * 200,
    "one word": "a" * 3000,
}  # fmt: skip

KINDS = ("gpt2", "roberta", "bert", "t5", "llama")


def whole(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [37, 300])
def test_pieces_have_the_tokens_of_the_whole(kind, name, size):
    tokenizer, text = tokenizer_of(kind), TEXTS[name]
    packing.untruncated(tokenizer)
    parts = list(pieces(text, token_units(tokenizer.backend_tokenizer), size))
    assert "".join(parts) == text
    assert [one for part in parts for one in whole(tokenizer, part).ids] == whole(tokenizer, text).ids
    if name in ("prose", "code", "mixed", "special"):
        assert len(parts) > len(text) / size / 2
    if name == "one word":
        assert len(parts) == 1


ALPHABET = st.sampled_from(
    [*"ab cé\n\t.,1'\u00a0\u200d", "  ", "你", "。", "\u0301", "😀", "👨‍👩‍👧", "<pad>", "</s>", "<|endoftext|>", "▁"]
)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(ALPHABET, min_size=40, max_size=400), kind=st.sampled_from(KINDS), size=st.integers(1, 60))
def test_any_text_in_pieces_has_its_tokens(parts, kind, size):
    tokenizer, text = tokenizer_of(kind), "".join(parts)
    packing.untruncated(tokenizer)
    cut = list(pieces(text, token_units(tokenizer.backend_tokenizer), size))
    assert "".join(cut) == text
    assert [one for part in cut for one in whole(tokenizer, part).ids] == whole(tokenizer, text).ids


@pytest.mark.parametrize("kind", ["first", "always", "llama"])
def test_a_tokenizer_that_begins_every_text_with_a_blank_is_cut_before_blanks_or_not_at_all(kind):
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "llama":  # no words: blanks are characters like any other
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    text = TEXTS["prose"]
    backend.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    )
    parts = list(pieces(text, token_units(backend), 100))
    assert [one for part in parts for one in backend.encode(part).ids] == backend.encode(text).ids
    assert len(parts) == 1 if kind == "llama" else len(parts) > 5


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5"])
def test_a_token_store_does_not_depend_on_the_pieces(kind, words, monkeypatch):
    tokenizer = tokenizer_of(kind)
    dataset = Dataset.from_dict({"text": [TEXTS["prose"], "short", "", TEXTS["mixed"]]})
    stores = []
    for size, batch in ((10**9, 10**9), (50, 200)):
        monkeypatch.setattr(packing, "PIECE", size)
        monkeypatch.setattr(packing, "BATCH_CHARACTERS", batch)
        stores.append(packing.token_store(dataset, tokenizer, end=7, words=words))
    for one, other in zip(*stores, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_a_tokenizer_learns_from_a_long_document_what_it_learns_from_the_whole(algorithm, monkeypatch):
    text = "\n\n".join(load_builtin("builtin:python-docs")["train"]["text"])[:60_000]
    monkeypatch.setattr("hfkit.models.new_tokenizer.PIECE", 10**9)
    expected = train_tokenizer([text], "gpt2", 600, algorithm).backend_tokenizer.to_str()
    monkeypatch.setattr("hfkit.models.new_tokenizer.PIECE", 2_000)
    assert train_tokenizer([text], "gpt2", 600, algorithm).backend_tokenizer.to_str() == expected


def test_a_pair_is_learned_wherever_it_stands():
    """In blocks of 10,000 characters, as long as the pieces, each block ends in x and the next one begins with q."""
    block = "q" + " ab" * 3332 + " " + "x"
    text = block[:-1].ljust(9_999) + "x"
    tokenizer = train_tokenizer([text * 40], "gpt2", 262)
    assert "Ġxq" in tokenizer.get_vocab()


def test_a_number_is_never_cut():
    """Some tokenizers count the digits of a number by threes from its beginning."""
    backend = Tokenizer(models.BPE())
    threes = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\p{N}]+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([threes, pre_tokenizers.ByteLevel(False, use_regex=False)])
    for text in ("1234567" * 500, "pi 3." + "14159265" * 90 + " and more words here " * 9 + "27182818" * 90):
        parts = list(pieces(text, word_units(backend), 100))
        found = [word for part in parts for word, _ in backend.pre_tokenizer.pre_tokenize_str(part)]
        assert found == [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def test_untrained_tokenizers_are_cut_between_their_words():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = list(pieces(TEXTS["prose"], word_units(backend), 50))
    assert len(parts) > 20
    found = [word for part in parts for word, _ in backend.pre_tokenizer.pre_tokenize_str(part)]
    assert found == [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(TEXTS["prose"])]
