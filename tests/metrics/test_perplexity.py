"""Other programs' perplexities by their published definitions, and the pseudo-perplexity of masked models."""

import io
import json
import math
import re

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hfkit.cli.main import main
from hfkit.errors import DataError, ModelError, UsageError
from hfkit.metrics.perplexity import compatible, measure
from tiny_models import make_bert, make_causal_model, make_gpt2, make_word_tokenizer, spread
from tiny_models import make_word_text as text

pytestmark = pytest.mark.portable

WITHOUT_BOS = make_word_tokenizer()
WITH_BOS = make_word_tokenizer()
WITH_BOS.bos_token = "w49"


def perplexity(model, tokenizer, documents, *, interval=True, **options):
    return measure(model, tokenizer, documents, **options).scores(interval=interval, seed=0)


@pytest.fixture(scope="module")
def model():
    return spread(make_causal_model(positions=64)).eval()


def nats(model, ids, scored):
    """Nats of the last `scored` of `ids`, from one pass over all before the last."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0].double()
    losses = -torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return losses[-scored:].sum().item()


@pytest.mark.parametrize("length", [1, 7, 15, 16, 17, 32, 33, 45])
def test_lm_eval_scores_disjoint_windows(model, length):
    """Its windows of 16: one token of context, then 16 that are scored; the last one is filled up with context."""
    scores = compatible("lm-eval", model, WITH_BOS, [text(length)], context=16)
    tokens = WITH_BOS(text(length))["input_ids"]
    expected = nats(model, [WITH_BOS.bos_token_id, *tokens[:16]], min(16, length))
    for begin in range(16, length, 16):
        end = min(begin + 16, length)
        expected += nats(model, tokens[end - 17 : end], end - begin)
    assert scores["perplexity"].n == length
    assert scores["perplexity"].value == pytest.approx(math.exp(expected / length), rel=1e-6)
    num_bytes = len(text(length))
    assert scores["byte_perplexity"].value == pytest.approx(math.exp(expected / num_bytes), rel=1e-6)
    assert scores["bits_per_byte"].value == pytest.approx(expected / num_bytes / math.log(2), rel=1e-6)


def test_lm_eval_begins_with_eos_where_there_is_no_bos_and_counts_words_as_it_does(model):
    given = f" {text(9)}\n"
    scores = compatible("lm-eval", model, WITHOUT_BOS, [given], context=16)
    expected = nats(model, [WITHOUT_BOS.eos_token_id, *WITHOUT_BOS(given)["input_ids"]], 9)
    assert scores["perplexity"].value == pytest.approx(math.exp(expected / 9), rel=1e-6)
    assert len(re.split(r"\s+", given)) == 11
    assert scores["word_perplexity"].value == pytest.approx(math.exp(expected / 11), rel=1e-6)
    with pytest.raises(ModelError, match="no BOS or EOS"):
        compatible("lm-eval", model, make_word_tokenizer(eos=None), [given])


def test_evaluate_takes_the_mean_over_rows(model):
    rows = [text(5), text(40, 3), text(2, 8)]
    score = compatible("evaluate", model, WITH_BOS, rows, context=16, batch_size=2)["mean_perplexity"]
    each = []
    for row in rows:
        ids = WITH_BOS(row)["input_ids"][:15]
        each.append(math.exp(nats(model, [WITH_BOS.bos_token_id, *ids], len(ids)) / len(ids)))
    assert score.value == pytest.approx(sum(each) / 3, rel=1e-6)
    assert "1 of 3 rows cut at 16 tokens" in score.definition
    assert abs(score.value / perplexity(model, WITH_BOS, rows, context=16)["perplexity"].value - 1) > 0.01
    with pytest.raises(DataError, match="row 2 is empty"):
        compatible("evaluate", model, WITH_BOS, ["w1", ""])
    with pytest.raises(ModelError, match="needs a BOS token"):
        compatible("evaluate", model, WITHOUT_BOS, ["w1"])


def test_run_clm_joins_lines_and_drops_the_last_tokens(tmp_path):
    make_gpt2(tmp_path / "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    model = spread(make_causal_model(positions=64, vocabulary=300)).eval()
    given = "hello world\n\nthe quick brown fox jumps\nover the lazy dog, tiny model\n" * 3
    tokens = [token for line in io.StringIO(given) for token in tokenizer(line)["input_ids"]]
    blocks = [tokens[start : start + 16] for start in range(0, len(tokens) - 15, 16)]
    assert len(tokens) % 16 > 0
    losses = [nats(model, block, 15) / 15 for block in blocks]
    scores = compatible("run-clm", model, tokenizer, [given], context=16)
    assert scores["nll"].value == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert scores["perplexity"].value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    assert f"nor the last {len(tokens) % 16} tokens" in scores["nll"].definition
    with pytest.raises(DataError, match="fill no block of 64"):
        compatible("run-clm", model, tokenizer, ["hello"])


def test_bos_is_a_decision(model):
    auto, without = (perplexity(model, WITH_BOS, [text(9)], bos=bos)["nll"] for bos in ("auto", "no"))
    assert (auto.n, without.n) == (9, 8)
    assert without.value == pytest.approx(nats(model, WITH_BOS(text(9))["input_ids"], 8) / 8, rel=1e-6)
    assert perplexity(model, WITH_BOS, [text(9)], bos="yes")["nll"] == auto
    with pytest.raises(UsageError, match="has no BOS token"):
        perplexity(model, WITHOUT_BOS, [text(9)], bos="yes")


def test_every_document_has_its_own_numbers(model):
    documents = [text(30), "", text(3, 5), text(70, 9)]
    rows = measure(model, WITHOUT_BOS, documents, context=16, batch_size=3).rows()
    assert [row["tokens"] for row in rows] == [29, 0, 2, 69]
    assert rows[1]["perplexity"] is None
    alone = perplexity(model, WITHOUT_BOS, [documents[3]], context=16)
    assert rows[3]["perplexity"] == pytest.approx(alone["perplexity"].value, rel=1e-6)
    assert rows[3]["nll"] == pytest.approx(69 * alone["nll"].value, rel=1e-6)
    assert (rows[2]["bytes"], rows[2]["words"]) == (len(text(3, 5)), 3)
    assert rows[3]["text"] == documents[3][:79] + "…"


def test_model_that_answers_nan_gives_no_number(model):
    broken = make_causal_model()
    broken.lm_head.weight.data[3] = math.nan
    with pytest.raises(ModelError, match="no numbers"):
        perplexity(broken, WITH_BOS, [text(9)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pseudo")
    make_gpt2(folder / "gpt2")
    make_bert(folder / "bert")
    spread(AutoModelForMaskedLM.from_pretrained(folder / "bert")).save_pretrained(folder / "bert")
    lines = ["hello world, this is a tiny model", "the quick brown fox jumps", "the lazy dog"]
    (folder / "text.txt").write_text("\n".join(lines))
    return folder


def test_pseudo_perplexity_hides_each_token_alone(folder, capsys):
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    model = AutoModelForMaskedLM.from_pretrained(folder / "bert").eval()
    total = count = 0
    for line in (folder / "text.txt").read_text().splitlines():
        ids = tokenizer(line)["input_ids"]
        for place in range(1, len(ids) - 1):
            hidden = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([hidden])).logits[0, place].double()
            total -= torch.log_softmax(logits, -1)[ids[place]].item()
            count += 1
    command = ["evaluate", "--model", str(folder / "bert"), "--data", str(folder / "text.txt"), "--documents", "row"]
    for batch_size in ("1", "7"):
        assert main([*command, "--pseudo-perplexity", "--json", "--batch-size", batch_size]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        assert metrics["pseudo_nll"]["n"] == count
        assert metrics["pseudo_perplexity"]["value"] == pytest.approx(math.exp(total / count), rel=1e-5)
        assert metrics["pseudo_perplexity"]["low"] < metrics["pseudo_perplexity"]["value"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gpt2", ["--pseudo-perplexity"], "--pseudo-perplexity has no effect for clm, it is for mlm"),
        ("bert", ["--compat", "lm-eval"], "--compat has no effect for mlm, it is for clm"),
        ("bert", ["--bos", "no"], "--bos has no effect for mlm"),
        ("gpt2", ["--compat", "lm-eval", "--stride", "4"], "has no effect with evaluation.stride"),
        ("gpt2", ["--compat", "lm-eval", "--metrics", "nll"], "--metrics: has no effect with evaluation.compat"),
        (
            "bert",
            ["--pseudo-perplexity", "--metrics", "perplexity"],
            "--metrics: has no effect with evaluation.pseudo_perplexity",
        ),
        ("gpt2", ["--compat", "fairseq"], "must be one of lm-eval, evaluate, run-clm, not 'fairseq'"),
    ],
)
def test_setting_of_another_task_is_refused(folder, capsys, name, arguments, message):
    command = ["evaluate", "--model", str(folder / name), "--data", str(folder / "text.txt"), *arguments]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_compat_goes_through_the_command(folder, capsys):
    command = ["evaluate", "--model", str(folder / "gpt2"), "--data", str(folder / "text.txt"), "--json"]
    assert main([*command, "--compat", "evaluate", "--documents", "row"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert list(metrics) == ["mean_perplexity"]
    assert metrics["mean_perplexity"]["n"] == 3
