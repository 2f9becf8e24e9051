"""`--push`: what reaches the Hub, who may see it, and what is said, against a small Hub on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hfkit.cli.main import main
from stand_in_hub import StandInHub
from tiny_models import make_bert

UPLOADED = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
AGAIN = "hfkit finetune kept/recipe.yaml --output-dir kept --push me/kept --resume auto"
TOKEN = "hf_CANARYcanaryCANARYcanary"
OWN = "ignore:Use 'content=<...>':DeprecationWarning"  # huggingface_hub 1.x's own, where it uploads without xet
DRIVER = """
import contextlib, io, json, os, sys
from hfkit.cli.main import main
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


class Session:
    """What was said, and what there is, after three uploads of which the last was refused once."""

    def __init__(self, home: Path, work: Path) -> None:
        self.uploads, self.shared, self.work = home / "uploads", home / "shared", work
        self.shared.mkdir()
        (self.shared / "README.md").write_text("as it was")
        with StandInHub() as hub:
            hub.let_in(TOKEN, "me", self.uploads, organizations=("lab",))
            hub.add("lab/shared", self.shared)
            hub.refuses = ("me/kept", 1)
            self.host = hub.url.removeprefix("http://")
            runs = {"new": "me/new", "known": "lab/shared", "kept": "me/kept"}
            lines = [*(finetune(output, push) for output, push in runs.items()), AGAIN.split()[1:]]
            self.new, self.known, self.kept, self.repeated = say(
                hub.env(home), work, *([TOKEN, *line] for line in lines)
            )
            self.access = {name: repository.access for (_, name), repository in hub.repositories.items()}
            self.tokens = hub.tokens()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, work: Path) -> Session:
    return Session(tmp_path_factory.mktemp("push-hub"), work)


def test_a_new_repository_is_private_and_gets_the_model_alone(session: Session) -> None:
    code, out, said = session.new
    assert (code, out.splitlines()[-1]) == (0, "run: new"), said
    assert said[0] == f"push: when finished, to me/new on {session.host} (a new repository, private)"
    assert said[-3:-1] == [
        f"uploading new to me/new on {session.host}",
        f"uploaded to {session.host}/me/new (private)",
    ]
    assert session.access["me/new"] == "own"
    assert files_in(session.uploads / "me/new") == UPLOADED
    for name in UPLOADED:
        content = (session.uploads / "me/new" / name).read_bytes()
        assert content == (session.work / "new" / name).read_bytes()
        assert str(session.work).encode() not in content
        assert b"./bert" not in content
    assert session.tokens == {f"Bearer {TOKEN}"}


def test_an_existing_repository_keeps_who_sees_it_and_its_other_files(session: Session) -> None:
    code, _, said = session.known
    assert code == 0
    assert said[0] == (
        f"push: when finished, to lab/shared on {session.host} (it is there and public: everyone will see the model)"
    )
    assert said[-2] == f"uploaded to {session.host}/lab/shared (public)"
    assert session.access["lab/shared"] == "public"
    assert files_in(session.shared) == {*UPLOADED, "README.md"}
    assert (session.shared / "README.md").read_text() == "as it was"


def test_a_failed_upload_leaves_a_finished_run_and_the_command_for_another_try(session: Session) -> None:
    code, out, said = session.kept
    assert code == 6
    assert out.splitlines()[-1] == "run: kept"
    assert said[-1] == (
        "error: kept is finished and complete, but it was not uploaded to me/kept: "
        f"Private repository storage limit reached (fix: {AGAIN})"
    )
    assert json.loads((session.work / "kept/status.json").read_text())["state"] == "finished"

    code, out_again, said = session.repeated
    assert (code, out_again) == (0, out)
    assert "kept is finished, nothing to do" in said
    assert not [line for line in said if line.startswith("step ")]
    assert files_in(session.uploads / "me/kept") == UPLOADED


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
    lines = [[token, *finetune("refused", name), *missing] for token, name in expected]
    used = ["hf_writes", *finetune(".", "me/x")]
    *refused, adapter, passed = say(env, work, *lines, [*plain, "--lora"], used)
    assert refused == [(2, "", [f"error: --push {name}: {message}"]) for (_, name), message in expected.items()]
    assert adapter[2] == [
        "error: --push me/x: the adapter would name its model by a directory of this machine (fix: leave --push out, "
        "and afterwards `hfkit export RUN --merge` for a model that needs no other)"
    ]
    assert passed[2] == [
        f"push: when finished, to me/x on {host} (a new repository, private)",
        "error: .: not empty (fix: --resume auto, --overwrite, or --output-dir NEW)",
    ]
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
    assert capsys.readouterr().err == "error: --push: 'me' is not the name of a repository (fix: --push OWNER/NAME)\n"
