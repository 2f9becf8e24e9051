"""Differences of systems with known answers: intervals cover, p-values reject as often as they say, slices add up."""

import csv
import json

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from scipy.stats import binomtest
from transformers import BertConfig, BertForSequenceClassification

from hfkit.cli.main import main
from hfkit.errors import DataError, UsageError
from hfkit.evaluation.compare import compare, mcnemar, most_different
from hfkit.evaluation.groups import by_group
from hfkit.evaluation.row_metrics import score
from hfkit.metrics.perplexity import document_row
from hfkit.metrics.table import compute
from tiny_models import make_bert, make_gpt2, spread

BOTH = ("a", "b")


def classifier(right, confidence=None, references=None):
    """Rows of a classifier of x and y that is right where `right` is."""
    references = references if references is not None else ["x"] * len(right)
    rows = []
    for number, (hit, reference) in enumerate(zip(right, references, strict=True)):
        share = 0.9 if confidence is None else float(confidence[number])
        given = reference if hit else "y" if reference == "x" else "x"
        shares = {label: share if label == given else 1 - share for label in ("x", "y")}
        rows.append({"text": f"{number}", "reference": reference, "prediction": given, "probabilities": shares})
    return rows


def numbers(predictions, references):
    return [
        {"text": str(row), "reference": float(y), "prediction": float(x)}
        for row, (x, y) in enumerate(zip(predictions, references, strict=True))
    ]


def texts(predictions, references):
    return [{"prediction": x, "references": y} for x, y in zip(predictions, references, strict=True)]


# Statistics


@pytest.mark.parametrize(("one", "two"), [(0, 0), (1, 0), (3, 9), (10, 10), (40, 12), (900, 800)])
def test_mcnemar_is_the_exact_binomial_test(one, two):
    first = [True] * one + [False] * two + [True] * 5 + [False] * 3
    second = [False] * one + [True] * two + [True] * 5 + [False] * 3
    expected = binomtest(one, one + two).pvalue if one + two else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_accuracy_is_compared_by_hand():
    """Of 10 rows a is right on 8 and b on 5; alone they are on 4 and 1: p = 2 * (1 + 5) / 2 ** 5."""
    a = [True] * 4 + [True] * 4 + [False] + [False]
    b = [False] * 4 + [True] * 4 + [True] + [False]
    (found,) = compare({"a": classifier(a), "b": classifier(b)}, ["accuracy"])
    assert (found.first, found.value, found.difference) == (0.8, 0.5, pytest.approx(-0.3))
    assert found.p == pytest.approx(2 * 6 / 32)
    assert found.test == "McNemar, exact"
    assert found.low < -0.3 < found.high


def test_paired_interval_is_that_of_the_differences():
    """The mean of differences of standard deviation s over n rows has an interval of 2 * 1.96 s / sqrt(n)."""
    rng = np.random.default_rng(0)
    shared, n = rng.normal(size=400) * 10, 400
    noise = rng.normal(size=400)
    first, second = np.abs(shared), np.abs(shared) + 1 + noise  # errors, nearly all of them shared
    (found,) = compare({"a": numbers(first, np.zeros(n)), "b": numbers(second, np.zeros(n))}, ["mae"])
    both = np.abs(second) - first
    assert found.difference == pytest.approx(both.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * both.std() / np.sqrt(n), rel=0.1)
    alone = score(numbers(second, np.zeros(n)), ["mae"])["mae"]
    assert alone.high - alone.low > 5 * (found.high - found.low)


def simulate(metric, make, truth, count):
    """(shares of intervals that hold the truth, of p-values below 0.05) over `count` draws of two systems' rows."""
    covered = rejected = 0
    for number in range(count):
        rows = make(np.random.default_rng(number))
        (found,) = compare(dict(zip(BOTH, rows, strict=True)), [metric], seed=number, resamples=300)
        covered += found.low <= truth <= found.high
        rejected += found.p <= 0.05
    return covered / count, rejected / count


