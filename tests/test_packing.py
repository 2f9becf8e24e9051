"""Packing: the tokens that go in are the tokens that come out, in order, whatever the documents and the blocks."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig, RobertaForMaskedLM

from hfkit import packing
from hfkit.errors import DataError, UsageError
from hfkit.models import max_tokens
from tiny_models import make_causal_model, make_word_tokenizer

TOKENIZER = make_word_tokenizer()
MODEL = make_causal_model(positions=64)
EOS = TOKENIZER.eos_token_id

documents_of_words = st.lists(st.lists(st.integers(0, 49), max_size=30), min_size=1, max_size=12)


def dataset_of(documents):
    return Dataset.from_dict({"text": [" ".join(f"w{word}" for word in words) for words in documents]})


def pack(documents, *, tokenizer=TOKENIZER, block_size=8, prefix=(), suffix=(), end=EOS):
    return packing.pack(
        dataset_of(documents), tokenizer, MODEL, block_size=block_size, prefix=prefix, suffix=suffix, end=end
    )


def blocks_of(rows):
    return [rows[index]["input_ids"].tolist() for index in range(len(rows))]


@settings(max_examples=60, deadline=None)
@given(documents_of_words, st.integers(2, 40), st.integers(1, 60))
def test_every_token_comes_out_once_in_order(documents, block_size, batch_characters):
    expected = [token for words in documents for token in [*(word + 1 for word in words), EOS]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BATCH_CHARACTERS", batch_characters)  # documents in many calls of the tokenizer
        if len(expected) < 2:
            with pytest.raises(DataError, match="fewer than two tokens"):
                pack(documents, block_size=block_size)
            return
        rows = pack(documents, block_size=block_size)
    blocks = blocks_of(rows)
    assert [token for block in blocks for token in block] == expected
    assert sum(block.count(EOS) for block in blocks) == len(documents)
    assert all(len(block) == block_size for block in blocks[:-1])
    assert 1 <= len(blocks[-1]) <= block_size
    assert rows.lengths.tolist() == [len(block) for block in blocks]


@settings(max_examples=60, deadline=None)
@given(documents_of_words, st.integers(4, 40), st.integers(0, 2), st.integers(0, 1))
def test_prefix_and_suffix_enclose_every_block_and_count_as_its_length(documents, block_size, num_before, num_after):
    before, after = [48, 49][:num_before], [47][:num_after]
    inner = [token for words in documents for token in [*(word + 1 for word in words), EOS]]
    if len(inner) < 2:
        return
    rows = pack(documents, block_size=block_size, prefix=before, suffix=after)
    blocks = blocks_of(rows)
    assert all(block[:num_before] == before and block[len(block) - num_after :] == after for block in blocks)
    assert [token for block in blocks for token in block[num_before : len(block) - num_after]] == inner
    assert all(len(block) == block_size for block in blocks[:-1])
    assert rows.lengths.tolist() == [len(block) for block in blocks]


def test_last_block_is_the_short_one_and_kept():
    assert blocks_of(pack([range(5), range(3)], block_size=4)) == [[1, 2, 3, 4], [5, EOS, 1, 2], [3, EOS]]


def test_text_that_fills_its_blocks_leaves_no_empty_one():
    assert blocks_of(pack([range(3), range(3)], block_size=4)) == [[1, 2, 3, EOS], [1, 2, 3, EOS]]


def test_without_an_end_token_documents_follow_each_other():
    assert blocks_of(pack([range(3), range(2)], block_size=4, end=None)) == [[1, 2, 3, 1], [2]]


@pytest.mark.parametrize(("num_words", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.uint32)])
def test_ids_take_two_bytes_while_they_fit(num_words, dtype):
    tokenizer = make_word_tokenizer(num_words)
    last = num_words - 1
    rows = pack([[last, 0, last]], tokenizer=tokenizer, block_size=8)
    assert rows.store.tokens.dtype == dtype
    assert rows[0]["input_ids"].tolist() == [num_words, 1, num_words, EOS]


def test_block_longer_than_the_positions_is_refused():
    with pytest.raises(UsageError, match=r"data\.block_size 65 .* 64 positions \(fix: --block-size 64\)"):
        pack([range(9)], block_size=65)


def test_without_a_block_size_a_small_model_gets_blocks_of_its_own_length():
    rows = pack([[0] * 200], block_size=None)
    assert rows.lengths.tolist() == [64, 64, 64, 9]


def test_block_without_room_for_text_is_refused():
    with pytest.raises(UsageError, match="block_size 3 has no room"):
        pack([range(9)], block_size=3, prefix=[1, 2], suffix=[3])


def test_roberta_has_fewer_positions_than_its_config_says():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = RobertaForMaskedLM(RobertaConfig(vocab_size=20, max_position_embeddings=34, pad_token_id=1, **sizes))
    assert max_tokens(model) == 32
