"""Labels of every kind of file are read alike by finetune, predict, evaluate and compare."""

import json
import shutil

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sklearn import metrics as reference

from hfkit.cli.main import main
from hfkit.data.labels import names_of_ids
from tiny_models import make_bert

TEXTS = [f"{word} {number}" for number in range(6) for word in ("hello world", "a tiny model", "the quick brown fox")]

NAMES = ["neg", "pos"]


def table(path, labels, feature=None):
    features = None if feature is None else Features({"text": Value("string"), "label": feature})
    dataset = Dataset.from_dict({"text": TEXTS, "label": labels}, features=features)
    if path.suffix == ".parquet":
        dataset.to_parquet(path)
    elif path.suffix == ".jsonl":
        rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif path.suffix == ".csv":
        path.write_text(
            "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(TEXTS, labels, strict=True))
        )
    else:
        DatasetDict(dict.fromkeys(("train", "validation", "test"), dataset)).save_to_disk(str(path))
    return path


FLAGS = [number % 3 == 0 for number in range(len(TEXTS))]

SETS = [[0, 1], [2], [1]] * 6

IDS = [int(flag) for flag in FLAGS]

WORDS = [NAMES[flag] for flag in FLAGS]

LETTERS = [["xyz"[one] for one in row] for row in SETS]

KINDS = {  # file to learn from, its labels, their feature; another file of the same labels
    "classes": ("a.parquet", IDS, ClassLabel(names=NAMES), "b.csv", WORDS),
    "saved": ("saved", IDS, ClassLabel(names=NAMES), "b.csv", WORDS),
    "ids of names": ("a.parquet", IDS, ClassLabel(names=NAMES), "b.csv", IDS),
    "booleans": ("a.jsonl", FLAGS, None, "b.csv", FLAGS),  # True and False there
    "floats": ("a.parquet", list(map(float, FLAGS)), None, "b.csv", IDS),
    "text of floats": ("a.csv", list(map(float, FLAGS)), None, "b.jsonl", IDS),
    "LABEL_n": ("a.csv", [f"LABEL_{number}" for number in IDS], None, "b.csv", IDS),
    "lists of classes": ("a.parquet", SETS, List(ClassLabel(names=list("xyz"))), "b.jsonl", LETTERS),
    "lists of ids": ("a.jsonl", SETS, None, "b.parquet", [list(map(float, row)) for row in SETS]),
    "lists of names": ("a.jsonl", LETTERS, None, "b.csv", list(map("|".join, LETTERS))),
}


