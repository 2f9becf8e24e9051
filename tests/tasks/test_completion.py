"""Completions by a decoder: what is read and what is learned, to the id; texts and numbers as the library's own."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hfkit.cli.main import main
from hfkit.data.labels import IGNORED
from hfkit.recipe.resolve import resolve
from hfkit.tasks import TASKS
from hfkit.tasks.completion import EncodedCompletions
from tiny_models import make_gpt2, make_t5, spread, tokenizer_of

WORDS = ["one", "two", "three", "four", "five", "six"]

PAIRS = [{"source": f"{a} {b}", "target": f"{b} {a}"} for a, b in itertools.permutations(WORDS, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    make_gpt2(folder / "gpt2")
    make_t5(folder / "t5")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (folder / "book.txt").write_text("the quick brown fox\n" * 20)
    tokenizer = tokenizer_of("llama")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    spread(LlamaForCausalLM(config)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


def encoded(folder, name, *flags, rows=None):
    """The rows of a task's `encode`, with the model and the tokenizer."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder / name), AutoTokenizer.from_pretrained(folder / name)
    recipe = resolve(
        "finetune", flags={"task": "completion", "model.name": str(folder / name), "data.train": ["x"], **dict(flags)}
    )
    from datasets import Dataset

    dataset = Dataset.from_list([{"text": one["source"], "target": one["target"]} for one in rows or PAIRS])
    return TASKS["completion"].encode(dataset, tokenizer, model, recipe), model, tokenizer, dataset, recipe


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("text", ["one two", "naïve café 😀", "你好，世界", "e\u0301 a"])
@pytest.mark.parametrize(("prefix", "suffix"), [(None, None), ("say: ", " => "), ("", "")])
def test_the_source_is_read_and_the_target_with_its_end_is_learned(folder, name, text, prefix, suffix):
    flags = {"data.source_prefix": prefix, "data.source_suffix": suffix}
    given = [(key, value) for key, value in flags.items() if value is not None]
    rows, _, tokenizer, *_ = encoded(folder, name, *given, rows=[{"source": text, "target": "two one"}])
    backend = tokenizer.backend_tokenizer
    before = f"{prefix or ''}{text}{chr(10) if suffix is None else suffix}"
    source = tokenizer(before)["input_ids"]
    target = [*backend.encode("two one", add_special_tokens=False).ids, tokenizer.eos_token_id]
    example = rows.example(0)
    assert example["input_ids"].tolist() == [*source, *target]
    assert example["labels"].tolist() == [IGNORED] * len(source) + target


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_loss_is_that_of_the_targets_alone_whatever_the_padding(folder, name):
    rows, model, tokenizer, *_ = encoded(folder, name)
    task, model = TASKS["completion"], model.eval()
    batch = task.collate([rows.example(index) for index in range(7)], tokenizer)
    labels = batch.pop("labels")
    with torch.no_grad():
        found = task.loss(model(**batch), labels)
        nats, count = 0.0, 0
        for index in range(7):
            ids, target = (torch.as_tensor(rows.example(index)[key])[None] for key in ("input_ids", "labels"))
            logits = model(input_ids=ids).logits[0, :-1]
            nats += cross_entropy(logits, target[0, 1:], ignore_index=IGNORED, reduction="sum").item()
            count += int((target != IGNORED).sum())
    assert found.item() == pytest.approx(nats / count, rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_texts_and_likelihoods_are_those_of_the_model_alone(folder, name, size, monkeypatch):
    sources = [
        {"source": " ".join(WORDS[: 1 + number % 6]), "target": " ".join(WORDS[4 + number % 2 :])}
        for number in range(20)
    ]
    flags = [("evaluation.metrics", ["exact_match", "perplexity"]), ("data.max_target_length", 20)]
    _, model, tokenizer, dataset, recipe = encoded(folder, name, *flags, rows=sources)
    recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, batch_size=size))
    measured = TASKS["completion"].measure(model, tokenizer, dataset, recipe)
    nats = tokens = 0
    for row, found in zip(sources, measured.rows, strict=True):
        prompt = tokenizer(f"{row['source']}\n", return_tensors="pt")["input_ids"]
        options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
        made = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, prompt.shape[1] :]
        assert found["prediction"] == tokenizer.decode(made, skip_special_tokens=True)
        target = tokenizer.backend_tokenizer.encode(row["target"], add_special_tokens=False).ids
        ids = torch.cat([prompt, torch.tensor([target])], dim=1)
        with torch.no_grad():
            logits = model(ids).logits[0, prompt.shape[1] - 1 : -1]
        nats += cross_entropy(logits.double(), ids[0, prompt.shape[1] :], reduction="sum").item()
        tokens += len(target)
    assert measured.scores["perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert measured.scores["perplexity"].n == tokens


def test_thirty_pairs_are_learned_by_heart_and_generated(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run = str(tmp_path / "run")
    command = ["finetune", "--task", "completion", "--data", "pairs.jsonl", "--validation", "pairs.jsonl"]
    command += ["--vocab-size", "300", "--epochs", "60", "--global-batch-size", "10", "--source-suffix", " -> "]
    command += ["--output-dir", run, "--json"]
    assert main([*command, "--metrics", "exact_match,perplexity", "--max-length", "30"]) == 0
    said = capsys.readouterr()
    metrics = json.loads(said.out)["metrics"]
    assert metrics["exact_match"]["value"] == 100
    assert metrics["exact_match.copy"]["value"] == 0
    assert metrics["perplexity"]["value"] < 1.1
    assert main(["generate", run, "--prompt", "one two"]) == 0
    said = capsys.readouterr()
    assert said.out == "two one\n"
    assert 'behind each prompt stands " -> ", as in training (--raw leaves it out)' in said.err
    (folder / "prompts.txt").write_text("".join(f"{row['source']}\n" for row in PAIRS))
    assert main(["generate", run, "--input", "prompts.txt", "--output", str(tmp_path / "out.txt")]) == 0
    assert (tmp_path / "out.txt").read_text().splitlines() == [row["target"] for row in PAIRS]
    capsys.readouterr()
    assert main(["evaluate", run, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: again[name]["value"] for name in metrics} == {name: one["value"] for name, one in metrics.items()}


def test_adapters_learn_completions_too(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = [
        "finetune",
        "--task",
        "completion",
        "--model",
        "./llama",
        "--data",
        "pairs.jsonl",
        "--lora",
        "--max-steps",
        "4",
    ]
    assert main([*command, "--max-length", "30", "--source-suffix", " = ", "-o", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "run"), "--prompt", "one two", "--max-new-tokens", "3"]) == 0
    assert 'behind each prompt stands " = "' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("finetune --task seq2seq --model ./gpt2 --data pairs.jsonl",
         "gpt2 models have no Seq2SeqLM head (fix: --task completion)"),
        ("finetune --task completion --model ./t5 --data pairs.jsonl",
         "t5 models have no CausalLM head (fix: --task seq2seq)"),
        ("finetune --task completion --model ./gpt2 --data pairs.jsonl --max-length 40 --max-target-length 30",
         "40 tokens of a source and 30 of its target are more than the model's 64 positions (fix: --max-length 34)"),
        ("finetune --task seq2seq --model ./t5 --data pairs.jsonl --source-suffix x",
         "--source-suffix: has no effect for seq2seq (fix: leave it out; it acts for completion)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_what_to_type(folder, line, error, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(line.split()) == 2
    assert error in capsys.readouterr().err


def test_a_decoder_without_a_target_is_a_language_model(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["evaluate", "./gpt2", "--data", "book.txt", "--json"]) == 0
    assert "bits_per_byte" in json.loads(capsys.readouterr().out)["metrics"]
    command = [
        "evaluate",
        "./gpt2",
        "--data",
        "pairs.jsonl",
        "--target-column",
        "target",
        "--metrics",
        "chrf",
        "--json",
    ]
    assert main(command) == 0
    assert "chrf.copy" in json.loads(capsys.readouterr().out)["metrics"]


def test_long_sides_are_cut_and_counted(folder, capsys):
    rows = [{"source": "one " * 60, "target": "two"}, *({"source": "one", "target": "two"} for _ in range(30))]
    found, *_ = encoded(folder, "gpt2", ("data.max_length", 20), ("data.max_target_length", 20), rows=rows)
    assert isinstance(found, EncodedCompletions)
    assert "1 of 31 sources (3.2%) are longer than 20 tokens and were truncated" in capsys.readouterr().err
    ids = found.example(0)["input_ids"]
    assert ids.shape == (20 + found.targets.lengths[0],)
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt2")
    assert tokenizer.decode(ids).startswith("one one")
    assert tokenizer.decode(ids[:20]).endswith("\n")  # what stands before the target is kept


def test_a_chat_model_that_learned_completions_gets_prompts_as_in_training(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = ["finetune", "--task", "completion", "--model", "./gpt2", "--data", "pairs.jsonl", "--max-steps", "2"]
    assert main([*command, "--max-length", "12", "--source-suffix", " = ", "-o", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    capsys.readouterr()
    prompt = "one two three four five six one two three four"
    command = [
        "generate",
        str(tmp_path / "run"),
        "--prompt",
        prompt,
        "--max-new-tokens",
        "2",
        "--logprobs",
        "1",
        "--json",
    ]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "a chat model" not in said.err
    assert 'behind each prompt stands " = "' in said.err
    assert "the prompt was truncated to 12 tokens, as in training" in said.err
