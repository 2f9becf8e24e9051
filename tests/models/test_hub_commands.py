"""The commands as the README types them, through the real download code, against a small Hub on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stand_in_hub import StandInHub
from tiny_models import make_bert, make_gpt2

# (the stand-in has 64 positions, where the real model has 512)
FINETUNE = ["finetune", "--model", "bert-base-uncased", "--max-steps", "2", "--allow-truncation"]
GENERATE = ["generate", "--model", "gpt2", "--prompt", "Once upon a time"]
CHINESE = ["generate", "--model", "gpt2", "--prompt", "你好，世界"]
# Several command lines in one process of the installed package, each as a user's shell would see it.
DRIVER = """
import contextlib, io, json, sys
from hfkit.cli.main import main
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
Said = tuple[int, str, list[str]]


CUT = "warning: the text was cut after 50 tokens (fix: --max-new-tokens 100)"


def say(env: dict[str, str], cwd: Path, *lines: list[str]) -> list[Said]:
    """Exit code, stdout and lines of stderr of each command line, all in one fresh process that knows only `env`."""
    command = [sys.executable, "-W", "error", "-c", DRIVER, json.dumps(lines)]
    env = {**env, "OMP_NUM_THREADS": "1", "HF_HUB_ETAG_TIMEOUT": "5"}
    done = subprocess.run(command, env=env, cwd=cwd, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return [(code, out, err.splitlines()) for code, out, err in map(json.loads, done.stdout.splitlines())]


class Session:
    """What was said while the Hub was there, and offline afterwards."""

    def __init__(self, home: Path) -> None:
        with StandInHub() as hub:
            hub.add("bert-base-uncased", make_bert(home / "bert-files"), moved_to="google-bert/bert-base-uncased")
            hub.add("gpt2", make_gpt2(home / "gpt2-files"), moved_to="openai-community/gpt2")
            hub.add("gated/model", home / "gpt2-files", access="gated")
            self.host = hub.url.removeprefix("http://")
            self.work = home / "work"
            self.work.mkdir()
            missing, gated = (["generate", "--model", name, "--prompt", "x"] for name in ("no/model", "gated/model"))
            env, other = hub.env(home), hub.env(home / "other")
            with ThreadPoolExecutor() as pool:
                first = pool.submit(say, env, self.work, GENERATE, CHINESE, missing, gated)
                second = pool.submit(say, other, self.work, FINETUNE)
                self.generated, self.chinese, self.missing, self.gated = first.result()
                (self.finetuned,) = second.result()
            self.tokens, self.asked = hub.tokens(), hub.asked()
        unplugged = ["generate", "--model", "bert-base-uncased", "--prompt", "x"]
        self.cached, self.uncached = say({**env, "HF_HUB_OFFLINE": "1"}, self.work, GENERATE, unplugged)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(tmp_path_factory.mktemp("hub"))


def test_finetune_of_a_hub_model_as_typed_in_the_readme(session: Session) -> None:
    code, out, said = session.finetuned
    assert code == 0
    run = session.work / "runs" / "finetune-bert-base-uncased"
    assert out.splitlines()[-1] == "run: runs/finetune-bert-base-uncased"
    assert said[0] == "no --data given: training on builtin:python-docstrings, which every Python brings"
    assert (
        [line for line in said if line.startswith("downloading")]
        == [
            line
            for line in said
            if line.startswith("downloading bert-base-uncased (") and f"from {session.host} " in line
        ]
        != []
    )
    assert said[-1] == 'next: hfkit predict runs/finetune-bert-base-uncased --text "..."'
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    labels = json.loads((run / "config.json").read_text())["id2label"]
    assert len(labels) == 10
    assert json.loads((run / "run.json").read_text())["command"][0] == "hfkit"


def test_generate_with_a_hub_model_as_typed_in_the_readme(session: Session) -> None:
    code, out, said = session.generated
    assert (code, said[1:]) == (0, [CUT])
    assert said[0].startswith("downloading gpt2 (0.")
    assert "Once upon a time" not in out

    code, out, said = session.chinese
    assert code == 0
    assert [line.partition(" after ")[0] for line in said] == [CUT.partition(" after ")[0]]  # downloaded already
    assert out.endswith("\n")


def test_unknown_and_gated_models_say_what_to_do(session: Session) -> None:
    code, out, said = session.missing
    assert (code, out) == (5, "")
    assert said == [
        f"error: {session.host} has no model 'no/model', or it is private "
        "(fix: check the spelling; for a private one: `hf auth login`)"
    ]
    code, out, said = session.gated
    assert (code, out) == (5, "")
    assert said[-1] == (
        "error: gated/model is gated: its owner decides who may download it "
        f"(fix: accept the terms at {session.host}/gated/model, then `hf auth login` with the same account)"
    )


def test_nothing_is_sent_but_requests_for_files(session: Session) -> None:
    assert session.tokens == set()
    assert {line.split()[0] for line in session.asked} <= {"GET", "HEAD"}
    names = ["no/model", "gated/model", "gpt2", "bert-base-uncased"]
    names += ["openai-community/gpt2", "google-bert/bert-base-uncased"]
    for line in session.asked:
        path = line.split()[1]
        assert path.startswith((*(f"/api/models/{name}" for name in names), *(f"/{name}/resolve/" for name in names)))


def test_offline_the_cached_model_works_and_another_one_says_how_to_get_it(session: Session) -> None:
    code, out, said = session.cached
    assert (code, out) == session.generated[:2]
    assert said[1:] == [CUT]
    assert said[0].startswith("HF_HUB_OFFLINE is set: using the cached copy of gpt2, commit ")
    code, out, said = session.uncached
    assert (code, out) == (5, "")
    assert said == [
        "error: HF_HUB_OFFLINE is set, and bert-base-uncased is not in the cache (fix: once, with a connection: "
        "HF_HUB_OFFLINE=0 hfkit ..., or give a directory instead of bert-base-uncased)"
    ]
