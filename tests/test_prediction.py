"""Prediction: labels in the order of the texts, and the same probabilities in any company."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hfkit
from hfkit.__main__ import main
from tiny_models import make_bert, make_gpt2, spread

TEXTS = [
    "hello",
    "the quick brown fox jumps over the lazy dog, the quick brown fox jumps over the lazy dog",
    "a tiny model",
    "你好，世界",
    "hello world, this is a tiny model",
    "fox " * 100,
    "dog",
]
NAMES = ["bad", "so-so", "good"]


def make_classifier(directory, make, **config):
    """A classifier with three labels."""
    make(directory)
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    model = AutoModelForSequenceClassification.from_pretrained(directory, **labels, **config)
    spread(model).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("models") / "bert", make_bert)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def classifier(request, tmp_path_factory):
    """An encoder, and a decoder whose tokenizer has no pad token and prefers the left side."""
    if request.param == "bert":
        return request.getfixturevalue("bert")
    directory = make_classifier(tmp_path_factory.mktemp("models") / "gpt2", make_gpt2)
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained(directory)
    return directory


def directly(directory, text):
    """Probabilities by the library, of one text alone."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    with torch.inference_mode():
        logits = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=64)).logits[0]
    return dict(zip(NAMES, torch.softmax(logits.double(), 0).tolist(), strict=True))


def test_answers_are_those_of_the_library_in_order(classifier):
    answers = hfkit.predict(str(classifier), TEXTS)
    assert [answer["text"] for answer in answers] == TEXTS
    assert len({answer["label"] for answer in answers}) > 1
    for answer in answers:
        assert list(answer["probabilities"]) == NAMES
        assert answer["probabilities"] == pytest.approx(directly(classifier, answer["text"]), abs=1e-5)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert answer["score"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["label"]]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batch_and_padding_do_not_change_probabilities(classifier, batch_size):
    alone = [hfkit.predict(str(classifier), [text])[0] for text in TEXTS]
    together = hfkit.predict(str(classifier), TEXTS[::-1], **{"evaluation.batch_size": batch_size})[::-1]
    for one, other in zip(alone, together, strict=True):
        assert other["text"] == one["text"]
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.txt", "hello\na tiny model\ndog\n"),
        ("in.csv", 'id,review,label\n1,hello,good\n2,"a tiny model",bad\n3,dog,bad\n'),
        ("in.jsonl", '{"review": "hello"}\n{"review": "a tiny model"}\n{"review": "dog"}\n'),
    ],
)
def test_files_are_read_row_by_row(bert, tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    assert main(["predict", str(bert), "--input", str(tmp_path / name), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers == hfkit.predict(str(bert), ["hello", "a tiny model", "dog"])
    assert main(["predict", "--model", str(bert), "--input", str(tmp_path / name)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [[a["label"], f"{a['score']:.3f}"] for a in answers]


def test_texts_of_the_command_line_keep_their_order(bert, capsys):
    assert main(["predict", str(bert), "--text", "dog", "--text", "hello", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == ["dog", "hello"]
    assert answers == hfkit.predict(str(bert), ["dog", "hello"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run trained on the columns `review` and `stars`."""
    folder = tmp_path_factory.mktemp("run")
    make_bert(folder / "tiny-bert")
    (folder / "train.csv").write_text(
        "review,stars\n" + "".join(f"{word},{len(word)}\n" for word in ["a", "fox", "dog"])
    )
    columns = ["--text-column", "review", "--label-column", "stars"]
    command = ["finetune", "--model", str(folder / "tiny-bert"), "--data", str(folder / "train.csv"), *columns]
    options = ["--max-steps", "1", "--validation-split", "0", "--max-length", "12", "--output-dir", str(folder / "run")]
    assert main([*command, *options]) == 0
    return folder / "run"


def test_a_run_reads_the_column_it_was_trained_on(run, tmp_path, capsys):
    capsys.readouterr()
    (tmp_path / "in.csv").write_text("text,review\nwrong,hello\nwrong,dog\n")
    assert main(["predict", str(run), "--input", str(tmp_path / "in.csv"), "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["hello", "dog"]
    (tmp_path / "in.txt").write_text("hello\ndog\n")  # the one column of a text file can't have that name
    assert main(["predict", str(run), "--input", str(tmp_path / "in.txt"), "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["hello", "dog"]
    (tmp_path / "other.csv").write_text("headline,body\nhello,world\n")
    assert main(["predict", str(run), "--input", str(tmp_path / "other.csv")]) == 3
    assert f"{tmp_path / 'other.csv'} has no column 'review', found: headline, body" in capsys.readouterr().err


def test_a_run_cuts_texts_as_in_training(run, capsys):
    first, second = hfkit.predict(str(run), ["fox " * 10, "fox " * 10 + "dog " * 20])
    assert "1 of 2 rows (50.0%) were cut at the end (fix: --long-documents window)" in capsys.readouterr().err
    assert ("truncated" in first, second["truncated"]) == (False, True)
    assert first["probabilities"] == pytest.approx(second["probabilities"], abs=1e-6)
    assert list(first["probabilities"]) == ["1", "3"]


@pytest.mark.parametrize("make", [make_bert, make_gpt2])
def test_model_that_is_no_classifier_is_refused(make, tmp_path, capsys):
    assert main(["predict", str(make(tmp_path / "model")), "--text", "hello"]) == 5
    err = capsys.readouterr().err
    assert f"{tmp_path / 'model'} is no classifier, it is a " in err
    assert "(fix: train one: hfkit finetune)" in err


def test_no_text_is_a_usage_error_and_an_empty_file_a_data_error(bert, tmp_path, capsys):
    assert main(["predict", str(bert)]) == 2
    assert "there is no text to classify" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("")
    for name in ("empty.txt", "missing.txt"):
        assert main(["predict", str(bert), "--input", str(tmp_path / name)]) == 3
        assert name in capsys.readouterr().err
