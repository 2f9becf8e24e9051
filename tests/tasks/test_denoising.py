"""Span corruption loses nothing, hides what T5's formula says, and teaches an encoder-decoder."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import hfkit
from hfkit import settings as recipes
from hfkit.cli.main import main
from hfkit.data.labels import IGNORED
from hfkit.errors import ModelError, UsageError
from hfkit.evaluation.inference import predict_rows
from hfkit.tasks import TASKS
from hfkit.tasks.denoising import noise, segments
from one_step import GRADIENT
from tiny_models import make_bert, make_gpt2, make_word_tokenizer, spread

DENOISING = TASKS["denoising"]
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, this is a tiny model",
    "the lazy dog jumps over the tiny fox",
    "this is a quick model, hello",
    "a brown world is over",
    "the model jumps over the world",
]


def make_tokenizer(num_words=60, num_sentinels=100):
    """Words w0, w1, ... of one token each, <pad>, </s> and `num_sentinels` sentinels, in T5's descending order."""
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(num_sentinels))]
    names = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(num_words)), *sentinels]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=sentinels, **special)


def make_model(vocabulary=192):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **sizes)).eval()


TOKENIZER, MODEL = make_tokenizer(), spread(make_model())
SENTINELS = [TOKENIZER.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(100)]
EOS = TOKENIZER.eos_token_id


def recipe(block_size=24, density=0.15, mean_length=3.0, **evaluation):
    data = recipes.Data(block_size=block_size, mask_probability=density, mean_span_length=mean_length)
    return recipes.Recipe(task="denoising", data=data, evaluation=recipes.Evaluation(interval=False, **evaluation))


def rows_of(num_words, **options):
    texts = [" ".join(f"w{number * number % 59}" for number in range(num_words))]
    return DENOISING.encode(Dataset.from_dict({"text": texts}), TOKENIZER, MODEL, recipe(**options))


def restored(example):
    """The text that inputs and target hold together, and the lengths of the spans."""
    inputs, target = example["input_ids"].tolist(), example["labels"].tolist()
    assert inputs.pop() == target.pop() == EOS
    assert target.pop() in SENTINELS  # the one that closes the target
    spans = {}
    for token in target:
        if token in SENTINELS:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    assert list(spans) == SENTINELS[: len(spans)] == [token for token in inputs if token in SENTINELS]
    assert example["labels"][-2] == SENTINELS[len(spans)]
    text = [part for token in inputs for part in spans.get(token, [token])]
    return text, [len(span) for span in spans.values()]


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 90), st.integers(2, 60), st.floats(0.01, 0.99), st.floats(1, 12), st.integers(0, 2**32 - 1))
def test_inputs_and_target_give_back_the_text(num_words, block_size, density, mean_length, seed):
    rows = rows_of(num_words, block_size=block_size, density=density, mean_length=mean_length)
    text = []
    for index in range(len(rows)):
        row = rows.blocks[index]
        example = rows.example(index, np.random.default_rng((seed, index)))
        tokens, spans = restored(example)
        assert tokens == row["input_ids"][:-1].tolist()
        assert all(length > 0 for length in spans)
        assert len(example["input_ids"]) == rows.lengths[index] <= block_size
        assert example["decoder_input_ids"].tolist() == [0, *example["labels"][:-1]]
        text += tokens
    assert text == [TOKENIZER.convert_tokens_to_ids(f"w{number * number % 59}") for number in range(num_words)] + [EOS]


@pytest.mark.parametrize(
    ("num_tokens", "density", "mean_length", "expected"),
    [
        (512, 0.15, 3.0, (77, 26)),  # T5's own setting
        (568, 0.15, 3.0, (85, 28)),  # raw tokens of its 512 inputs (random_spans_helper of the T5 code)
        (20, 0.15, 3.0, (3, 1)),
        (10, 0.5, 5.0, (5, 1)),
        (10, 0.5, 1.0, (5, 5)),
        (10, 0.9, 1.0, (9, 1)),  # text comes before every span, and there is one token of it
        (2, 0.01, 3.0, (1, 1)),
        (2, 0.99, 3.0, (1, 1)),
        (1, 0.15, 3.0, (0, 0)),
    ],
)
def test_shares_are_those_of_t5(num_tokens, density, mean_length, expected):
    assert noise(num_tokens, density, mean_length) == expected


def test_every_block_hides_exactly_the_share():
    rows = rows_of(900, block_size=101)
    for index in range(len(rows) - 1):
        _, spans = restored(rows.example(index, np.random.default_rng(index)))
        assert (sum(spans), len(spans)) == (15, 5)


