"""Text classification: every layout of labelled files, every kind of label, and numbers that other libraries share."""

# ruff: noqa: E501 - tables of whole messages

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from safetensors.torch import load_file
from scipy.stats import norm, pearsonr, spearmanr
from sklearn import metrics as sklearn
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import hfkit
from hfkit import settings
from hfkit.cli.main import main
from hfkit.errors import DataError, UsageError
from hfkit.evaluation.inference import predict_rows
from hfkit.metrics.table import compute
from hfkit.tasks import TASKS, calibration
from hfkit.tasks.base import LossOptions
from hfkit.tasks.text_classification import METRICS
from hfkit.tasks.windows import EncodedTexts
from tiny_models import make_bert, make_causal_model, make_gpt2, make_word_tokenizer, spread

TASK = TASKS["text-classification"]
SINGLE, MULTIPLE, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
WORDS = "hello world this is a tiny model the quick brown fox jumps over lazy dog".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    torch.manual_seed(0)
    return make_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, content):
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return name


def recipe_of(file, **values):
    return hfkit.load_recipe("finetune", **{"data.train": [file], "data.validation_split": 0.0, **values})


def loaded(file, **values):
    return TASK.load(recipe_of(file, **values))["train"]


def finetune(bert, file, *options, run="run"):
    """Exit code of a run of one step."""
    steps = () if "--max-steps" in options or "--epochs" in options else ("--max-steps", "1")
    return main(["finetune", "--model", str(bert), "--data", file, "--output-dir", run, *steps, *options])


# --- layouts ----------------------------------------------------------------------------------------------------------

LAYOUTS = [
    # as SST-2, AG News, SMS spam, Banking77, QNLI and RTE, waimai_10k, STS-B and GoEmotions are published
    ("a.tsv", "sentence\tlabel\nso \"good\t1\nbad\t0\n", {}, {"text": ['so "good', "bad"], "label": ["1", "0"]}, None),
    ("b.csv", '"3","A, B","Some longer text, quoted"\n"4","C","Yet another longer text"\n"3","D","x y z x y z x y z"\n'
     '"4","E","Words and more words"\n', {},
     {"text": ["Some longer text, quoted", "Yet another longer text", "x y z x y z x y z", "Words and more words"],
      "label": ["3", "4", "3", "4"]},
     "b.csv: no header line, because '3' appears again below; columns are named 0, 1, ... (change with --header)\n"
     "text column: 2, label column: 0, not used: 1 (change with --text-column, --label-column)"),
    ("c.tsv", "ham\tsay \"hi there\nspam\tWIN a prize now\nham\tok, see you then\nspam\tfree \"calls\n", {},
     {"text": ['say "hi there', "WIN a prize now", "ok, see you then", 'free "calls'],
      "label": ["ham", "spam", "ham", "spam"]},
     "c.tsv: no header line, because 'ham' appears again below"),
    ("d.csv", 'text,category\r\n"two\nlines",card\r\nx,cash\r\n', {},
     {"text": ["two\nlines", "x"], "label": ["card", "cash"]}, None),
    ("e.tsv", "index\tquestion\tsentence\tlabel\n0\twho?\tme\tyes\n1\twhen?\tnow\tno\n", {},
     {"text": ["who?", "when?"], "text_pair": ["me", "now"], "label": ["yes", "no"]}, None),
    ("f.csv", "label,review\n1,很好\n0,不好\n", {}, {"text": ["很好", "不好"], "label": ["1", "0"]}, None),
    ("g.csv", "a plane is here,one plane is here,5.0\nb car drives,a car drives,2.25\nc or d or e,nothing at all,5.0\n"
     "d or e or f,other things,2.25\n", {},
     {"text": ["a plane is here", "b car drives", "c or d or e", "d or e or f"],
      "text_pair": ["one plane is here", "a car drives", "nothing at all", "other things"],
      "value": [5.0, 2.25, 5.0, 2.25]},
     "text columns: 0 + 1, label column: 2 (change with --text-column, --text-pair-column, --label-column)\n"
     "problem type: regression, because column 2 holds numbers such as 2.25 (change with --problem-type)"),
    ("h.tsv", "first long comment\t27\ted5\nsecond long one\t4,27\ted6\nthird text here\t4\ted7\n"
     "and one more text\t27\ted8\none longer text\t4,27\ted9\na last comment\t4\ted1\n", {},
     {"text": ["first long comment", "second long one", "third text here", "and one more text", "one longer text",
               "a last comment"],
      "labels": [["27"], ["4", "27"], ["4"], ["27"], ["4", "27"], ["4"]]},
     "problem type: multi_label_classification, because ',' separates labels in column 1 (change with --problem-type)"),
    # as CoLA is: what can't be told is named
    ("i.tsv", "gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tThe weights it.\n",
     {"data.columns.label": "1", "data.columns.text": "3"},
     {"text": ["The sailors rode.", "The weights it."], "label": ["1", "0"]}, None),
    ("j.csv", "x;1\n'y;0\n", {"data.csv.separator": ";", "data.header": False, "data.columns.text": "0"},
     {"text": ["x", "'y"], "label": ["1", "0"]}, None),
    ("k.csv", 'say "x,1\n"y,0\n', {"data.csv.quoting": False, "data.header": False},
     {"text": ['say "x', '"y'], "label": ["1", "0"]}, None),
    ("l.tsv", '"a\tb"\t1\nc\t0\n', {"data.csv.quoting": True, "data.header": False},
     {"text": ["a\tb", "c"], "label": ["1", "0"]}, None),
    ("m.csv", b"text,label\ncaf\xe9,1\nx,0\n", {"data.encoding": "latin-1"},
     {"text": ["café", "x"], "label": ["1", "0"]}, None),
    ("n.csv", b"text,label\ncaf\xe9,1\ncaf\xc3\xa9,0\n", {"data.encoding": "utf-8,latin-1"},
     {"text": ["café", "café"], "label": ["1", "0"]}, None),
    ("o.csv", "x|1\ny|0\n", {"data.csv.separator": "|", "data.header": False, "data.columns.text": "0"},
     {"text": ["x", "y"], "label": ["1", "0"]}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "given", "rows", "said"), LAYOUTS, ids=[name for name, *_ in LAYOUTS])
