"""What is hidden are whole words and spans of them, whatever the tokenizer; a narrowed head learns the same."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM, PreTrainedTokenizerFast

from hfkit import settings as recipes
from hfkit.cli.main import main
from hfkit.data.labels import IGNORED
from hfkit.errors import UsageError
from hfkit.evaluation.inference import predict_rows
from hfkit.tasks import TASKS
from hfkit.tasks.masked_head import add_positions, flat_labels, narrow_head
from hfkit.tasks.masking import hide
from tiny_models import make_bert

MLM = TASKS["mlm"]
TEXT = "the quick brown fox jumps over a lazy dog while reading wonderful literature about unbelievable journeys"
WORDS = TEXT.split()
SPECIAL = {f"{role}_token": f"[{role.upper()}]" for role in ("cls", "sep", "mask", "pad", "unk")}
TOKENIZERS = ["wordpiece", "byte-level", "byte-level untrimmed", "unigram"]


def sentence(random, length):
    return " ".join(random.choice(WORDS, size=length))


CORPUS = [sentence(np.random.default_rng(seed), 30) for seed in range(20)]


def make_tokenizer(kind, vocab_size=60):
    """A small tokenizer of `kind`, so that most words are several tokens."""
    special = list(SPECIAL.values())
    if kind.startswith("byte-level"):
        wrapper = ByteLevelBPETokenizer(trim_offsets="untrimmed" not in kind)
        wrapper.train_from_iterator(CORPUS, vocab_size=256 + 30, special_tokens=special, show_progress=False)
        backend = wrapper._tokenizer
        if "untrimmed" in kind:
            backend.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        wordpiece = kind == "wordpiece"
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]") if wordpiece else models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if wordpiece else pre_tokenizers.Metaspace()
        backend.decoder = decoders.WordPiece() if wordpiece else decoders.Metaspace()
        options = {"vocab_size": vocab_size, "special_tokens": special, "show_progress": False}
        trainer = trainers.WordPieceTrainer if wordpiece else trainers.UnigramTrainer
        backend.train_from_iterator(CORPUS, trainer(**options, **({} if wordpiece else {"unk_token": "[UNK]"})))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def make_model(model_type="bert", vocabulary=320, positions=128):
    """A masked language model of `model_type`, of a few thousand parameters, its matrices drawn wide."""
    blank = CONFIG_MAPPING[model_type]()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"max_position_embeddings": positions + 2, "embedding_size": 16, "vocab_size": vocabulary}
    sizes |= {f"{role}_token_id": 1 for role in ("pad", "bos", "eos", "cls", "sep")}
    known = {blank.attribute_map.get(key, key): value for key, value in sizes.items()}
    drops = {key: 0.0 for key, value in vars(blank).items() if "drop" in key and type(value) is float}
    config = CONFIG_MAPPING[model_type](**{key: known[key] for key in known if key in vars(blank)}, **drops)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.3)
    return model


MODEL = make_model()


def recipe(masking="whole-word", *, block_size=128, mask_probability=0.15, packing=True):
    data = recipes.Data(block_size=block_size, masking=masking, mask_probability=mask_probability, packing=packing)
    return recipes.Recipe(task="mlm", data=data, evaluation=recipes.Evaluation(interval=False))


def rows_of(tokenizer, texts, **options):
    return MLM.encode(Dataset.from_dict({"text": texts}), tokenizer, MODEL, recipe(**options))


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return make_tokenizer(request.param)


def words_in_text(tokenizer, text):
    """The number of the word between blanks that each token of `text` lies in, from its offsets."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    begins = [len(text) - len(text[start:].lstrip()) for start, _ in offsets]
    return np.array([text[:begin].count(" ") for begin in begins])


def hidden_words(tokenizer, text, rows, seed):
    """For each row its words as (hidden positions, all positions, input ids there, original ids there)."""
    words, size = words_in_text(tokenizer, text), 128 - 2
    for index in range(len(rows)):
        row = rows.blocks[index]
        example = rows.example(index, np.random.default_rng((seed, index)))
        numbers = words[index * size : (index + 1) * size]
        inner = slice(1, 1 + len(numbers))
        hidden = example["labels"][inner] != IGNORED
        assert (example["labels"][inner][hidden] == row["input_ids"][inner][hidden]).all()
        yield numbers, hidden, example["input_ids"][inner], row["input_ids"][inner]


