from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

from hfkit.errors import DataError, HfkitError, UsageError
from hfkit.metrics.evaluate_module import load
from hfkit.metrics.inputs import Inputs
from hfkit.metrics.labels import confusion_matrix
from hfkit.metrics.sample import Score, draws, ratio_interval
from hfkit.metrics.table import METRICS, compute

# sacreBLEU's own case: https://github.com/mjpost/sacrebleu/blob/master/test/test_bleu.py
PREDICTIONS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]
LABEL_METRICS = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "precision_macro": lambda y, p: sk.precision_score(y, p, average="macro", zero_division=0),
    "recall_macro": lambda y, p: sk.recall_score(y, p, average="macro", zero_division=0),
    "f1_macro": lambda y, p: sk.f1_score(y, p, average="macro", zero_division=0),
    "f1_micro": lambda y, p: sk.f1_score(y, p, average="micro"),
    "f1_weighted": lambda y, p: sk.f1_score(y, p, average="weighted"),
    "mcc": sk.matthews_corrcoef,
}


def value(name: str, predictions: Any, references: Any, **options: Any) -> float:
    return compute([name], predictions, references, interval=False, **options)[name].value


def bounds(score: Score) -> tuple[float, float]:
    assert score.low is not None
    assert score.high is not None
    return score.low, score.high


def random_texts(rows: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    vocabulary = ["the", "cat", "Dog,", "sat", "on", "a", "mat.", "runs", "far", "away", "-", "U.S."]
    return [" ".join(rng.choice(vocabulary, rng.integers(2, 12))) for _ in range(rows)]


def random_labels(rows: int, classes: int, seed: int = 0) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(seed)
    actual = rng.integers(classes, size=rows)
    predicted = np.where(rng.random(rows) < 0.6, actual, rng.integers(classes, size=rows))
    return predicted.tolist(), actual.tolist()


def random_probabilities(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    actual = rng.integers(classes, size=rows)
    logits = rng.normal(size=(rows, classes)).round(1)  # rounded: with ties
    logits[np.arange(rows), actual] += 1
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), actual


# Text


@pytest.mark.parametrize(
    ("name", "published"), [("bleu", 48.530827), ("bleu_none", 49.1919566), ("bleu_intl", 43.91623493)]
)
def test_bleu_of_the_published_case(name: str, published: float) -> None:
    assert value(name, PREDICTIONS, REFERENCES) == pytest.approx(published, abs=1e-8)


def test_bleu_names_its_signature() -> None:
    assert compute(["bleu"], PREDICTIONS, REFERENCES, interval=False)["bleu"].definition.startswith(
        "sacreBLEU BLEU nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:"
    )


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("bleu", BLEU()),
        ("bleu_zh", BLEU(tokenize="zh")),
        ("bleu_char", BLEU(tokenize="char")),
        ("chrf", CHRF()),
        ("chrf++", CHRF(word_order=2)),
        ("ter", TER()),
    ],
)
def test_text_metrics_equal_sacrebleu_digit_for_digit(name: str, metric: Any) -> None:
    predictions, first, second = random_texts(1100), random_texts(1100, seed=1), random_texts(1100, seed=2)
    score = compute([name], predictions, list(zip(first, second, strict=True)), interval=False)[name]
    assert score.value == metric.corpus_score(predictions, [first, second]).score
    assert score.definition.endswith(str(metric.get_signature()))


def test_rows_may_have_different_numbers_of_references() -> None:
    predictions = PREDICTIONS * 400  # more than is given to sacreBLEU at once
    references = [[*REFERENCES[0], "A dog bit him."], REFERENCES[1][:1], *(REFERENCES * 400)[2:]]
    score = compute(["bleu"], predictions, references, interval=False)["bleu"]
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(3)]
    assert score.value == BLEU().corpus_score(predictions, streams).score  # type: ignore[arg-type]
    assert "nrefs:var" in score.definition


