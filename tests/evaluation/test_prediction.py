"""Prediction: labels in the order of the texts, and the same probabilities in any company."""

import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hfkit
from hfkit.cli.main import main
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


def test_classifier_without_its_head_gives_no_answer(bert, tmp_path, capsys):
    weights = load_file(bert / "model.safetensors")
    shutil.copytree(bert, tmp_path / "headless")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("classifier.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "headless" / "model.safetensors", {"format": "pt"})
    assert main(["predict", str(tmp_path / "headless"), "--text", "hello"]) == 5
    captured = capsys.readouterr()
    assert "has no weights for" in captured.err
    assert "classifier.weight" in captured.err
    assert captured.out == ""


@pytest.mark.portable
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
@pytest.mark.portable
def test_batch_and_padding_do_not_change_probabilities(classifier, batch_size):
    alone = [hfkit.predict(str(classifier), [text])[0] for text in TEXTS]
    together = hfkit.predict(str(classifier), TEXTS[::-1], **{"evaluation.batch_size": batch_size})[::-1]
    for one, other in zip(alone, together, strict=True):
        assert other["text"] == one["text"]
        # 3e-7 apart; 0.3 where padding is attended to
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


@pytest.mark.portable
def test_predictions_of_a_file_are_scored_as_the_model_on_the_data(bert, tmp_path, capsys):
    rows = [("a fox", "bad"), ("hello world", "good"), ("lazy dog", "so-so"), ("brown", "bad")]
    gold, answers = tmp_path / "gold.csv", tmp_path / "answers.jsonl"
    gold.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    assert main(["predict", str(bert), "--input", str(gold), "--output", str(answers)]) == 0
    capsys.readouterr()
    found = []
    for command in (["--predictions", str(answers), "--references", str(gold)], [str(bert), "--data", str(gold)]):
        assert main(["evaluate", *command, "--metrics", "accuracy,log_loss", "--json"]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        found.append({name: metrics[name]["value"] for name in ("accuracy", "log_loss")})
    assert found[0] == pytest.approx(found[1], rel=1e-6)


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


@pytest.mark.portable
def test_a_run_cuts_texts_as_in_training(run, capsys):
    first, second = hfkit.predict(str(run), ["fox " * 10, "fox " * 10 + "dog " * 20])
    assert "1 of 2 texts (50.0%) were truncated at the end (fix: --long-documents window)" in capsys.readouterr().err
    assert ("truncated" in first, second["truncated"]) == (False, True)
    assert first["probabilities"] == pytest.approx(second["probabilities"], abs=1e-6)
    assert list(first["probabilities"]) == ["1", "3"]


@pytest.mark.parametrize(("make", "fix"), [(make_bert, "train one: hfkit finetune"), (make_gpt2, "hfkit generate {}")])
def test_model_that_is_no_classifier_is_refused(make, fix, tmp_path, capsys):
    directory = make(tmp_path / "model")
    assert main(["predict", str(directory), "--text", "hello"]) == 5
    err = capsys.readouterr().err
    assert f"{directory} is no classifier, it is a " in err
    assert f"(fix: {fix.format(directory)})" in err


@pytest.fixture
def many(tmp_path):
    """More rows than a chunk holds, of different lengths."""
    rows = [f"{'fox ' * (row % 5)}dog {'hello' if row % 3 else 'world'}" for row in range(20)]
    path = tmp_path / "many.csv"
    path.write_text("text\n" + "".join(f"{row}\n" for row in rows))
    return path, rows


@pytest.fixture
def chunks_of_eight(monkeypatch):
    monkeypatch.setattr("hfkit.evaluation.predict.CHUNK", 8)


@pytest.mark.portable
def test_a_file_of_many_chunks_is_answered_in_order(bert, many, tmp_path, capsys, chunks_of_eight):
    path, rows = many
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(bert), "--input", str(path), "--output", str(out)]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["text"] for answer in answers] == rows
    for answer, expected in zip(answers, hfkit.predict(str(bert), rows), strict=True):
        assert answer["label"] == expected["label"]
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"20 rows in {out}" in captured.err


