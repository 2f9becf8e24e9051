"""What makes generation faster changes no greedy text, and says where it can't act."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hfkit
from hfkit.cli.main import main
from hfkit.generation.generator import load_generator
from tiny_models import make_gpt2, make_t5, spread

PROMPTS = ["the quick brown fox jumps over the lazy dog, the quick brown", "你好，世界", ""]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model that repeats itself, and one that guesses most of its tokens right but not all."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, noise in (("large", 0.0), ("small", 0.03)):
        make_gpt2(folder / name)
        model = spread(AutoModelForCausalLM.from_pretrained(folder / name))
        for parameter in model.parameters():
            parameter.data += noise * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return make_t5(tmp_path_factory.mktemp("models") / "tiny-t5")


def forwards(model, **settings):
    """The greedy texts, and how often the large model was asked for them."""
    generator = load_generator(
        hfkit.load_recipe("generate", **{"model.name": str(model), "generation.max_new_tokens": 20, **settings})
    )
    count = 0

    def add(*_):
        nonlocal count
        count += 1

    generator.model.register_forward_hook(add)
    prompts = [generator.encode(prompt) for prompt in PROMPTS]
    texts = [generator.batch([place], [prompt])[0][0].text for place, prompt in enumerate(prompts)]
    return texts, count


@pytest.mark.parametrize("option", ["generation.assistant_model", "generation.prompt_lookup_num_tokens"])
@pytest.mark.portable
def test_guessing_ahead_gives_the_same_text_in_fewer_steps(models, option):
    value = str(models / "small") if option == "generation.assistant_model" else 3
    plain, steps = forwards(models / "large")
    texts, fewer = forwards(models / "large", **{option: value})
    assert texts == plain
    assert fewer < steps == 60


def test_compiler_that_is_missing_is_said(models, capsys, monkeypatch):
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    cpp_builder.cpp_compiler_search.cache_clear()
    assert main(["generate", str(models / "large"), "--prompt", "hello", "--compile"]) == 2
    cpp_builder.cpp_compiler_search.cache_clear()
    assert "--compile needs a C++ compiler, and there is none (fix: leave it out, or" in capsys.readouterr().err


def test_assistant_with_other_tokens_or_of_another_kind_is_refused(models, t5, tmp_path, capsys):
    other = make_gpt2(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["hfkit"])
    tokenizer.save_pretrained(other)
    for assistant in (other, t5):
        line = ["generate", str(models / "large"), "--prompt", "hello", "--assistant-model", str(assistant)]
        assert main(line) == 5
        assert f"{assistant} has other tokens or parts than {models / 'large'}" in capsys.readouterr().err


def test_what_can_not_act_or_not_together_is_said(models, t5, capsys):
    line = ["generate", str(models / "large"), "--prompt", "hello", "--max-new-tokens", "2", "--prompt-lookup", "3"]
    assert main([*line, "--assistant-model", str(models / "small")]) == 2
    assert "--assistant-model and --prompt-lookup exclude each other" in capsys.readouterr().err
    assert main([*line, "--num-beams", "2"]) == 2
    assert "--prompt-lookup makes one sequence without beams" in capsys.readouterr().err
    assert main(["generate", str(t5), *line[2:]]) == 0
    assert "--prompt-lookup finds nothing in the prompt of an encoder-decoder" in capsys.readouterr().err