def test_rouge_equals_rouge_score_on_one_line_several_lines_and_several_references() -> None:
    predictions, first, second = random_texts(60), random_texts(60, seed=1), random_texts(60, seed=2)
    predictions[:20] = [text.replace(" ", "\n", 3) for text in predictions[:20]]
    first[10:30] = [text.replace(" ", "\n", 2) for text in first[10:30]]
    scores = compute(["rouge"], predictions, list(zip(first, second, strict=True)), interval=False)
    assert list(scores) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert scores["rougeL"].value != scores["rougeLsum"].value
    scorer = RougeScorer(list(scores))
    rows = [scorer.score_multi(row[1:], row[0]) for row in zip(predictions, first, second, strict=True)]
    for key, score in scores.items():
        assert score.value == pytest.approx(100 * np.mean([row[key].fmeasure for row in rows]), rel=1e-12)


def test_stemmed_rouge_equals_that_of_rouge_score_and_has_names_of_its_own() -> None:
    predictions, references = ["the cats were running", "a dog"], ["a cat runs", "the dogs barked"]
    scores = compute(["rouge", "rouge_stem"], predictions, references, interval=False)
    scorer = RougeScorer(["rouge1", "rougeLsum"], use_stemmer=True)
    rows = [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]
    for key in ("rouge1", "rougeLsum"):
        assert scores[f"{key}_stem"].value == pytest.approx(100 * np.mean([row[key].fmeasure for row in rows]))
    assert scores["rouge1"].value == 0
    assert scores["rouge1_stem"].value > 20
    assert "stem:yes" in scores["rouge1_stem"].definition


@pytest.mark.parametrize("name", ["rouge", "rouge_stem"])
def test_rouge_is_the_same_whatever_counts_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["the", "The", "cats", "running", "ran.", "a-b", "7", "hot\nday", "naïve", "it's", "—", "universities"]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(1500)]
    references = [
        [text, other] if number % 3 else [text]
        for number, (text, other) in enumerate(zip(texts[1:], texts[:0:-1], strict=True))
    ]
    for rows in (references, [["日本語の文"], *references[1:]] if name == "rouge" else references):
        fast = compute([name], texts[:-1], rows)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "rouge_score_rs.rouge_scorer", None)
            slow = compute([name], texts[:-1], rows)
        for key, score in fast.items():
            assert "rouge_score_rs" in score.definition
            assert "rouge_score_rs" not in slow[key].definition
            assert (score.value, score.low, score.high) == (slow[key].value, slow[key].low, slow[key].high)


def test_rouge_splits_scripts_without_spaces_and_says_so() -> None:
    scores = compute(["rouge"], ["今天天气很好。", "the cat"], ["今天天气不错。", "the cat"], interval=False)
    assert scores["rouge1"].value == pytest.approx((100 * 4 / 6 + 100) / 2)
    assert scores["rouge2"].value == pytest.approx((100 * 3 / 5 + 100) / 2)
    assert "characters of scripts without spaces" in scores["rouge1"].definition


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [("Привет, мир", "привет мир", 100), ("हिन्दी भाषा", "हिन्दी में", 50), ("สวัสดี", "สวัสดา", 100 * 5 / 6)],
)
def test_rouge_scores_other_scripts(prediction: str, reference: str, expected: float) -> None:
    assert compute(["rouge"], [prediction], [reference])["rouge1"].value == pytest.approx(expected)


def test_one_row_in_another_script_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = ["café au lait", "собака бежит"], ["cafe au lait", "собака бежит"]
    scores = compute(["rouge", "rouge_en", "rouge_stem"], predictions, references, interval=False)
    own = RougeScorer(["rouge1"]).score(references[0], predictions[0])["rouge1"].fmeasure
    assert scores["rouge1"].value == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert scores["rouge1_en"].value == pytest.approx(100 * own / 2)
    assert "tok:a-z0-9" in scores["rouge1_en"].definition
    err = capsys.readouterr().err
    assert "1 reference of 2 (first row 2) in other letters than a-z: ROUGE counts the words of all scripts" in err
    assert "ROUGE is about 0 there" in err