def test_every_division_into_spans_is_equally_likely():
    counts = Counter(tuple(segments(6, 3, np.random.default_rng(seed))) for seed in range(3000))
    divisions = {(a, b, 6 - a - b) for a in range(1, 5) for b in range(1, 6 - a)}
    assert set(counts) == divisions
    expected = 3000 / len(divisions)
    assert all(abs(count - expected) < 4.5 * math.sqrt(expected) for count in counts.values())


def test_block_of_one_token_hides_nothing():
    rows = rows_of(5, block_size=6)  # five words, then EOS alone
    example = rows.example(1, np.random.default_rng(0))
    assert example["input_ids"].tolist() == [EOS, EOS]
    assert example["labels"].tolist() == [SENTINELS[0], EOS]


def test_padding_is_no_label_and_the_decoder_starts_where_the_model_says():
    rows = rows_of(50)
    examples = [rows.example(index, np.random.default_rng(index)) for index in (0, 2)]
    batch = DENOISING.collate(examples, TOKENIZER)
    assert set(batch) == {"input_ids", "attention_mask", "decoder_input_ids", "labels"}
    for row, example in enumerate(examples):
        length, target = len(example["input_ids"]), len(example["labels"])
        assert batch["input_ids"][row, :length].tolist() == example["input_ids"].tolist()
        assert batch["attention_mask"][row].sum() == length
        assert batch["labels"][row, :target].tolist() == example["labels"].tolist()
        assert (batch["labels"][row, target:] == IGNORED).all()
    labels = batch["labels"]
    shifted = MODEL._shift_right(labels)
    assert (shifted[:, 0] == 0).all()
    assert torch.equal(shifted[labels != IGNORED], batch["decoder_input_ids"][labels != IGNORED])


