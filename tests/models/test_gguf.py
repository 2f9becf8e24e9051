"""A GGUF file becomes a plain model with the same weights and the same words."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfkit.cli.main import main
from tiny_models import make_gpt2

WIDTH, HEADS, LAYERS, INNER = 32, 2, 2, 64
OWN_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Llama of random weights in a GGUF file, as llama.cpp's converter writes one, and its tensors by their names."""
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = AutoTokenizer.from_pretrained(make_gpt2(folder / "gpt2"))
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    draw = np.random.default_rng(0)

    def matrix(*shape):
        return draw.normal(0, 0.3, shape).astype(np.float32)

    tensors = {"token_embd.weight": matrix(len(tokens), WIDTH), "output.weight": matrix(len(tokens), WIDTH)}
    tensors["output_norm.weight"] = 1 + matrix(WIDTH)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{layer}.{name}.weight"] = matrix(WIDTH, WIDTH)
        for name, shape in {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}.items():
            tensors[f"blk.{layer}.{name}.weight"] = matrix(*shape)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = 1 + matrix(WIDTH)
    file = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        add(tokenizer.eos_token_id)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, tensors, tokenizer


def test_a_gguf_file_becomes_a_plain_model(made, tmp_path, capsys):
    file, tensors, tokenizer = made
    plain = tmp_path / "plain"
    assert main(["export", str(file), "--output-dir", str(plain)]) == 0
    assert capsys.readouterr().out == f"{plain}\n"
    model = AutoModelForCausalLM.from_pretrained(plain)
    weights = model.state_dict()
    assert not hasattr(model.config, "quantization_config")
    assert torch.equal(weights["model.embed_tokens.weight"], torch.from_numpy(tensors["token_embd.weight"]))
    for layer in range(LAYERS):
        for name, own in OWN_NAMES.items():
            if name in ("attn_q", "attn_k"):  # llama.cpp orders their rows for its own rotation
                continue
            expected = torch.from_numpy(tensors[f"blk.{layer}.{name}.weight"])
            assert torch.equal(weights[f"model.layers.{layer}.{own}.weight"], expected)
    text = "the quick brown fox, 你好"
    assert AutoTokenizer.from_pretrained(plain)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert main(["generate", str(plain), "--prompt", "the quick", "--max-new-tokens", "3", "--greedy"]) == 0
    capsys.readouterr()
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n\nhello world\n\nhello fox")
    line = ["pretrain", "--model", str(plain), "--data", str(text), "--documents", "blank-line", "--max-steps", "2"]
    assert main([*line, "--block-size", "16", "--output-dir", str(tmp_path / "run")]) == 0


def test_generate_reads_a_gguf_file_or_the_plain_copy_that_it_keeps(made, tmp_path, capsys):
    file, *_ = made
    assert main(["export", str(file), "--output-dir", str(tmp_path / "plain")]) == 0
    line = ["--prompt", "the quick", "--max-new-tokens", "5"]
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "plain"), *line]) == 0
    text = capsys.readouterr().out
    assert main(["generate", str(file), *line]) == 0
    captured = capsys.readouterr()
    assert captured.out == text
    assert f"{file}: its weights are unpacked each time (hfkit generate --convert DIR keeps" in captured.err
    kept, written = tmp_path / "kept", []
    for said in (f"{kept} is a plain copy of {file}, used from now on", f"using {kept}, the plain copy of {file}\n"):
        assert main(["generate", str(file), *line, "--convert", str(kept)]) == 0
        captured = capsys.readouterr()
        assert captured.out == text
        assert said in captured.err
        written.append((kept / "model.safetensors").stat().st_mtime_ns)
    assert written[0] == written[1]
    other = shutil.copy(file, tmp_path / "other.gguf")
    assert main(["generate", str(other), *line, "--convert", str(kept)]) == 2
    assert f"{kept} holds something else than a copy of {other} (fix: --convert NEW)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["evaluate", "GGUF", "--data", "text.txt"],
            5,
            "tiny.gguf: a GGUF file is made a plain model first (fix: hfkit exp",
        ),
        (["export", "nowhere.gguf", "-o", "new"], 5, "nowhere.gguf: no such file"),
        (["export", "GGUF", "-o", "new", "--merge"], 2, "tiny.gguf has no adapter to merge"),
        (["export", "broken.gguf", "-o", "new"], 5, "broken.gguf: can't be read"),
        (["generate", "broken.gguf", "--prompt", "x"], 5, "broken.gguf: can't be read"),
        (["generate", "nowhere.gguf", "--prompt", "x", "--convert", "new"], 5, "nowhere.gguf: no such file"),
        (
            ["generate", "GGUF", "--prompt", "x", "--convert", "."],
            2,
            "tiny.gguf (fix: --convert NEW)",
        ),
        (
            ["generate", ".", "--prompt", "x", "--convert", "new"],
            2,
            "--convert makes plain models of GGUF files, and . is none",
        ),
    ],
)
def test_what_can_not_be_done_with_a_gguf_file_is_said(arguments, code, said, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "text.txt").write_text("hello world")
    assert main([str(made[0]) if word == "GGUF" else word for word in arguments]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