def test_one_foreign_letter_leaves_rouge_as_it_is() -> None:
    scores = compute(["rouge"], ["the α cat", "a b"], ["the α-rays 中 cat", "a b"], interval=False)
    assert "tok:a-z0-9" in scores["rouge1"].definition
    assert scores["rouge1"].value == pytest.approx((80 + 100) / 2)


def test_bleu_of_a_script_without_spaces_warns_and_names_another_metric(capsys: pytest.CaptureFixture[str]) -> None:
    compute(["bleu"], ["今天天气很好"], ["今天天气不错"])
    assert "bleu_zh" in capsys.readouterr().err
    assert value("bleu_zh", ["今天天气很好"], ["今天天气很好"]) == pytest.approx(100)
    assert capsys.readouterr().err == ""


def test_tokenized_predictions_are_warned_about_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["the cat sat on the mat ."] * 100
    compute(["bleu"], texts, texts, interval=False)
    assert capfd.readouterr().err.splitlines() == [
        "warning: predictions look tokenized (' .'), BLEU is for plain text (fix: detokenize both sides, or bleu_none)"
    ]
    compute(["bleu_none", "chrf", "rouge"], texts, texts, interval=False)
    assert capfd.readouterr().err == ""


def test_exact_match_and_token_f1_follow_squad() -> None:
    predictions = ["The Cat!", "a big cat", "Paris "]
    references = [["cat"], ["big dog", "the small cat"], ["Paris"]]
    assert value("exact_match", predictions, references) == pytest.approx(100 / 3)
    assert value("squad_exact_match", predictions, references) == pytest.approx(200 / 3)
    assert value("token_f1", predictions, references) == pytest.approx((100 + 50 + 100) / 3)


def test_token_f1_without_words_and_in_chinese() -> None:
    assert value("token_f1", ["A", ""], ["the", "cat"]) == 50
    assert value("token_f1", ["北京市"], ["北京"]) == 80


def test_counts_of_words() -> None:
    predictions = ["a b a b a b", "c c c c c", ""]
    assert value("distinct_1", predictions, None) == 3 / 11
    assert value("distinct_2", predictions, None) == 3 / 9
    assert value("repetition", predictions, None) == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    references = [["a", "a b c d e"], ["c c", "c c c c c c c c"], ["x"]]
    assert value("length_ratio", predictions, references) == 11 / (5 + 2 + 1)


def test_distinct_has_no_interval_and_says_why() -> None:
    score = compute(["distinct_1"], ["a b", "b c"], None)["distinct_1"]
    assert (score.low, score.high) == (None, None)
    assert "no interval" in score.definition


# Labels


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")  # scikit-learn's, and the case's purpose
@pytest.mark.parametrize("name", LABEL_METRICS)
@pytest.mark.parametrize("classes", [2, 7])
def test_label_metrics_equal_scikit_learn(name: str, classes: int) -> None:
    predicted, actual = random_labels(500, classes)
    predicted[:3] = [classes] * 3  # a class that is never right
    assert value(name, predicted, actual) == pytest.approx(LABEL_METRICS[name](actual, predicted), abs=1e-12)


@pytest.mark.parametrize("name", LABEL_METRICS)
def test_labels_may_be_text_and_one_class_only(name: str) -> None:
    assert value(name, ["x", "x"], ["x", "x"]) == (0 if name == "mcc" else 1)


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_binary_metrics_are_those_of_the_second_label(name: str) -> None:
    predicted, actual = random_labels(300, 2)
    reference = getattr(sk, f"{name}_score")
    assert value(name, predicted, actual) == pytest.approx(reference(actual, predicted), abs=1e-12)
    names = [["ham", "spam"][label] for label in predicted], [["ham", "spam"][label] for label in actual]
    assert value(name, *names) == pytest.approx(reference(actual, predicted), abs=1e-12)
    other = reference(actual, predicted, pos_label=0)
    assert value(name, *names, labels=["spam", "ham"]) == pytest.approx(other, abs=1e-12)