def test_intervals_of_differences_cover_the_truth():
    """mae: the errors of the second system are larger by 0.2 in the mean (2.5 standard errors of the difference)."""

    def make(rng):
        hard = rng.exponential(size=150)
        return numbers(hard, np.zeros(150)), numbers(hard + rng.exponential(0.2, size=150), np.zeros(150))

    covered, rejected = simulate("mae", make, 0.2, 120)
    assert 0.90 <= covered <= 0.99  # 0.95, give or take 2.5 standard deviations
    assert rejected > 0.95


def test_systems_that_are_alike_are_told_apart_as_seldom_as_the_level_says():
    def make(rng):
        return tuple(numbers(rng.normal(size=150), np.zeros(150)) for _ in BOTH)

    covered, rejected = simulate("mae", make, 0.0, 120)
    assert 0.90 <= covered <= 0.99
    assert 0.01 <= rejected <= 0.10

    def guess(rng):
        return tuple(classifier(rng.random(150) < 0.7) for _ in BOTH)

    covered, rejected = simulate("accuracy", guess, 0.0, 120)
    assert 0.90 <= covered <= 0.99
    assert rejected <= 0.08  # an exact test of whole numbers rejects less often than its level


@pytest.mark.parametrize(("metric", "share", "n"), [("accuracy", 0.99, 100), ("accuracy", 0.6, 50)])
def test_intervals_of_shares_cover_the_truth_near_the_ends_too(metric, share, n):
    covered = 0
    for number in range(200):
        hits = np.random.default_rng(number).random(n) < share
        found = compute([metric], hits.astype(int), np.ones(n, int), labels=[0, 1])[metric]
        covered += found.low <= share <= found.high
    assert 0.91 <= covered / 200 <= 0.99


def test_p_value_of_bleu_is_that_of_sacrebleus_randomization_test():
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat", "sat", "on", "a", "mat", "dog", "ran"])
    references = [" ".join(rng.choice(words, 8)) for _ in range(80)]

    def changed(share):
        return [
            " ".join(word if rng.random() > share else rng.choice(words) for word in text.split())
            for text in references
        ]

    systems = {"a": changed(0.30), "b": changed(0.34)}
    (found,) = compare({name: texts(made, [[one] for one in references]) for name, made in systems.items()}, ["bleu"])
    metrics = {"BLEU": BLEU(references=[references])}
    _, results = PairedTest(list(systems.items()), metrics, None, "ar", 2000)()
    theirs = results["BLEU"]
    assert (found.first, found.value) == (pytest.approx(theirs[0].score), pytest.approx(theirs[1].score))
    assert 0.05 < theirs[1].p_value < 0.95
    assert found.p == pytest.approx(theirs[1].p_value, abs=0.05)  # another test of the same question, other draws


def test_every_metric_is_compared_on_the_same_draws():
    """A system compared with itself is never different, in any resample of any kind of metric."""
    rng = np.random.default_rng(1)
    rows = classifier(rng.random(60) < 0.7, 0.5 + rng.random(60) / 2, ["x", "y"] * 30)
    names = ["accuracy", "f1_macro", "mcc", "f1", "log_loss", "brier", "roc_auc", "average_precision", "ece"]
    for found in compare({"a": rows, "b": rows}, names):
        assert found.difference == 0
        if found.metric == "ece":
            assert (found.low, found.p, found.test) == (None, None, "none")
        else:
            assert (found.low, found.high, found.p) == (0, 0, 1)


def test_three_systems_are_each_compared_with_the_first():
    systems = {
        name: numbers(np.full(20, shift) + np.arange(20), np.arange(20))
        for name, shift in {"a": 0, "b": 1, "c": 3}.items()
    }
    found = compare(systems, ["mae", "rmse"])
    assert [(one.system, one.metric, one.difference) for one in found] == [
        ("b", "mae", 1),
        ("b", "rmse", 1),
        ("c", "mae", 3),
        ("c", "rmse", 3),
    ]


