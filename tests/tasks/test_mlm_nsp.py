"""Pairs are true or random in equal parts, whole, and never from one place; the loss is exact over a step."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast

import hfkit
from hfkit import settings as recipes
from hfkit.cli.main import main
from hfkit.data.labels import IGNORED
from hfkit.errors import DataError
from hfkit.evaluation.inference import predict_rows
from hfkit.tasks import TASKS
from hfkit.tasks.base import LossOptions
from one_step import GRADIENT
from tiny_models import make_bert, make_gpt2, spread

NSP = TASKS["mlm-nsp"]
SPECIAL = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "cls", "sep", "mask", "unk")}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DOCUMENTS = [
    ["the quick brown fox", "jumps over", "the lazy dog"],
    ["hello world", "this is a tiny model", "hello lazy fox", "quick quick dog"],
    ["a brown world", "is over the model"],
    ["the model jumps", "over the world", "a tiny brown dog"],
]
NOVEL = "\n\n".join("\n".join(lines) for lines in DOCUMENTS) + "\n"


def make_tokenizer(num_words=3000):
    """Words w0, w1, ... of one token each, so that a token tells where in the text it stood."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *(f"w{n}" for n in range(num_words))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


TOKENIZER = make_tokenizer()
MODEL = spread(BertForPreTraining(BertConfig(vocab_size=3005, max_position_embeddings=64, **SIZES))).eval()


def recipe(block_size=32, masking="token", **evaluation):
    return recipes.Recipe(
        task="mlm-nsp",
        data=recipes.Data(block_size=block_size, masking=masking),
        evaluation=recipes.Evaluation(interval=False, **evaluation),
    )


def encoded(documents, **options):
    """Rows of documents given as line lengths, and for each word its (document, line, place in the text)."""
    places, texts = {}, []
    for number, lengths in enumerate(documents):
        lines = []
        for line, length in enumerate(lengths):
            words = [f"w{len(places) + offset}" for offset in range(length)]
            for word in words:
                places[TOKENIZER.convert_tokens_to_ids(word)] = (number, line, len(places))
            lines.append(" ".join(words))
        texts.append("\n".join(lines))
    return NSP.encode(Dataset.from_dict({"text": texts}), TOKENIZER, MODEL, recipe(**options)), places


def drawn(rows, index, seed):
    """A and B of one draw, as token ids, and its class."""
    pair = rows.draw(index, np.random.default_rng(seed))
    ids, types = pair["input_ids"].tolist(), pair["token_type_ids"].tolist()
    middle = ids.index(TOKENIZER.sep_token_id)
    assert (ids[0], ids[-1], ids.count(TOKENIZER.sep_token_id)) == (TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, 2)
    assert types == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
    return ids[1:middle], ids[middle + 1 : -1], pair["next"]


documents_of_lines = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=2, max_size=8)