def test_files_are_read_as_their_authors_wrote_them(name, content, given, rows, said, capsys):
    assert loaded(write(name, content), **given)[:] == rows
    assert said is None or said in capsys.readouterr().err


def test_a_guess_of_no_header_is_said_each_time_and_can_be_overruled(capsys):
    write("a.tsv", "ham\thello there\nspam\twin a prize\nham\tsee you then\n")
    for _ in range(2):  # the second time from the cache
        assert loaded("a.tsv").num_rows == 3
        assert "a.tsv: no header line, because 'ham' appears again below" in capsys.readouterr().err
    named = {"data.header": True, "data.columns.text": "hello there", "data.columns.label": "ham"}
    assert loaded("a.tsv", **named)[:] == {"text": ["win a prize", "see you then"], "label": ["spam", "ham"]}


def test_a_header_is_not_taken_for_a_row():
    assert loaded(write("a.csv", "text,label\nlabel,text\nx,y\n")).num_rows == 2
    assert loaded(write("b.csv", "words,verdict\na b,yes\nwords,verdict\nc d,no\n"), **{
        "data.columns.text": "words", "data.columns.label": "verdict"}).num_rows == 3  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "given", "message"),
    [
        ("a.tsv", "x y z\tno\nz z z\tyes\n", {}, "(fix: --text-column x y z, or --no-header if these are values of a first row)"),
        ("b.tsv", "".join(f"gj04\t1\t\tThe sailors rode {n}.\nks08\t0\t*\tThe weights it {n}.\n" for n in range(4)), {}, "found: 0 (gj04), 1 (1), 2 (), 3 (The sailors rode 0.) (fix: --label-column 0)"),
        ("c.csv", "text;label\nx;1\n", {}, "no comma but ';' between names (fix: --separator ';')"),
        ("d.csv", 'text,label\n"x,1\n', {}, "or --no-quoting if a quote is a character like any other"),
        ("e.csv", b"text,label\ncaf\xe9,1\n", {}, "is not UTF-8 (fix: --encoding latin-1 if it is that, or iconv"),
        ("f.csv", b"text,label\ncaf\xe9,1\n", {"data.encoding": "ascii"}, "0xe9 is not ascii (fix: name another --encoding)"),
        ("g.csv", "text,label\nx,1\n", {"data.encoding": "latin-0"}, "data.encoding 'latin-0' is unknown"),
        ("h.csv", "text,label\nx,1\n", {"data.encoding": "utf-16"}, "is not read line by line (fix: iconv -f utf-16"),
        ("i.csv", "text,label\nx,1\n", {"data.csv.separator": "::"}, "must be one character (fix: --separator tab)"),
        ("j.jsonl", '{"text": "x", "label": "1"}\n', {"data.header": False}, "data.header has no effect: no source is a .csv or .tsv file"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_names_the_flag(name, content, given, message):
    with pytest.raises((DataError, UsageError)) as caught:
        loaded(write(name, content), **given)
    assert message in str(caught.value)


# --- kinds of label ---------------------------------------------------------------------------------------------------


def prepared(labels, feature=None, **data):
    """What `with_labels` makes of a column of labels."""
    from hfkit.data.labels import with_labels

    features = None if feature is None else Features({"text": Value("string"), "label": feature})
    dataset = Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}, features=features)
    made = with_labels({"train": dataset}, "label", settings.Data(**data))["train"]
    return made.remove_columns("text")[:]


@pytest.mark.parametrize(
    ("labels", "made"),
    [
        (["a", "b", "a"], {"label": ["a", "b", "a"]}),
        (["1", "5", "3"], {"label": ["1", "5", "3"]}),
        ([1.0, 2.0, 1.0], {"label": ["1", "2", "1"]}),  # whole numbers are classes, spelled as in a CSV file
        (["1.0", "2", "1"], {"label": ["1", "2", "1"]}),
        (["1.0", "1", "v1.0"], {"label": ["1.0", "1", "v1.0"]}),
        (["TRUE", "False", "true"], {"label": ["true", "false", "true"]}),
        (["True", "maybe", "true"], {"label": ["True", "maybe", "true"]}),
        (["1", "2.5", "3"], {"value": [1.0, 2.5, 3.0]}),
        ([0.5, 1.5, 1.0], {"value": [0.5, 1.5, 1.0]}),
        ([["a"], [], ["b", "a"]], {"labels": [["a"], [], ["b", "a"]]}),
        ([[1, 2], [3]], {"labels": [["1", "2"], ["3"]]}),
        (["a|b", "b|c", "a", "b", "c", "a|c", "a | b|c"], {"labels": [["a", "b"], ["b", "c"], ["a"], ["b"], ["c"], ["a", "c"], ["a", "b", "c"]]}),
        (["Korea, South", "Korea, North", "Japan"], {"label": ["Korea, South", "Korea, North", "Japan"]}),
        ([True, False], {"label": ["true", "false"]}),
    ],
)  # fmt: skip
def test_kind_of_label_is_guessed_from_its_values(labels, made):
    assert prepared(labels) == made


def test_kind_of_label_can_be_named():
    assert prepared(["1", "5"], problem_type=REGRESSION) == {"value": [1.0, 5.0]}
    assert prepared([0.5, 1.5], problem_type=SINGLE) == {"label": [0.5, 1.5]}
    assert prepared(["a,b", "c"], problem_type=SINGLE) == {"label": ["a,b", "c"]}
    assert prepared(["a b", "c"], label_separator=" ") == {"labels": [["a", "b"], ["c"]]}
    assert prepared(["a,b", ""], problem_type=MULTIPLE) == {"labels": [["a", "b"], []]}


