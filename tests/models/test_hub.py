"""locate_model through the real download code: against the stand-in Hub, against the cache, against directories."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hfkit.errors import ModelError, UsageError
from hfkit.models.hub import locate_model, say_shadowed
from hfkit.system.network import is_local
from stand_in_hub import ALWAYS, SOURCE, StandInHub
from tiny_models import make_bert, make_gpt2

MEGABYTE = 1_000_000
# The time-outs are real; only the pauses between two tries are left out.
DRIVER = """
import contextlib, io, json, sys, time
time.sleep = lambda seconds: None
from hfkit.errors import HfkitError
from hfkit.models.hub import say_shadowed, locate_model
from hfkit.system.network import is_local
for call in json.loads(sys.argv[1]):
    said = io.StringIO()
    outcome = {"path": "", "error": "", "exit_code": 0}
    with contextlib.redirect_stderr(said):
        try:
            outcome["path"] = str(locate_model(**call))
        except HfkitError as error:
            outcome |= {"error": str(error), "exit_code": error.exit_code}
    print(json.dumps(outcome | {"said": said.getvalue()}))
"""


@dataclass
class Outcome:
    path: str
    error: str
    exit_code: int
    said: str

    @property
    def files(self) -> set[str]:
        return set(os.listdir(self.path))


def start(env: dict[str, str], *calls: str | dict[str, Any], cwd: Path) -> subprocess.Popen[str]:
    arguments = json.dumps([{"name": call} if isinstance(call, str) else call for call in calls])
    command = [sys.executable, "-W", "error", "-c", DRIVER, arguments]
    return subprocess.Popen(command, env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def outcomes(process: subprocess.Popen[str]) -> list[Outcome]:
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    return [Outcome(**json.loads(line)) for line in stdout.splitlines()]


def locate(env: dict[str, str], *calls: str | dict[str, Any], cwd: Path) -> list[Outcome]:
    """What locate_model does with each call, in one fresh process that knows only `env`."""
    return outcomes(start(env, *calls, cwd=cwd))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with the files of a Hub model; their content doesn't matter to hub.py."""
    return fill(
        tmp_path / "served",
        "config.json generation_config.json tokenizer.json vocab.txt README.md chat_template.jinja modeling_own.py "
        "pytorch_model.bin tf_model.h5 consolidated.safetensors onnx/config.json onnx/model.safetensors",
        weights=1000,
    )


