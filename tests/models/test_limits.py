"""What configs and tokenizers hold where there is no limit of tokens is none, in every command."""

import pytest
from transformers import XLNetConfig, XLNetForSequenceClassification

from hfkit.cli.main import main
from hfkit.models.config import as_limit
from tiny_models import TEXT, tokenizer_of


@pytest.mark.parametrize(
    ("value", "limit"), [(512, 512), (1, 1), (0, None), (-1, None), (None, None), (10**30, None), (1e30, None)]
)
def test_limits(value, limit):
    assert as_limit(value) == limit


def test_a_model_without_a_limit_goes_through_every_command(tmp_path, monkeypatch, capsys):
    """XLNet's max_position_embeddings is -1."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizer_of("xlnet")
    config = XLNetConfig(vocab_size=len(tokenizer) + 10, d_model=32, n_layer=1, n_head=2, d_inner=32)
    assert config.max_position_embeddings == -1
    XLNetForSequenceClassification(config).save_pretrained("xlnet")
    tokenizer.save_pretrained("xlnet")
    rows = [f"{text.replace(',', '')},{'ab'[number % 2]}\n" for number, text in enumerate(TEXT * 4)]
    (tmp_path / "c.csv").write_text("".join(["text,label\n", *rows]), encoding="utf-8")
    for command in (
        ["data", "inspect", "c.csv", "--model", "./xlnet"],
        ["finetune", "--model", "./xlnet", "--data", "c.csv", "--plan"],
        ["finetune", "--model", "./xlnet", "--data", "c.csv", "--max-steps", "1", "-o", "run"],
        ["predict", "run", "--text", "fox"],
        ["evaluate", "run"],
    ):
        assert main(command) == 0
        assert "--max-length -1" not in capsys.readouterr().err
