"""A run answers from any folder, also where its data is gone; what holds no numbers answers nothing."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hfkit.cli.main import main
from tiny_models import TEXT, make_bert, make_gpt2

ROWS = [f"{text.replace(',', '')},{'ab'[number % 2]}" for number, text in enumerate(TEXT * 4)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data and a run that was started in it, with relative paths."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "c.csv").write_text("\n".join(["text,label", *ROWS]) + "\n", encoding="utf-8")
    make_bert(folder / "bert")
    before = os.getcwd()
    os.chdir(folder)
    try:
        command = ["finetune", "--model", "./bert", "--data", "c.csv", "--validation", "c.csv", "--max-steps", "2"]
        assert main([*command, "--max-length", "32", "-o", "run"]) == 0
    finally:
        os.chdir(before)
    return folder


def test_a_run_answers_from_another_folder(made, tmp_path, monkeypatch, capsys):
    found = []
    for place in (made, tmp_path):
        monkeypatch.chdir(place)
        for command in (["predict", str(made / "run"), "--text", "abc"], ["evaluate", str(made / "run")]):
            assert main([*command, "--json"]) == 0
            found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[2]
    assert found[1]["metrics"] == found[3]["metrics"]


def test_a_run_predicts_without_its_data(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "run", "moved")
    manifest = json.loads((tmp_path / "moved" / "run.json").read_text())
    (tmp_path / "moved" / "run.json").write_text(json.dumps({**manifest, "directory": "/nowhere"}))
    assert main(["predict", "moved", "--text", "abc"]) == 0
    assert "not the Hub's" not in capsys.readouterr().err
    assert main(["evaluate", "moved"]) == 3
    assert "error: c.csv: no such file" in capsys.readouterr().err
    shutil.copy(made / "c.csv", "c.csv")  # beside the place where it is evaluated
    assert main(["evaluate", "moved"]) == 0


def with_nan(directory):
    weights = load_file(directory / "model.safetensors")
    name = next(name for name in weights if "embed" in name or "wte" in name)
    weights[name][3] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("arguments", [["predict", "--text", "fox"], ["evaluate", "--data", "c.csv"]])
def test_a_classifier_without_numbers_is_refused(arguments, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "run", "run")
    shutil.copy(made / "c.csv", "c.csv")
    name = with_nan(tmp_path / "run")
    command, *options = arguments
    assert main([command, "run", *options]) == 5
    captured = capsys.readouterr()
    assert f"error: run: 1 weights hold NaN or infinity, first '{name}'" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments", [["generate", "--prompt", "fox"], ["evaluate", "--data", "t.txt"]], ids=lambda one: one[0]
)
def test_a_language_model_without_numbers_is_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with_nan(make_gpt2(tmp_path / "gpt2"))
    (tmp_path / "t.txt").write_text("the quick brown fox\n")
    command, *options = arguments
    assert main([command, "./gpt2", *options]) == 5
    assert "weights hold NaN or infinity" in capsys.readouterr().err


def test_a_last_step_that_breaks_the_model_is_told(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made)
    command = ["finetune", "--model", "./bert", "--data", "c.csv", "--max-length", "32", "--validation-split", "0"]
    assert main([*command, "--max-steps", "2", "--lr", "1e30", "-o", str(tmp_path / "run")]) == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "(fix: a smaller --learning-rate than 1e+30)" in error
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a.zip",
            "a.zip: unknown kind of file '.zip' (fix: unpack it; a .zip of one file is read as it is)",
        ),
        ("a.xlsb", "a.xlsb: unknown kind of file '.xlsb' (fix: save the sheet as CSV, and give that file)"),
        ("link.csv", "link.csv: a link to nowhere.csv, which does not exist (fix: correct the link)"),
    ],
)
def test_files_that_are_no_data_are_named_for_what_they_are(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_bert(tmp_path / "bert")
    if name == "link.csv":
        (tmp_path / name).symlink_to("nowhere.csv")
    else:
        (tmp_path / name).write_bytes(b"PK\x03\x04\0\0")
    assert main(["finetune", "--model", "./bert", "--data", name]) == 3
    assert f"error: {message}" in capsys.readouterr().err
