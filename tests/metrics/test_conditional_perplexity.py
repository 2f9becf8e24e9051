"""Perplexity of targets given their sources equals one pass of an encoder-decoder over each pair alone."""

import json
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import hfkit
from hfkit.cli.main import main
from hfkit.errors import DataError, ModelError, UsageError
from hfkit.metrics.perplexity import measure_targets
from tiny_models import make_gpt2, spread
from tiny_models import make_word_text as text


def make_tokenizer(template):
    """Words w0, w1, ... of one token each, and special tokens around them as `template` has it."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    names = [*special.values(), *(f"w{number}" for number in range(50))]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 2), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def make_t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=64, decoder_start_token_id=0, **sizes))


def make_bart(positions=20):
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": positions}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 1}
    return BartForConditionalGeneration(BartConfig(vocab_size=64, **sizes, **layers, **special))


T5 = make_tokenizer("$A </s>"), spread(make_t5()).eval()
BART = make_tokenizer("<s> $A </s>"), spread(make_bart(), seed=1).eval()
SOURCES = [text(3 + 5 * number % 13, start=number) for number in range(40)]
TARGETS = [text(1 + 7 * number % 11, start=number + 5) for number in range(40)]


def nats(tokenizer, model, source, target):
    """Nats of the words of the target, from one pass over this pair."""
    ids = [tokenizer.convert_tokens_to_ids(word) for word in target.split()]
    before = [model.config.decoder_start_token_id]
    if model.config.model_type == "bart":
        before.append(tokenizer.bos_token_id)
    inputs = torch.tensor([tokenizer(source)["input_ids"]])
    with torch.inference_mode():
        logits = model(input_ids=inputs, decoder_input_ids=torch.tensor([[*before, *ids[:-1]]])).logits[0].double()
    losses = -torch.log_softmax(logits[len(before) - 1 :], -1)[torch.arange(len(ids)), torch.tensor(ids)]
    return losses.sum().item()


@pytest.mark.parametrize(("tokenizer", "model"), [T5, BART], ids=["t5", "bart"])
def test_numbers_are_those_of_a_direct_computation_for_every_batch_size(tokenizer, model):
    each = [nats(tokenizer, model, *pair) for pair in zip(SOURCES, TARGETS, strict=True)]
    count = sum(len(target.split()) for target in TARGETS)
    num_bytes = sum(map(len, TARGETS))
    for batch_size in (1, 7, 32):
        found = measure_targets(model, tokenizer, SOURCES, TARGETS, batch_size=batch_size)
        assert [row["nll"] for row in found.rows()] == pytest.approx(each, rel=1e-6)
        assert [row["tokens"] for row in found.rows()] == [len(target.split()) for target in TARGETS]
        scores = found.scores(interval=False, seed=0)
        assert {score.n for score in scores.values()} == {count}
        assert scores["nll"].value == pytest.approx(sum(each) / count, rel=1e-6)
        assert scores["perplexity"].value == pytest.approx(math.exp(sum(each) / count), rel=1e-6)
        assert scores["bits_per_byte"].value == pytest.approx(sum(each) / math.log(2) / num_bytes, rel=1e-6)
        assert scores["bits_per_character"].value == scores["bits_per_byte"].value
        assert scores["word_perplexity"].value == pytest.approx(math.exp(sum(each) / count), rel=1e-6)
    backwards = measure_targets(model, tokenizer, SOURCES[::-1], TARGETS[::-1]).scores(interval=False, seed=0)
    assert backwards["nll"].value == pytest.approx(sum(each) / count, rel=1e-6)


def test_the_source_matters():
    tokenizer, model = T5
    right, wrong = (
        measure_targets(model, tokenizer, sources, TARGETS).scores(interval=False, seed=0)["nll"].value
        for sources in (SOURCES, SOURCES[1:] + SOURCES[:1])
    )
    assert abs(right / wrong - 1) > 1e-3


def test_what_is_too_long_is_cut_counted_and_said(capsys):
    """BART's 20 positions: 18 words between two special tokens; T5 has no limit but the one that is asked for."""
    tokenizer, model = BART
    sources, targets = [text(30), text(18, 3), text(5)], [text(4), text(25, 2), text(18, 7)]
    found = measure_targets(model, tokenizer, sources, targets)
    said = capsys.readouterr().err
    assert "1 of 3 sources are longer than 20 tokens: the last 12 tokens of them are not read" in said
    assert "1 of 3 targets are longer than 20 tokens: the last 7 tokens of them are not read" in said
    assert "40 tokens scored, 7 not, 1 of 3 sources cut" in found.how
    scored = [" ".join(target.split()[:18]) for target in targets]
    read = [" ".join(source.split()[:18]) for source in sources]
    expected = [nats(tokenizer, model, *pair) for pair in zip(read, scored, strict=True)]
    assert [row["nll"] for row in found.rows()] == pytest.approx(expected, rel=1e-6)
    assert [row["bytes"] for row in found.rows()] == [len(target) for target in scored]
    with pytest.raises(UsageError, match=r"max_length 21 is longer than the model's 20 positions"):
        measure_targets(model, tokenizer, sources, targets, max_length=21)

    tokenizer, model = T5
    found = measure_targets(model, tokenizer, sources, targets, max_length=19)
    assert "47 tokens scored, 0 not, 1 of 3 sources cut" in found.how
    expected = [nats(tokenizer, model, *pair) for pair in zip(read, targets, strict=True)]
    assert [row["nll"] for row in found.rows()] == pytest.approx(expected, rel=1e-6)
    assert "0 of 3 sources cut" in measure_targets(model, tokenizer, sources, targets).how


