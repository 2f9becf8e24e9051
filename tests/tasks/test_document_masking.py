"""Documents in one block don't see each other: packed, each has the logits and the loss that it has alone."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, GPT2Config, LlamaConfig

from hfkit import settings
from hfkit.cli.main import main
from hfkit.data.labels import IGNORED
from hfkit.errors import ModelError
from hfkit.tasks import TASKS
from tiny_models import make_word_tokenizer, spread

CLM = TASKS["clm"]
TOKENIZER = make_word_tokenizer()
DOCUMENTS = ["w1 w2 w3", "w4", "w9 w8 w7 w6 w5 w4 w3", "w2 w2", "w11 w12 w13 w14 w15 w16 w17 w18 w19 w20"]
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    ),
}


def model_of(kind, attention):
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation=attention)
    return spread(model).eval()


def batch_of(model, **data):
    recipe = settings.Recipe(task="clm", data=settings.Data(block_size=12, **data))
    rows = CLM.encode(Dataset.from_dict({"text": DOCUMENTS}), TOKENIZER, model, recipe)
    return CLM.collate([rows.example(index, None) for index in range(len(rows))], TOKENIZER)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.portable
def test_packed_logits_equal_those_of_each_document_alone(kind, attention):
    model = model_of(kind, attention)
    batch = batch_of(model)
    ids, positions, labels = batch["input_ids"], batch["position_ids"], batch["labels"]
    assert ids.tolist() == [
        [2, 3, 4, 0, 5, 0, 10, 9, 8, 7, 6, 5],
        [4, 0, 3, 3, 0, 12, 13, 14, 15, 16, 17, 18],
        [19, 20, 21, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    starts = [[0, 4, 6], [0, 2, 5], [0]]  # a document that a block cuts begins again at position 0
    assert [(row == 0).nonzero()[:, 0].tolist() for row in positions] == starts
    assert (labels == IGNORED).sum().item() == 7 + 8  # the first token of each piece, and the padding
    assert labels[2].tolist() == [IGNORED, 20, 21, 0] + [IGNORED] * 8
    model.config.use_cache = False
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions).logits
        plain = model(input_ids=ids).logits
        for row, first in enumerate(starts):
            for begin, end in zip(first, [*first[1:], ids.shape[1]], strict=True):
                alone = model(input_ids=ids[row : row + 1, begin:end]).logits[0]
                torch.testing.assert_close(packed[row, begin:end], alone, rtol=0, atol=1e-5)
        assert (packed - plain).abs().max() > 0.1  # without it they do see each other
    CLM.adapt(model, batch)  # says nothing where all is well


def test_one_document_needs_no_positions():
    model = model_of("gpt2", "sdpa")
    recipe = settings.Recipe(task="clm", data=settings.Data(block_size=4))
    rows = CLM.encode(Dataset.from_dict({"text": DOCUMENTS[-1:]}), TOKENIZER, model, recipe)
    batch = CLM.collate([rows.example(index, None) for index in range(len(rows))], TOKENIZER)
    assert set(batch) == {"input_ids", "labels"}


def test_without_it_every_token_is_predicted_from_all_before_it():
    batch = batch_of(model_of("gpt2", "sdpa"), document_masking=False)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["labels"][0].tolist() == [IGNORED, *batch["input_ids"][0, 1:].tolist()]


def test_a_model_that_can_not_keep_documents_apart_is_refused(tmp_path, capsys):
    config = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    TOKENIZER.save_pretrained(tmp_path / "bloom")
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS))
    command = ["pretrain", "--model", str(tmp_path / "bloom"), "--data", str(tmp_path / "text.txt"), "--max-steps", "1"]
    command += ["--documents", "blank-line", "--block-size", "12", "--output-dir", str(tmp_path / "run")]
    assert main(command) == 5
    assert "bloom lets the documents in one block see each other" in (error := capsys.readouterr().err)
    assert "(fix: --no-document-masking)" in error
    assert not (tmp_path / "run").exists()
    assert main([*command, "--no-document-masking"]) == 0


@pytest.mark.portable
def test_the_check_finds_documents_that_see_each_other():
    from hfkit.tasks.clm import check_document_masking

    model = model_of("llama", "sdpa")
    batch = batch_of(model)
    single = {name: tensor[2:] for name, tensor in batch.items()}  # a block of one document
    for some in (batch, single):
        model.config.use_cache = False
        check_document_masking(model, some, "--no-packing")
        model.config.use_cache = True  # what turns the library's mask off
        with pytest.raises(ModelError, match="llama lets the documents in one block see each other"):
            check_document_masking(model, some, "--no-packing")