def test_class_names_stand_for_their_numbers():
    names = ClassLabel(names=["joy", "fear"])
    assert prepared([[0, 1], [1]], List(names)) == {"labels": [[0, 1], [1]]}
    assert prepared([0, 1], names) == {"label": [0, 1]}
    with pytest.raises(DataError, match=r"row 2 has no label \(-1\)"):
        prepared([0, -1], names)


def order_of(dataset, config):
    keys = TASK.model_config({"train": dataset}, config)
    assert keys["label2id"] == {name: index for index, name in keys["id2label"].items()}
    assert keys["problem_type"] == MULTIPLE
    return list(keys["id2label"].values())


def test_several_labels_keep_the_order_of_their_source(bert):
    """Class names, the model's own, columns, else natural order; test_tasks.py has those of single labels."""
    from hfkit.data.labels import with_labels

    config, own = AutoConfig.from_pretrained(bert), AutoConfig.from_pretrained(bert, id2label={0: "9", 1: "10", 2: "1"})
    names = [["10"], ["9", "1"]]
    for feature, labels, of_model, order in [
        (List(ClassLabel(names=["z", "a", "m"])), [[2], [0]], config, ["z", "a", "m"]),
        (List(Value("string")), names, config, ["1", "9", "10"]),
        (List(Value("string")), names, own, ["9", "10", "1"]),
    ]:
        dataset = Dataset.from_dict(
            {"text": ["a", "b"], "label": labels}, Features({"text": Value("string"), "label": feature})
        )
        assert order_of(with_labels({"train": dataset}, "label", settings.Data())["train"], of_model) == order
    flags = Dataset.from_dict({"text": ["a", "b"], "z": [1, 0], "a": [0, 0], "m": [1, 1]})
    assert order_of(with_labels({"train": flags}, "z,a,m", settings.Data())["train"], config) == ["z", "a", "m"]


def test_ids_of_labels_are_those_of_the_saved_model(bert):
    """config.json is written with sorted keys, so the order of label2id says nothing."""
    write("a.csv", "text,z,a\n" + "hello,1,0\nworld,0,1\n" * 4)
    assert finetune(bert, "a.csv", "--label-column", "z,a", "--validation", "a.csv") == 0
    rows = EncodedTexts(
        TASK.load(recipe_of("a.csv", **{"data.columns.label": "z,a"}))["train"],
        AutoTokenizer.from_pretrained("run"),
        AutoModelForSequenceClassification.from_pretrained("run"),
        settings.Recipe(),
    )
    assert rows.labels[:2].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert rows.names == list(hfkit.predict("run", ["hello"])[0]["probabilities"]) == ["z", "a"]


def test_columns_of_0_and_1_are_labels():
    content = "text,joy,fear,calm\na,1,0,1\nb,0,0,0\nc,0,1,0\n"
    one = {"data.columns.label": "joy,fear, calm"}
    assert loaded(write("a.csv", content), **one)[:] == {
        "text": ["a", "b", "c"],
        "labels": [[0, 2], [], [1]],
    }
    with pytest.raises(DataError, match="row 2: column 'fear' holds '2', not 0 or 1"):
        loaded(write("b.csv", content.replace("b,0,0,0", "b,0,2,0")), **one)


@pytest.mark.parametrize(
    ("labels", "data", "message"),
    [
        ([0.5, float("nan")], {}, "train data, row 2: label nan is not a finite number"),
        ([0.0, 1.0, float("nan")], {}, "train data, row 3: label nan is not a finite number"),
        (["1", "0", "inf"], {}, f"row 3: label 'inf' among numbers is not a finite number (fix: correct or delete it; --problem-type {SINGLE}, if it is a class)"),
        (["1", "nan", "0"], {}, f"row 2: label 'nan' among numbers is not a finite number (fix: correct or delete it; --problem-type {SINGLE}, if it is a class)"),
        (["0.5", "good"], {"problem_type": REGRESSION}, f"row 2: label 'good' is not a number (fix: --problem-type {SINGLE})"),
        ([n + 0.5 for n in range(30)], {"problem_type": SINGLE}, f"has 30 different numbers as classes in 30 rows (fix: --problem-type {REGRESSION})"),
        ([["a"], ["b"]], {"problem_type": SINGLE}, f"row 1: a list of labels, not one (fix: --problem-type {MULTIPLE})"),
    ],
)  # fmt: skip
def test_labels_of_another_kind_are_named_with_their_row(labels, data, message):
    with pytest.raises(DataError) as caught:
        prepared(labels, **data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,1\nb,1\n", "the training data has one label only: '1'"),
        ("text,label\na,1\nb,\n", "column 'label' is empty"),
    ],
)
def test_bad_labels_end_with_the_exit_code_of_data(bert, content, message, capsys):
    assert finetune(bert, write("a.csv", content)) == 3
    assert message in capsys.readouterr().err


def test_nan_in_a_table_is_a_missing_label(bert, capsys):
    Dataset.from_dict({"text": ["a", "b"], "label": [1.0, float("nan")]}).to_parquet("a.parquet")
    assert finetune(bert, "a.parquet") == 3
    assert "a.parquet: row 2: column 'label' is empty" in capsys.readouterr().err


def test_a_thousand_classes_of_one_row_are_a_warning(bert, capsys):
    write("a.csv", "text,label\n" + "".join(f"dog,c{number}\n" for number in range(1000)))
    assert finetune(bert, "a.csv", "--batch-size", "2") == 0
    err = capsys.readouterr().err
    assert "validation: 50 examples stay in the training data, which has no other of their label" in err
    assert "warning: no example can be held out: each would take the only one of its label" in err
    assert "warning: 1,000 of 1,000 labels have only one training row each" in err
    assert AutoConfig.from_pretrained("run").num_labels == 1000


