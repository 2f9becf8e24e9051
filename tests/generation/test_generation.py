"""Generation: what the library's own `generate` gives, whatever stands beside a prompt in its batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5ForSequenceClassification,
)

import hfkit
from hfkit.cli.main import main
from hfkit.errors import UsageError
from hfkit.generation.generator import load_generator
from tiny_models import make_bart, make_bert, make_gpt2, make_t5, spread

PROMPTS = [
    "hello",
    "the quick brown fox jumps over the lazy dog",
    "",
    "你好，世界",
    "a tiny model 😀",
    "this is a tiny model, this is a tiny model, this is",
    "fox",
]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    directory = make_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")
    spread(AutoModelForCausalLM.from_pretrained(directory)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return make_t5(tmp_path_factory.mktemp("models") / "tiny-t5")


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    return make_bart(tmp_path_factory.mktemp("models") / "tiny-bart")


def directly(directory, prompt, **options):
    """New tokens of `model.generate` for one prompt, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id]
    inputs = torch.tensor([ids])
    made = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), pad_token_id=tokenizer.eos_token_id, **options
    )
    return made[0, len(ids) :], tokenizer


@pytest.mark.portable
def test_greedy_text_is_that_of_the_library(gpt2):
    for prompt, text in zip(
        PROMPTS, hfkit.generate(str(gpt2), PROMPTS, **{"generation.max_new_tokens": 12}), strict=True
    ):
        made, tokenizer = directly(gpt2, prompt, max_new_tokens=12, do_sample=False)
        assert text == tokenizer.decode(made, skip_special_tokens=True)


@pytest.mark.parametrize("settings", [{"generation.max_new_tokens": 12}, {}], ids=["12 tokens", "as many as fit"])
@pytest.mark.portable
def test_batch_gives_the_same_greedy_texts_as_prompts_alone(gpt2, settings):
    together = hfkit.generate(str(gpt2), PROMPTS, **settings)
    assert together == [hfkit.generate(str(gpt2), [prompt], **settings)[0] for prompt in PROMPTS]
    assert len(set(together)) > 4


@pytest.mark.portable
def test_beams_are_those_of_the_library(gpt2):
    settings = {"generation.max_new_tokens": 10, "generation.num_beams": 3, "generation.no_repeat_ngram_size": 2}
    texts = hfkit.generate(str(gpt2), PROMPTS[:2], **settings)
    for prompt, text in zip(PROMPTS, texts, strict=False):
        made, tokenizer = directly(
            gpt2, prompt, max_new_tokens=10, num_beams=3, no_repeat_ngram_size=2, do_sample=False
        )
        assert text == tokenizer.decode(made, skip_special_tokens=True)


SAMPLED = {"generation.max_new_tokens": 12, "generation.do_sample": True, "generation.temperature": 0.8}


@pytest.mark.portable
def test_drawn_text_repeats_with_its_seed_whatever_is_in_its_batch(gpt2):
    def sample(prompts, seed=1, **more):
        return hfkit.generate(str(gpt2), prompts, **SAMPLED, **more, **{"generation.seed": seed})

    together = sample(PROMPTS)
    assert together == sample(PROMPTS, **{"generation.batch_tokens": 1})  # each alone
    assert together[:1] == sample(PROMPTS[:1])
    assert len(set(sample(["hello"] * 5))) == 5
    assert len({sample(["hello"], seed)[0] for seed in range(4)}) == 4
    twice = sample(["hello", "fox"], **{"generation.num_return_sequences": 2})
    assert len(set(twice)) == 4
    assert [twice[0], twice[2]] == sample(["hello", "fox"])