@settings(max_examples=60, deadline=None)
@given(documents_of_lines, st.integers(5, 48))
def test_pairs_follow_each_other_or_are_of_two_documents(documents, block_size):
    if all(len(lengths) == 1 and lengths[0] <= (block_size - 3) // 2 for lengths in documents):
        with pytest.raises(DataError, match="each of one line"):
            encoded(documents, block_size=block_size)
        return
    rows, places = encoded(documents, block_size=block_size)
    half = (block_size - 3) // 2
    covered = set()
    for index in range(len(rows)):
        for seed in range(6):
            a, b, follows = drawn(rows, index, seed)
            assert len(a) + len(b) + 3 <= block_size
            assert len(a) <= half
            assert len(b) >= 1
            for part in (a, b):  # consecutive tokens of one document
                assert len({places[token][0] for token in part}) == 1
                first = places[part[0]][2]
                assert [places[token][2] for token in part] == list(range(first, first + len(part)))
                if max(documents[places[part[0]][0]]) <= half:  # whole lines, none is cut
                    number = places[part[0]][0]
                    lines = {places[token][1] for token in part}
                    assert len(part) == sum(documents[number][line] for line in lines)
            if follows == 0:
                assert len(a) + len(b) + 3 == rows.lengths[index]
                assert places[b[0]][:1] == places[a[0]][:1]
                assert places[b[0]][2] == places[a[-1]][2] + 1
                covered.update(a, b)
            else:
                assert places[b[0]][0] != places[a[0]][0]
    several = {n for n, lengths in enumerate(documents) if len(lengths) > 1}
    true = {token for token, place in places.items() if place[0] in several}
    assert sum(rows.lengths) - 3 * len(rows) >= len(true)
    if len(rows) == 1:
        assert covered in (set(), true | covered)


def test_every_token_of_a_document_with_two_lines_is_in_a_row():
    rows, places = encoded([[3] * 7, [10, 10, 1], [5]], block_size=23)
    seen = {token for index in range(len(rows)) for token in _tokens_of(rows, index)}
    assert seen == {token for token, (document, _, _) in places.items() if document != 2}
    assert all(length <= 23 for length in rows.lengths)


def _tokens_of(rows, index):
    start, stop = rows.rows[index]
    return rows.store.tokens[rows.first[start] : rows.ends[stop - 1]].tolist()


def test_half_of_the_pairs_are_true():
    rows, _ = encoded([[4] * 90, [7] * 60, [2] * 90])
    draws = [drawn(rows, index, (index, seed))[2] for index in range(len(rows)) for seed in range(100)]
    assert len(draws) > 1000
    assert abs(sum(draws) - len(draws) / 2) < 4 * math.sqrt(len(draws) / 4)


def test_random_texts_come_from_everywhere_else():
    rows, places = encoded([[2, 2], [1, 1, 1], [1], [2, 1]], block_size=9)
    found = set()
    for seed in range(400):
        _, b, follows = drawn(rows, 0, seed)
        if follows == 1:
            found.add(places[b[0]][:2])
    assert found == {(1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (3, 1)}


def test_counts_are_said_aloud(capsys):
    encoded([[4, 4], [3], [40], [2]], block_size=32)
    assert (
        "pairs: 3 examples from 4 documents; of one line, so only ever random second texts: 2; "
        "lines of more than 14 tokens, divided: 1\n"
    ) in capsys.readouterr().err


@pytest.mark.parametrize(("documents", "what"), [([[5, 5]], "one document"), ([[5], [4], [3]], "3 documents")])
def test_data_without_pairs_is_refused(documents, what):
    with pytest.raises(DataError, match=f"this data has {what}.* \\(fix: one sentence a line with an empty line"):
        encoded(documents)


@pytest.mark.parametrize("masking", ["token", "whole-word", "span"])
def test_hidden_tokens_are_never_special_and_the_pair_label_is_at_cls(masking):
    rows, _ = encoded([[4] * 9, [7] * 5, [2] * 12], masking=masking)
    for index in range(len(rows)):
        example = rows.example(index, np.random.default_rng(index))
        hidden = np.flatnonzero(example["labels"] != IGNORED)
        assert hidden[0] == 0
        assert example["labels"][0] in (0, 1)
        assert len(hidden) > 1
        assert (example["labels"][hidden[1:]] >= len(SPECIAL)).all()
        assert example["input_ids"][0] == TOKENIZER.cls_token_id


def batch_of(rows, count):
    examples = [rows.example(index, np.random.default_rng((1, index))) for index in range(count)]
    return examples, NSP.collate(examples, TOKENIZER)


@pytest.mark.portable
def test_loss_is_that_of_the_model_itself():
    """BertForPreTraining adds the two means of a batch; ours, with a narrowed head, is the same number."""
    rows, _ = encoded([[4] * 9, [7] * 5, [2] * 12])
    _, batch = batch_of(rows, 4)
    labels = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    tokens = labels.clone()
    tokens[:, 0] = IGNORED
    expected = MODEL(**inputs, labels=tokens, next_sentence_label=labels[:, 0]).loss
    model = BertForPreTraining(MODEL.config).eval()
    model.load_state_dict(MODEL.state_dict())
    NSP.adapt(model, batch)
    outputs = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    assert outputs["prediction_logits"].shape[0] == (tokens != IGNORED).sum()
    assert NSP.loss(outputs, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    # a step of two such passes, whose labels the Trainer counts together
    count = 2 * (labels != IGNORED).sum()
    assert NSP.loss(outputs, labels, count, LossOptions(global_batch_size=8)).item() == pytest.approx(
        expected.item() / 2, rel=1e-5
    )
    assert NSP.loss(outputs, labels, count / 2).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.portable
def test_scores_agree_with_a_direct_computation_for_every_batch_size():
    rows, _ = encoded([[4] * 9, [7] * 5, [2] * 12, [1, 3, 5]])
    nll, right, hidden, pair_nll, pairs_right = 0.0, 0, 0, 0.0, 0
    for index in range(len(rows)):
        example = rows.example(index, np.random.default_rng((5, index)))
        inputs = {name: torch.tensor(example[name])[None] for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            outputs = MODEL(**inputs)
        label = example["labels"][0]
        pair_nll -= torch.log_softmax(outputs.seq_relationship_logits[0].double(), 0)[label].item()
        pairs_right += int(outputs.seq_relationship_logits[0].argmax() == label)
        for place in np.flatnonzero(example["labels"] != IGNORED)[1:]:
            logits, token = outputs.prediction_logits[0, place], example["labels"][place]
            nll -= torch.log_softmax(logits.double(), 0)[token].item()
            right, hidden = right + int(logits.argmax() == token), hidden + 1
    model = BertForPreTraining(MODEL.config)
    model.load_state_dict(MODEL.state_dict())
    for batch_size in (1, 8, 32):
        reduced, _ = predict_rows(NSP, model, TOKENIZER, rows, batch_size=batch_size, seed=5)
        scores = NSP.scores(reduced, None, rows, recipe(seed=5).evaluation)
        assert (scores["nll"].n, scores["nsp_accuracy"].n) == (hidden, len(rows))
        assert scores["nll"].value == pytest.approx(nll / hidden, rel=1e-5)
        assert scores["token_accuracy"].value == right / hidden
        assert scores["nsp_loss"].value == pytest.approx(pair_nll / len(rows), rel=1e-5)
        assert scores["nsp_accuracy"].value == pairs_right / len(rows)
    wide = NSP.scores(reduced, None, rows, recipes.Recipe(task="mlm-nsp").evaluation)["nsp_loss"]
    assert wide.low < wide.value < wide.high


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    torch.manual_seed(0)
    make_bert(folder / "bert")
    (folder / "novel.txt").write_text(NOVEL)
    (folder / "broken.txt").write_bytes(b"caf\xe9")  # reading it ends in a DataError
    return folder


@pytest.mark.portable
def test_gradient_does_not_depend_on_accumulation(folder, tmp_path):
    """One step of plain SGD at rate 1: the change of the weights is the gradient."""
    weights = {}
    for rows, passes in [(16, 1), (4, 4)]:
        wanted = {
            "task": "mlm-nsp",
            "model.name": str(folder / "bert"),
            "data.train": [str(folder / "novel.txt")],
            "data.validation_split": 0.0,
            "data.block_size": 16,
            "train.output_dir": str(tmp_path / f"run-{passes}"),
            **GRADIENT,
            "train.per_device_train_batch_size": rows,
            "train.gradient_accumulation_steps": passes,
        }
        hfkit.train(hfkit.load_recipe("pretrain", **wanted))
        weights[passes] = load_file(tmp_path / f"run-{passes}" / "model.safetensors")
    before = load_file(folder / "bert" / "model.safetensors")
    moved = max((weights[1][name] - before[name]).abs().max().item() for name in before if name in weights[1])
    assert moved > 1e-2
    for name, tensor in weights[1].items():
        torch.testing.assert_close(tensor, weights[4][name], rtol=0, atol=1e-6)


@pytest.mark.portable
def test_a_handful_of_rows_is_learned_and_evaluate_prints_the_same(folder, tmp_path, capsys):
    data = ["--data", str(folder / "novel.txt"), "--validation", str(folder / "novel.txt"), "--block-size", "24"]
    schedule = ["--max-steps", "400", "--batch-size", "16", "--lr", "1e-2", "--weight-decay", "0", "--dropout", "0"]
    new = ["--model", str(folder / "bert"), "--eval-steps", "150", "--output-dir", str(tmp_path / "run")]
    assert main(["pretrain", "--objective", "mlm-nsp", *data, *schedule, *new, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] > 4
    assert losses[-1] < 2
    seen = next(entry for entry in log if "eval_nsp_accuracy" in entry)
    assert math.isfinite(seen["eval_loss"])
    assert metrics["nsp_accuracy"]["value"] == 1.0
    assert metrics["nsp_loss"]["value"] < 0.3
    assert metrics["nll"]["value"] < 2
    _, info = BertForPreTraining.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not info["missing_keys"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == metrics
    assert main(["evaluate", str(tmp_path / "run"), "--batch-size", "1", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["metrics"]
    for name, score in metrics.items():
        assert again[name]["value"] == pytest.approx(score["value"], rel=1e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "roberta", "albert", "t5"])
def test_architecture_without_the_pair_head_is_refused_before_data_is_read(model_type, folder, capsys):
    data = ["--data", str(folder / "broken.txt")]
    assert main(["pretrain", "--objective", "mlm-nsp", "--model-type", model_type, *data]) == 2
    assert f"{model_type} models have no NextSentencePrediction head" in capsys.readouterr().err


def test_pretrained_model_without_the_pair_head_is_refused_before_data_is_read(folder, tmp_path, capsys):
    model = ["--model", str(make_gpt2(tmp_path / "gpt2"))]
    assert main(["pretrain", "--objective", "mlm-nsp", *model, "--data", str(folder / "broken.txt")]) == 2
    assert "gpt2 models have no NextSentencePrediction head" in capsys.readouterr().err


def test_stream_is_refused(folder, capsys):
    data = ["--data", str(folder / "novel.txt"), "--streaming", "--max-steps", "1", "--validation-split", "0"]
    assert main(["pretrain", "--objective", "mlm-nsp", "--model", str(folder / "bert"), *data]) == 2
    assert "mlm-nsp takes its pairs from all documents" in capsys.readouterr().err