def test_empty_texts():
    tokenizer, model = T5
    found = measure_targets(model, tokenizer, ["", "w1"], ["w2 w3", ""])
    assert [row["tokens"] for row in found.rows()] == [2, 0]
    assert found.rows()[1]["perplexity"] is None
    assert found.rows()[0]["nll"] == pytest.approx(nats(tokenizer, model, "", "w2 w3"), rel=1e-6)
    with pytest.raises(DataError, match="every target is empty"):
        measure_targets(model, tokenizer, ["w1"], [""])
    with pytest.raises(DataError, match="row 2: the source is empty"):
        measure_targets(model, make_tokenizer("$A"), ["w1", ""], ["w2", "w3"])


def test_model_that_answers_nan_gives_no_number():
    broken = make_t5()
    broken.lm_head.weight.data[3] = math.nan
    with pytest.raises(ModelError, match="no numbers"):
        measure_targets(broken, T5[0], ["w1"], ["w2"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    for name, (tokenizer, model) in {"t5": T5, "bart": BART}.items():
        tokenizer.save_pretrained(folder / name)
        model.save_pretrained(folder / name)
    make_gpt2(folder / "gpt2")
    rows = [
        {"document": source, "summary": target, "part": "odd" if number % 2 else "even"}
        for number, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True))
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_command_prints_what_the_function_finds_and_keeps_the_rows(folder, tmp_path, capsys):
    command = ["evaluate", "--model", str(folder / "t5"), "--data", str(folder / "pairs.jsonl"), "--json"]
    command += ["--target-column", "summary", "--text-column", "document", "--metrics", "perplexity"]
    assert main([*command, "--by", "part", "-o", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = measure_targets(T5[1], T5[0], SOURCES, TARGETS).scores(interval=True, seed=0)
    assert list(found["metrics"]) == list(expected)
    for name, score in expected.items():
        assert found["metrics"][name]["value"] == pytest.approx(score.value, rel=1e-9)
        assert found["metrics"][name]["low"] < score.value < found["metrics"][name]["high"]
    definition = found["metrics"]["perplexity"]["definition"]
    assert definition.startswith("exp(nats per token); of each target given its source, special tokens seen but not")
    assert "0 not, 0 of 40 sources cut, resampled by document; of 40 documents, so" in definition
    groups = found["by"]["groups"]
    halves = [groups[name]["perplexity"]["value"] for name in ("even", "odd")]
    assert found["by"]["gap"]["perplexity"]["value"] == pytest.approx(abs(halves[0] - halves[1]))
    rows = [json.loads(line) for line in (tmp_path / "out" / "test_predictions.jsonl").read_text().splitlines()]
    assert (rows[3]["text"], rows[3]["reference"]) == (SOURCES[3], TARGETS[3])


def test_models_are_compared_on_the_same_pairs_alone(folder, tmp_path, capsys):
    """The target alone does not say which row it is."""
    other = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    other[0]["document"] += " w1"
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    for name, data in (("one", folder / "pairs.jsonl"), ("two", tmp_path / "other.jsonl")):
        command = ["evaluate", "--model", str(folder / "t5"), "--data", str(data), "--target-column", "summary"]
        assert main([*command, "--text-column", "document", "-o", str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 3
    assert "were measured on different data" in capsys.readouterr().err


def test_python_api_takes_other_architectures(folder):
    """BART has the heads of two tasks, so the task is named."""
    settings = {
        "task": "seq2seq",
        "evaluation.metrics": ["perplexity"],
        "data.test": [str(folder / "pairs.jsonl")],
        "data.columns.target": "summary",
    }
    scores = hfkit.evaluate(str(folder / "bart"), **settings, **{"data.columns.text": "document"})
    expected = measure_targets(BART[1], BART[0], SOURCES, TARGETS).scores(interval=True, seed=0)["perplexity"]
    assert scores["perplexity"].value == pytest.approx(expected.value, rel=1e-6)
    assert (scores["perplexity"].n, scores["perplexity"].definition) == (expected.n, expected.definition)


@pytest.mark.parametrize(
    ("model", "arguments", "code", "message"),
    [
        ("t5", ["--target-column", "sumary"], 3, "has no column 'sumary', found: document, summary, part (fix: --targ"),
        (
            "gpt2",
            ["--target-column", "sumary"],
            3,
            "has no column 'sumary', found: document, summary, part (fix: --targ",
        ),
        ("gpt2", ["--max-length", "8"], 2, "--max-length has no effect for clm, it is for text-classification and"),
        ("t5", ["--target-column", "summary", "--mask-probability", "0.2"], 2, "can't tell its task from T5ForCondi"),
        ("t5", ["--task", "seq2seq", "--metrics", "token_accuracy"], 2, "unknown metric 'token_accuracy'"),
        ("t5", ["--metrics", "perplexity"], 2, "can't tell its task from T5ForConditionalGeneration (fix: --task deno"),
    ],
)
def test_what_can_not_be_measured_is_refused(folder, capsys, model, arguments, code, message):
    data = ["--data", str(folder / "pairs.jsonl"), "--text-column", "document"]
    assert main(["evaluate", "--model", str(folder / model), *data, *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_row_without_a_target_is_named(folder, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text('{"a": "w1", "b": "w2"}\n{"a": "w1", "b": null}\n')
    command = ["evaluate", "--model", str(folder / "t5"), "--data", str(tmp_path / "pairs.jsonl")]
    assert main([*command, "--target-column", "b", "--metrics", "nll", "--no-interval"]) == 0
    said = "test: 1 of 2 pairs have an empty side and are left out, first"
    assert f"{said} {tmp_path}/pairs.jsonl: line 2 (the target)" in capsys.readouterr().err
