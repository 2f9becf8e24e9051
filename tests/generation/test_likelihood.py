"""Likelihoods: what the model itself says of each token, whatever is in the batch, and choices ranked by it."""

import json
import math
import re

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

import hfkit
from hfkit.cli.main import main
from hfkit.generation.choices import passages, ranked
from hfkit.generation.generator import load_generator
from hfkit.metrics.likelihood import Passage, token_logprobs, token_nats
from tiny_models import make_bart, make_gpt2, make_t5, spread

PROMPTS = ["hello", "the quick brown fox jumps over", "a tiny"]
CHOICES = ["world", "the lazy dog", "fox", "hello"]
TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[assistant] "


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


def generator_of(directory, **generation):
    settings = {f"generation.{name}": value for name, value in generation.items()}
    return load_generator(hfkit.load_recipe("generate", **{"model.name": str(directory), **settings}))


def alone(directory, before, ids):
    """Log-probabilities of `ids` after `before` in a decoder, without a batch and without hfkit."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        shares = model(torch.tensor([[*before, *ids]])).logits[0].log_softmax(-1)
    return [shares[len(before) - 1 + place, token].item() for place, token in enumerate(ids)]


def alone_after(directory, source, before, ids):
    """The same in an encoder-decoder that has read `source`; `before`: what its decoder begins with."""
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[*before, *ids]]))
    shares = outputs.logits[0].log_softmax(-1)
    return [shares[len(before) - 1 + place, token].item() for place, token in enumerate(ids)]


def as_lm_eval_splits(tokenizer, context, choice):
    """Ids of context and choice as lm-eval 0.4 makes them, with its target_delimiter of one blank."""
    continuation = " " + choice
    blanks = len(context) - len(context.rstrip())
    if blanks:
        continuation, context = context[-blanks:] + continuation.lstrip(), context[:-blanks]
    whole, start = (tokenizer(text)["input_ids"] for text in (context + continuation, context))
    return start, whole[len(start) :]


@pytest.mark.portable
def test_tokens_have_the_models_own_probabilities_in_any_batch(gpt2):
    generator = generator_of(gpt2)
    prompts = [generator.encode(prompt) for prompt in PROMPTS]
    rows = [[5, 9, 11], [7], list(range(20, 40))]
    scored = token_logprobs(generator.model, passages(generator, prompts, rows), num_top=3)
    for prompt, ids, tokens in zip(prompts, rows, scored, strict=True):
        assert [token.id for token in tokens] == ids
        assert [token.logprob for token in tokens] == pytest.approx(alone(gpt2, prompt, ids), abs=1e-4)
        for token in tokens:
            values = [value for _, value in token.top]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            assert dict(token.top).get(token.id, token.logprob) == token.logprob <= values[0]


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.portable
def test_tokens_of_an_encoder_decoder_too(kind, request):
    directory = request.getfixturevalue(kind)
    generator = generator_of(directory)
    start = [generator.model.config.decoder_start_token_id]
    prompts = [generator.encode(prompt) for prompt in PROMPTS]
    rows = [[5, 9, 11], [7], list(range(20, 30))]
    scored = token_logprobs(generator.model, passages(generator, prompts, rows))
    for prompt, ids, tokens in zip(prompts, rows, scored, strict=True):
        expected = alone_after(directory, prompt, start, ids)
        assert [token.logprob for token in tokens] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("prompt", ["the quick brown", "the quick brown ", "hello,\n"])
@pytest.mark.portable
def test_choices_are_scored_as_lm_eval_does(gpt2, prompt):
    generator = generator_of(gpt2)
    found = ranked(generator, prompt, CHOICES)
    expected = {}
    for choice in CHOICES:
        ids = alone(gpt2, *as_lm_eval_splits(generator.tokenizer, prompt, choice))
        expected[choice] = (math.fsum(ids), len(ids))
    best_first = sorted(CHOICES, key=lambda choice: expected[choice][0], reverse=True)
    assert [choice.text for choice in found] == best_first
    for choice in found:
        total, count = expected[choice.text]
        assert (choice.logprob, choice.num_tokens) == (pytest.approx(total, abs=1e-3), count)
        assert choice.logprob_per_token == choice.logprob / count
    weights = [math.exp(choice.logprob) for choice in found]
    assert [choice.share for choice in found] == pytest.approx([weight / sum(weights) for weight in weights])


@pytest.mark.portable
def test_a_token_across_the_seam_is_scored_for_every_choice(gpt2, tmp_path):
    """`你好` is one token, so the choices begin where the prompt does, and the scores are of whole texts."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.add_tokens(["你好"])
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    texts = {choice: tokenizer("你" + choice)["input_ids"] for choice in ("好", "世")}
    assert [len(ids) for ids in texts.values()] == [1, 2]
    for choice in ranked(generator_of(tmp_path), "你", list(texts)):
        ids = texts[choice.text]
        expected = math.fsum(alone(tmp_path, [tokenizer.bos_token_id], ids))
        assert (choice.logprob, choice.num_tokens) == (pytest.approx(expected, abs=1e-3), len(ids))


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.portable
def test_choices_of_an_encoder_decoder_are_texts_without_special_tokens(kind, request):
    directory = request.getfixturevalue(kind)
    generator = generator_of(directory)
    tokenizer = generator.tokenizer
    source = tokenizer("the quick")["input_ids"]
    before = [generator.model.config.decoder_start_token_id, tokenizer.bos_token_id]
    found = ranked(generator, "the quick", CHOICES)
    assert {choice.text for choice in found} == set(CHOICES)
    for choice in found:
        ids = tokenizer(choice.text, add_special_tokens=False)["input_ids"]
        expected = math.fsum(alone_after(directory, source, before, ids))
        assert (choice.logprob, choice.num_tokens) == (pytest.approx(expected, abs=1e-3), len(ids))