def test_empty_texts_are_counted(bert, capsys):
    assert finetune(bert, write("a.csv", 'text,label\nx,a\n"",b\ny,b\n')) == 0
    assert "a.csv: 1 of 3 rows have an empty text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "accuracy"], f"unknown metric 'accuracy' for {REGRESSION}, which has: pearson, spearman, rmse, mae"),
        (["--class-weights", "balanced"], f"train.class_weights has no effect for {REGRESSION}"),
        (["--label-smoothing", "0.1"], f"train.label_smoothing has no effect for {REGRESSION}"),
        (["--temperature-scaling"], f"evaluation.temperature_scaling has no effect for {REGRESSION}"),
        (["--tune-threshold"], f"evaluation.tune_threshold has no effect for {REGRESSION}"),
        (["--threshold", "0.5", "--tune-threshold"], "has no effect with evaluation.threshold"),
        (["--window-overlap", "2"], "has no effect without data.long_documents=window"),
    ],
)  # fmt: skip
def test_settings_of_another_kind_of_label_are_refused(bert, options, message, capsys):
    assert finetune(bert, write("a.csv", "text,label\na,0.5\nb,1\n"), *options) == 2
    assert message in capsys.readouterr().err


# --- loss -------------------------------------------------------------------------------------------------------------

LOSSES = [
    (SINGLE, "label", "yes no", ["--class-weights", "{yes: 3, no: 0.5}", "--label-smoothing", "0.1"]),
    (MULTIPLE, "labels", "a a,b b", []),
    (REGRESSION, "score", "0.25 -100 3.5", ["--problem-type", REGRESSION]),  # -100 is a number here, no sign to ignore
]


@pytest.mark.parametrize(("kind", "column", "values", "options"), LOSSES, ids=[kind for kind, *_ in LOSSES])
@pytest.mark.portable
def test_loss_and_gradient_do_not_depend_on_accumulation(bert, kind, column, values, options, capsys):
    """One step of plain SGD: the change of the weights is the gradient."""
    random, values = np.random.default_rng(0), values.split()
    rows = [f"{' '.join(random.choice(WORDS, 1 + 5 * (row % 4)))}\t{values[row % len(values)]}" for row in range(32)]
    write("a.tsv", f"text\t{column}\n" + "\n".join(rows) + "\n")
    plain = "--optimizer sgd --momentum 0 --lr 1e-2 --lr-scheduler-type constant --warmup-steps 0 --weight-decay 0"
    fixed = [*plain.split(), "--max-grad-norm", "1e9", "--dropout", "0", "--validation-split", "0"]
    losses, weights = {}, {}
    for batch, passes in [(32, 1), (8, 4)]:
        sizes = ["--batch-size", str(batch), "--gradient-accumulation-steps", str(passes)]
        assert finetune(bert, "a.tsv", *fixed, *sizes, *options, run=f"run-{passes}") == 0
        with open(f"run-{passes}/metrics.jsonl") as log:
            losses[passes] = json.loads(log.readline())["loss"]
        weights[passes] = load_file(f"run-{passes}/model.safetensors")
    assert losses[1] == pytest.approx(losses[4], rel=1e-5)
    assert AutoConfig.from_pretrained("run-1").problem_type == kind
    before = load_file(bert / "model.safetensors")
    assert max((weights[1][name] - before[name]).abs().max() for name in before if name in weights[1]) > 1e-6
    for name, tensor in weights[1].items():
        # 1e-7 apart; 4e-5, 5e-3 and 0.5 where a step is the mean of the means of its passes
        torch.testing.assert_close(tensor, weights[4][name], rtol=0, atol=1e-6)


@pytest.mark.portable
def test_new_head_for_several_labels_begins_with_their_frequencies(bert):
    """8 rows: a in all, b in one, c in four. A head that was trained keeps what it has."""
    write(
        "a.tsv",
        "text\tlabels\n" + "".join(f"{WORDS[n]}\t{'a,b' if n == 0 else 'a,c' if n % 2 else 'a'}\n" for n in range(8)),
    )
    fixed = ["--problem-type", MULTIPLE, "--validation-split", "0", "--max-steps", "1", "--lr", "1e-9"]
    assert finetune(bert, "a.tsv", *fixed, "--label-separator", ",", run="first") == 0
    bias = load_file("first/model.safetensors")["classifier.bias"]
    torch.testing.assert_close(bias, torch.tensor([9 / 1, 2 / 8, 5 / 5]).log(), rtol=0, atol=1e-6)
    write("b.tsv", "text\tlabels\n" + "".join(f"{word}\ta,b,c\n" for word in WORDS[:8]))
    assert finetune("first", "b.tsv", *fixed, "--label-separator", ",", run="second") == 0
    torch.testing.assert_close(load_file("second/model.safetensors")["classifier.bias"], bias, rtol=0, atol=1e-6)


def test_losses_are_those_of_torch():
    from torch.nn import functional

    torch.manual_seed(0)
    logits, classes = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    flags, numbers, weights = torch.randint(0, 2, (6, 3)).float(), torch.randn(6), torch.tensor([0.5, 1.0, 4.0])
    plain = functional.cross_entropy(logits, classes)
    torch.testing.assert_close(TASK.loss({"logits": logits}, classes), plain)
    each = functional.cross_entropy(logits, classes, reduction="none")
    weighted = TASK.loss(
        {"logits": logits}, classes, options=LossOptions(global_batch_size=12, class_weights=weights.tolist())
    )
    torch.testing.assert_close(weighted, (each * weights[classes]).sum() / 12)
    several = functional.binary_cross_entropy_with_logits(logits, flags)
    torch.testing.assert_close(TASK.loss({"logits": logits}, flags), several)
    torch.testing.assert_close(
        TASK.loss({"logits": logits[:, :1]}, numbers), functional.mse_loss(logits[:, 0], numbers)
    )