def test_binary_metric_of_three_classes_names_the_others() -> None:
    with pytest.raises(DataError, match="f1_macro"):
        compute(["f1"], [0, 1, 2], [0, 1, 2])


def test_confusion_matrix_equals_scikit_learn() -> None:
    predicted, actual = random_labels(300, 4)
    classes, matrix = confusion_matrix(predicted, actual)
    assert classes == [0, 1, 2, 3]
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(actual, predicted))


def test_numpy_arrays_and_lists_score_alike() -> None:
    predicted, actual = random_labels(50, 3)
    assert compute(["f1_macro"], predicted, actual) == compute(["f1_macro"], np.array(predicted), np.array(actual))


# Probabilities


@pytest.mark.parametrize("classes", [2, 5])
def test_probability_metrics_equal_scikit_learn(classes: int) -> None:
    probabilities, actual = random_probabilities(400, classes)
    scores = compute(["log_loss", "brier", "roc_auc", "average_precision", "accuracy"], probabilities, actual)
    columns = probabilities[:, 1] if classes == 2 else probabilities
    expected = {
        "log_loss": sk.log_loss(actual, probabilities),
        "brier": sk.brier_score_loss(actual, columns),
        "roc_auc": sk.roc_auc_score(actual, columns, multi_class="ovr"),
        "average_precision": sk.average_precision_score(actual, columns),
        "accuracy": sk.accuracy_score(actual, probabilities.argmax(axis=1)),
    }
    assert {name: score.value for name, score in scores.items()} == pytest.approx(expected, abs=1e-12)


def test_log_loss_of_an_impossible_reference_is_finite_as_in_scikit_learn() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert value("log_loss", probabilities, [1, 0]) == pytest.approx(sk.log_loss([1, 0], probabilities), abs=1e-12)


def test_ece_of_bins_worked_out_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.4, 0.6]])
    # bins (13/15, 14/15]: two rows, one right; (9/15, 10/15]: one row, wrong; (8/15, 9/15]: one row, right
    assert value("ece", probabilities, [0, 1, 0, 1]) == pytest.approx((2 * 0.4 + 0.65 + 0.4) / 4)


def test_labels_name_the_columns() -> None:
    probabilities = np.array([[0.8, 0.2], [0.3, 0.7]])
    assert value("accuracy", probabilities, ["spam", "ham"], labels=["spam", "ham"]) == 1
    assert value("accuracy", probabilities, ["spam", "ham"], labels=["ham", "spam"]) == 0


# Numbers


def test_number_metrics_equal_scipy_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    actual = rng.integers(0, 20, 300) / 4 + 1e3  # with ties, far from zero
    predicted = actual + rng.normal(size=300).round(1)
    scores = compute(["pearson", "spearman", "mae", "rmse"], predicted, actual)
    expected = {
        "pearson": scipy.stats.pearsonr(predicted, actual).statistic,
        "spearman": scipy.stats.spearmanr(predicted, actual).statistic,
        "mae": sk.mean_absolute_error(actual, predicted),
        "rmse": sk.root_mean_squared_error(actual, predicted),
    }
    assert {name: score.value for name, score in scores.items()} == pytest.approx(expected, abs=1e-12)


def test_entities_are_counted_as_conlleval_does() -> None:
    """Worked out by hand: three of the four predicted ones are among the six of the references."""
    references = ["B-X I-X O B-X I-Y", "O I-Y I-Y", ["B-X", "B-X"]]
    predictions = ["B-X I-X O I-X O", "O B-Y O", ["O", "B-X"]]
    scores = compute(["entity_f1"], predictions, references, interval=False)
    assert list(scores) == ["entity_precision", "entity_recall", "entity_f1"]
    # references: X 0-2, X 3-4, Y 4-5; Y 1-3; X 0-1, X 1-2. predictions: X 0-2, X 3-4; Y 1-2; X 1-2.
    assert scores["entity_precision"].value == pytest.approx(3 / 4)
    assert scores["entity_recall"].value == pytest.approx(3 / 6)
    assert scores["entity_f1"].value == pytest.approx(2 * 3 / (4 + 6))
    same = compute(["entity_f1"], references, references)["entity_f1"]
    assert (same.value, same.low, same.high, same.n) == (1, 1, 1, 3)