def fill(directory: Path, names: str, weights: int = 0) -> Path:
    for name in names.split():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps({"file": name}))  # equal files would be downloaded once
    if weights:
        (directory / "model.safetensors").write_bytes(bytes(range(250)) * (weights // 250))
    return directory


WANTED = {"config.json", "generation_config.json", "tokenizer.json", "vocab.txt", "chat_template.jinja"}


def test_hub_model_is_downloaded_once_and_nothing_it_does_not_need(
    hub: StandInHub, model: Path, tmp_path: Path
) -> None:
    hub.add("bert-base-uncased", model, moved_to="google-bert/bert-base-uncased")
    name = "bert-base-uncased"
    without_weights = {"name": name, "weights": False}
    light, whole = locate(hub.env(tmp_path), without_weights, name, cwd=tmp_path)
    again, asked_twice = locate(hub.env(tmp_path), name, without_weights, cwd=tmp_path)
    commit = hub.repositories["models", "google-bert/bert-base-uncased"].commit()
    cache = tmp_path / "hf-home" / "hub"
    assert (light.error, whole.error, again.error) == ("", "", "")
    assert asked_twice == again  # from memory
    assert [asked.partition("?")[0] for asked in hub.asked()].count(f"GET /api/models/{name}") == 3
    assert whole.path == str(cache / f"models--{name}" / "snapshots" / commit)
    assert light.path == whole.path == again.path
    assert whole.files == WANTED | {"model.safetensors"}
    assert (Path(whole.path) / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    host = hub.url.removeprefix("http://")
    assert (light.said, again.said) == ("", "")
    assert whole.said == f"downloading {name} (0.0 MB) from {host} into {cache}\n"
    downloads = [asked for asked in hub.asked() if asked.startswith("GET /google-bert/")]
    assert len(downloads) == len(set(downloads)) == 6  # the weights in the second call, nothing in the third process
    paths = [request.path for request in hub.requests]
    assert all(path.startswith(("/api/models/", f"/{name}/resolve/", "/google-bert/")) for path in paths), paths
    assert hub.tokens() == set()
    assert all("torch" not in request.headers["User-Agent"] for request in hub.requests)


def test_what_the_hub_refuses_ends_in_one_message(hub: StandInHub, model: Path, tmp_path: Path) -> None:
    hub.add("meta/gated", model, access="gated")
    hub.add("me/private", model, access="private")
    hub.add("gpt2", model, revisions=("main", "v1"))
    hub.add("busy", model, status=503)
    hub.add("pickled", fill(tmp_path / "pickled-files", "config.json pytorch_model.bin"))
    hub.add("ggufs", fill(tmp_path / "gguf-files", "model.gguf"))
    (tmp_path / "my-model").mkdir()
    host = hub.url.removeprefix("http://")
    at_v2 = {"name": "gpt2", "revision": "v2"}
    calls = [
        "nobody/nothing",
        "my-modle",
        "me/private",
        "meta/gated",
        at_v2,
        "busy",
        "pickled",
        "ggufs",
        "hf:a/b/c",
        "a b",
    ]
    results = locate(hub.env(tmp_path), *calls, {"name": "gpt2", "revision": "v1"}, cwd=tmp_path)
    unknown = "(fix: check the spelling; for a private one: `hf auth login`)"
    assert [result.error for result in results] == [
        f"{host} has no model 'nobody/nothing', or it is private {unknown}",
        f"{host} has no model 'my-modle', or it is private "
        "(fix: did you mean 'my-model'?; for a private one: `hf auth login`)",
        f"{host} has no model 'me/private', or it is private {unknown}",
        "meta/gated is gated: its owner decides who may download it "
        f"(fix: accept the terms at {host}/meta/gated, then `hf auth login` with the same account)",
        f"gpt2 has no revision 'v2' (fix: see the branches and tags at {host}/gpt2/tree/main, or leave it out)",
        f"{host} answered 503 when asked for busy, and busy is not in the cache "
        "(fix: try again later, or give a directory)",
        "pickled has no model.safetensors, the one format that hfkit reads since it can't hold code "
        "(found: pytorch_model.bin) "
        "(fix: --allow-pickle, or https://huggingface.co/spaces/safetensors/convert adds it, then "
        "--revision refs/pr/NUMBER)",
        "ggufs has no config.json (found: model.gguf; hfkit export makes a model of a GGUF file) "
        "(fix: take another model)",
        "'a/b/c' is neither a directory nor a name that the Hub allows "
        "(fix: a Hub name looks like gpt2 or google-bert/bert-base-uncased)",
        "'a b' is neither a directory nor a name that the Hub allows "
        "(fix: a Hub name looks like gpt2 or google-bert/bert-base-uncased)",
        "",
    ]
    assert [result.exit_code for result in results] == [5] * 10 + [0]
    assert results[-1].files == WANTED | {"model.safetensors"}


def test_unwritable_cache_is_a_storage_error(hub: StandInHub, model: Path, tmp_path: Path) -> None:
    hub.add("gpt2", model)
    (tmp_path / "a-file").touch()
    (result,) = locate(hub.env(tmp_path, HF_HUB_CACHE=str(tmp_path / "a-file" / "hub")), "gpt2", cwd=tmp_path)
    assert result.error == (
        f"can't write gpt2 into {tmp_path / 'a-file' / 'hub'}: Not a directory "
        "(fix: make room there, or set HF_HOME to a directory on another disk)"
    )
    assert result.exit_code == 6


def test_token_goes_to_the_hub_and_nowhere_else(hub: StandInHub, model: Path, tmp_path: Path) -> None:
    hub.add("meta/gated", model, access="gated")
    hub.add("gpt2", model)
    home = tmp_path / "home"
    canary = "hf_CANARYcanaryCANARYcanary"
    gated, unknown, found = locate(hub.env(home, HF_TOKEN=canary), "meta/gated", "nothing", "gpt2", cwd=tmp_path)
    assert "meta/gated is gated" in gated.error
    assert "has no model 'nothing'" in unknown.error
    assert found.files == WANTED | {"model.safetensors"}
    assert hub.tokens() == {f"Bearer {canary}"}
    assert canary not in gated.error + gated.said + unknown.error + found.said
    written = [path for path in home.rglob("*") if path.is_file()]
    assert len(written) >= 6
    assert all(canary.encode() not in path.read_bytes() for path in written)


def test_silent_hub_and_broken_downloads_end_in_one_message(hub: StandInHub, model: Path, tmp_path: Path) -> None:
    hub.add("silent", model, slow="GET /api/")
    hub.add("silent-tree", model, slow="/tree/")
    hub.add("silent-file", model, slow="GET .*/model.safetensors")
    hub.add("broken", model, broken=ALWAYS)
    # The client keeps what came in pieces of 10 MiB, and asks for the rest only.
    big = fill(tmp_path / "big", "config.json", weights=12 * MEGABYTE)
    hub.add("broken-once", big, broken=1, broken_at=11 * MEGABYTE)
    env = hub.env(tmp_path, HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1")
    processes = [
        start(env, *calls, cwd=tmp_path)
        for calls in (["silent", "silent-tree"], ["silent-file"], ["broken", "broken-once"])
    ]
    silent, silent_tree, silent_file, broken, broken_once = (
        result for process in processes for result in outcomes(process)
    )
    host = hub.url.removeprefix("http://")
    again = "(fix: run the same command again to continue: files that arrived whole are kept)"
    slow_line = "(fix: try again; for a slow line set HF_HUB_ETAG_TIMEOUT=60 and HF_HUB_DOWNLOAD_TIMEOUT=60)"
    assert silent.error == f"{host} did not answer within 1 s, and silent is not in the cache {slow_line}"
    broke_off = f"from {host} broke off"
    assert silent_tree.error == f"the download of silent-tree {broke_off} (no answer for 1 s) {again}"
    assert silent_file.error == f"the download of silent-file {broke_off} (no answer for 1 s) {again}"
    assert broken.error.startswith(f"the download of broken {broke_off} (peer closed connection")
    assert broken.error.endswith(again)
    assert "\n" not in broken.error
    assert {silent.exit_code, silent_tree.exit_code, silent_file.exit_code, broken.exit_code} == {5}

    assert (broken_once.error, broken_once.exit_code) == ("", 0)
    weights = (Path(broken_once.path) / "model.safetensors").read_bytes()
    assert weights == (big / "model.safetensors").read_bytes()
    ranges = [request.headers["Range"] for request in hub.requests if "Range" in request.headers]
    assert "bytes=10485760-" in ranges

    # The same command again, once the line holds: only what is missing is asked for.
    hub.add("broken", model)
    before = len(hub.requests)
    (continued,) = locate(env, "broken", cwd=tmp_path)
    assert continued.files == WANTED | {"model.safetensors"}
    fetched = [request for request in hub.requests[before:] if request.path.startswith("/broken/")]
    assert {request.path.rpartition("/")[2] for request in fetched} == {"model.safetensors"}


def test_cached_copy_serves_without_connection_and_says_so(hub: StandInHub, model: Path, tmp_path: Path) -> None:
    hub.add("gpt2", model)
    hub.add("light", model)
    env = hub.env(tmp_path)
    first, _ = locate(env, "gpt2", {"name": "light", "weights": False}, cwd=tmp_path)
    hub.repositories["models", "gpt2"].status = 503
    (busy,) = locate(env, "gpt2", cwd=tmp_path)
    asked = len(hub.requests)
    hub.close()
    calls = [
        "gpt2",
        "light",
        "bert",
        {"name": "gpt2", "revision": "v1"},
        {"name": "gpt2", "revision": Path(first.path).name},
    ]
    unplugged = locate(env, *calls, cwd=tmp_path)
    offline = locate({**env, "HF_HUB_OFFLINE": "1"}, *calls, cwd=tmp_path)
    host = hub.url.removeprefix("http://")
    no_connection = f"no connection to {host} ([Errno 111] Connection refused)"
    cached = f"using the cached copy of gpt2, commit {Path(first.path).name[:12]}\n"
    assert busy.said == f"{host} answered 503 when asked for gpt2: {cached}"
    assert [result.path for result in [busy, *unplugged, *offline]] == [
        first.path,
        *[first.path, "", "", "", first.path] * 2,
    ]
    assert [result.exit_code for result in unplugged + offline] == [0, 5, 5, 5, 0] * 2
    for results, reason, fix in [
        (unplugged, no_connection, "check the network and the proxy, or give a directory"),
        (offline, "HF_HUB_OFFLINE is set", "once, with a connection: HF_HUB_OFFLINE=0 hfkit ..., or give a directory"),
    ]:
        found, light, missing, revision, commit = results
        assert found.said.endswith(f"{reason}: {cached}")
        assert commit.said.endswith(f"{reason}: {cached}")
        assert light.error.startswith(f"{reason}, and only a part of light is in the cache (fix: {fix}")
        assert missing.error.startswith(f"{reason}, and bert is not in the cache (fix: {fix}")
        assert revision.error.startswith(f"{reason}, and gpt2 at revision 'v1' is not in the cache (fix: {fix}")
    assert len(hub.requests) == asked


def test_transformers_loads_what_the_hub_sent_and_again_without_network(hub: StandInHub, tmp_path: Path) -> None:
    hub.add("gpt2", make_gpt2(tmp_path / "gpt2-files"), moved_to="openai-community/gpt2")
    hub.add("bert-base-uncased", make_bert(tmp_path / "bert-files"), moved_to="google-bert/bert-base-uncased")
    script = """
import sys
import datasets, huggingface_hub, torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from hfkit.models.hub import locate_model
from hfkit.system.network import offline

def logits(name, model_class):
    path = locate_model(name)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model, info = model_class.from_pretrained(path, local_files_only=True, output_loading_info=True)
    assert not any(info.values()), info
    return model(**tokenizer("hello 世界", return_tensors="pt")).logits

def both():
    return [logits("gpt2", AutoModelForCausalLM), logits("bert-base-uncased", AutoModelForMaskedLM)]

online = both()
with offline():
    assert huggingface_hub.is_offline_mode() and datasets.config.HF_HUB_OFFLINE
    again = both()
assert not huggingface_hub.is_offline_mode() and not datasets.config.HF_HUB_OFFLINE
assert all(torch.equal(*pair) for pair in zip(online, again))
print([tuple(one.shape) for one in online])
"""
    env = hub.env(tmp_path)
    run = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[(1, ")
    assert [line.partition(" (")[0] for line in run.stderr.splitlines() if "hf-home" in line] == [
        "downloading gpt2",
        "downloading bert-base-uncased",
    ]
    downloads = [asked for asked in hub.asked() if asked.startswith("GET /") and "/resolve/" in asked]
    assert len(downloads) == len(set(downloads))


def test_pickled_weights_are_refused_with_a_command_that_converts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    directory = fill(tmp_path / "it's $HOME", "config.json")
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3).T, "b.bias": torch.ones(2)}
    torch.save(weights, directory / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        locate_model(str(directory))
    (message, fix) = caught.value.problems[0]
    assert message == (
        f"{directory} has no model.safetensors, the one format that hfkit reads since it can't hold code "
        "(found: pytorch_model.bin)"
    )
    command = shlex.split(fix.removeprefix("--allow-pickle, or convert it: "))
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert locate_model(str(directory)) == directory
    converted = load_file(directory / "model.safetensors")
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)


def test_directory_is_found_and_a_shadowed_hub_name_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "runs" / "mine", "config.json", weights=250)
    fill(tmp_path / "light", "config.json")
    assert locate_model("./runs/mine") == Path("runs/mine")
    assert locate_model("runs/mine") == Path("runs/mine")
    assert locate_model("~/runs/mine") == tmp_path / "runs" / "mine"
    assert locate_model("./light", weights=False) == Path("light")
    assert capsys.readouterr().err == ""
    say_shadowed.cache_clear()
    (tmp_path / "runs" / "mine").rename(tmp_path / "gpt2")
    assert locate_model("gpt2") == Path("gpt2")
    said = capsys.readouterr()
    assert said.err == "using local directory ./gpt2, not the Hub's gpt2 (fix: hf:gpt2 is the Hub's)\n"
    assert said.out == ""
    locate_model("gpt2", weights=False)
    assert capsys.readouterr().err == ""  # once is enough


def test_local_names_are_told_from_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "runs" / "mine", "config.json")
    local = ["./x", "../x", "/x", "~/x", "a/b/c", "runs", "runs/mine", "runs/missing", "a\\b"]
    on_hub = ["gpt2", "gpt2-xl", "google-bert/bert-base-uncased", "hf:gpt2", "hf:runs", "hf:runs/mine", ""]
    assert [name for name in local + on_hub if is_local(name)] == local


def test_unusable_directory_ends_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "runs/gpt2-poems", "config.json", weights=250)
    fill(tmp_path / "runs/stopped", "checkpoint-5/config.json checkpoint-10/config.json notes/todo.txt")
    fill(tmp_path / "runs/fresh", "config.json")
    fill(tmp_path / "runs/empty", "README.md")
    fill(tmp_path / "runs/gguf", "model-q4.gguf")
    sharded = fill(tmp_path / "runs/sharded", "config.json model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    nothing_like_it = "give a directory with a config.json, or a Hub name"
    wrote = "give a directory that hfkit or save_pretrained wrote"
    cases = {
        "./runs/gpt2-poem": "./runs/gpt2-poem: no such directory (fix: did you mean './runs/gpt2-poems'?)",
        "runs/gpt2-poem": "runs/gpt2-poem: no such directory "
        "(fix: did you mean 'runs/gpt2-poems'?; hf:runs/gpt2-poem is the Hub's)",
        "./nowhere/x": f"./nowhere/x: no such directory (fix: {nothing_like_it})",
        "a/b/c": f"a/b/c: no such directory (fix: {nothing_like_it})",
        "./" + "x" * 300: f"./{'x' * 300}: no such directory (fix: {nothing_like_it})",
        "runs/fresh/config.json": "runs/fresh/config.json is a file, and a model is a directory (fix: give runs/fresh)",
        "runs/stopped": "runs/stopped has no config.json itself, but in: checkpoint-5, checkpoint-10 "
        "(fix: give runs/stopped/checkpoint-10)",
        "runs/fresh": f"runs/fresh has no weights (model.safetensors) (fix: {wrote}, or train it: "
        "hfkit pretrain --model runs/fresh --from-scratch)",
        "runs/empty": f"runs/empty has no config.json (fix: {wrote})",
        "runs/gguf": "runs/gguf has no config.json (found: model-q4.gguf; hfkit export makes a model of a GGUF file) "
        f"(fix: {wrote})",
        "runs/sharded": "runs/sharded has no model-00002-of-00002.safetensors (1 of 2 weight files are missing) "
        f"(fix: {wrote}, or train it: hfkit pretrain --model runs/sharded --from-scratch)",
        "runs/gguf/model-q4.gguf": "runs/gguf/model-q4.gguf: a GGUF file is made a plain model first "
        "(fix: hfkit export runs/gguf/model-q4.gguf --output-dir DIR, once, then give DIR)",
    }
    for name, expected in cases.items():
        with pytest.raises(ModelError) as caught:
            locate_model(name)
        assert (str(caught.value), caught.value.exit_code) == (expected, 5)
    with pytest.raises(UsageError, match=r"model\.revision acts on Hub models only"):
        locate_model("runs/gpt2-poems", revision="main")


def test_local_directory_needs_neither_network_nor_huggingface_hub(tmp_path: Path) -> None:
    fill(tmp_path / "mine", "config.json", weights=250)
    script = """
import sys
sys.addaudithook(lambda event, _: event.startswith("socket.") and sys.exit(f"asked the network: {event}"))
from hfkit.models.hub import locate_model
from hfkit.system.network import offline
print(locate_model("./mine"))
assert not {"huggingface_hub", "httpx2", "torch", "transformers"} & sys.modules.keys()
with offline():
    from huggingface_hub import constants, is_offline_mode
    assert is_offline_mode() and constants.HF_HUB_DISABLE_TELEMETRY
assert not is_offline_mode()  # though it was imported inside
"""
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    del env["HF_HUB_OFFLINE"]
    run = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, text=True, capture_output=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "mine\n", "")