def test_likelihoods_are_compared_by_document(capsys):
    def rows(nats, tokens):
        return [
            {**document_row("word " * 10 + str(number)), "nll": nll, "tokens": tokens}
            for number, nll in enumerate(nats)
        ]

    systems = {"a": rows([10.0, 20, 30, 40], 5), "b": rows([12.0, 21, 33, 40], 5)}
    found = {one.metric: one for one in compare(systems)}
    assert list(found) == ["perplexity", "nll", "bits_per_byte", "bits_per_character"]
    assert found["nll"].difference == pytest.approx(6 / 20)
    assert found["perplexity"].difference == pytest.approx(np.exp(106 / 20) - np.exp(100 / 20))
    assert found["bits_per_byte"].difference == pytest.approx(6 / np.log(2) / (4 * 51))
    assert capsys.readouterr().err == ""
    compare({**systems, "b": rows([12.0, 21, 33, 40], 6)})
    assert "the tokenizers divide the text differently" in capsys.readouterr().err
    with pytest.raises(UsageError, match="unknown metric 'bleu' of likelihoods"):
        compare(systems, ["bleu"])


def test_other_data_is_refused():
    one = classifier([True, False])
    with pytest.raises(DataError, match=r"a and b were measured on different data: 2 rows \(\w{8}\) and 3 rows"):
        compare({"a": one, "b": classifier([True] * 3)})
    with pytest.raises(DataError, match="different data"):
        compare({"a": one, "b": one[::-1]})
    with pytest.raises(DataError, match="different data"):
        compare({"a": one, "b": [{**one[0], "reference": "y"}, one[1]]})
    compare({"a": one, "b": [{**row, "prediction": "x"} for row in one]}, ["accuracy"])


def test_rows_that_differ_most_come_first():
    a = classifier([True] * 4, [0.9, 0.6, 0.8, 0.7])
    b = classifier([True, True, False, True], [0.9, 0.95, 0.8, 0.6])
    shown = most_different({"a": a, "b": b})
    assert [row["row"] for row in shown] == [3, 2, 4]
    assert shown[0]["gain"] == pytest.approx(0.2 - 0.8)
    assert shown[0]["answers"] == {"a": "x", "b": "y"}
    assert shown[1]["gain"] == pytest.approx(0.35)


def test_rows_of_probabilities_and_of_tags_are_compared_too():
    a, b = ([{"prediction": [share, 1 - share], "reference": 1}] * 2 for share in (0.3, 0.8))
    assert most_different({"a": a, "b": b[:1] + a[1:]})[0]["gain"] == pytest.approx(0.2 - 0.7)
    assert {one.metric: one.difference for one in compare({"a": a, "b": a}, ["log_loss"])} == {"log_loss": 0}
    assert [one.metric for one in compare({"a": a + b, "b": b + a})][:2] == ["accuracy", "f1_macro"]
    tags = [
        {"prediction": given, "references": ["B-X", "I-X", "O", "O"]} for given in (["B-X", "O", "O", "O"], ["O"] * 4)
    ]
    assert [row["gain"] for row in most_different({"a": tags[:1], "b": tags[1:]})] == [-0.25]
    (_, _, found) = compare({"a": tags[:1] * 3, "b": tags[1:] * 3}, ["entity_f1"])
    assert (found.metric, found.first, found.value) == ("entity_f1", 0, 0)


# Groups


def test_groups_have_the_metrics_of_their_rows_and_a_gap():
    groups = ["fiction"] * 100 + ["news"] * 60 + ["law"] * 20
    right = np.concatenate([np.arange(100) % 10 > 0, np.arange(60) % 5 > 1, np.arange(20) % 4 > 0])
    rows = classifier(right, references=["x", "y"] * 90)
    found = by_group(rows, groups, ["accuracy", "f1_macro"])
    for group in ("fiction", "news", "law"):
        part = [row for row, of in zip(rows, groups, strict=True) if of == group]
        assert found.scores[group] == score(part, ["accuracy", "f1_macro"])
    gap = found.gap["accuracy"]
    assert (gap["largest"], gap["smallest"]) == ("fiction", "news")
    first, second = right[:100].mean(), right[100:160].mean()
    assert gap["value"] == pytest.approx(first - second)
    spread_of_gap = np.sqrt(first * (1 - first) / 100 + second * (1 - second) / 60)
    assert gap["high"] - gap["low"] == pytest.approx(2 * 1.96 * spread_of_gap, rel=0.1)


