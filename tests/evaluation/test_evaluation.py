"""Perplexity equals a direct computation of its definition; files are compared line by line."""

import json
import math
import subprocess
import sys

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hfkit.cli.main import main
from hfkit.errors import DataError, UsageError
from hfkit.evaluation import row_metrics
from hfkit.evaluation.tables import rows_of_files
from hfkit.metrics.perplexity import measure
from tiny_models import make_bert, make_causal_model, make_gpt2, make_word_tokenizer, spread
from tiny_models import make_word_text as text

TOKENIZER = make_word_tokenizer()
WITH_BOS = make_word_tokenizer()
WITH_BOS.bos_token = "w49"


def perplexity(model, tokenizer, documents, *, interval=True, **options):
    return measure(model, tokenizer, documents, **options).scores(interval=interval, seed=0)


@pytest.fixture(scope="module")
def model():
    return spread(make_causal_model(positions=64)).eval()


def one_by_one(model, ids, context, stride):
    """Nats of every token but the first, each from a forward pass over the window that should predict it."""
    nats = []
    for place in range(1, len(ids)):
        window = 0
        while min(window + context, len(ids)) <= place:  # the first window that reaches the token
            window += stride
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids[window : window + context]])).logits[0].double()
        nats.append(-torch.log_softmax(logits[place - window - 1], -1)[ids[place]].item())
    return nats


@pytest.mark.parametrize(
    ("length", "context", "stride"),
    [(20, 64, None), (64, 64, None), (65, 64, None), (200, 64, 32), (150, 16, 5), (40, 8, 7)],
)
@pytest.mark.parametrize("tokenizer", [TOKENIZER, WITH_BOS], ids=["no BOS", "BOS"])
def test_perplexity_is_that_of_a_direct_computation(model, tokenizer, length, context, stride):
    scores = perplexity(model, tokenizer, [text(length)], context=context, stride=stride)
    ids = tokenizer(text(length))["input_ids"]
    ids = ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]
    nats = one_by_one(model, ids, context, stride or context // 2)
    assert scores["nll"].n == len(nats) == len(ids) - 1
    assert scores["nll"].value == pytest.approx(sum(nats) / len(nats), rel=1e-6)
    assert scores["perplexity"].value == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-6)
    assert scores["bits_per_byte"].value == pytest.approx(sum(nats) / math.log(2) / len(text(length)), rel=1e-6)


def test_text_shorter_than_the_context_is_one_sequence(model):
    ids = WITH_BOS(text(50))["input_ids"]
    inputs = torch.tensor([[WITH_BOS.bos_token_id, *ids]])
    with torch.inference_mode():
        loss = model(input_ids=inputs, labels=inputs).loss.item()
    assert perplexity(model, WITH_BOS, [text(50)])["nll"].value == pytest.approx(loss, rel=1e-6)


def test_documents_are_apart(model):
    documents = [text(30), text(3, start=5), text(100, start=9)]
    alone = [perplexity(model, WITH_BOS, [document], context=32)["nll"] for document in documents]
    together = perplexity(model, WITH_BOS, documents, context=32)
    total = sum(score.value * score.n for score in alone)
    assert together["nll"].n == sum(score.n for score in alone) == 133
    assert together["nll"].value == pytest.approx(total / 133, rel=1e-6)
    joined = perplexity(model, WITH_BOS, [" ".join(documents)], context=32)
    assert abs(joined["nll"].value - together["nll"].value) > 1e-4


def test_order_and_batch_size_do_not_matter(model):
    documents = [text(5 + 13 * number % 90, start=number) for number in range(20)]
    first = perplexity(model, WITH_BOS, documents, context=32, batch_size=1)
    for batch_size in (7, 32):
        again = perplexity(model, WITH_BOS, documents[::-1], context=32, batch_size=batch_size)
        for name, score in first.items():
            assert again[name].value == pytest.approx(score.value, rel=1e-6)
            assert again[name].n == score.n