@pytest.mark.portable
def test_draws_have_the_probabilities_that_the_library_draws_with(gpt2):
    """2,000 draws of one token under every narrowing at once, against the softmax of the library's own scores."""
    narrowed = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01}
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    model = AutoModelForCausalLM.from_pretrained(gpt2).eval()
    ids = torch.tensor([tokenizer("hello")["input_ids"]])
    more = {"pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    scores = model.generate(ids, max_new_tokens=1, do_sample=True, **narrowed, **more).scores[0][0]
    expected = scores.softmax(-1)
    settings = {f"generation.{name}": value for name, value in narrowed.items()}
    generator = load_generator(
        hfkit.load_recipe(
            "generate",
            **{"model.name": str(gpt2), "generation.do_sample": True, "generation.max_new_tokens": 1, **settings},
        )
    )
    drawn = [answer.ids[0] for answers in generator.answers([ids[0].tolist()] * 2000) for answer in answers]
    counts = torch.bincount(torch.tensor(drawn), minlength=len(expected))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts - 2000 * expected)[possible] ** 2 / (2000 * expected[possible])).sum()
    degrees = int(possible.sum()) - 1
    assert degrees > 5
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5  # chi-square: mean and four standard deviations


def test_stdout_holds_the_continuation_alone(gpt2, capsys):
    command = ["generate", "--model", str(gpt2), "--prompt", "你好，世界", "--max-new-tokens", "8"]
    made, tokenizer = directly(gpt2, "你好，世界", max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(made, skip_special_tokens=True)
    assert main(command) == 0
    assert capsys.readouterr().out == text + "\n"
    assert main([*command, "--echo"]) == 0
    assert capsys.readouterr().out == "你好，世界" + text + "\n"
    assert main([*command, "--prompt", "hello", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (lines[0]["prompt"], lines[0]["text"]) == ("你好，世界", text)
    assert lines[1]["prompt"] == "hello"


def test_model_is_given_by_position_too(gpt2, capsys):
    assert main(["generate", str(gpt2), "--prompt", "hello", "--max-new-tokens", "3"]) == 0
    by_position = capsys.readouterr().out
    assert main(["generate", "--model", str(gpt2), "--prompt", "hello", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out == by_position


@pytest.mark.parametrize(
    ("words", "arguments", "message"),
    [
        (60, ["--max-new-tokens", "20"], "prompt 60 + new 20 > 64 positions of the model (fix: --max-new-tokens 4)"),
        (64, [], "prompt 64 + new 1 > 64 positions of the model (fix: a prompt of at most 63 tokens)"),
        (
            70,
            ["--max-new-tokens", "5"],
            "prompt 70 + new 5 > 64 positions of the model (fix: a prompt of at most 63 tokens)",
        ),
    ],
)
def test_prompt_that_does_not_fit_the_positions_is_a_usage_error(gpt2, capsys, words, arguments, message):
    prompt = "!" * words  # a token each
    assert main(["generate", "--model", str(gpt2), "--prompt", prompt, *arguments]) == 2
    captured = capsys.readouterr()
    assert f"error: {message}\n" == captured.err
    assert captured.out == ""


def test_without_a_number_the_text_ends_where_the_positions_do(gpt2):
    made, tokenizer = directly(gpt2, "!" * 60, max_new_tokens=4, do_sample=False)
    assert hfkit.generate(str(gpt2), ["!" * 60]) == [tokenizer.decode(made, skip_special_tokens=True)]


@pytest.mark.parametrize(
    ("option", "name"), [("--temperature", "temperature"), ("--top-k", "top_k"), ("--top-p", "top_p")]
)
def test_sampling_settings_without_sampling_are_warned_about(gpt2, capsys, option, name):
    command = ["generate", "--model", str(gpt2), "--prompt", "hello", "--max-new-tokens", "2"]
    assert main(command) == 0
    greedy = capsys.readouterr()
    assert "no effect" not in greedy.err
    assert main([*command, option, "1"]) == 0
    captured = capsys.readouterr()
    assert f"warning: {name} has no effect without sampling (fix: --do-sample)" in captured.err
    assert captured.out == greedy.out
    assert main([*command, option, "1", "--do-sample"]) == 0
    assert "no effect" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.portable
def test_encoder_decoder_answers_as_the_library_does(kind, request):
    directory = request.getfixturevalue(kind)
    prompts = ["hello world", "the quick brown fox jumps over the lazy dog", "", "a tiny model"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    texts = hfkit.generate(str(directory), prompts, **{"generation.max_new_tokens": 9})
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)[0]
        assert text == tokenizer.decode(made, skip_special_tokens=True)
    assert len(set(texts)) > 2


def test_answer_of_an_encoder_decoder_has_positions_of_its_own(bart, capsys):
    command = ["generate", "--model", str(bart), "--max-new-tokens"]
    assert main([*command, "30", "--prompt", "!" * 28]) == 0
    capsys.readouterr()
    assert main([*command, "33", "--prompt", "hello"]) == 2
    assert "+ new 33 > 32 positions of the model (fix: --max-new-tokens 32)" in capsys.readouterr().err
    assert main([*command, "5", "--prompt", "!" * 40]) == 2
    message = "prompt 42 + new 5 > 32 positions of the model (fix: a prompt of at most 32 tokens)"
    assert message in capsys.readouterr().err


def test_model_that_makes_no_text_is_refused(tmp_path, t5, capsys):
    make_bert(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(t5)
    T5ForSequenceClassification(AutoModelForSeq2SeqLM.from_pretrained(t5).config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    for name, kind in [("bert", "BertForMaskedLM"), ("t5", "T5ForSequenceClassification")]:
        assert main(["generate", "--model", str(tmp_path / name), "--prompt", "hello"]) == 5
        assert f"{name} makes no text, it is a {kind} (fix: choose a model such as gpt2)" in capsys.readouterr().err


def test_empty_prompt_needs_a_token_to_begin_with(tmp_path, capsys):
    directory = make_gpt2(tmp_path / "no-bos")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(directory)
    if AutoTokenizer.from_pretrained(directory).bos_token is not None:  # the class puts it back: say it in the file
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert main(["generate", "--model", str(directory), "--prompt", ""]) == 2
    assert "the prompt is empty and the model has no token to begin with" in capsys.readouterr().err


def test_prompts_without_any_are_a_usage_error(gpt2, capsys):
    assert main(["generate", "--model", str(gpt2)]) == 2
    assert "there is no prompt (fix: --prompt " in capsys.readouterr().err
    with pytest.raises(UsageError, match="prompt 64"):
        hfkit.generate(str(gpt2), ["hello", "!" * 64])
    assert hfkit.generate(str(gpt2), []) == []


def test_number_type_is_that_which_the_machine_is_fast_at(gpt2, monkeypatch, capsys):
    def of(**model):
        return load_generator(hfkit.load_recipe("generate", **{"model.name": str(gpt2), **model})).model.dtype

    assert of() == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert of() == torch.bfloat16
    assert "weights in bfloat16, the fast type of this GPU (--dtype float32 rounds less)" in capsys.readouterr().err
    assert of(**{"model.dtype": "float32"}) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert of() == torch.float32


def test_stdin_is_a_prompt_without_its_last_line_end(gpt2):
    """In the C locale, where Python lets through what is no text."""

    def said(text, *arguments):
        command = [sys.executable, "-m", "hfkit", "generate", str(gpt2), "--max-new-tokens", "2", *arguments]
        environment = os.environ | {"LC_ALL": "C"}
        return subprocess.run(command, input=text, env=environment, capture_output=True, check=False)

    assert (
        said("\ufeff你好\n".encode(), "--prompt", "-", "--echo").stdout
        == said(b"", "--prompt", "你好", "--echo").stdout
    )
    broken = said(b"caf\xe9", "--prompt", "-")
    assert (broken.returncode, broken.stdout) == (3, b"")
    assert broken.stderr.startswith(b"error: stdin: not UTF-8 (fix: give UTF-8")
    typed = said(b"", "--prompt", b"caf\xe9")
    assert (typed.returncode, typed.stderr[:27]) == (2, b"error: caf\\udce9: not UTF-8")