@pytest.mark.parametrize("masking", ["whole-word", "span"])
def test_words_are_hidden_whole_and_share_one_fate(tokenizer, masking):
    text = sentence(np.random.default_rng(1), 400)
    rows = rows_of(tokenizer, [text], masking=masking)
    assert len(rows) > 5
    divided = 0
    for numbers, hidden, inputs, tokens in hidden_words(tokenizer, text, rows, 3):
        for word in np.unique(numbers):
            places = numbers == word
            assert hidden[places].all() or not hidden[places].any()
            masked = inputs[places] == tokenizer.mask_token_id
            assert masked.all() or not masked.any()
            divided += hidden[places].sum() > 1
        assert (inputs[~hidden] == tokens[~hidden]).all()
    assert divided > 20


def test_whole_words_hide_the_wanted_share_of_the_tokens(tokenizer):
    text = sentence(np.random.default_rng(2), 1500)
    rows = rows_of(tokenizer, [text], mask_probability=0.2)
    count = variance = tokens = 0
    for seed in range(5):
        for numbers, hidden, _, _ in hidden_words(tokenizer, text, rows, seed):
            count, tokens = count + hidden.sum(), tokens + len(hidden)
            variance += 0.2 * 0.8 * (np.bincount(numbers) ** 2).sum()
    assert abs(count - 0.2 * tokens) < 4 * math.sqrt(variance)


def test_spans_hide_the_share_at_once_and_by_one_word_more_at_most(tokenizer):
    text = sentence(np.random.default_rng(2), 400)
    rows = rows_of(tokenizer, [text], masking="span", mask_probability=0.2)
    for numbers, hidden, _, _ in hidden_words(tokenizer, text, rows, 0):
        budget = round(0.2 * len(numbers))
        assert budget <= hidden.sum() < budget + np.bincount(numbers).max()


def test_spans_have_the_lengths_of_spanbert():
    """Geometric lengths of rate 0.2, ten at most: 3.8 words on average."""
    row = {"input_ids": np.arange(5, 5005), "words": np.ones(5000, dtype=bool), "maskable": np.ones(5000, dtype=bool)}
    row |= {"masking": "span", "probability": 0.02, "mask_id": 1, "ordinary_ids": np.arange(5, 5005)}
    runs, fates = [], []
    for seed in range(40):
        inputs, labels = hide(row, np.random.default_rng(seed))
        hidden = labels != IGNORED
        assert hidden.sum() == 100
        edges = np.flatnonzero(np.diff(hidden, prepend=False, append=False))
        runs += list(edges[1::2] - edges[::2])
        masked = inputs == 1
        fates += [masked[start:stop].mean() for start, stop in zip(edges[::2], edges[1::2], strict=True)]
    shares = 0.8 ** np.arange(10) / (0.8 ** np.arange(10)).sum()
    mean = (shares * np.arange(1, 11)).sum()
    assert mean == pytest.approx(3.8, abs=0.01)
    assert abs(np.mean(runs) - mean) < 0.3  # 1,050 of them; a few touch, and the last of a row is cut short
    assert np.mean(np.array(runs) == 1) == pytest.approx(shares[0], abs=0.05)
    assert np.mean(np.array(fates) == 1) == pytest.approx(0.8, abs=0.05)
    assert np.mean((np.array(fates) == 1) | (np.array(fates) == 0)) > 0.97  # the rest are two spans that touch


def test_spans_do_not_reach_into_another_document():
    """One word a document: each is hidden for itself, so that neighbours are hidden together by chance alone."""
    tokenizer = make_tokenizer("wordpiece")
    rows = rows_of(tokenizer, ["a"] * 40, masking="span", mask_probability=0.1)
    neighbours = 0
    for seed in range(100):
        hidden = np.flatnonzero(rows.example(0, np.random.default_rng(seed))["labels"] != IGNORED)
        assert len(hidden) == 4
        neighbours += (np.diff(hidden) == 2).sum()  # a separator stands between
    assert neighbours < 60  # 30 are expected, 3 of 4 where spans reach across: more than 200


