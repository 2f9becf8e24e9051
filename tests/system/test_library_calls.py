"""A call of the Python API leaves the process as it was: environment, libraries, signals, threads, random states."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hfkit.cli.main import main
from stand_in_hub import StandInHub
from tiny_models import TEXT, make_gpt2

# What a call must leave alone; telemetry is turned off for good, as `hfkit.system.network` says.
SNAPSHOT = """
import contextlib, csv, io, json, logging, os, random, signal, sys, threading, warnings
import datasets, evaluate, huggingface_hub, numpy, torch, transformers
import hfkit, hfkit.training.train  # some libraries draw random numbers when they are imported

def state():
    return {
        "environment": {name: os.environ[name] for name in sorted(os.environ) if "TELEMETRY" not in name},
        "offline": [huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE,
                    datasets.config.HF_DATASETS_OFFLINE, evaluate.config.HF_EVALUATE_OFFLINE],
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)],
        "threads": sorted(one.name for one in threading.enumerate() if one.name != "tqdm_monitor"),
        "torch": [torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype().__str__(),
                  torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic,
                  torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()],
        "random": [hash(random.getstate()), hash(numpy.random.get_state()[1].tobytes()),
                   hash(torch.get_rng_state().numpy().tobytes())],
        "warnings": list(map(str, warnings.filters)),
        "csv": csv.field_size_limit(),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.displayhook)],
        "caching": datasets.is_caching_enabled(),
        "directory": os.getcwd(),
        "streams": [sys.stdin.encoding, sys.stdout.encoding],
        "logging": {name: [one.level, one.propagate, one.disabled, list(map(repr, one.handlers)), len(one.filters)]
                    for name, one in [("", logging.root), *logging.root.manager.loggerDict.items()]
                    if isinstance(one, logging.Logger)} | {"disabled": logging.root.manager.disable},
        "bars": [datasets.are_progress_bars_disabled(), transformers.logging.is_progress_bar_enabled(),
                 huggingface_hub.utils.are_progress_bars_disabled()],
    }

changes = {}
for name, call in json.loads(sys.argv[1]).items():
    before = state()
    with contextlib.redirect_stderr(io.StringIO()):
        exec(call)
    after = state()
    after["logging"] = {name: after["logging"][name] for name in before["logging"]}  # an import adds its own
    changes[name] = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
print(json.dumps(changes))
"""

CALLS = {
    "load_recipe": "hfkit.load_recipe('finetune', **{'model.name': 'bert', 'data.train': ['a.csv']})",
    "evaluate": "hfkit.evaluate('run', **{'data.test': ['text.txt']})",
    "generate": "hfkit.generate('run', ['hello'], **{'generation.max_new_tokens': 3, 'generation.do_sample': True})",
    "evaluate labels": "hfkit.evaluate('labels', **{'data.test': ['a.csv']})",
    "predict": "hfkit.predict('labels', ['hello'])",
    "a call that fails": (
        "with contextlib.suppress(hfkit.HfkitError): hfkit.evaluate('run', **{'data.test': ['missing.txt']})"
    ),
    "fine-tuning": (
        "hfkit.train(hfkit.load_recipe('finetune', **{'model.name': 'gpt2', 'data.train': ['a.csv'],"
        " 'train.max_steps': 2, 'train.output_dir': 'more'}), overwrite=True)"
    ),
    "train": (
        "hfkit.train(hfkit.load_recipe('pretrain', **{'model.name': 'gpt2', 'data.train': ['text.txt'],"
        " 'data.block_size': 16, 'train.max_steps': 2, 'train.output_dir': 'again'}), overwrite=True)"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    make_gpt2(folder / "gpt2")
    (folder / "text.txt").write_text("\n\n".join(TEXT * 5))
    (folder / "a.csv").write_text("text,label\n" + "".join(f"row {row},{row % 2}\n" for row in range(20)))
    common = ["--model", str(folder / "gpt2"), "--max-steps", "2", "--batch-size", "2", "--validation-split", "0"]
    text = ["pretrain", *common, "--data", str(folder / "text.txt"), "--block-size", "16"]
    assert main([*text, "--output-dir", str(folder / "run")]) == 0
    assert main(["finetune", *common, "--data", str(folder / "a.csv"), "--output-dir", str(folder / "labels")]) == 0
    return folder


@pytest.fixture(scope="module")
def changes(folder: Path) -> dict[str, dict[str, list[object]]]:
    """By call: what it changed in a process that has not set HF_HUB_OFFLINE, each as [before, after]."""
    with StandInHub() as hub:
        env = hub.env(folder)
    assert "HF_HUB_OFFLINE" not in env
    script = [sys.executable, "-c", SNAPSHOT, json.dumps(CALLS)]
    done = subprocess.run(script, env=env, cwd=folder, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("call", CALLS)
def test_a_call_leaves_the_process_as_it_was(call: str, changes: dict[str, dict[str, list[object]]]) -> None:
    assert changes[call] == {}


def test_a_hub_model_is_asked_for_after_a_local_call(folder: Path, tmp_path: Path, hub) -> None:
    """A local call once cut the network off for the rest of the process."""
    hub.add("small", make_gpt2(tmp_path / "files"))
    script = (
        "import hfkit; hfkit.evaluate('run', **{'data.test': ['text.txt']}); "
        "print(hfkit.generate('small', ['hello'], **{'generation.max_new_tokens': 2}) != [])"
    )
    env = hub.env(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=folder, text=True, capture_output=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
    assert "downloading small" in done.stderr