METRIC_OF_THE_HUB = """
import datasets
import evaluate

class SameLength(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references))
        return {"same_length": sum(len(a) == len(b) for a, b in pairs) / len(pairs), "by_row": [1, 0]}
"""


def test_metric_of_the_hub_only_where_a_download_is_allowed(tmp_path: Path) -> None:
    """One that was downloaded before: `evaluate` takes it from its cache where there is no network."""
    cached = tmp_path / "modules" / "evaluate_modules" / "metrics" / "evaluate-metric--same_length" / ("a" * 64)
    cached.mkdir(parents=True)
    (cached / "same_length.py").write_text(METRIC_OF_THE_HUB)
    for number in range(len(cached.relative_to(tmp_path).parts)):
        (cached.parents[number] / "__init__.py").touch()
    (tmp_path / "p.txt").write_text("four\nfive\nsix\n")
    (tmp_path / "r.txt").write_text("five\nfour\nseven\n")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}

    def evaluated(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hfkit", "evaluate", "--predictions", "p.txt", "--references", "r.txt", *more]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = evaluated("--metrics", "exact_match,same_length", "--allow-download", "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert list(metrics) == ["exact_match", "same_length"]
    assert metrics["same_length"]["value"] == pytest.approx(2 / 3)
    assert metrics["same_length"]["definition"] == "same_length of the Hub, code aaaaaaaaaaaa; no interval"
    refused = {
        ("--metrics", "same_length"): "unknown metric 'same_length'",
        ("--metrics", "bleu", "--allow-download"): "--allow-download has no effect: hfkit has these metrics itself",
        ("--metrics", "same_lengths", "--allow-download"): "metric 'same_lengths' can't be loaded from the Hub: ",
    }
    for more, problem in refused.items():
        done = evaluated(*more)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"error: {problem}" in done.stderr
        assert "Traceback" not in done.stderr


# Intervals


@pytest.mark.parametrize(
    "name", ["roc_auc", "average_precision", "log_loss", "brier", "ece", "pearson", "spearman", "rmse"]
)
def test_weights_mean_what_drawing_the_rows_means(name: str) -> None:
    """One definition: the value under weights is the value of the rows, each as often as its weight says."""
    predictions, references = random_probabilities(200, 3)
    if name in ("pearson", "spearman", "rmse"):
        predictions, references = predictions[:, 0], predictions[:, 1]
    sample = METRICS[name].function(Inputs(predictions, references))
    (weights,) = draws(sample.counts, seed=3, resamples=1)
    rows = np.repeat(np.arange(200), weights[0].astype(int))
    assert sample.values(weights)[0, 0] == pytest.approx(value(name, predictions[rows], references[rows]), abs=1e-12)


@pytest.mark.parametrize("name", LABEL_METRICS)
def test_weights_of_confusion_cells_mean_what_drawing_the_rows_means(name: str) -> None:
    inputs = Inputs(*random_labels(30, 7))
    sample = METRICS[name].function(inputs)
    (weights,) = draws(sample.counts, seed=3, resamples=1)
    predicted, actual = (np.repeat(codes, weights[0].astype(int)) for codes in inputs.cells[:2])
    assert len(predicted) == 30
    assert set(actual) < set(range(7))  # a class is gone, as happens when rows are drawn
    assert sample.values(weights)[0, 0] == pytest.approx(value(name, predicted, actual), abs=1e-12)


def test_interval_of_accuracy_is_that_of_the_binomial_distribution() -> None:
    actual = [1] * 10_000
    predicted = [1] * 8_000 + [0] * 2_000
    score = compute(["accuracy"], predicted, actual, resamples=20_000)["accuracy"]
    low, high = scipy.stats.binom(10_000, 0.8).ppf([0.025, 0.975]) / 10_000
    assert (score.low, score.high) == pytest.approx((low, high), abs=3e-4)


def test_interval_of_bleu_covers_what_sacrebleu_resamples() -> None:
    predictions, references = random_texts(300), random_texts(300, seed=1)
    score = compute(["bleu"], predictions, references)["bleu"]
    theirs = BLEU().corpus_score(predictions, [references], n_bootstrap=1000)
    low, high = bounds(score)
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=0.1)