def scores(capsys):
    found = json.loads(capsys.readouterr().out)["metrics"]
    return {name: (one["value"], one["low"], one["high"]) for name, one in found.items() if "baseline" not in name}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_equal_on_every_path(kind, tmp_path, monkeypatch, capsys):
    first, labels, feature, other, same = KINDS[kind]
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    make_bert(tmp_path / "home" / "bert")
    table(tmp_path / "home" / first, labels, feature)
    options = ["--validation", first] if "." in first else []
    command = ["finetune", "--model", "./bert", "--data", first, *options, "-o", "run", "--max-steps", "3"]
    assert main([*command, "--lr", "0.01", "--batch-size", "2"]) == 0
    run = str(tmp_path / "home" / "run")
    metrics = "f1_macro,f1_micro,log_loss"
    gold = str(table(tmp_path / other, same))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.move(tmp_path / "home" / first, tmp_path / first)  # gone from where the run found it
    capsys.readouterr()
    assert main(["predict", run, "--input", gold, "--output", "p.jsonl"]) == 0
    for file in (gold, str(tmp_path / first)):
        assert main(["evaluate", run, "--data", file, "--metrics", metrics, "--json"]) == 0
        model = scores(capsys)
        command = ["evaluate", "--predictions", "p.jsonl", "--references", file, "--metrics", metrics, "--json"]
        assert main(command) == 0
        for name, value in scores(capsys).items():
            assert value == pytest.approx(model[name], rel=1e-6)
    answers = (tmp_path / "elsewhere" / "p.jsonl").read_text().splitlines()
    by_hand(list(map(json.loads, answers)), same if kind == "lists of names" else labels, model)
    shutil.copy("p.jsonl", "q.jsonl")
    assert main(["compare", "p.jsonl", "q.jsonl", "--references", gold, "--metrics", "f1_micro", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["differences"]
    assert (found["first"], found["difference"]) == (pytest.approx(model["f1_micro"][0]), 0)


def by_hand(answers, labels, found):
    """The numbers of `found` from the probabilities alone, by scikit-learn."""
    shares = np.array([list(answer["probabilities"].values()) for answer in answers])
    if isinstance(labels[0], list) or "|" in str(labels[0]):
        actual = np.zeros_like(shares)
        for row, names in enumerate(SETS):
            actual[row, names] = 1
        assert found["f1_micro"][0] == pytest.approx(reference.f1_score(actual, shares >= 0.5, average="micro"))
        losses = [reference.log_loss(actual[:, place], shares[:, place], labels=[0, 1]) for place in range(3)]
        assert found["log_loss"][0] == pytest.approx(np.mean(losses), rel=1e-6)
        return
    actual, shares = np.array(FLAGS, int), shares / shares.sum(axis=1, keepdims=True)
    assert found["f1_macro"][0] == pytest.approx(reference.f1_score(actual, shares.argmax(1), average="macro"))
    assert found["f1_micro"][0] == pytest.approx(reference.accuracy_score(actual, shares.argmax(1)))
    assert found["log_loss"][0] == pytest.approx(reference.log_loss(actual, shares), rel=1e-6)


def jsonl(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def scored(tmp_path, made, given, *options):
    """The exit code for predictions and references in files of their own, each {column: values}."""
    files = []
    for side, columns in (("p", made), ("r", given)):
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        files.append(jsonl(tmp_path / f"{side}.jsonl", rows))
    return main(["evaluate", "--predictions", files[0], "--references", files[1], "--json", *options])


@pytest.mark.parametrize(
    ("made", "given", "accuracy"),
    [
        ([1.0, 0.0, 1.0], [1, 0, 0], 2 / 3),
        (["1.0", "0.0", "1.0"], [1, 0, 0], 2 / 3),
        ([True, False, True], ["True", "False", "False"], 2 / 3),
        (["TRUE", "FALSE", "FALSE"], [True, True, False], 2 / 3),
        (["True", "False", "True"], ["true", "maybe", "true"], 2 / 3),
        (["1.0", "2.0", "3.0"], ["1", "2", "x3"], 2 / 3),
        (["a", "b", "a"], ["b", "b", "a"], 2 / 3),
    ],
)
def test_labels_are_spelled_alike(tmp_path, capsys, made, given, accuracy):
    assert scored(tmp_path, {"prediction": made}, {"label": given}, "--metrics", "accuracy") == 0
    assert scores(capsys)["accuracy"][0] == pytest.approx(accuracy)
    assert scored(tmp_path, {"prediction": made}, {"label": given}) == 0
    assert list(scores(capsys)) == ["accuracy", "f1_macro"]


@pytest.mark.parametrize(
    ("made", "given", "shown"),
    [
        ([1, 0], ["LABEL_1", "LABEL_0"], "hold '0', '1', the references 'LABEL_0', 'LABEL_1'"),
        (["yes", "no"], [1, 0], "hold 'no', 'yes', the references '0', '1'"),
        ([["a"], ["b"]], [["1", "2"], []], "hold 'a', 'b', the references '1', '2'"),
        (["Good", "Bad"], ["good", "bad"], "hold 'Bad', 'Good', the references 'bad', 'good'"),
    ],
)
def test_labels_with_nothing_in_common_are_refused(tmp_path, capsys, made, given, shown):
    assert scored(tmp_path, {"prediction": made}, {"label": given}, "--metrics", "f1_micro") == 3
    assert shown in capsys.readouterr().err


def test_a_label_has_one_reference(tmp_path, capsys):
    files = [jsonl(tmp_path / f"{name}.jsonl", [{"label": name}]) for name in "abc"]
    command = ["evaluate", "--predictions", files[0], "--references", files[1], "--references", files[2]]
    assert main([*command, "--metrics", "accuracy"]) == 3
    assert f"2 files of references, and a label has one (fix: --references {files[1]} alone)" in capsys.readouterr().err


def test_ids_are_the_names_that_a_file_gives_them(tmp_path, capsys):
    file = table(tmp_path / "r.parquet", [int(flag) for flag in FLAGS], ClassLabel(names=NAMES))
    made = jsonl(tmp_path / "p.jsonl", [{"prediction": 1}] * len(FLAGS))
    assert main(["evaluate", "--predictions", made, "--references", str(file), "--metrics", "accuracy", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["metrics"]["accuracy"]["value"] == pytest.approx(sum(FLAGS) / len(FLAGS))
    assert "labels: ids of known names: 1 is pos" in said.err


def test_columns_follow_the_metric(tmp_path, capsys):
    both = {"text": ["a b", "c d"], "label": ["x", "y"]}
    assert scored(tmp_path, both, both | {"label": ["x", "x"]}, "--metrics", "accuracy") == 0
    assert scores(capsys)["accuracy"][0] == 0.5
    assert scored(tmp_path, both, both | {"text": ["a b", "c e"]}, "--metrics", "exact_match") == 0
    assert scores(capsys)["exact_match"][0] == 50
    assert scored(tmp_path, both, both) == 0
    assert list(scores(capsys)) == ["accuracy", "f1_macro"]
    generated = {"prompt": ["p", "q"], "text": ["x", "y"]}
    assert scored(tmp_path, generated, {"label": ["x", "y"], "text": ["p", "q"]}, "--metrics", "accuracy") == 3
    fix = capsys.readouterr().err.partition("(fix: ")[2].partition(",")[0]
    assert fix == "--prediction-column text --reference-column label"
    command = ["--metrics", "accuracy", *fix.split()]
    assert scored(tmp_path, generated, {"label": ["x", "y"], "text": ["p", "q"]}, *command) == 0
    assert scores(capsys)["accuracy"][0] == 1


@pytest.mark.parametrize(
    ("made", "given"),
    [
        ([["a", "b"], ["c"], []], [["b", "a"], ["c", "a"], ["b"]]),
        ([[0, 1], [2], []], [[1, 0], [2, 0], [1]]),
        (["a,b", "c", ""], ["b,a", "c,a", "b"]),
        ([["a", "b"], ["c"], []], ["b|a", "c|a", "b"]),
        ([[1, 1, 0], [0, 0, 1], [0, 0, 0]], [[1, 1, 0], [1, 0, 1], [0, 1, 0]]),
    ],
)
def test_lists_are_sets_of_labels(tmp_path, capsys, made, given):
    names = "f1_macro,f1_micro,f1_samples,subset_accuracy,hamming_loss"
    assert scored(tmp_path, {"prediction": made}, {"labels": given}, "--metrics", names) == 0
    predicted, actual = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]]), np.array([[1, 1, 0], [1, 0, 1], [0, 1, 0]])
    found = {name: value for name, (value, _, _) in scores(capsys).items()}
    assert found == pytest.approx(
        {
            "f1_macro": reference.f1_score(actual, predicted, average="macro"),
            "f1_micro": reference.f1_score(actual, predicted, average="micro"),
            "f1_samples": reference.f1_score(actual, predicted, average="samples", zero_division=0),
            "subset_accuracy": reference.accuracy_score(actual, predicted),
            "hamming_loss": reference.hamming_loss(actual, predicted),
        }
    )


def test_rows_of_0_and_1_are_told_from_ids(tmp_path, capsys):
    assert (
        scored(tmp_path, {"prediction": [[0, 1], [1, 1]]}, {"labels": [[1, 0], [1, 1]]}, "--metrics", "f1_micro") == 0
    )
    assert "rows of 0 and 1, all of one length, are a column for each label" in capsys.readouterr().err
    made = [{"labels": ["a"], "text": "x", "probabilities": {"a": 0.9, "b": 0.2}}] * 2
    file = jsonl(tmp_path / "p.jsonl", made)
    gold = jsonl(tmp_path / "r.jsonl", [{"label": [0]}, {"label": [0, 1]}])
    command = ["evaluate", "--predictions", file, "--references", gold, "--metrics", "f1_micro", "--json"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "labels: ids of known names: 0 is a, 1 is b" in said.err
    assert json.loads(said.out)["metrics"]["f1_micro"]["value"] == pytest.approx(2 * 2 / 5)


def test_probabilities_of_several_labels_are_used(tmp_path, capsys):
    random = np.random.default_rng(0)
    shares, flags = random.random((40, 3)), random.integers(0, 2, (40, 3))
    rows = [
        {
            "text": "x",
            "labels": [name for name, share in zip("abc", row, strict=True) if share >= 0.5],
            "probabilities": dict(zip("abc", row, strict=True)),
        }
        for row in shares.tolist()
    ]
    gold = [{"labels": [name for name, flag in zip("abc", row, strict=True) if flag]} for row in flags.tolist()]
    files = jsonl(tmp_path / "p.jsonl", rows), jsonl(tmp_path / "r.jsonl", gold)
    command = ["evaluate", "--predictions", files[0], "--references", files[1], "--json", "--metrics"]
    assert main([*command, "roc_auc,average_precision,mean_average_precision,brier,ece,log_loss"]) == 0
    found = {name: value for name, (value, _, _) in scores(capsys).items()}
    bins = np.ceil(shares * 15).astype(int)
    gaps = [abs((flags - shares)[bins == place].sum()) for place in range(16)]
    assert found == pytest.approx(
        {
            "roc_auc": reference.roc_auc_score(flags, shares),
            "average_precision": reference.average_precision_score(flags, shares),
            "mean_average_precision": reference.average_precision_score(flags, shares),
            "brier": np.mean([reference.brier_score_loss(flags[:, place], shares[:, place]) for place in range(3)]),
            "ece": sum(gaps) / flags.size,
            "log_loss": np.mean([reference.log_loss(flags[:, place], shares[:, place]) for place in range(3)]),
        },
        rel=1e-12,
    )
    assert scored(tmp_path, {"prediction": [["a"], ["b"]]}, {"labels": [["a"], ["a"]]}, "--metrics", "roc_auc") == 3
    assert "the predictions have no probabilities (fix: hfkit predict" in capsys.readouterr().err


def test_groups_have_the_names_of_their_classes(tmp_path, capsys):
    file = tmp_path / "t.parquet"
    features = Features(
        {"prediction": Value("string"), "label": Value("string"), "kind": ClassLabel(names=["new", "old"])}
    )
    rows = {"prediction": ["a", "b", "a"], "label": ["a", "b", "b"], "kind": [0, 1, 1]}
    Dataset.from_dict(rows, features=features).to_parquet(file)
    command = ["evaluate", "--predictions", str(file), "--references", str(file), "--metrics", "accuracy", "--json"]
    assert main([*command, "--by", "kind"]) == 0
    groups = json.loads(capsys.readouterr().out)["by"]["groups"]
    assert {name: one["accuracy"]["value"] for name, one in groups.items()} == {"new": 1, "old": 0.5}


def test_what_a_column_of_labels_holds_is_looked_at(tmp_path, capsys):
    tags = [["O", "B-PER", "I-PER"], ["B-LOC", "O"]]
    assert scored(tmp_path, {"prediction": tags}, {"labels": [tags[0], ["B-LOC", "B-PER"]]}) == 0
    assert scores(capsys)["entity_f1"][0] == pytest.approx(0.8)
    assert scored(tmp_path, {"prediction": [3.2, 2.5, 2]}, {"label": [3.1, 4, 1.5]}) == 0
    assert list(scores(capsys)) == ["pearson", "spearman", "rmse", "mae"]
    assert scored(tmp_path, {"prediction": ["3.2", "2.5", "2"]}, {"label": ["3.1", "4", "1.5"]}) == 0
    assert list(scores(capsys)) == ["pearson", "spearman", "rmse", "mae"]


def test_probabilities_are_in_the_order_of_the_classes(tmp_path, capsys):
    shares = [[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]
    for given in ([1, 0, 0], ["1", "0", "0"]):
        assert scored(tmp_path, {"prediction": shares}, {"label": given}) == 0
        found = scores(capsys)
        assert list(found) == ["accuracy", "f1_macro", "log_loss"]
        assert found["log_loss"][0] == pytest.approx(-np.log(0.8 * 0.6 * 0.5) / 3)
    features = Features({"label": ClassLabel(names=NAMES)})
    Dataset.from_dict({"label": [1, 0, 0]}, features=features).to_parquet(tmp_path / "r.parquet")
    command = ["evaluate", "--predictions", str(tmp_path / "p.jsonl"), "--references", str(tmp_path / "r.parquet")]
    assert main([*command, "--metrics", "accuracy", "--json"]) == 0
    assert scores(capsys)["accuracy"][0] == 1


def test_a_model_without_names_of_classes_is_measured_by_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_bert(tmp_path / "bert")
    table(tmp_path / "ids.csv", [f"LABEL_{number}" for number in IDS])
    gold = str(table(tmp_path / "gold.parquet", IDS, ClassLabel(names=NAMES)))
    command = ["finetune", "--model", "./bert", "--data", "ids.csv", "-o", "run", "--max-steps", "3", "--lr", "0.01"]
    assert main(command) == 0
    assert main(["predict", "run", "--input", gold, "--output", "p.jsonl"]) == 0
    metrics = ["--metrics", "accuracy,log_loss", "--json"]
    found = []
    for command in (
        ["run", "--data", "ids.csv"],
        ["run", "--data", gold],
        ["--predictions", "p.jsonl", "--references", gold],
    ):
        capsys.readouterr()
        assert main(["evaluate", *command, *metrics]) == 0
        printed = capsys.readouterr()
        found.append(json.loads(printed.out))
        said = "labels: the model has no names for its classes: LABEL_0 is neg, LABEL_1 is pos"
        assert (said in printed.err) == (gold in command)
    answers = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    right = np.mean([answer["label"] == f"LABEL_{label}" for answer, label in zip(answers, IDS, strict=True)])
    for one in found:
        assert one["metrics"]["accuracy"]["value"] == right
        assert one["metrics"]["log_loss"]["value"] == pytest.approx(found[0]["metrics"]["log_loss"]["value"], rel=1e-6)


def test_several_labels_have_no_accuracy(tmp_path, capsys):
    assert scored(tmp_path, {"prediction": [["a", "b"], []]}, {"labels": [["a"], ["b"]]}, "--metrics", "accuracy") == 3
    assert "references have several labels a row (fix: f1_macro, f1_micro" in capsys.readouterr().err


def test_numbers_in_names_are_no_ids(capsys):
    stars = [f"{number} star" for number in range(1, 6)]
    assert names_of_ids([1, 2, 4], stars) == {}
    assert names_of_ids([1, 0], ["LABEL_0", "LABEL_1"]) == {"0": "LABEL_0", "1": "LABEL_1"}
    assert names_of_ids(["LABEL_1", "LABEL_0"], NAMES) == {"LABEL_0": "neg", "LABEL_1": "pos"}


def test_systems_with_and_without_probabilities_differ_in_right_answers(tmp_path, capsys):
    plain = jsonl(tmp_path / "a.jsonl", [{"prediction": name} for name in ("x", "y", "x")])
    shares = [{"x": 0.9, "y": 0.1}, {"x": 0.8, "y": 0.2}, {"x": 0.7, "y": 0.3}]
    rows = [{"text": "t", "label": "x", "probabilities": one} for one in shares]
    gold = jsonl(tmp_path / "g.jsonl", [{"label": name} for name in ("x", "y", "y")])
    command = [
        "compare",
        plain,
        jsonl(tmp_path / "b.jsonl", rows),
        "--references",
        gold,
        "--metrics",
        "accuracy",
        "--json",
    ]
    assert main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["row"], row["gain"], row["measure"]) == (2, -1, "right answers")


def test_models_with_and_without_names_of_classes_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_bert(tmp_path / "bert")
    table(tmp_path / "ids.csv", [f"LABEL_{number}" for number in IDS])
    table(tmp_path / "names.csv", WORDS)
    table(tmp_path / "gold.parquet", IDS, ClassLabel(names=NAMES))
    for name in ("ids", "names"):
        command = ["finetune", "--model", "./bert", "--data", f"{name}.csv", "-o", name, "--max-steps", "3"]
        assert main([*command, "--lr", "0.01"]) == 0
    assert main(["compare", "ids", "names", "--data", "gold.parquet", "--metrics", "accuracy", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["differences"]
    assert found["difference"] == 0