def test_class_weights_are_those_of_scikit_learn():
    from hfkit.tasks.windows import class_weights

    labels = [0] * 7 + [1] * 2 + [2]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights("balanced", ["a", "b", "c"], labels) == pytest.approx(expected)
    assert class_weights("{b: 2, c: 0.5}", ["a", "b", "c"], labels) == [1.0, 2.0, 0.5]
    with pytest.raises(UsageError, match="names 'd', no label of the data: a, b, c"):
        class_weights("{d: 2}", ["a", "b", "c"], labels)
    with pytest.raises(UsageError, match="neither balanced nor a mapping"):
        class_weights("balance", ["a", "b", "c"], labels)


def test_class_weights_may_be_a_mapping_in_a_recipe_file():
    write("r.yaml", "train:\n  class_weights:\n    spam: 3\n    ham: 1\n")
    assert hfkit.load_recipe("finetune", "r.yaml").train.class_weights == "{ham: 1, spam: 3}"


def learned(bert, file, *options, run):
    """The results of a run that is long enough to learn something."""
    hard = ["--max-steps", "120", "--batch-size", "16", "--lr", "3e-3", "--no-interval", "--eval-steps", "120"]
    assert finetune(bert, file, *hard, *options, run=run) == 0
    with open(f"{run}/all_results.json") as results:
        return json.load(results)


