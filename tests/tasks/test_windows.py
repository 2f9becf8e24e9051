"""Texts and pairs are tokenized once; what is truncated or divided equals what the tokenizer itself makes of them."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

import tiny_models
from hfkit.errors import DataError, UsageError
from hfkit.settings import Data, Recipe
from hfkit.tasks.windows import EncodedTexts
from tiny_models import TEXT

KINDS = ("bert", "roberta", "deberta-v2", "xlnet", "gpt2")  # special tokens: around, doubled, Unigram, at the end, none
WORDS = [*{word for text in TEXT for word in text.split()}, "数据", "🦊🦊", "é", "  ", "xyzzy"]
MODEL = BertForSequenceClassification(
    BertConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
)


def tokenizer_of(kind, side="right"):
    tokenizer = tiny_models.tokenizer_of(kind)
    tokenizer.truncation_side = side
    return tokenizer


def encoded(tokenizer, texts, pairs=None, **data):
    columns = {"text": texts} | ({} if pairs is None else {"text_pair": pairs})
    return EncodedTexts(Dataset.from_dict(columns), tokenizer, MODEL, Recipe(data=Data(**data)))


def examples_of(rows):
    names = ("input_ids", "token_type_ids")
    return [{name: value for name, value in rows.example(index).items() if name in names} for index in range(len(rows))]


def own_examples(tokenizer, *texts, **options):
    found = tokenizer(*texts, return_attention_mask=False, **options)
    return [
        {name: found[name][index] for name in ("input_ids", "token_type_ids") if name in found}
        for index in range(len(found["input_ids"]))
    ]


texts = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.booleans(), st.integers(8, 40))
def test_truncated_texts_are_those_of_the_tokenizer(kind, side, rows, is_pair, limit):
    tokenizer = tokenizer_of(kind, side)
    columns = [list(column) for column in zip(*rows, strict=True)][: 1 + is_pair]
    made = encoded(tokenizer, *columns, max_length=limit, allow_truncation=True)
    own = own_examples(tokenizer, *columns, truncation=True, max_length=limit)
    assert examples_of(made) == own
    assert made.lengths.tolist() == [len(one["input_ids"]) for one in own]
    whole = own_examples(tokenizer, *columns, verbose=False)
    assert made.longest == max(len(one["input_ids"]) for one in whole)
    assert made.was_cut.tolist() == made.is_long.tolist() == [len(one["input_ids"]) > limit for one in whole]


@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), st.integers(10, 40), st.integers(0, 5))
def test_windows_are_those_of_the_tokenizer(kind, rows, limit, overlap):
    tokenizer = tokenizer_of(kind)
    made = encoded(tokenizer, rows, max_length=limit, long_documents="window", window_overlap=overlap)
    options = {"truncation": True, "max_length": limit, "stride": overlap, "return_overflowing_tokens": True}
    assert examples_of(made) == own_examples(tokenizer, rows, **options)
    owners = tokenizer(rows, **options)["overflow_to_sample_mapping"]
    assert made.owners.tolist() == owners
    assert not made.was_cut.any()


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_pairs_are_those_of_the_tokenizer(kind):
    tokenizer = tokenizer_of(kind)
    first, second = ["the fox", "a dog"], [" ".join(WORDS * 2), "the lazy dog"]
    made = encoded(tokenizer, first, second, max_length=30, long_documents="window", window_overlap=2)
    options = {"truncation": "only_second", "max_length": 30, "stride": 2, "return_overflowing_tokens": True}
    assert examples_of(made) == own_examples(tokenizer, first, second, **options)
    assert len(made) > 3


def test_a_pair_that_leaves_a_window_less_room_than_the_overlap_is_refused():
    tokenizer = tokenizer_of("bert")
    long = " ".join(["fox"] * 60)
    with pytest.raises(DataError, match="a first text of a pair fills a whole window of 20 tokens"):
        encoded(tokenizer, ["fox " * 12], [long], max_length=20, long_documents="window", window_overlap=8)
    with pytest.raises(UsageError, match=r"data.window_overlap 18: a window has room for 17 tokens"):
        encoded(tokenizer, ["fox"], [long], max_length=20, long_documents="window", window_overlap=18)


def test_a_data_set_is_tokenized_once(tmp_path, monkeypatch):
    """Whatever is truncated or divided later, and by whichever run: the tokens are one memory map on the disk."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"text": ["the quick brown fox " * 20, "a dog"] * 50}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "data")
    dataset = datasets.load_from_disk(tmp_path / "data")
    tokenizer = tokenizer_of("bert")
    limits = [{"max_length": 16}, {"max_length": 16, "long_documents": "window"}, {"max_length": 500}]
    made = [EncodedTexts(dataset, tokenizer, MODEL, Recipe(data=Data(**data))) for data in limits]
    (folder,) = (tmp_path / "cache" / "hfkit").glob("tokens-*[!k]")
    assert {path.name for path in folder.iterdir()} == {"tokens.npy", "starts.npy", "store.json"}
    for one in made:
        assert isinstance(one.stores[0].tokens, np.memmap)
        assert Path(one.stores[0].tokens.filename) == folder / "tokens.npy"