def test_tokens_not_scored_are_counted(model):
    scores = perplexity(model, TOKENIZER, [text(10), "", text(1), text(5)])
    assert scores["nll"].n == 9 + 4
    assert "BOS none, float32, 13 tokens scored, 3 not, resampled by document" in scores["nll"].definition
    scores = perplexity(model, WITH_BOS, [text(10), "", text(1), text(5)])
    assert scores["nll"].n == 16
    assert "BOS before each document, float32, 16 tokens scored, 0 not" in scores["nll"].definition
    with pytest.raises(DataError, match="no token can be scored"):
        perplexity(model, TOKENIZER, [text(1), ""])


def test_every_document_counts_its_bytes_wherever_it_stands(model):
    """A last document without a scored token has bytes like one in the middle."""
    last = perplexity(model, TOKENIZER, [text(20), text(10), "w1"])
    middle = perplexity(model, TOKENIZER, [text(20), "w1", text(10)])
    assert last["bits_per_byte"].value == pytest.approx(middle["bits_per_byte"].value, rel=1e-12)


def test_bits_per_byte_of_chinese_text_by_hand(tmp_path):
    """Uniform logits over 300 entries: ln 300 nats a token; a Chinese character is three bytes in UTF-8."""
    tokenizer = AutoTokenizer.from_pretrained(make_gpt2(tmp_path))
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=8, n_layer=1, n_head=1)
    uniform = GPT2LMHeadModel(config).eval()
    uniform.transformer.wte.weight.data.zero_()
    chinese = "你好，世界" * 3
    tokens = len(tokenizer(chinese)["input_ids"])
    scores = perplexity(uniform, tokenizer, [chinese])
    assert scores["nll"].n == tokens
    assert scores["perplexity"].value == pytest.approx(300, rel=1e-5)
    assert scores["bits_per_byte"].value == pytest.approx(tokens * math.log2(300) / 45, rel=1e-6)
    assert scores["bits_per_character"].value == pytest.approx(tokens * math.log2(300) / 15, rel=1e-6)
    assert scores["bits_per_character"].value == pytest.approx(3 * scores["bits_per_byte"].value, rel=1e-12)


def test_words_that_no_blank_divides_give_no_word_perplexity(tmp_path):
    model = make_causal_model(positions=64, vocabulary=300)
    tokenizer = AutoTokenizer.from_pretrained(make_gpt2(tmp_path))
    assert "word_perplexity" not in perplexity(model, tokenizer, ["你好世界" * 200, "hello world"])
    scores = perplexity(model, tokenizer, ["hello world"])
    assert scores["word_perplexity"].value == pytest.approx(math.exp(scores["nll"].value * scores["nll"].n / 2))


def test_interval_holds_the_value_and_needs_two_units(model):
    scores = perplexity(model, WITH_BOS, [text(200)], context=16)
    assert scores["nll"].low < scores["nll"].value < scores["nll"].high
    assert "resampled by window" in scores["nll"].definition
    assert perplexity(model, WITH_BOS, [text(20)])["nll"].low is None
    assert perplexity(model, WITH_BOS, [text(200)], context=16, interval=False)["nll"].low is None