@pytest.mark.parametrize("torn", [0, 1, 25])
@pytest.mark.portable
def test_a_stopped_file_goes_on_where_it_was(bert, many, tmp_path, capsys, torn):
    path, _ = many
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert main(["predict", str(bert), "--input", str(path), "--output", str(whole)]) == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:7]) + lines[7][:torn])
    assert main(["predict", str(bert), "--input", str(path), "--output", str(out)]) == 2
    assert f"{out}: is there already (fix: --resume to go on with it, or --overwrite)" in capsys.readouterr().err
    assert main(["predict", str(bert), "--input", str(path), "--output", str(out), "--resume"]) == 0
    err = capsys.readouterr().err
    assert f"{out}: 7 rows are there already" in err
    assert ("its last line was not finished and is written again" in err) == bool(torn)
    made = out.read_bytes().splitlines(keepends=True)
    assert made[:7] == lines[:7]
    for one, other in zip(made, lines, strict=True):
        assert json.loads(one)["text"] == json.loads(other)["text"]
        assert json.loads(one)["probabilities"] == pytest.approx(json.loads(other)["probabilities"], abs=1e-5)
    assert main(["predict", str(bert), "--resume", "--input", str(path), "--output", str(out)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert out.read_bytes() == b"".join(made)


def test_answers_of_another_input_or_model_are_not_gone_on_with(bert, many, tmp_path, capsys):
    path, rows = many
    out, other = tmp_path / "out.jsonl", tmp_path / "other.csv"
    command = ["predict", str(bert), "--output", str(out), "--input"]
    assert main([*command, str(path)]) == 0
    lines = out.read_text().splitlines(keepends=True)

    def problem(source, *, model=bert, kept=7, extra=""):
        out.write_text("".join(lines[:kept]) + extra)
        before = out.read_bytes()
        assert main(["predict", str(model), "--output", str(out), "--resume", "--input", str(source)]) == 3
        assert out.read_bytes() == before
        return capsys.readouterr().err

    other.write_text("text\n" + "".join(f"{row}\n" for row in [*rows[:3], "new", *rows[3:]]))
    assert f"{out}: line 4 is of another text than that row of the input (fix: --overwrite)" in problem(other)
    other.write_text("text\n" + "".join(f"{row}\n" for row in rows[:3]))
    assert f"{out} has 7 lines, and the input only 3 rows" in problem(other)
    assert f"{out}: line 8 is no answer of hfkit predict" in problem(path, extra="{\n")
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    spread(model, seed=1).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "model")
    assert "its last line is not what" in problem(path, model=tmp_path / "model")
    assert main([*command, str(path), "--overwrite"]) == 0
    assert out.read_text().splitlines(keepends=True) == lines


def test_a_model_that_cannot_be_read_leaves_the_output_alone(many, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    command = ["predict", str(tmp_path / "none"), "--input", str(many[0]), "--output", str(out), "--overwrite"]
    assert main(command) == 5
    assert out.read_text() == "precious\n"


def test_the_input_is_never_overwritten(bert, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "hello"}\n')
    assert main(["predict", str(bert), "--input", str(path), "--output", str(path), "--overwrite"]) == 2
    assert "is the input" in capsys.readouterr().err
    assert path.read_text() == '{"text": "hello"}\n'


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ("hello\n\n a dog\n", ["hello", " a dog"]),
        ('{"text": "hello", "id": 1}\n{"text": "a\\nb"}\n', ["hello", "a\nb"]),
    ],
)
def test_stdin_is_read_line_by_line(bert, lines, texts, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["predict", str(bert), "--input", "-", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == texts


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "stdin: no rows"),
        ('{"txt": "a"}\n', "stdin: line 1: no key 'text' (fix: did you mean 'txt'?)"),
        ('{"text": "a"}\n{"text"\n', "stdin: line 2: not a JSON object"),
        ('{"text": 3}\n', "stdin: line 1: [3] is not text"),
    ],
)
def test_stdin_that_cannot_be_read_names_the_line(bert, lines, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["predict", str(bert), "--input", "-"]) == 3
    assert message in capsys.readouterr().err


def test_pairs_come_from_the_columns_of_training_and_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_bert(tmp_path / "bert")
    rows = "who,what,label\nthe fox,jumps,yes\nthe dog,hello,no\n"
    (tmp_path / "a.csv").write_text(rows)
    columns = ["--text-column", "who", "--text-pair-column", "what", "--validation-split", "0", "--max-steps", "1"]
    assert main(["finetune", "--model", "bert", "--data", "a.csv", "--output-dir", "run", *columns]) == 0
    capsys.readouterr()
    expected = hfkit.predict("run", ["the fox", "the dog"], ["jumps", "hello"])
    assert expected[0]["text_pair"] == "jumps"
    assert main(["predict", "run", "--input", "a.csv", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected
    pairs = ["--text", "the fox", "--text-pair", "jumps", "--text", "the dog", "--text-pair", "hello"]
    assert main(["predict", "run", *pairs, "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected
    other = hfkit.predict("run", ["the fox"], ["hello"])[0]
    assert other["probabilities"] != expected[0]["probabilities"]
    monkeypatch.setattr("sys.stdin", io.StringIO('{"who": "the fox", "what": "jumps"}\n'))
    assert main(["predict", "run", "--input", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probabilities"] == pytest.approx(expected[0]["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "a", "--input", "b.txt"], "--text and --input exclude each other"),
        (["--text", "a", "--text-pair", "b", "--text-pair", "c"], "1 texts and 2 second texts"),
        (["--text", "a", "--output", "o.jsonl"], "--output goes with --input"),
        (["--input", "b.txt", "--resume"], "--resume has no effect without --output"),
        (["--input", "b.txt", "--output", "o", "--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_options_that_do_not_fit_are_refused(bert, options, message, capsys):
    assert main(["predict", str(bert), *options]) == 2
    assert message in capsys.readouterr().err


def test_several_labels_are_printed_with_their_probabilities(tmp_path, capsys):
    directory = make_classifier(tmp_path / "model", make_bert, problem_type="multi_label_classification")
    (answer,) = hfkit.predict(str(directory), ["hello"], **{"evaluation.threshold": 0.0})
    assert answer["labels"] == NAMES
    capsys.readouterr()
    assert main(["predict", str(directory), "--text", "hello", "--threshold", "0"]) == 0
    shares = ", ".join(f"{answer['probabilities'][name]:.3f}" for name in NAMES)
    assert capsys.readouterr().out == f"{', '.join(NAMES)}\t{shares}\t()\n"


def test_no_text_is_a_usage_error_and_an_empty_file_a_data_error(bert, tmp_path, capsys):
    assert main(["predict", str(bert)]) == 2
    assert "there is no text to classify" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("")
    for name in ("empty.txt", "missing.txt"):
        assert main(["predict", str(bert), "--input", str(tmp_path / name)]) == 3
        assert name in capsys.readouterr().err