@pytest.mark.parametrize("masking", ["token", "whole-word", "span"])
def test_something_is_always_predicted_and_never_a_special_token(tokenizer, masking):
    special = set(tokenizer.all_special_ids)
    rows = rows_of(tokenizer, ["fox", "a dog", "the quick brown fox"] * 3, masking=masking, mask_probability=0.01)
    for seed in range(50):
        labels = rows.example(0, np.random.default_rng(seed))["labels"]
        assert (labels != IGNORED).any()
        assert not special & set(labels.tolist())


@pytest.mark.parametrize("masking", ["token", "whole-word", "span"])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.portable
def test_evaluation_does_not_depend_on_the_batch_size(tokenizer, masking, packing):
    rows = rows_of(tokenizer, CORPUS, masking=masking, packing=packing, block_size=48)
    assert len(rows) > 16
    scores = []
    for batch_size in (1, 8, 32):
        reduced, _ = predict_rows(MLM, MODEL, tokenizer, rows, batch_size=batch_size, seed=5)
        scores.append(MLM.scores(reduced, None, rows, recipe(masking).evaluation))
    for score in scores[1:]:
        assert score["nll"].n == scores[0]["nll"].n
        assert score["nll"].value == pytest.approx(scores[0]["nll"].value, rel=1e-5)
    assert ("words" in scores[0]["nll"].definition) == (masking == "whole-word")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), min_size=1, max_size=8), st.integers(4, 40))
def test_without_packing_every_token_comes_once_in_rows_of_its_own_document(documents, block_size):
    tokenizer = make_tokenizer("wordpiece")
    texts = [" ".join(words) for words in documents]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if sum(map(len, expected)) < 2:
        return
    rows = rows_of(tokenizer, texts, masking="token", packing=False, block_size=block_size)
    index = 0
    for tokens in expected:
        found = []
        while len(found) < len(tokens):
            row = rows.blocks[index]["input_ids"].tolist()
            assert len(row) == rows.lengths[index] <= block_size
            assert (row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            found += row[1:-1]
            index += 1
        assert found == tokens
    assert index == len(rows)


@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "modernbert", "distilbert", "electra", "albert", "deberta-v2", "mpnet"]
)
@pytest.mark.portable
def test_narrowed_head_has_the_same_logits_loss_and_gradient(model_type):
    model = make_model(model_type, vocabulary=64).train()
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 64, (3, 20), generator=random)
    mask, labels = torch.ones_like(tokens), torch.full_like(tokens, IGNORED)
    mask[1, 15:] = 0
    for row, place in [(0, 3), (0, 7), (1, 4), (2, 19)]:
        labels[row, place] = tokens[row, place]
    batch = add_positions({"input_ids": tokens, "attention_mask": mask, "labels": labels})

    full = model(input_ids=tokens, attention_mask=mask).logits
    losses, gradients = [MLM.loss({"logits": full}, labels)], []
    losses[0].backward()
    gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    model.zero_grad(set_to_none=True)
    narrow_head(model, batch)
    narrow = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    assert narrow.shape == (4, 64)  # the fast way was taken
    torch.testing.assert_close(narrow, full[labels != IGNORED], rtol=0, atol=1e-5)
    assert flat_labels(narrow, labels).tolist() == labels[labels != IGNORED].tolist()
    losses.append(MLM.loss({"logits": narrow}, labels))
    losses[1].backward()
    gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_model_without_an_attention_mask_is_refused():
    """FNet takes one in silence and mixes the padding in."""
    data = Dataset.from_dict({"text": CORPUS})
    with pytest.raises(UsageError, match="fnet takes no attention mask"):
        MLM.encode(data, make_tokenizer("wordpiece"), make_model("fnet"), recipe("token"))


@pytest.mark.parametrize(
    "options", [["--masking", "whole-word"], ["--masking", "span"], ["--no-packing"]], ids=" ".join
)
@pytest.mark.portable
def test_run_prints_what_evaluate_prints(options, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(CORPUS[:6]) + "\n")
    data = ["--data", str(tmp_path / "text.txt"), "--validation", str(tmp_path / "text.txt"), "--block-size", "24"]
    command = ["pretrain", "--objective", "mlm", "--model", str(make_bert(tmp_path / "bert")), *data, *options]
    assert main([*command, "--max-steps", "2", "--output-dir", str(tmp_path / "run"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["metrics"]
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == printed
    assert main(["evaluate", str(tmp_path / "run"), "--batch-size", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["nll"]["value"] == pytest.approx(printed["nll"]["value"])