def test_metric_without_a_value_in_a_group_is_left_out_there(capsys):
    rows = classifier([True] * 8, np.linspace(0.6, 0.9, 8), ["x", "y", "x", "y", "x", "y", "x", "x"])
    found = by_group(rows, ["one"] * 6 + ["other"] * 2, ["roc_auc", "accuracy"])
    assert list(found.scores["one"]) == ["roc_auc", "accuracy"]
    assert list(found.scores["other"]) == ["accuracy"]
    assert "other: no roc_auc: no reference is 'y'" in capsys.readouterr().err
    assert found.gap["roc_auc"]["low"] is None


# Through the commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    make_gpt2(folder / "gpt2")
    make_bert(folder / "bert")
    config = BertConfig.from_pretrained(folder / "bert", num_labels=2, id2label={0: "x", 1: "y"})
    for seed, name in enumerate(BOTH):
        torch.manual_seed(seed)
        spread(BertForSequenceClassification(config), seed).save_pretrained(folder / name)
        for file in (folder / "bert").glob("*token*"):
            (folder / name / file.name).write_bytes(file.read_bytes())
    words = "hello world this is a tiny model the quick brown fox".split()  # noqa: SIM905
    rng = np.random.default_rng(0)
    with (folder / "data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "genre"])
        table.writerows(
            [" ".join(rng.choice(words, 4)), "xy"[row % 2], ("old", "new")[row % 3 == 0]] for row in range(40)
        )
    (folder / "short.csv").write_text("text,label\nhello,x\nworld,y\n")
    return folder


def test_models_are_compared_on_data_and_from_what_they_kept(folder, tmp_path, capsys):
    a, b, data = str(folder / "a"), str(folder / "b"), str(folder / "data.csv")
    assert main(["compare", a, b, "--data", data, "--metrics", "accuracy,log_loss", "--json"]) == 0
    now = json.loads(capsys.readouterr().out)
    assert [one["metric"] for one in now["differences"]] == ["accuracy", "log_loss"]
    scores = {}
    for name in BOTH:
        command = ["evaluate", str(folder / name), "--data", data, "--metrics", "accuracy,log_loss", "--json"]
        assert main([*command, "-o", str(tmp_path / name)]) == 0
        scores[name] = json.loads(capsys.readouterr().out)["metrics"]
        kept = json.loads((tmp_path / name / "eval_results.json").read_text())["metrics"]["test"]
        assert kept == scores[name]
    for one in now["differences"]:
        assert one["first"] == pytest.approx(scores["a"][one["metric"]]["value"], rel=1e-6)
        assert one["value"] == pytest.approx(scores["b"][one["metric"]]["value"], rel=1e-6)
    folders = [str(tmp_path / name) for name in BOTH]
    assert main(["compare", *folders, "--metrics", "accuracy,log_loss", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert [one["p"] for one in kept["differences"]] == [one["p"] for one in now["differences"]]
    assert main(["compare", *folders]) == 0
    shown = capsys.readouterr().out
    assert f"{folders[1]} - {folders[0]}" in shown
    assert "McNemar, exact" in shown
    assert "rows where" in shown
    results = tmp_path / "b" / "eval_results.json"
    assert json.loads(results.read_text())["task"] == "text-classification"
    results.write_text(results.read_text().replace("text-classification", "mlm"))
    assert main(["compare", *folders]) == 0
    told = f"{folders[0]} as text-classification, {folders[1]} as mlm"
    assert f"different tasks can measure different things by one name: {told}" in capsys.readouterr().err
    assert main(["evaluate", a, "--data", str(folder / "short.csv"), "-o", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    assert main(["compare", *folders]) == 3
    captured = capsys.readouterr()
    assert "different data: 2 rows" in captured.err
    assert captured.out == ""


def test_language_models_keep_a_line_for_every_document(folder, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("hello world\n\nthe quick brown fox\n")
    command = ["evaluate", str(folder / "gpt2"), "--data", str(tmp_path / "lines.txt"), "--documents", "row", "--json"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "test_predictions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["hello world", "the quick brown fox"]
    assert sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows) == metrics["nll"]["value"]


def test_model_is_measured_by_group(folder, capsys):
    command = ["evaluate", str(folder / "a"), "--data", str(folder / "data.csv"), "--by", "genre"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["by"]["groups"]) == ["new", "old"]
    sizes = {group: scores["accuracy"]["n"] for group, scores in found["by"]["groups"].items()}
    assert sizes == {"new": 14, "old": 26}
    hits = sum(scores["accuracy"]["value"] * scores["accuracy"]["n"] for scores in found["by"]["groups"].values())
    assert hits / 40 == pytest.approx(found["metrics"]["accuracy"]["value"])
    assert "hfkit" in found["versions"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "accuracy by genre" in shown
    assert "gap" in shown
    assert main([*command[:-1], "kind"]) == 3
    assert "no column 'kind', found: text, label, genre" in capsys.readouterr().err
    assert main([*command[:2], "--by", "genre"]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a"], 2, "1 system to compare"),
        (["a", "a"], 2, "1 system to compare"),
        (["a", "b"], 3, "kept no predictions"),
        (["a", "b", "--dtype", "float16"], 2, "--dtype does not apply to kept predictions (fix: leave it out)"),
        (["a", "b", "--references", "none.txt"], 3, "none.txt"),
        (["data.csv", "short.csv"], 3, "data.csv: line 1 is no row of an evaluation"),
        (["bert", "a", "--data", "data.csv", "--task", "mlm"], 2, "its task keeps no predictions"),
    ],
)
def test_what_can_not_be_compared_is_said(folder, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(folder)
    (folder / "none.txt").unlink(missing_ok=True)
    if "none.txt" in arguments:
        arguments = ["p.txt", "q.txt", *arguments[2:]]
        for name in arguments[:2]:
            (folder / name).write_text("hello\n")
    assert main(["compare", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_files_of_predictions_are_compared(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the cat sat on the mat\na dog ran\nyes\n")
    (tmp_path / "b.txt").write_text("the cat sat on a mat\nthe dog ran far\nno\n")
    (tmp_path / "r.txt").write_text("the cat sat on the mat\nthe dog ran far away\nyes\n")
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    command = ["compare", *files, "--references", str(tmp_path / "r.txt"), "--metrics", "exact_match,token_f1,rouge"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {one["metric"]: one for one in found["differences"]}
    assert list(by_name) == ["exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert by_name["exact_match"]["difference"] == pytest.approx(-200 / 3)
    assert by_name["exact_match"]["p"] == 0.5  # 2 of 2 to one side
    assert found["rows"][0]["answers"] == {files[0]: "yes", files[1]: "no"}


# Rows and metrics


def test_rows_give_the_numbers_of_their_tables():
    """Rows of several labels and of numbers, as an evaluation keeps them, are measured as the arrays would be."""
    rng = np.random.default_rng(0)
    names = ["x", "y", "z"]
    actual, shares = rng.random((40, 3)) < 0.4, rng.random((40, 3)).round(3)
    rows = [
        {
            "text": str(number),
            "reference": [name for name, has in zip(names, row, strict=True) if has],
            "prediction": [name for name, share in zip(names, given, strict=True) if share >= 0.5],
            "probabilities": dict(zip(names, given.tolist(), strict=True)),
        }
        for number, (row, given) in enumerate(zip(actual, shares, strict=True))
    ]
    decided = compute(["f1_macro", "subset_accuracy"], (shares >= 0.5).astype(float), actual.astype(float))
    of_shares = compute(["log_loss", "mean_average_precision"], shares, actual.astype(float))
    assert score(rows, [*decided, *of_shares]) == {**decided, **of_shares}
    assert list(score(rows)) == ["f1_macro", "f1_micro", "subset_accuracy", "log_loss"]
    x, y = rng.normal(size=30), rng.normal(size=30)
    assert score(numbers(x, y)) == compute(["pearson", "spearman", "rmse", "mae"], x, y)
    gains = most_different({"a": rows, "b": [{**row, "probabilities": dict.fromkeys(names, 0.5)} for row in rows]})
    right = np.where(actual, shares, 1 - shares).mean(axis=1)
    assert abs(gains[0]["gain"]) == pytest.approx(np.abs(0.5 - right).max())