def test_context_and_stride_that_can_not_be_are_refused(model):
    with pytest.raises(UsageError, match=r"context 65 .* 64 positions \(fix: --context 64\)"):
        perplexity(model, TOKENIZER, [text(10)], context=65)
    with pytest.raises(UsageError, match=r"stride 16 must be smaller than the context 16 \(fix: --stride 8\)"):
        perplexity(model, TOKENIZER, [text(10)], context=16, stride=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    make_gpt2(folder / "tiny-gpt2")
    make_bert(folder / "tiny-bert")
    (folder / "text.txt").write_text(
        "hello world, this is a tiny model\nthe quick brown fox\n\njumps over the lazy dog\n"
    )
    return folder


def test_plain_model_is_measured_on_the_whole_file(folder, capsys):
    command = ["evaluate", "--model", str(folder / "tiny-gpt2"), "--data", str(folder / "text.txt"), "--json"]
    assert main([*command, "--metrics", "perplexity"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    model = GPT2LMHeadModel.from_pretrained(folder / "tiny-gpt2").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny-gpt2")
    whole = perplexity(model, tokenizer, [(folder / "text.txt").read_text()])
    assert metrics["perplexity"]["value"] == pytest.approx(whole["perplexity"].value, rel=1e-7)
    assert metrics["perplexity"]["definition"].startswith("exp(nats per token); context 64, stride 32, BOS before")
    assert main([*command, "--documents", "row"]) == 0
    rows = [line for line in (folder / "text.txt").read_text().split("\n") if line]
    by_row = json.loads(capsys.readouterr().out)["metrics"]["nll"]
    assert by_row["value"] == pytest.approx(perplexity(model, tokenizer, rows)["nll"].value, rel=1e-7)


def test_masked_model_is_measured_on_masked_tokens(folder, capsys):
    command = ["evaluate", "--model", str(folder / "tiny-bert"), "--data", str(folder / "text.txt"), "--json"]
    assert main(command) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert list(metrics) == ["perplexity", "token_accuracy", "nll"]
    assert "masked tokens only, masks drawn once from seed 0" in metrics["nll"]["definition"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--task", "clm"], 2, "bert reads in both directions"),
        (["--task", "text-classification"], 3, "text.txt: no column is clearly the label"),
        (["--metrics", "rouge"], 2, "rouge"),
    ],
)
def test_model_that_does_not_fit_the_task_gives_no_number(folder, capsys, arguments, code, message):
    command = ["evaluate", "--model", str(folder / "tiny-bert"), "--data", str(folder / "text.txt"), *arguments]
    assert main(command) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_classifier_without_its_head_gives_no_number(folder, tmp_path, capsys):
    data = tmp_path / "data.tsv"
    data.write_text("text\tlabel\nhello\tLABEL_0\nworld\tLABEL_1\n")
    command = ["evaluate", "--model", str(folder / "tiny-bert"), "--data", str(data), "--task", "text-classification"]
    assert main(command) == 5
    captured = capsys.readouterr()
    assert "has no weights for" in captured.err
    assert "classifier.weight" in captured.err
    assert captured.out == ""


PREDICTIONS = ["the cat sat on the mat", "a dog barked", "", "it rains today in Paris"]
REFERENCES = ["the cat is on the mat", "the dog barked loudly", "nothing here", "today it rains in Paris"]


def write(path, lines, end="\n"):
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_are_scored_as_the_reference_programs_score_them(tmp_path, capsys, end):
    predictions = write(tmp_path / "predictions.txt", PREDICTIONS, end)
    references = write(tmp_path / "references.txt", REFERENCES, end)
    command = ["evaluate", "--predictions", str(predictions), "--references", str(references), "--json"]
    assert main([*command, "--metrics", "bleu,rouge,exact_match"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["bleu"]["value"] == pytest.approx(corpus_bleu(PREDICTIONS, [REFERENCES]).score, rel=1e-12)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge1", "rouge2", "rougeL"):
        rows = [
            scorer.score(reference, made)[name].fmeasure
            for made, reference in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert metrics[name]["value"] == pytest.approx(100 * sum(rows) / 4, rel=1e-12)
    assert metrics["exact_match"]["n"] == 4


def chrf(predictions, *references, **columns):
    return row_metrics.score(rows_of_files(predictions, references, **columns).rows, ["chrf"], interval=False)["chrf"]


def test_tables_are_scored_by_the_named_or_the_usual_column(tmp_path):
    lines = write(tmp_path / "p.txt", PREDICTIONS), write(tmp_path / "r.txt", REFERENCES)
    wanted = chrf(*lines)
    usual = [json.dumps({"id": number, "text": line}) for number, line in enumerate(PREDICTIONS)]
    assert chrf(write(tmp_path / "usual.jsonl", usual), lines[1]) == wanted
    alone = [json.dumps({"answer": line}) for line in PREDICTIONS]
    assert chrf(write(tmp_path / "alone.jsonl", alone), lines[1]) == wanted
    both = ["given,wanted", *(f'"{x}","{y}"' for x, y in zip(PREDICTIONS, REFERENCES, strict=True))]
    table = write(tmp_path / "both.csv", both)
    assert chrf(table, table, prediction_column="given", reference_column="wanted") == wanted
    assert chrf(table, prediction_column="given", reference_column="wanted") == wanted
    with pytest.raises(
        DataError, match=r"both\.csv has no column of the usual names \(prediction, .*found: given, wanted"
    ):
        chrf(table, lines[1])
    with pytest.raises(
        DataError, match=r"both\.csv has no column 'text', found: given, wanted \(fix: --prediction-column NAME\)"
    ):
        chrf(table, lines[1], prediction_column="text")


def test_several_references_come_from_several_files_or_a_list(tmp_path, capsys):
    others = ["a cat sat on the mat", "the dog barked", "nothing", "it rains in Paris"]
    predictions = write(tmp_path / "p.txt", PREDICTIONS)
    files = [write(tmp_path / "r.txt", REFERENCES), write(tmp_path / "o.txt", others)]
    expected = corpus_bleu(PREDICTIONS, [REFERENCES, others]).score
    command = ["evaluate", "--predictions", str(predictions), "--metrics", "bleu", "--json"]
    assert main([*command, *(part for file in files for part in ("--references", str(file)))]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]["bleu"]
    assert found["value"] == pytest.approx(expected, rel=1e-12)
    assert "nrefs:2" in found["definition"]
    lists = [json.dumps({"refs": pair}) for pair in zip(REFERENCES, others, strict=True)]
    table = write(tmp_path / "lists.jsonl", lists)
    assert main([*command, "--references", str(table), "--reference-column", "refs"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["bleu"]["value"] == found["value"]


def as_lines(rows):
    return [json.dumps(row) for row in rows]


def test_what_predict_writes_is_scored_by_its_answers_not_by_its_texts(tmp_path, capsys):
    shares = [{"no": 0.1, "yes": 0.9}, {"no": 0.8, "yes": 0.2}, {"no": 0.6, "yes": 0.4}]
    labels = [max(row, key=row.get) for row in shares]
    rows = [
        {"text": text, "label": label, "score": row[label], "probabilities": row}
        for text, label, row in zip("abc", labels, shares, strict=True)
    ]
    answers = write(tmp_path / "answers.jsonl", as_lines(rows))
    gold = write(tmp_path / "gold.csv", ["text,label", "a,yes", "b,no", "c,yes"])
    command = ["evaluate", "--predictions", str(answers)]
    assert main([*command, "--references", str(gold), "--metrics", "accuracy,log_loss", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)["metrics"]
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["log_loss"]["value"] == pytest.approx(-math.log(0.9 * 0.8 * 0.4) / 3)
    assert "answers.jsonl: column 'label' (change with --prediction-column" in captured.err
    assert main([*command, "--references", str(gold), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["metrics"]) == ["accuracy", "f1_macro", "log_loss"]
    assert main([*command, "--metrics", "accuracy"]) == 2  # its label is the answer, not the reference
    assert "no references to compare with" in capsys.readouterr().err
    assert main([*command, "--references", str(write(tmp_path / "g.txt", ["yes", "no", "maybe"]))]) == 3
    assert (
        "references, row 3: 'maybe' is no label of the predictions (fix: their labels: 'no', 'yes')"
        in capsys.readouterr().err
    )


def test_predictions_with_and_without_probabilities_are_compared(tmp_path, capsys):
    shares = [{"1": 0.9, "2": 0.1}, {"1": 0.4, "2": 0.6}]
    rows = [{"text": "x", "label": "12"[n], "score": 0.5, "probabilities": row} for n, row in enumerate(shares)]
    answers = write(tmp_path / "answers.jsonl", as_lines(rows))
    plain = write(tmp_path / "plain.txt", ["2", "2"])
    gold = write(tmp_path / "gold.jsonl", as_lines([{"label": 1}, {"label": 2}]))
    for systems in ([answers, plain], [plain, answers]):
        command = ["compare", *map(str, systems), "--references", str(gold), "--metrics", "accuracy", "--json"]
        assert main(command) == 0
        (found,) = json.loads(capsys.readouterr().out)["differences"]
        assert {found["first"], found["value"]} == {1.0, 0.5}
    assert (
        main(["evaluate", "--predictions", str(answers), "--prediction-column", "label", "--metrics", "accuracy"]) == 2
    )
    assert "no references to compare with" in capsys.readouterr().err
    numbers = write(tmp_path / "n.jsonl", as_lines([{"prediction": 1, "reference": 1}]))
    assert main(["evaluate", "--predictions", str(numbers)]) == 2
    assert "whole numbers may be classes or amounts (fix: --metrics accuracy" in capsys.readouterr().err


def test_labels_and_numbers_that_predict_writes_are_scored(tmp_path, capsys):
    shares = [{"a": 0.9, "b": 0.8}, {"a": 0.2, "b": 0.1}]
    rows = [
        {"text": "x", "labels": ["a", "b"], "probabilities": shares[0]},
        {"text": "y", "labels": [], "probabilities": shares[1]},
    ]
    answers = write(tmp_path / "answers.jsonl", as_lines(rows))
    lists = [{"text": "x", "labels": ["b", "a"]}, {"text": "y", "labels": ["a"]}]
    for name, gold in {
        "gold.txt": ["a,b", "a"],
        "gold.csv": ["text,label", "x,a|b", "y,a"],
        "gold.jsonl": as_lines(lists),
    }.items():
        file = write(tmp_path / name, gold)
        command = ["evaluate", "--predictions", str(answers), "--references", str(file), "--json"]
        assert main([*command, "--metrics", "f1_micro,subset_accuracy,log_loss"]) == 0
        found = json.loads(capsys.readouterr().out)["metrics"]
        assert found["f1_micro"]["value"] == pytest.approx(0.8)
        assert found["subset_accuracy"]["value"] == 0.5
    other = write(tmp_path / "other.csv", ["text,label", "x,a|b", "y,c"])
    assert main(["evaluate", "--predictions", str(answers), "--references", str(other)]) == 3
    assert (
        "references, row 2: 'c' is no label of the predictions (fix: their labels: 'a', 'b')" in capsys.readouterr().err
    )
    numbers = write(tmp_path / "n.jsonl", as_lines([{"text": "x", "value": 1.5}, {"text": "y", "value": 3.0}]))
    gold = write(tmp_path / "gold.csv", ["text,value", "x,1", "y,5"])
    assert (
        main(["evaluate", "--predictions", str(numbers), "--references", str(gold), "--metrics", "mae", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["metrics"]["mae"]["value"] == 1.25


def test_files_are_measured_by_group_and_kept(tmp_path, capsys):
    lines = [
        json.dumps({"prediction": x, "reference": y, "kind": kind})
        for x, y, kind in [("a", "a", "one"), ("b", "b", "one"), ("a", "b", "other"), ("b", "b", "other")]
    ]
    file = write(tmp_path / "answers.jsonl", lines)
    command = ["evaluate", "--predictions", str(file), "--metrics", "accuracy", "--by", "kind", "--json"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["accuracy"]["value"] == 0.75
    assert found["by"]["groups"]["other"]["accuracy"]["value"] == 0.5
    assert found["by"]["gap"]["accuracy"]["value"] == 0.5
    rows = [json.loads(line) for line in (tmp_path / "out" / "test_predictions.jsonl").read_text().splitlines()]
    assert rows[0] == {"prediction": "a", "reference": "a"}
    assert main([*command, "--by", "sort"]) == 3
    assert "no column 'sort'" in capsys.readouterr().err


def test_metrics_of_text_alone_need_no_references(tmp_path, capsys):
    file = write(tmp_path / "p.txt", ["a b a b a b", "c d"])
    command = ["evaluate", "--predictions", str(file), "--json"]
    assert main([*command, "--metrics", "distinct_1,distinct_2"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["distinct_1"]["value"] == 4 / 8
    assert metrics["distinct_1"]["low"] is None
    assert main([*command[:-1], "--metrics", "distinct_1,repetition", "--no-interval"]) == 0
    assert "(no interval by resampling" not in capsys.readouterr().out  # of one line alone: it stands there
    assert main(command) == 2
    assert "predictions and references go together" in capsys.readouterr().err
    assert main([*command, "--metrics", "distinct_1,bleu"]) == 2
    assert "no references to compare with (fix: give --references)" in capsys.readouterr().err


def test_two_files_are_measured_without_torch(tmp_path):
    command = [
        "import sys; from hfkit.cli.main import main;"
        f"main(['evaluate', '--predictions', {str(write(tmp_path / 'p.txt', PREDICTIONS))!r}, '--references',"
        f" {str(write(tmp_path / 'r.txt', REFERENCES))!r}, '--metrics', 'bleu', '--json']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'evaluate', 'transformers', 'datasets', 'sklearn')))"
    ]
    assert (
        subprocess.run([sys.executable, "-c", *command], check=False, timeout=60, capture_output=True).returncode == 0
    )


def jsonl(path, rows):
    return str(write(path, [json.dumps(row) for row in rows]))


@pytest.mark.parametrize(
    ("rows", "metric", "message"),
    [
        ([("a", "b"), ("a", " ")], "bleu", "references, row 2: empty"),
        ([([0.5, 0.5], 0), ([float("nan"), 0.5], 1)], "log_loss", "row 2: probabilities [nan, 0.5] don't add up to 1"),
        ([([0.5, 0.5], 0), ([0.5, 0.5], 2)], "log_loss", "references, row 2: label 2 is not one of 0, 1"),
        ([("a", "b"), ("a", 1)], "accuracy", None),
        ([("1.5", "1"), ("x", "2")], "mae", "predictions, row 2: 'x' is not a finite number"),
        ([(1.0, 1.0), (1.0, 2.0)], "pearson", "pearson is undefined on these 2 rows"),
    ],
)
def test_rows_that_no_number_should_come_from(tmp_path, capsys, rows, metric, message):
    file = jsonl(tmp_path / "p.jsonl", [{"prediction": x, "reference": y} for x, y in rows])
    assert main(["evaluate", "--predictions", file, "--metrics", metric]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (message or "p.jsonl") in captured.err
    assert len(captured.err.splitlines()) == 1


def test_text_without_a_token_to_score_gives_no_number(folder, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("h")
    command = ["evaluate", "--model", str(folder / "tiny-gpt2"), "--data", str(tmp_path / "one.txt"), "--bos", "no"]
    assert main(command) == 3
    captured = capsys.readouterr()
    assert "no token can be scored" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "p.txt has 2 lines, "),
        (b"", "p.txt: no rows"),
        (b"a\nb\xe9\nc\nd\n", "p.txt: line 2, byte 2: 0xe9 is not UTF-8"),
    ],
)
def test_files_that_do_not_match_are_a_data_error(tmp_path, capsys, content, message):
    write(tmp_path / "r.txt", REFERENCES)
    (tmp_path / "p.txt").write_bytes(content)
    command = ["evaluate", "--predictions", str(tmp_path / "p.txt"), "--references", str(tmp_path / "r.txt")]
    assert main([*command, "--metrics", "bleu"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert main(["evaluate", "--predictions", str(tmp_path / "none.txt"), "--references", str(tmp_path / "r.txt")]) == 3
    assert "none.txt" in capsys.readouterr().err