@pytest.mark.portable
def test_loss_is_that_of_the_model_itself():
    rows = rows_of(50)
    batch = DENOISING.collate([rows.example(i, np.random.default_rng(i)) for i in range(len(rows))], TOKENIZER)
    expected = MODEL(**{name: tensor for name, tensor in batch.items() if name != "decoder_input_ids"}).loss.item()
    labels = batch.pop("labels")
    assert DENOISING.loss(MODEL(**batch), labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.portable
def test_scores_agree_with_a_direct_computation_for_every_batch_size():
    rows, nll, right, count = rows_of(200), 0.0, 0, 0
    for index in range(len(rows)):
        example = rows.example(index, np.random.default_rng((5, index)))
        inputs, target = (torch.tensor(example[name])[None] for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = MODEL(input_ids=inputs, labels=target).logits[0].double()
        nll -= torch.log_softmax(logits, -1).gather(1, target[0][:, None]).sum().item()
        right += int((logits.argmax(-1) == target[0]).sum())
        count += target.shape[1]
    for batch_size in (1, 8, 32):
        reduced, _ = predict_rows(DENOISING, MODEL, TOKENIZER, rows, batch_size=batch_size, seed=5)
        scores = DENOISING.scores(reduced, None, rows, recipe(seed=5).evaluation)
        assert scores["nll"].n == count
        assert scores["nll"].value == pytest.approx(nll / count, rel=1e-5)
        assert scores["perplexity"].value == pytest.approx(math.exp(nll / count), rel=1e-4)
        assert scores["token_accuracy"].value == right / count


def test_tokenizer_without_sentinels_is_refused():
    with pytest.raises(ModelError, match=r"lacks the sentinels <extra_id_0>.*\(fix: --model-type t5"):
        DENOISING.encode(Dataset.from_dict({"text": ["w1 w2"]}), make_word_tokenizer(), MODEL, recipe())


def test_blocks_with_more_spans_than_sentinels_are_refused():
    text = Dataset.from_dict({"text": ["w1 " * 200]})
    with pytest.raises(UsageError, match="blocks of 101 tokens need 6 sentinels, the tokenizer has 5"):
        DENOISING.encode(text, make_tokenizer(num_sentinels=5), MODEL, recipe(101))
    DENOISING.encode(text, make_tokenizer(num_sentinels=6), MODEL, recipe(101))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`rows.txt` with a document a paragraph, and a tiny T5 with a tokenizer of these texts."""
    folder = tmp_path_factory.mktemp("denoising")
    (folder / "rows.txt").write_text("\n\n".join(TEXTS) + "\n")
    (folder / "broken.txt").write_bytes(b"caf\xe9")  # reading it ends in a DataError
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(trained_run(folder))
    tokenizer.save_pretrained(folder / "t5")
    make_model().save_pretrained(folder / "t5")
    return folder


def trained_run(folder):
    """A run of a new T5 that has learned the rows by heart, made once."""
    if not (folder / "run").exists():
        data = ["--data", str(folder / "rows.txt"), "--validation", str(folder / "rows.txt"), "--block-size", "24"]
        sizes = ["--set", "model.config.hidden_size=32", "--set", "model.config.num_hidden_layers=1"]
        steps = [
            "--max-steps",
            "200",
            "--lr",
            "1e-2",
            "--batch-size",
            "8",
            "--weight-decay",
            "0",
            "--eval-steps",
            "100",
        ]
        new = ["--vocab-size", "300", *sizes, "--output-dir", str(folder / "run")]
        assert main(["pretrain", "--objective", "denoising", *data, *steps, *new]) == 0
    return folder / "run"


@pytest.mark.portable
def test_new_t5_learns_a_handful_of_rows_and_evaluate_prints_the_same(folder, capsys):
    run = trained_run(folder)
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] > 3
    assert losses[-1] < 0.2
    capsys.readouterr()
    scores = []
    for options in ([], ["--batch-size", "1"]):
        assert main(["evaluate", str(run), *options, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["metrics"])
    results = json.loads((run / "all_results.json").read_text())
    assert {f"eval_{name}": score["value"] for name, score in scores[0].items()}.items() <= results.items()
    for name, score in scores[0].items():
        assert scores[1][name]["value"] == pytest.approx(score["value"], rel=1e-4)
    assert scores[0]["nll"]["value"] < 0.5


def test_run_of_a_new_t5_opens_and_generates(folder):
    run = trained_run(folder)
    model, info = AutoModelForSeq2SeqLM.from_pretrained(run, output_loading_info=True)
    assert not info["missing_keys"]
    config = model.config
    assert (config.d_model, config.d_kv, config.d_ff, config.num_layers, config.num_decoder_layers) == (
        32,
        16,
        128,
        1,
        1,
    )
    assert (config.use_cache, config.decoder_start_token_id) == (True, config.pad_token_id)
    tokenizer = AutoTokenizer.from_pretrained(run)
    inputs = tokenizer("the quick brown fox <extra_id_0> the lazy dog", return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=20)[0].tolist()
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in (0, 1)]
    assert written[:2] == [config.pad_token_id, sentinels[0]]
    assert sentinels[1] in written


@pytest.mark.portable
def test_gradient_does_not_depend_on_accumulation(folder, tmp_path):
    """One step of plain SGD at rate 1: the change of the weights is the gradient."""
    weights = {}
    for rows, passes in [(16, 1), (4, 4)]:
        wanted = {
            "task": "denoising",
            "model.name": str(folder / "t5"),
            "data.train": [str(folder / "rows.txt")],
            "data.validation_split": 0.0,
            "data.block_size": 40,  # the last block is a short one, with fewer labels
            "train.output_dir": str(tmp_path / f"run-{passes}"),
            **GRADIENT,
            "train.per_device_train_batch_size": rows,
            "train.gradient_accumulation_steps": passes,
        }
        hfkit.train(hfkit.load_recipe("pretrain", **wanted))
        weights[passes] = load_file(tmp_path / f"run-{passes}" / "model.safetensors")
    before = load_file(folder / "t5" / "model.safetensors")
    assert max((weights[1][name] - before[name]).abs().max().item() for name in before) > 1e-2
    for name, tensor in weights[1].items():
        torch.testing.assert_close(tensor, weights[4][name], rtol=0, atol=1e-6)  # 1e-7 apart


@pytest.mark.parametrize(("make", "model_type"), [(make_gpt2, "gpt2"), (make_bert, "bert")])
def test_model_that_is_no_encoder_decoder_is_refused_before_data_is_read(make, model_type, folder, tmp_path, capsys):
    data = ["--data", str(folder / "broken.txt")]
    for model in (["--model", str(make(tmp_path / model_type))], ["--model-type", model_type]):
        assert main(["pretrain", "--objective", "denoising", *model, *data]) == 2
        assert f"{model_type} models have no Seq2SeqLM head" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["clm", "mlm", "mlm-nsp"])
def test_t5_learns_no_other_objective(objective, folder, capsys):
    data = ["--data", str(folder / "broken.txt")]
    assert main(["pretrain", "--objective", objective, "--model", str(folder / "t5"), *data]) == 2
    assert "t5 models have no" in capsys.readouterr().err