def test_interval_depends_on_the_seed_and_not_on_the_other_metrics() -> None:
    predictions, references = random_texts(40), random_texts(40, seed=1)
    alone = compute(["chrf"], predictions, references, seed=5)["chrf"]
    assert compute(["rouge", "chrf"], predictions, references, seed=5)["chrf"] == alone
    other = compute(["chrf"], predictions, references, seed=6)["chrf"]
    assert other.value == alone.value
    assert other.low != alone.low


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, actual = random_probabilities(50, 2)
    whole = compute(["brier", "accuracy"], probabilities, actual)
    monkeypatch.setattr("hfkit.metrics.sample.WEIGHTS_AT_ONCE", 350)
    chunked = compute(["brier", "accuracy"], probabilities, actual)
    for name, score in whole.items():
        assert (chunked[name].low, chunked[name].high) == pytest.approx((score.low, score.high), abs=1e-12)


def test_one_row_has_a_value_and_no_interval() -> None:
    score = compute(["bleu"], PREDICTIONS[:1], REFERENCES[:1])["bleu"]
    assert (score.value, score.low, score.high, score.n) == (pytest.approx(100), None, None, 1)
    assert ratio_interval([1.0], [2.0]) is None


def test_no_interval_leaves_the_value() -> None:
    without = compute(["accuracy"], [1, 0], [1, 1], interval=False)["accuracy"]
    assert (without.value, without.low, without.high) == (0.5, None, None)
    assert without.definition == "share of rows whose label equals the reference"


def test_resamples_without_positives_are_left_out() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    score = compute(["roc_auc"], probabilities, [0, 0, 1])["roc_auc"]
    assert (score.value, score.low, score.high) == (1, 1, 1)


def test_accuracy_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for simulation in range(500):
        right = (rng.random(200) < 0.7).astype(int)
        score = compute(["accuracy"], right, [1] * 200, labels=[0, 1], seed=simulation, resamples=300)["accuracy"]
        low, high = bounds(score)
        covered += low <= 0.7 <= high
    assert 460 <= covered <= 490


def test_intervals_of_means_and_ratios_cover_the_truth() -> None:
    rng = np.random.default_rng(2)
    covered = {"mae": 0, "ratio": 0}
    for simulation in range(500):
        errors = rng.exponential(size=200)
        mae = compute(["mae"], errors, np.zeros(200), seed=simulation, resamples=300)["mae"]
        low, high = bounds(mae)
        covered["mae"] += low <= 1 <= high
        tokens = rng.integers(10, 100, 200)
        interval = ratio_interval(tokens * rng.normal(3, 1, 200), tokens, seed=simulation, resamples=300)
        assert interval is not None
        covered["ratio"] += interval[0] <= 3 <= interval[1]
    assert {name for name, count in covered.items() if 460 <= count <= 490} == {"mae", "ratio"}


# Mistakes