@pytest.mark.portable
def test_choices_in_a_chat_begin_the_answer(gpt2, tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    generator = generator_of(gpt2, chat_template=str(tmp_path / "chat.jinja"))
    found = ranked(generator, "hello", ["fox", "dog"])
    tokenizer = generator.tokenizer
    start = tokenizer("[user] hello\n[assistant]")["input_ids"]
    whole = {text: tokenizer(f"[user] hello\n[assistant] {text}")["input_ids"] for text in ("fox", "dog")}
    assert all(ids[: len(start)] == start for ids in whole.values())
    for choice in found:
        expected = math.fsum(alone(gpt2, start, whole[choice.text][len(start) :]))
        assert choice.logprob == pytest.approx(expected, abs=1e-3)


def test_choices_are_printed_for_every_prompt(gpt2, capsys):
    line = ["generate", str(gpt2), "--prompt", "hello", "--prompt", "a tiny", "--choices", 'fox, "quick, brown"']
    assert main([*line, "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    expected = ranked(generator_of(gpt2), "hello", ["fox", "quick, brown"])
    assert first == {
        "prompt": "hello",
        "choices": [
            {
                "choice": choice.text,
                "logprob": choice.logprob,
                "logprob_per_token": choice.logprob_per_token,
                "tokens": choice.num_tokens,
                "share": choice.share,
            }
            for choice in expected
        ],
    }
    assert second["prompt"] == "a tiny"
    capsys.readouterr()
    assert main(line) == 0
    title, header, best, *rest = capsys.readouterr().out.splitlines()
    assert (title, header.split()) == ('"hello"', ["logprob", "per", "token", "tokens", "share", "choice"])
    shown = f"{expected[0].logprob:.3f} {expected[0].logprob_per_token:.3f} {expected[0].num_tokens}"
    assert best.split() == [*shown.split(), f"{expected[0].share:.1%}", *expected[0].text.split()]
    assert len(rest) == 5


JSON_KEYS = ["prompt", "text", "tokens", "finish_reason", "logprob", "seconds"]


@pytest.mark.portable
def test_json_says_how_long_and_how_likely_an_answer_is(gpt2, capsys):
    line = ["generate", str(gpt2), "--prompt", "hello", "--prompt", "a tiny", "--max-new-tokens", "7", "--json"]
    assert main(line) == 0
    answers = [json.loads(answer) for answer in capsys.readouterr().out.splitlines()]
    generator = generator_of(gpt2, max_new_tokens=7)
    for answer, prompt in zip(answers, ("hello", "a tiny"), strict=True):
        assert list(answer) == JSON_KEYS
        assert answer["prompt"] == prompt
        ids = generator.encode(prompt)
        ((made,),) = generator.answers([ids])
        assert (answer["text"], answer["tokens"], answer["finish_reason"]) == (made.text, 7, "length")
        assert answer["logprob"] == pytest.approx(math.fsum(alone(gpt2, ids, made.ids)), abs=1e-3)
        assert answer["seconds"] > 0


@pytest.mark.parametrize(("value", "num_top"), [([], 0), (["2"], 2)])
@pytest.mark.portable
def test_logprobs_are_those_of_the_raw_distribution_whatever_is_drawn(gpt2, capsys, value, num_top):
    line = ["generate", str(gpt2), "--prompt", "hello 😀", "--max-new-tokens", "9", "--json", "--logprobs", *value]
    assert main([*line, "--do-sample", "--temperature", "2", "--top-k", "200", "--repetition-penalty", "1.3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == [*JSON_KEYS, "logprobs"]
    tokens = answer["logprobs"]
    ids = [token["id"] for token in tokens]
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    expected = alone(gpt2, tokenizer("hello 😀")["input_ids"], ids)
    assert [token["logprob"] for token in tokens] == pytest.approx(expected, abs=1e-4)
    assert answer["logprob"] == math.fsum(token["logprob"] for token in tokens)
    assert tokenizer.decode(ids, skip_special_tokens=True) == answer["text"]
    assert {len(token["top"]) for token in tokens} == {num_top}
    for token in tokens:
        assert list(token) == ["token", "id", "logprob", "top"]
        assert token["token"] in (tokenizer.decode(token["id"]), tokenizer.convert_ids_to_tokens(token["id"]))
        assert "\ufffd" not in token["token"]


def test_the_likeliest_token_leads_its_alternatives(gpt2, capsys):
    line = ["generate", str(gpt2), "--prompt", "hello", "--max-new-tokens", "9", "--json", "--logprobs", "1"]
    assert main(line) == 0
    tokens = json.loads(capsys.readouterr().out)["logprobs"]
    assert all(token["top"] == [{name: token[name] for name in ("token", "id", "logprob")}] for token in tokens)


def test_tokens_are_a_table_in_a_pipe_and_colours_on_a_terminal(gpt2, capsys, monkeypatch):
    line = ["generate", str(gpt2), "--prompt", "你好", "--max-new-tokens", "8"]
    assert main(line) == 0
    text = capsys.readouterr().out
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    assert main([*line, "--logprobs", "2"]) == 0
    header, *rows = table = capsys.readouterr().out.splitlines()
    assert header.split() == ["logprob", "share", "token", "likeliest", "here"]
    assert len(rows) == 8
    for row in rows:
        logprob, share, _ = row.split(maxsplit=2)
        assert float(share.removesuffix("%")) == pytest.approx(100 * math.exp(float(logprob)), abs=0.1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*line, "--logprobs"]) == 0
    captured = capsys.readouterr()
    assert "green from 80%, yellow from 40%, magenta from 10%, red from 0%\n" in captured.err
    coloured = re.findall(r"\x1b\[3([0-9])m(.*?)\x1b\[0m", captured.out, re.DOTALL)
    assert "".join(part for _, part in coloured) == text.removesuffix("\n").rstrip("\ufffd")
    assert {colour for colour, _ in coloured} <= {"1", "2", "3", "5"}
    assert len({colour for colour, _ in coloured}) > 1
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([*line, "--logprobs", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--choices", "one"], "--choices 'one': give two different ones at least (fix: --choices yes,no, with quotes"),
        (["--choices", "one,one"], "--choices 'one,one': give two different ones at least"),
        (["--choices", "a,b", "--logprobs"], "--choices and --logprobs exclude each other"),
        (["--choices", "a,b", "--echo"], "--choices and --echo exclude each other"),
        (["--logprobs", "--echo"], "--logprobs and --echo exclude each other"),
        (["--choices", "a," + "!" * 64], "prompt and choice have 68 tokens, the model 64 positions"),
    ],
)
def test_what_can_not_be_scored_is_a_usage_error(gpt2, capsys, arguments, message):
    assert main(["generate", str(gpt2), "--prompt", "hello", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.out == ""


def test_settings_of_making_text_are_idle_beside_choices(gpt2, capsys):
    line = ["generate", str(gpt2), "--prompt", "hello", "--choices", "fox,dog"]
    assert main([*line, "--raw"]) == 0
    plain = capsys.readouterr()
    assert plain.err == ""
    assert main([*line, "--max-new-tokens", "3", "--set", "generation.do_sample=true"]) == 0
    captured = capsys.readouterr()
    assert captured.out == plain.out
    assert captured.err.startswith("warning: max_new_tokens, do_sample has no effect with --choices, which makes no te")


def test_sums_over_a_large_vocabulary_are_exact():
    """A log-softmax in float32 is 1e-5 nats off per token with 49,152 entries."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=49_152, n_embd=8, n_layer=1, n_head=1, n_positions=300)
    model = GPT2LMHeadModel(config).eval()
    ids = torch.randint(49_152, (200,)).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    shares = logits - logits.exp().sum(-1, keepdim=True).log()
    expected = shares.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    passage = Passage(ids[:1], ids[1:])
    (tokens,) = token_logprobs(model, [passage], num_top=2)
    assert [token.logprob for token in tokens] == pytest.approx(expected, abs=2e-7)
    assert tokens[0].top[0][1] == pytest.approx(shares[0].max().item(), abs=2e-7)
    assert token_nats(model, [passage], 1)[0] == pytest.approx(-math.fsum(expected), abs=2e-5)