@pytest.mark.portable
def test_class_weights_raise_macro_f1_of_a_rare_class(bert):
    """'fox' is rare twice in three times, and else common: without weights the answer is always common."""
    random = np.random.default_rng(0)
    rows = []
    for row in range(600):
        words = random.choice(["hello", "world", "dog", "lazy"], 4).tolist()
        rare = row % 12 == 0
        rows.append((" ".join([*words, "fox" if rare or row % 6 == 1 else "the"]), "rare" if rare else "common"))
    write("a.csv", "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    plain = learned(bert, "a.csv", "--validation", "a.csv", run="plain")
    weighted = learned(bert, "a.csv", "--validation", "a.csv", "--class-weights", "balanced", run="weighted")
    assert weighted["eval_f1_macro"] > plain["eval_f1_macro"] + 0.1


# --- long documents ---------------------------------------------------------------------------------------------------


def long_rows(num_rows=96, seed=0):
    """Texts whose one telling word stands behind the 16th token."""
    random = np.random.default_rng(seed)
    rows = []
    for row in range(num_rows):
        words = random.choice(["hello", "world", "the", "lazy"], 30).tolist()
        words[18 + row % 10] = "fox" if row % 2 else "dog"
        rows.append(f"{' '.join(words)},{'wild' if row % 2 else 'tame'}\n")
    return "text,label\n" + "".join(rows)


def test_windows_see_what_truncation_cuts_off(bert, capsys):
    write("a.csv", long_rows(160))
    write("b.csv", long_rows(seed=1))
    common = ["--validation", "b.csv", "--max-length", "16", "--dropout", "0"]
    cut = learned(bert, "a.csv", *common, "--allow-truncation", run="cut")
    assert (
        "warning: 160 of 160 examples (100.0%) are longer than 16 tokens and were truncated (fix: --max-length 32)"
        in (capsys.readouterr().err)
    )
    windows = learned(bert, "a.csv", *common, "--long-documents", "window", "--window-pooling", "max", run="windows")
    assert "160 of 160 examples (100.0%) are longer than 16 tokens and make 480 windows" in capsys.readouterr().err
    assert cut["eval_accuracy"] < 0.7
    assert windows["eval_accuracy"] > 0.95
    with open("b.csv") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    labels = [answer["label"] for answer in hfkit.predict("windows", texts)]
    assert labels == ["wild" if row % 2 else "tame" for row in range(96)]


@pytest.mark.parametrize("kind", [SINGLE, MULTIPLE, REGRESSION])
@pytest.mark.portable
def test_numbers_while_training_are_those_of_the_end(bert, kind):
    """The Trainer sees the longest rows first, `evaluate` in their order: windows find their texts in both."""
    labels = {SINGLE: "a b b", MULTIPLE: "a|b b a|b", REGRESSION: "0.5 3 1.25"}[kind].split()
    rows = [f"{' '.join(WORDS[: 1 + row % 12])} dog,{labels[row % 3]}\n" for row in range(30)]
    write("a.csv", "text,label\n" + "".join(rows))
    still = ["--lr", "1e-12", "--max-steps", "2", "--eval-steps", "1", "--dropout", "0", "--validation", "a.csv"]
    windows = ["--long-documents", "window", "--max-length", "8", "--problem-type", kind]
    assert finetune(bert, "a.csv", *still, *windows) == 0
    with open("run/metrics.jsonl") as log:
        during = next(line for line in map(json.loads, log) if "eval_runtime" in line)
    with open("run/all_results.json") as file:
        final = json.load(file)
    names = [f"eval_{name}" for name in ("rmse", "pearson") if kind == REGRESSION] or ["eval_log_loss", "eval_f1_macro"]
    for name in names:
        assert during[name] == pytest.approx(final[name], abs=1e-5)


def test_many_cut_rows_take_a_decision(bert, capsys):
    short = "hello,a\nworld,b\n"
    write("few.csv", "text,label\n" + short * 20 + "dog " * 40 + ",b\n")
    write("many.csv", "text,label\n" + short * 5 + "dog " * 40 + ",b\n")
    assert finetune(bert, "few.csv", "--max-length", "16", "--validation-split", "0") == 0
    assert "warning: 1 of 41 examples (2.4%) are longer than 16 tokens and were truncated (fix: --max-length 42)" in (
        capsys.readouterr().err
    )
    assert finetune(bert, "many.csv", "--max-length", "16", "--validation-split", "0", run="other") == 3
    assert (
        "error: 1 of 11 examples (9.1%) are longer than 16 tokens and would be truncated "
        "(fix: --max-length 42, or --long-documents window, or --allow-truncation)"
    ) in capsys.readouterr().err


def encoded(bert, texts, pairs=None, **data):
    tokenizer = AutoTokenizer.from_pretrained(bert)
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    columns = {"text": texts} | ({} if pairs is None else {"text_pair": pairs})
    recipe = settings.Recipe(data=settings.Data(**data))
    return tokenizer, EncodedTexts(Dataset.from_dict(columns), tokenizer, model, recipe)


def test_windows_hold_every_token_and_overlap(bert):
    text = " ".join(WORDS)
    tokenizer, rows = encoded(bert, ["dog", text], max_length=10, long_documents="window", window_overlap=3)
    assert rows.owners.tolist() == [0, *[1] * (len(rows) - 1)]
    assert rows.starts.tolist() == [0, 1]
    bodies = [rows.example(index)["input_ids"][1:-1] for index in range(1, len(rows))]
    assert max(rows.lengths) <= 10
    whole = bodies[0] + [token for body in bodies[1:] for token in body[3:]]
    assert whole == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(one[-3:] == other[:3] for one, other in itertools.pairwise(bodies))
    with pytest.raises(UsageError, match=r"data.window_overlap 8: a window has room for 8 tokens"):
        encoded(bert, [text], max_length=10, long_documents="window", window_overlap=8)


def test_windows_of_a_pair_repeat_the_shorter_text(bert):
    tokenizer, rows = encoded(bert, ["the fox"], [" ".join(WORDS)], max_length=14, long_documents="window")
    assert len(rows) > 1
    for index in range(len(rows)):
        assert tokenizer.decode(rows.example(index)["input_ids"]).startswith("[CLS] the fox [SEP]")
    with pytest.raises(DataError, match="a first text of a pair fills a whole window of 14 tokens"):
        encoded(bert, ["fox " * 20, "dog"], ["dog " * 40, "dog " * 40], max_length=14, long_documents="window")


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_logits_of_windows_are_pooled(bert, pooling):
    _, rows = encoded(bert, ["dog", "fox " * 40], max_length=16, long_documents="window", window_pooling=pooling)
    logits = np.random.default_rng(0).normal(size=(len(rows), 3))
    pooled = logits[1:].mean(axis=0) if pooling == "mean" else logits[1:].max(axis=0)
    np.testing.assert_allclose(rows.pooled(logits), [logits[0], pooled])


# --- decoders, padding and order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.portable
def test_a_decoder_reads_its_last_token_whatever_the_padding(kind, tmp_path):
    """The logits of rows in a batch are those of each row alone, with pad = eos and a tokenizer that pads left."""
    if kind == "llama":
        make_causal_model().save_pretrained(tmp_path / "m")
        tokenizer = make_word_tokenizer()
        tokenizer.save_pretrained(tmp_path / "m")
        texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11"]
    else:
        make_gpt2(tmp_path / "m")
        texts = ["hello world", "a", "the quick brown fox jumps over the lazy dog"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = spread(AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", num_labels=3)).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = EncodedTexts(Dataset.from_dict({"text": texts}), tokenizer, model, settings.Recipe())
    together, _ = predict_rows(TASK, model, tokenizer, rows, batch_size=3)
    for text, logits in zip(texts, together, strict=True):
        with torch.inference_mode():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            hidden = model.base_model(input_ids=ids).last_hidden_state[0, -1]
            np.testing.assert_allclose(model.score(hidden).numpy(), logits, atol=1e-5)
    assert np.ptp(together, axis=0).max() > 0.1


@pytest.mark.portable
def test_a_decoder_learns_to_classify(tmp_path):
    torch.manual_seed(0)
    make_gpt2(tmp_path / "gpt2")
    random = np.random.default_rng(0)
    rows = []
    for row in range(64):
        words = random.choice(["hello", "world", "the", "lazy"], 1 + row % 7).tolist()
        words.insert(row % (len(words) + 1), "fox" if row % 2 else "dog")
        rows.append(f"{' '.join(words)},{'wild' if row % 2 else 'tame'}\n")
    write("a.csv", "text,label\n" + "".join(rows))
    results = learned(tmp_path / "gpt2", "a.csv", "--validation", "a.csv", "--dropout", "0", run="run")
    assert results["eval_accuracy"] > 0.95


# --- metrics ----------------------------------------------------------------------------------------------------------


class Fake(EncodedTexts):
    """Rows as `scores` sees them."""

    def __init__(self, kind, num_rows, names=("a", "b", "c"), **config):
        self.kind, self.names, self.config = kind, list(names), type("Config", (), config)
        self.owners = np.arange(num_rows)

    def pooled(self, logits):
        return logits


def recipe_with(*metrics, **evaluation):
    return settings.Evaluation(metrics=list(metrics), interval=False, **evaluation)


def test_metrics_of_several_labels_agree_with_scikit_learn():
    random = np.random.default_rng(0)
    logits = random.normal(size=(300, 4)).astype(np.float32).round(1)
    labels = (random.random((300, 4)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    labels[:, 3] = 0  # a label that never occurs
    shares = 1 / (1 + np.exp(-logits.astype(float)))
    given = shares >= 0.4
    rows = Fake(MULTIPLE, 300, "abcd", classifier_threshold=0.4)
    names = METRICS[MULTIPLE]
    scores = TASK.scores(logits, labels, rows, recipe_with(*names))
    assert list(scores) == list(names)
    for average in ("macro", "micro", "weighted", "samples"):
        expected = sklearn.f1_score(labels, given, average=average, zero_division=0)
        assert scores[f"f1_{average}"].value == pytest.approx(expected)
    assert scores["precision_macro"].value == pytest.approx(
        sklearn.precision_score(labels, given, average="macro", zero_division=0)
    )
    assert scores["recall_macro"].value == pytest.approx(
        sklearn.recall_score(labels, given, average="macro", zero_division=0)
    )
    assert scores["subset_accuracy"].value == pytest.approx(sklearn.accuracy_score(labels, given))
    assert scores["hamming_loss"].value == pytest.approx(sklearn.hamming_loss(labels, given))
    expected = sklearn.average_precision_score(labels[:, :3], shares[:, :3], average="macro")
    assert scores["mean_average_precision"].value == pytest.approx(expected)
    flat = sklearn.log_loss(labels.ravel(), shares.ravel())
    assert scores["log_loss"].value == pytest.approx(flat, rel=1e-5)
    typed = TASK.scores(logits, labels, rows, recipe_with("f1_micro", threshold=0.7))["f1_micro"].value
    assert typed == pytest.approx(sklearn.f1_score(labels, shares >= 0.7, average="micro"))


def test_intervals_of_several_labels_are_those_of_a_bootstrap_by_hand():
    random = np.random.default_rng(1)
    labels = (random.random((80, 3)) < 0.4).astype(float)
    given = np.where(random.random((80, 3)) < 0.8, labels, 1 - labels)
    score = compute(["f1_macro"], given, labels, seed=3, resamples=400)["f1_macro"]
    draws, values = np.random.default_rng(3), []
    for _ in range(400):
        rows = draws.integers(80, size=80)
        values.append(sklearn.f1_score(labels[rows], given[rows], average="macro", zero_division=0))
    left = [np.delete(np.arange(80), row) for row in range(80)]
    without = np.array([sklearn.f1_score(labels[rows], given[rows], average="macro") for rows in left])
    influence = without.mean() - without
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    bias = norm.ppf((np.array(values) < score.value).mean())
    ends = [norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in norm.ppf([0.025, 0.975])]
    assert (score.low, score.high) == pytest.approx(tuple(np.quantile(values, ends)))


def test_metrics_of_numbers_agree_with_scipy_and_scikit_learn(capsys):
    random = np.random.default_rng(0)
    logits = random.normal(size=(200, 1)).astype(np.float32)
    labels = logits[:, 0] + random.normal(size=200)
    scores = TASK.scores(logits, labels, Fake(REGRESSION, 200), recipe_with())
    assert list(scores) == ["pearson", "spearman", "rmse", "mae"]
    assert scores["pearson"].value == pytest.approx(pearsonr(logits[:, 0], labels).statistic, rel=1e-6)
    assert scores["spearman"].value == pytest.approx(spearmanr(logits[:, 0], labels).statistic, rel=1e-6)
    assert scores["rmse"].value == pytest.approx(sklearn.root_mean_squared_error(labels, logits[:, 0]), rel=1e-6)
    assert scores["mae"].value == pytest.approx(sklearn.mean_absolute_error(labels, logits[:, 0]), rel=1e-6)
    constant = TASK.scores(np.zeros((200, 1)), labels, Fake(REGRESSION, 200), recipe_with())
    assert list(constant) == ["rmse", "mae"]
    assert "they have no correlation" in capsys.readouterr().err


def test_temperature_is_the_best_one_and_leaves_labels_alone(capsys):
    random = np.random.default_rng(0)
    right = random.normal(size=(2000, 3))
    labels = np.array([random.choice(3, p=np.exp(row) / np.exp(row).sum()) for row in right])
    found = calibration.temperature(right * 3, labels)  # three times too sure
    assert found == pytest.approx(3, rel=0.1)
    assert calibration.log_loss(right * 3 / found, labels) < min(
        calibration.log_loss(right * 3 / (found * factor), labels) for factor in (0.99, 1.01)
    )
    assert "temperature: " in capsys.readouterr().err
    rows = Fake(SINGLE, 2000, classifier_temperature=found)
    names = ("accuracy", "log_loss", "ece", "brier")
    before = TASK.scores(right * 3, labels, Fake(SINGLE, 2000), recipe_with(*names))
    after = TASK.scores(right * 3, labels, rows, recipe_with(*names))
    assert after["accuracy"].value == before["accuracy"].value
    assert after["log_loss"].value == pytest.approx(calibration.log_loss(right * 3 / found, labels))
    assert after["ece"].value < before["ece"].value / 2
    assert after["brier"].value < before["brier"].value


def test_threshold_is_the_best_one():
    random = np.random.default_rng(0)
    labels = (random.random((500, 3)) < 0.2).astype(float)
    shares = np.clip(0.15 + 0.2 * labels + 0.08 * random.normal(size=(500, 3)), 0, 1)
    found = calibration.threshold(shares, labels)
    of = {one: sklearn.f1_score(labels, shares >= one, average="macro") for one in np.arange(1, 100) / 100}
    assert of[found] == max(of.values()) > of[0.5] + 0.3


# --- what a run keeps -------------------------------------------------------------------------------------------------


@pytest.mark.portable
def test_threshold_and_temperature_are_kept_in_the_model_and_used(bert, capsys):
    random = np.random.default_rng(0)
    names = ["x", "y", "z"]
    rows = [
        f"{' '.join(random.choice(WORDS, 4))}\t{','.join(name for name in names if random.random() < 0.5)}"
        for _ in range(80)
    ]
    write("a.tsv", "text\tlabels\n" + "\n".join(rows) + "\n")
    options = ["--problem-type", MULTIPLE, "--tune-threshold", "--temperature-scaling", "--validation", "a.tsv"]
    assert finetune(bert, "a.tsv", *options) == 0
    err = capsys.readouterr().err
    config = AutoConfig.from_pretrained("run")
    assert f"threshold: {config.classifier_threshold:g} (macro-F1" in err
    assert f"temperature: {config.classifier_temperature:.3f} (log loss" in err
    tokenizer = AutoTokenizer.from_pretrained("run")
    model = AutoModelForSequenceClassification.from_pretrained("run").eval()
    (answer,) = hfkit.predict("run", ["hello world"])
    with torch.inference_mode():
        logits = model(**tokenizer("hello world", return_tensors="pt")).logits[0].double()
    expected = torch.sigmoid(logits / config.classifier_temperature).tolist()
    assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
    assert list(answer["probabilities"]) == names
    wanted = [name for name, p in zip(names, expected, strict=True) if p >= config.classifier_threshold]
    assert answer["labels"] == wanted
    (all_of_them,) = hfkit.predict("run", ["hello world"], **{"evaluation.threshold": 0.0})
    assert all_of_them["labels"] == names
    scores = hfkit.evaluate("run", **{"data.test": ["a.tsv"]})
    with open("run/all_results.json") as results:
        assert scores["f1_macro"].value == pytest.approx(json.load(results)["eval_f1_macro"])


@pytest.mark.portable
def test_threshold_of_the_best_model_is_chosen_at_its_temperature(bert, capsys):
    """With steps too small to change an answer the first evaluation is the best; its model is loaded anew."""
    random = np.random.default_rng(0)
    for name, rows in (("a.tsv", 16), ("b.tsv", 60)):
        texts = [
            f"{' '.join(random.choice(WORDS, 4))}\t{','.join(random.permutation(['x', 'y'])[:1])}" for _ in range(rows)
        ]
        write(name, "text\tlabels\n" + "\n".join(texts) + "\n")
    options = ["--problem-type", MULTIPLE, "--tune-threshold", "--temperature-scaling", "--validation", "b.tsv"]
    steps = ["--best", "f1_micro", "--max-steps", "2", "--eval-steps", "1", "--lr", "1e-12"]
    assert finetune(bert, "a.tsv", *options, *steps) == 0
    err = capsys.readouterr().err
    assert "the best model is that of step" in err
    results = json.loads(Path("run/all_results.json").read_text())
    assert f"-> {results['eval_f1_macro']:.4f}, chosen on it)" in err
    scores = hfkit.evaluate("run", **{"data.test": ["b.tsv"], "evaluation.metrics": ["log_loss", "f1_macro"]})
    assert {name: score.value for name, score in scores.items()} == pytest.approx(
        {name: results[f"eval_{name}"] for name in ("log_loss", "f1_macro")}
    )


def test_evaluation_of_data_with_one_label_a_row_knows_the_model(bert):
    """Rows of single names are several labels to a model that was trained on such."""
    write("a.csv", 'text,label\na dog,"x,y"\na fox,x\nhello,y\nworld,x\n')
    assert finetune(bert, "a.csv", "--validation-split", "0", "--problem-type", MULTIPLE) == 0
    write("b.csv", "text,label\na dog,x\nhello,y\n")
    scores = hfkit.evaluate("run", **{"data.test": ["b.csv"]})
    assert list(scores) == ["f1_macro", "f1_micro", "subset_accuracy", "log_loss"]


@pytest.mark.parametrize(
    ("label", "options", "metric"),
    [("score", ["--early-stopping", "1"], "pearson"), ("label", ["--early-stopping", "1"], "accuracy"),
     ("label", ["--best", "ece"], "ece")],
)  # fmt: skip
def test_the_best_model_is_by_a_metric_of_its_kind(bert, label, options, metric, capsys):
    write("a.csv", f"text,{label}\n" + "a dog,0.5\na fox,3.5\nhello,2.5\n".replace(".5", ".5" * (label == "score")) * 4)
    steps = ["--validation", "a.csv", "--max-steps", "4", "--eval-steps", "1", "--lr", "1e-2", "--batch-size", "4"]
    assert finetune(bert, "a.csv", *steps, *options) == 0
    with open("run/run.json") as file:
        assert metric in json.load(file)["best"]
    assert main(["finetune", "--model", str(bert), "--data", "a.csv", "--best", "f1_samples"]) == 2
    assert "unknown metric 'f1_samples' for" in capsys.readouterr().err


@pytest.mark.portable
def test_regression_answers_with_the_number(bert, capsys):
    write("a.csv", "text,score\na dog,0.5\na fox,3.5\nhello,2.5\nworld,1\n")
    assert finetune(bert, "a.csv", "--validation-split", "0") == 0
    assert AutoConfig.from_pretrained("run").num_labels == 1
    capsys.readouterr()
    assert main(["predict", "run", "--text", "a dog", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)["value"]
    assert main(["predict", "run", "--text", "a dog"]) == 0
    assert capsys.readouterr().out == f"{value:.4g}\n"
    scores = hfkit.evaluate("run", **{"data.test": ["a.csv"]})
    assert scores["mean_baseline"].value == pytest.approx(np.std([0.5, 3.5, 2.5, 1]))


@pytest.mark.portable
def test_confusion_and_worst_errors_lie_in_the_run(bert):
    labels = ["a", "b", "c"]
    rows = [(f"{WORDS[row % 14]} {WORDS[row % 5]}", labels[row % 3]) for row in range(60)]
    write("a.csv", "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    assert finetune(bert, "a.csv", "--validation", "a.csv") == 0
    answers = hfkit.predict("run", [text for text, _ in rows])
    with open("run/validation_confusion.csv") as file:
        header, *table = list(csv.reader(file))
    assert header[1:] == [row[0] for row in table] == labels
    expected = sklearn.confusion_matrix([label for _, label in rows], [answer["label"] for answer in answers])
    assert [[int(cell) for cell in row[1:]] for row in table] == expected.tolist()
    with open("run/validation_worst_errors.jsonl") as file:
        worst = [json.loads(line) for line in file]
    wrong = [row for row, answer in enumerate(answers) if answer["label"] != rows[row][1]]
    assert sorted(line["row"] - 1 for line in worst) == wrong
    assert [line["loss"] for line in worst] == sorted((line["loss"] for line in worst), reverse=True)
    first = worst[0]
    text, label = rows[first["row"] - 1]
    answer = answers[first["row"] - 1]
    assert (first["text"], first["label"], first["predicted"]) == (text, label, answer["label"])
    assert first["probability"] == pytest.approx(answer["score"], abs=1e-5)
    assert first["loss"] == pytest.approx(-math.log(answer["probabilities"][label]), abs=1e-4)