@pytest.mark.parametrize(
    ("names", "predictions", "references", "message"),
    [
        ("bleu", ["a"], ["a", "b"], "1 predictions but 2 references"),
        ("bleu", [], [], "no rows"),
        ("bleu", ["a", "b"], ["a", " "], "references, row 2: empty"),
        ("rouge", ["a", "b"], [["a"], []], "references, row 2: empty"),
        ("chrf", ["a", "b"], [["a"], [" ", ""]], "references, row 2: empty"),
        ("chrf", ["a", None], ["a", "b"], "predictions, row 2: None is not text"),
        ("chrf", ["a", "b"], ["a", float("nan")], "references, row 2: nan is not text"),
        ("distinct_2", ["a", "b"], None, "distinct_2 is undefined on these 2 rows"),
        ("accuracy", [1, 2], ["1", "2"], "predictions, row 1: 1 is not a label"),
        ("accuracy", [1, 1], [1, None], "references, row 2: None is not a label"),
        ("accuracy", ["a", "b"], ["a", ""], "references, row 2: empty"),
        ("entity_f1", ["O O", "O"], ["O O", "O"], "entity_f1 is undefined on these 2 rows"),
        ("entity_f1", ["O O", "O"], ["O O", "O O"], "predictions, row 2: 1 tags for 2 words"),
        ("entity_f1", ["O", "X"], ["O", "O"], "predictions, row 2: 'X' are no tags"),
        ("entity_f1", [["O"], ["O"]], [["O"], None], "references, row 2: None are no tags"),
        ("rouge_stem", ["a", "b"], ["好", "你好"], "rouge_stem is for English"),
        ("rouge_en", ["a", "b"], ["好", "你好"], "rouge_en is for English"),
        ("log_loss", [[0.5, 0.5], [float("nan"), 1]], [0, 1], "predictions, row 2: .*softmax"),
        ("log_loss", [[0.5, 0.5], [-1.0, 2.0]], [0, 1], "predictions, row 2: .*softmax"),
        ("log_loss", [[0.5, 0.5], [1.0]], [0, 1], "predictions, row 2: 1 probabilities for 2 labels"),
        ("log_loss", [0, 1], [0, 1], "predictions are no probabilities"),
        ("log_loss", [[0.5, 0.5], [0.1, 0.9]], [0, 2], "references, row 2: label 2 is not one of 0, 1"),
        ("roc_auc", [[0.5, 0.5], [0.1, 0.9]], [0, 0], "no reference is 1"),
        ("pearson", [1.0, 2.0], [3.0, 3.0], "pearson is undefined on these 2 rows"),
        ("mae", [1.0, float("nan")], [3.0, 3.0], "predictions, row 2: nan is not a finite number"),
        ("mae", [1.0, 2.0], ["3", "x"], "references, row 2: 'x' is not a finite number"),
    ],
)
def test_rows_without_a_sound_number_are_an_error_and_not_a_number(
    names: str, predictions: Any, references: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compute([names], predictions, references)


def test_label_outside_the_given_set_is_an_error() -> None:
    with pytest.raises(DataError, match="predictions, row 2: label 'cat' is not one of 'a', 'b'"):
        compute(["accuracy"], ["a", "cat"], ["a", "b"], labels=["a", "b"])


def test_unknown_metrics_are_named_together_with_the_nearest() -> None:
    with pytest.raises(UsageError) as raised:
        compute(["blue", "accuracy", "f1macro"], ["a"], ["a"])
    problems = raised.value.problems
    assert [message for message, _ in problems] == ["unknown metric 'blue'", "unknown metric 'f1macro'"]
    assert problems[0][1].startswith("did you mean 'bleu'? known: bleu, bleu_zh,")
    assert problems[1][1].startswith("did you mean 'f1_macro'?")


def test_metric_that_compares_needs_references() -> None:
    with pytest.raises(UsageError, match="--references"):
        compute(["bleu"], ["a"], None)


KINDS = [
    (PREDICTIONS, REFERENCES),
    (["a", "b"], ["a", "a"]),
    ([0.25, 1.5], [1.0, 2.0]),
    ([[0.5, 0.5]] * 2, [0, 1]),
    ([[1, 0], [0, 1]], [[1, 1], [0, 1]]),
    (["O B-X", "I-X"], ["B-X I-X", "O"]),
]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_scores_rows_of_its_kind_and_refuses_others(name: str) -> None:
    """No metric scores anything without a definition, or ends in an exception that isn't hfkit's."""
    refused = 0
    for predictions, references in KINDS:
        try:
            scores = compute([name], predictions, references)
        except HfkitError:
            refused += 1
        else:
            assert {score.n for score in scores.values() if score.definition} == {len(predictions)}
    assert 1 <= refused < len(KINDS)


def test_bleu_imports_neither_torch_nor_evaluate_nor_sklearn() -> None:
    code = (
        "import json, sys; from hfkit.metrics.table import compute; compute(['bleu', 'chrf', 'ter'], ['a b'], ['a b']);"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "evaluate", "sklearn", "transformers", "datasets"}.isdisjoint(json.loads(done.stdout))


# As modules of evaluate


@pytest.mark.parametrize(
    ("name", "predictions", "references"),
    [
        ("bleu", PREDICTIONS, REFERENCES),
        ("rouge", random_texts(5), random_texts(5, seed=1)),
        ("accuracy", ["a", "b", "b"], ["a", "b", "a"]),
        ("f1_macro", *random_labels(30, 3)),
        ("log_loss", *(part.tolist() for part in random_probabilities(20, 3))),
        ("hamming_loss", [[1, 0], [1, 1]], [[1, 0], [0, 1]]),
        ("pearson", [0.5, 0.7, 0.1], [0, 1.5, 2]),
    ],
)
def test_module_of_evaluate_gives_the_same_number(name: str, predictions: Any, references: Any) -> None:
    module = load(name)
    expected = {key: score.value for key, score in compute([name], predictions, references, interval=False).items()}
    assert module.compute(predictions=predictions, references=references) == expected
    for row in zip(predictions, references, strict=True):
        module.add(prediction=row[0], reference=row[1])
    assert module.compute() == expected


def test_modules_of_evaluate_combine() -> None:
    combined = evaluate.combine([load("accuracy"), load("f1_macro"), load("mcc")])
    for _ in range(2):
        combined.add_batch(predictions=[0, 1, 1], references=[0, 1, 0])
    expected = compute(["accuracy", "f1_macro", "mcc"], [0, 1, 1] * 2, [0, 1, 0] * 2)
    assert combined.compute() == {name: score.value for name, score in expected.items()}
    with pytest.raises(DataError, match=r"0\.2 is not a label"):
        load("accuracy").compute(predictions=[0.2, 0.9], references=[0, 1])


def test_unknown_names_never_run_what_lies_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("open('ran', 'w')")
    with pytest.raises(UsageError, match="unknown metric 'mine'"):
        load("mine")
    with pytest.raises(UsageError, match="'mine' is a file or folder here"):
        load("mine", allow_download=True)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UsageError, match=r"unknown metric 'accuarcy', did you mean 'accuracy'\?"):
        load("accuarcy")


