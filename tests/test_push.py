"""`--push`: what reaches the Hub, who may see it, and what is said, against a small Hub on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hfkit.__main__ import main
from stand_in_hub import StandInHub
from tiny_models import make_bert

UPLOADED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
TOKEN = "hf_CANARYcanaryCANARYcanary"
OWN = "ignore:Use 'content=<...>':DeprecationWarning"  # huggingface_hub 1.x's own, where it uploads without xet
DRIVER = """
import contextlib, io, json, os, sys
from hfkit.__main__ import main
for token, *line in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and data, in which every command runs."""
    work = tmp_path_factory.mktemp("push")
    make_bert(work / "bert")
    rows = "".join(f"hello world {number},{'ab'[number % 2]}\n" for number in range(20))
    (work / "train.csv").write_text(f"text,label\n{rows}")
    return work


def finetune(output: str, push: str, *more: str) -> list[str]:
    plain = ["finetune", "--model", "./bert", "--data", "train.csv", "--max-steps", "1", "--no-interval"]
    return [*plain, "-o", output, "--push", push, *more]


def say(env: dict[str, str], cwd: Path, *lines: list[str]) -> list[tuple[int, str, list[str]]]:
    """Exit code, stdout and lines of stderr of each command line, its access token before it, in one fresh process."""
    command = [sys.executable, "-W", "error", "-W", OWN, "-c", DRIVER, json.dumps(lines)]
    env = {**env, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=cwd, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return [(code, out, err.splitlines()) for code, out, err in map(json.loads, done.stdout.splitlines())]


def files_in(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_a_finished_run_goes_up_private_or_as_its_repository_is(hub: StandInHub, work: Path, tmp_path: Path) -> None:
    uploads, shared = tmp_path / "uploads", tmp_path / "shared"
    shared.mkdir()
    (shared / "README.md").write_text("as it was")
    hub.let_in(TOKEN, "me", uploads, organizations=("lab",))
    hub.add("lab/shared", shared)
    host = hub.url.removeprefix("http://")
    new, known = say(
        hub.env(tmp_path), work, [TOKEN, *finetune("new", "me/new")], [TOKEN, *finetune("known", "lab/shared")]
    )

    code, out, said = new
    assert (code, out.splitlines()[-1]) == (0, "run: new"), said
    assert said[0] == f"push: when finished, to me/new on {host} (a new repository, private)"
    assert f"uploaded to {host}/me/new (private)" in said
    assert hub.repositories["models", "me/new"].access == "own"
    assert files_in(uploads / "me/new") == UPLOADED
    for name in UPLOADED:
        content = (uploads / "me/new" / name).read_bytes()
        assert content == (work / "new" / name).read_bytes()
        assert str(work).encode() not in content
        assert b"./bert" not in content

    code, out, said = known
    assert code == 0
    assert said[0] == (
        f"push: when finished, to lab/shared on {host} (it is there and public: everyone will see the model)"
    )
    assert f"uploaded to {host}/lab/shared (public)" in said
    assert hub.repositories["models", "lab/shared"].access == "public"
    assert files_in(shared) == {*UPLOADED, "README.md"}
    assert (shared / "README.md").read_text() == "as it was"
    assert hub.tokens() == {f"Bearer {TOKEN}"}
    assert {request.path for request in hub.requests if "telemetry" in request.path} == set()


def test_a_failed_upload_leaves_a_finished_run_and_the_command_for_another_try(
    hub: StandInHub, work: Path, tmp_path: Path
) -> None:
    hub.let_in(TOKEN, "me", tmp_path / "uploads")
    hub.refusals = 1
    again = "hfkit finetune kept/recipe.yaml --output-dir kept --push me/kept --resume auto"
    (code, out, said), repeated = say(
        hub.env(tmp_path), work, [TOKEN, *finetune("kept", "me/kept")], [TOKEN, *again.split()[1:]]
    )
    assert code == 6
    assert out.splitlines()[-1] == "run: kept"
    assert said[-1] == (
        "error: kept is finished and complete, but it was not uploaded to me/kept: "
        f"Private repository storage limit reached (fix: {again})"
    )
    assert json.loads((work / "kept/status.json").read_text())["state"] == "finished"
    assert f"uploading kept to me/kept on {hub.url.removeprefix('http://')}" in said
    assert (repeated[0], repeated[1]) == (0, out)
    assert not [line for line in repeated[2] if line.startswith("step ")]
    assert "kept is finished, nothing to do" in repeated[2]
    assert files_in(tmp_path / "uploads/me/kept") == UPLOADED


def test_who_may_not_write_is_told_before_anything_is_read(hub: StandInHub, work: Path, tmp_path: Path) -> None:
    host = hub.url.removeprefix("http://")
    missing = ["--data", "missing.csv"]  # nobody gets as far as this
    env = hub.env(tmp_path)
    hub.let_in("hf_reads", "me", tmp_path, role="read")
    hub.let_in("hf_narrow", "me", tmp_path, role="fineGrained", rights=("repo.content.read",))
    hub.let_in("hf_writes", "me", tmp_path, role="fineGrained", rights=("repo.content.read", "repo.write"))
    login = "`hf auth login` with one that may write, from"
    expected = {
        ("", "me/x"): f"no access token for {host} (fix: `hf auth login`, or set HF_TOKEN)",
        ("hf_unknown", "me/x"): f"{host} refused the access token (fix: `hf auth login` with a valid one)",
        ("hf_reads", "me/x"): f"the access token of me may not write (fix: {login} {host}/settings/tokens)",
        ("hf_narrow", "me/x"): f"the access token of me may not write (fix: {login} {host}/settings/tokens)",
        ("hf_writes", "lab/x"): "me may not write to lab, but to me (fix: --push me/x)",
    }
    plain = ["hf_writes", *finetune("refused", "me/x"), *missing]
    *refused, adapter, passed = say(
        env, work, *([token, *finetune("refused", name), *missing] for token, name in expected), [*plain, "--lora"], plain
    )
    assert refused == [
        (2, "", [f"error: --push {name}: {message}"]) for (_, name), message in expected.items()
    ]
    assert adapter[2] == [
        "error: --push me/x: the adapter would name its model by a directory of this machine (fix: leave --push out, "
        "and afterwards `hfkit export RUN --merge` for a model that needs no other)"
    ]
    assert (passed[0], passed[2][-1]) == (3, "error: missing.csv: no such file (fix: did you mean 'train.csv'?)")
    hub.close()
    ((code, _, (said,)),) = say(env, work, plain)
    assert code == 6
    assert said.startswith(f"error: --push me/x: {host} can't be asked: ")
    assert said.endswith(" (fix: try again later, or leave --push out)")
    assert not (work / "refused").exists()


def test_offline_and_misspelt_repositories_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--model", "./bert", "--data", "train.csv", "--push", "me/x"]) == 2
    assert capsys.readouterr().err == (
        "error: --push me/x: this process is offline (fix: set HF_HUB_OFFLINE=0, or leave --push out)\n"
    )
    assert main(["finetune", "--model", "./bert", "--data", "train.csv", "--push", "me"]) == 2
    assert capsys.readouterr().err == "error: --push: 'me' is no repository (fix: --push OWNER/NAME)\n"
