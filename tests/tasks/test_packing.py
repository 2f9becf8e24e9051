"""Packing: the tokens that go in are the tokens that come out, in order, whatever the documents and the blocks."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaConfig, RobertaForMaskedLM

from hfkit.data.loading import load_source
from hfkit.errors import DataError, UsageError
from hfkit.models.config import max_tokens
from hfkit.system import console
from hfkit.tasks import packing
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


@settings(max_examples=60, deadline=None)
@given(documents_of_words, st.integers(4, 20))
def test_without_packing_no_block_holds_two_documents_and_every_token_comes_out(documents, block_size):
    if sum(map(len, documents)) < 2:
        return
    rows = packing.pack(
        dataset_of(documents), TOKENIZER, MODEL, block_size=block_size, prefix=[48], suffix=[47], packed=False
    )
    blocks = [block[1:-1] for block in blocks_of(rows)]
    expected = []
    for words in documents:
        ids = [word + 1 for word in words]
        expected += [ids[start : start + block_size - 2] for start in range(0, len(ids), block_size - 2)]
    assert blocks == expected
    assert rows.lengths.tolist() == [len(block) + 2 for block in blocks]


def test_blocks_know_where_documents_begin():
    rows = pack([range(5), [], range(3)], block_size=4, prefix=[48])
    assert blocks_of(rows) == [[48, 1, 2, 3], [48, 4, 5, EOS], [48, EOS, 1, 2], [48, 3, EOS]]
    assert [rows[index]["starts"].tolist() for index in range(4)] == [[], [], [2], []]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A data set in a file, and an empty cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("w1 w2 w3\n\nw4 w5\n\nw6 w7 w8 w9")
    return load_source([str(tmp_path / "text.txt")], "blank-line")


def stores(tmp_path):
    return sorted((tmp_path / "cache" / "hfkit").glob("tokens-*"))


def test_tokens_of_a_file_are_made_once_and_mapped(corpus, tmp_path, capsys):
    console.begin()
    rows = [packing.pack(corpus, TOKENIZER, MODEL, block_size=8, end=EOS) for _ in range(2)]
    assert capsys.readouterr().err == "tokens: 12 of 3 documents, none dropped, in 2 blocks of 8\n"  # said once
    assert len(stores(tmp_path)) == 1
    for store in (row.store for row in rows):
        assert isinstance(store.tokens, np.memmap)
        assert store.tokens.tolist() == [2, 3, 4, 0, 5, 6, 0, 7, 8, 9, 10, 0]
        assert store.starts.tolist() == [0, 4, 7]
        assert store.num_bytes == 8 + 5 + 11
    assert (stores(tmp_path)[0] / "tokens.npy").stat().st_size == 128 + 2 * 12  # numpy's header and two bytes a token


def test_tokens_are_known_by_text_tokenizer_and_options(corpus, tmp_path):
    packing.token_store(corpus, TOKENIZER, end=EOS)
    packing.token_store(corpus, TOKENIZER)
    packing.token_store(corpus, make_word_tokenizer(51), end=EOS)
    packing.token_store(corpus, TOKENIZER, end=EOS, words=True)
    packing.token_store(corpus.select([0, 2]), TOKENIZER, end=EOS)
    assert len(stores(tmp_path)) == 5
    (tmp_path / "again.txt").write_text("w1 w2 w3\n\nw4 w5\n\nw6 w7 w8 w9")
    packing.token_store(load_source([str(tmp_path / "again.txt")], "blank-line"), TOKENIZER, end=EOS)
    assert len(stores(tmp_path)) == 5


@pytest.mark.parametrize("name", ["tokens.npy", "starts.npy", "store.json"])
def test_damaged_tokens_are_made_again(name, corpus, tmp_path, capsys):
    whole = packing.token_store(corpus, TOKENIZER, end=EOS).tokens.tolist()
    path = stores(tmp_path)[0] / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert packing.token_store(corpus, TOKENIZER, end=EOS).tokens.tolist() == whole
    assert "are damaged and are made again" in capsys.readouterr().err
    packing.token_store(corpus, TOKENIZER, end=EOS)
    assert capsys.readouterr().err == ""


def test_a_limit_in_the_tokenizer_cuts_nothing():
    tokenizer = make_word_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert blocks_of(pack([range(5)], tokenizer=tokenizer, block_size=8)) == [[1, 2, 3, 4, 5, EOS]]


def test_less_text_than_one_block_is_one_short_block_and_said(corpus, capsys):
    rows = packing.pack(corpus, TOKENIZER, MODEL, block_size=64, end=EOS)
    assert rows.lengths.tolist() == [12]
    assert "warning: that is less than one block of 64 tokens (fix: --block-size 6" in capsys.readouterr().err
