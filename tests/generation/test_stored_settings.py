"""What a model's own generation settings ask for in vain is left out and said; it ends no command and no run."""

import json

import pytest

from hfkit.cli.main import main
from hfkit.models.stored_generation import FILE
from tiny_models import make_gpt2

STORED = {
    "num_beam_groups": {"num_beams": 4, "num_beam_groups": 2},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "high"},
    "force_words_ids": {"num_beams": 3, "force_words_ids": [[5]]},
    "temperature": {"do_sample": True, "temperature": 0.0},
    "num_return_sequences": {"num_return_sequences": 5},
    "max_new_tokens": {"max_new_tokens": -1},
}


def model_with(folder, settings):
    directory = make_gpt2(folder / "gpt2")
    (directory / FILE).write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return str(directory)


@pytest.mark.parametrize("key", STORED)
def test_what_the_library_can_not_do_is_left_out_and_said(key, tmp_path, capsys):
    model = model_with(tmp_path, STORED[key])
    texts = []
    for flags in ([], ["--greedy"]):
        assert main(["generate", model, "--prompt", "the fox", "--max-new-tokens", "4", *flags]) == 0
        captured = capsys.readouterr()
        assert f"{FILE} has {key} {json.dumps(STORED[key][key])}, which is left out" in captured.err
        texts.append(captured.out)
    if "num_beams" not in STORED[key]:
        plain = model_with(tmp_path / "plain", {})
        assert main(["generate", plain, "--prompt", "the fox", "--max-new-tokens", "4"]) == 0
        assert texts == [capsys.readouterr().out] * 2


@pytest.mark.parametrize(
    "settings",
    [
        *STORED.values(),
        {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7, "num_beams": 2},
        {"do_sample": False, "temperature": 0.7, "top_p": 0.9},
        {"stop_strings": ["\n"], "max_length": 3},
        "{",
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_run_trains_shows_samples_and_is_saved(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n\n" * 20)
    command = ["pretrain", "--model", model_with(tmp_path, settings), "--data", "text.txt", "--block-size", "16"]
    assert main([*command, "--max-steps", "2", "--eval-steps", "1", "-o", "run"]) == 0
    said = capsys.readouterr().err
    assert " -> " in said
    assert "no sample text" not in said
    assert main(["generate", "run", "--prompt", "the", "--greedy", "--max-new-tokens", "3"]) == 0


def test_greedy_takes_one_text_though_the_model_samples_several(tmp_path, capsys):
    model = model_with(tmp_path, {"do_sample": True, "num_return_sequences": 3})
    assert main(["generate", model, "--prompt", "the fox", "--max-new-tokens", "2", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["generate", model, "--prompt", "the fox", "--max-new-tokens", "2", "--json", "--greedy"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_settings_that_can_not_be_read_are_said(tmp_path, capsys):
    model = model_with(tmp_path, "{")
    assert main(["generate", model, "--prompt", "the fox", "--max-new-tokens", "2"]) == 0
    assert f"{FILE} can't be read and is ignored (fix: correct or delete it)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-return-sequences", "3"], "3 sequences of one prompt would be the same text (fix: --do-sample)"),
        (["--num-return-sequences", "3", "--num-beams", "2"], "would be the same text (fix: --num-beams 3)"),
        (["--num-return-sequences", "3", "--choices", "a,b"], "would be the same text (fix: --do-sample)"),
        (["--stop", ""], "--stop '': is empty, so it is in every text (fix: leave it out)"),
        (["--bad-words", ""], "--bad-words '': is empty, so it is in every text (fix: leave it out)"),
        (["--choices", ",a,b"], "--choices ',a,b': one of them is empty (fix: leave out the comma beside it)"),
    ],
)
def test_flags_that_can_not_go_together_are_refused_in_plain_words(flags, message, tmp_path, capsys):
    assert main(["generate", model_with(tmp_path, {}), "--prompt", "the fox", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_greedy_text_has_no_temperature(tmp_path, capsys):
    command = ["generate", model_with(tmp_path, {}), "--prompt", "the fox", "--max-new-tokens", "2", "--greedy"]
    assert main([*command, "--temperature", "0.5"]) == 0
    assert "temperature has no effect without sampling (fix: --do-sample)" in capsys.readouterr().err