# Intervals


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (7, 10), (990, 1000)])
def test_interval_of_a_share_is_wilsons(hits: int, n: int) -> None:
    score = compute(["accuracy"], [1] * hits + [0] * (n - hits), [1] * n, labels=[0, 1])["accuracy"]
    expected = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert bounds(score) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high))
    assert score.definition.endswith("; Wilson's interval")
    texts = compute(["exact_match"], ["a"] * hits + ["b"] * (n - hits), ["a"] * n)["exact_match"]
    assert bounds(texts) == (pytest.approx(100 * expected.low, abs=1e-10), pytest.approx(100 * expected.high))


def test_calibration_error_has_no_interval() -> None:
    score = compute(["ece"], *random_probabilities(50, 3))["ece"]
    assert score.low is None
    assert "no interval" in score.definition


@pytest.mark.parametrize("n", [30, 300])
def test_intervals_are_those_of_scipys_bca(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    found = compute(["mae"], values, np.zeros(n), resamples=20_000)["mae"]
    options: dict[str, Any] = {"n_resamples": 20_000, "method": "BCa", "rng": 1}
    low, high = scipy.stats.bootstrap((values,), np.mean, **options).confidence_interval
    percentiles = scipy.stats.bootstrap((values,), np.mean, **options | {"method": "percentile"}).confidence_interval
    width = high - low
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * width)
    if n < 300:
        assert percentiles.high < high - 0.03 * width  # the simple way is too low where a few values are large
