"""Where a model lies on this disk: in a directory of the user's, or in the cache of what the Hub has sent."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import shlex
import sys
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from hfkit.errors import HfkitError, ModelError, StorageError, UsageError, did_you_mean
from hfkit.models import sharded
from hfkit.system import checkpoints, console, permissions
from hfkit.system.network import host, is_gguf, is_local, no_telemetry, progress_bars, time_limit

if TYPE_CHECKING:
    pass

# All that is asked of the Hub: no second copy of the weights in another format; no code and no pickle but where a
# person allows them on the command line.
CONFIG_FILES = ["*.json", "*.jinja", "*.model", "*.spm", "*.txt"]

WEIGHT_FILES = ["model.safetensors", "*-of-*.safetensors", "adapter_model.safetensors"]

CODE_FILES, PICKLED_FILES = ["*.py"], ["pytorch_model*.bin"]

NEVER_FILES = ["*/*", "consolidated*"]

SAFE, PICKLED = ({name, f"{name}.index.json"} for name in ("model.safetensors", "pytorch_model.bin"))

OTHER_WEIGHTS = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".pt", ".pth", ".safetensors")

PASSING_STATUS = {408, 429, 500, 502, 503, 504}  # the Hub has no time now: as good as no connection

# What this process has located: one run asks the Hub once, and its config, tokenizer and weights are of one commit.
_located: dict[tuple[str, str | None, bool], Path] = {}


def locate_model(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The directory that holds the model `name`, downloaded first where it is a Hub name.

    A Hub model's directory is named after its commit. `hf:NAME` is the Hub's even where a directory has that name.
    `weights=False` asks for configuration and tokenizer only. Raises ModelError, which names the way out.
    """
    if is_gguf(name):
        fix = f"hfkit export {shlex.quote(name)} --output-dir DIR, once, then give DIR"
        raise ModelError(f"{name}: a GGUF file is made a plain model first", fix)
    if not is_local(name):
        return _from_hub(name.removeprefix("hf:"), revision, weights)
    if revision is not None:
        raise UsageError(f"model.revision acts on Hub models only, and {name} is a directory", "leave it out")
    path = Path(os.path.expanduser(name))
    _check_directory(path, name, weights)
    if "/" not in name and not name.startswith((".", "~")) and not (path / "run.json").exists():
        say_shadowed(name)
    return path


@functools.cache  # once in a run, however often its model is located
def say_shadowed(name: str) -> None:
    console.say(f"using local directory ./{name}, not the Hub's {name} (fix: hf:{name} is the Hub's)")


def _check_directory(path: Path, name: str, weights: bool) -> None:
    if not os.path.exists(path):
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
        fix = "give a directory with a config.json, or a Hub name"
        fix = f"did you mean '{os.path.join(os.path.dirname(name), near[0])}'?" if near else fix
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            fix += f"; hf:{name} is the Hub's"
        raise ModelError(f"{name}: no such directory", fix)
    if not path.is_dir():
        is_inside = (path.parent / "config.json").exists()
        fix = shlex.quote(str(path.parent)) if is_inside else "a directory with a config.json, or a Hub name"
        raise ModelError(f"{name} is a file, and a model is a directory", f"give {fix}")
    if checkpoints.is_ours(path) and (reason := checkpoints.defect(path)):
        whole = checkpoints.newest(path.parent)[0]
        raise ModelError(f"{name}: {reason}", f"take {whole}" if whole else "train again: no checkpoint is whole")
    files = os.listdir(path)
    problem = _problem(files, weights) or (_missing_shards(path) if weights else "")
    if not problem:
        return
    if fix := sharded.fix_for(path):
        raise ModelError(f"{name} has its weights in shards", fix)
    if "config.json" not in files and (models := _models_below(path)):
        found = ", ".join(model.relative_to(path).as_posix() for model in models[-5:])
        raise ModelError(f"{name} has {problem} itself, but in: {found}", f"give {shlex.quote(str(models[-1]))}")
    if "pytorch_model" in problem:
        raise ModelError(f"{name} has {problem}", f"{permissions.PICKLE}, or convert it: {_conversion(path)}")
    fix = "give a directory that hfkit or save_pretrained wrote"
    train = f", or train it: hfkit pretrain --model {shlex.quote(name)} --from-scratch"
    raise ModelError(f"{name} has {problem}", fix + train * ("config.json" in files))


def _problem(files: Collection[str], weights: bool) -> str:
    """What these top-level files lack to be a model, "no ..."; empty where they are one."""
    if {"adapter_config.json", "adapter_model.safetensors"} <= set(files):  # to a model elsewhere
        return ""
    others = ", ".join(sorted(file for file in files if file.endswith(OTHER_WEIGHTS))[:5])
    if "config.json" not in files and (weights or "tokenizer_config.json" not in files):  # a tokenizer needs no model
        found = f" (found: {others}; hfkit export makes a model of a GGUF file)" if ".gguf" in others else ""
        return "no config.json" + found
    if not weights or SAFE & set(files) or (permissions.allows(permissions.PICKLE) and PICKLED & set(files)):
        return ""
    if others:
        return f"no model.safetensors, the one format that hfkit reads since it can't hold code (found: {others})"
    return "no weights (model.safetensors)"


def _missing_shards(path: Path) -> str:
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists() or not index.exists():  # an adapter has neither
        return ""
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(shard for shard in shards if not (path / shard).exists())
    return f"no {missing[0]} ({len(missing)} of {len(shards)} weight files are missing)" if missing else ""


def _models_below(path: Path) -> list[Path]:
    """Model directories one or else two levels below, by the last number in their names: the newest checkpoint last."""
    names = ("config.json", "adapter_config.json")
    here, deeper = ([config for name in names for config in path.glob(f"{level}/{name}")] for level in ("*", "*/*"))
    models = [config.parent for config in here or deeper]
    return sorted(models, key=lambda model: (int((re.findall(r"\d+", model.name) or ["-1"])[-1]), model.name))


def _conversion(path: Path) -> str:
    """The command that writes model.safetensors beside pickled weights, which it loads without running code."""
    return "python -c " + shlex.quote(
        f"import glob, os, torch, safetensors.torch as s; os.chdir({json.dumps(str(path))}); "
        's.save_file({k: v.contiguous().clone() for f in glob.glob("pytorch_model*.bin") '
        'for k, v in torch.load(f, weights_only=True).items()}, "model.safetensors", {"format": "pt"})'
    )


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    no_telemetry()
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    for known in ((name, revision, True), (name, revision, weights)):
        if known in _located:
            return _located[known]
    try:
        if constants.is_offline_mode():
            fix = f"once, with a connection: HF_HUB_OFFLINE=0 hfkit ..., or give a directory instead of {name}"
            path = _from_cache(name, revision, weights, "HF_HUB_OFFLINE is set", fix)
        else:
            path = _download(name, revision, weights)
        _located[name, revision, weights] = path
        return path
    except HFValidationError:
        fix = did_you_mean(name, os.listdir()) or "a Hub name looks like gpt2 or google-bert/bert-base-uncased"
        raise ModelError(f"{name!r} is neither a directory nor a name that the Hub allows", fix) from None


def _download(name: str, revision: str | None, weights: bool) -> Path:
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    seconds = max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)
    with time_limit(seconds):
        try:
            info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=seconds)
        except (httpx2.TransportError, HfHubHTTPError) as error:
            message, fix = _explain(error, name, revision, seconds)
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in PASSING_STATUS:
                raise ModelError(message, fix) from error
            return _from_cache(name, revision, weights, message, fix)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if problem := _problem(sizes, weights):
            convert = (
                f"{permissions.PICKLE}, or https://huggingface.co/spaces/safetensors/convert adds it, then "
                "--revision refs/pr/NUMBER"
            )
            raise ModelError(f"{name} has {problem}", convert if "pytorch_model" in problem else "take another model")
        bars = weights and _announce(name, str(info.sha), sizes) and sys.stderr.isatty() and console.is_main_process()
        try:
            return _snapshot(name, revision, _patterns(weights, sizes), bars=bars)
        except (httpx2.TransportError, OSError, RuntimeError) as error:  # RuntimeError: hf_xet
            raise _broken_off(error, name, revision, seconds) from error


def _announce(name: str, commit: str, sizes: dict[str, int]) -> bool:
    """Says once what is about to be downloaded; False, and no word, where the cache has all weights."""
    from huggingface_hub import constants, try_to_load_from_cache

    files = [
        file
        for file in sizes
        if any(fnmatch(file, pattern) for pattern in _patterns(True, sizes))
        and not any(fnmatch(file, pattern) for pattern in NEVER_FILES)
        and not isinstance(try_to_load_from_cache(name, file, revision=commit), str)
    ]
    if not any(file.endswith((".safetensors", ".bin")) for file in files):
        return False
    megabytes = sum(sizes[file] for file in files) / 1e6
    console.say(f"downloading {name} ({megabytes:,.1f} MB) from {host()} into {constants.HF_HUB_CACHE}")
    return True


def _patterns(weights: bool, files: Collection[str] = ()) -> list[str]:
    """What is asked for of a model whose `files` are these."""
    pickled = weights and permissions.allows(permissions.PICKLE) and PICKLED & set(files) and not SAFE & set(files)
    return [
        *CONFIG_FILES,
        *(CODE_FILES if permissions.allows(permissions.REMOTE_CODE) else []),
        *(WEIGHT_FILES if weights else []),
        *(PICKLED_FILES if pickled else []),
    ]


def _snapshot(
    name: str, revision: str | None, patterns: list[str], local_only: bool = False, bars: bool = False
) -> Path:
    from huggingface_hub import snapshot_download

    with progress_bars(bars):
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=NEVER_FILES,
            local_files_only=local_only,
        )
    return Path(path)


def _from_cache(name: str, revision: str | None, weights: bool, reason: str, fix: str) -> Path:
    """What an earlier download left, and says so; ModelError with `reason` and `fix` where that is no whole model."""
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        path = _snapshot(name, revision, _patterns(weights), local_only=True)
    except IncompleteSnapshotError:
        raise ModelError(f"{reason}, and only a part of {name} is in the cache", fix) from None
    except LocalEntryNotFoundError:
        what = f"{name} at revision '{revision}'" if revision else name
        raise ModelError(f"{reason}, and {what} is not in the cache", fix) from None
    if problem := _problem(os.listdir(path), weights) or (_missing_shards(path) if weights else ""):
        raise ModelError(f"{reason}, and the cached copy of {name} has {problem}", fix)
    console.say(f"{reason}: using the cached copy of {name}, commit {path.name[:12]}")
    return path


def _explain(error: Exception, name: str, revision: str | None, seconds: float) -> tuple[str, str]:
    """Message and fix for what the Hub answered, or for its silence."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    match error:
        case GatedRepoError():
            fix = f"accept the terms at {host()}/{name}, then `hf auth login` with the same account"
            return f"{name} is gated: its owner decides who may download it", fix
        case RepositoryNotFoundError():
            fix = did_you_mean(name, (entry.name for entry in os.scandir() if entry.is_dir())) or "check the spelling"
            return f"{host()} has no model '{name}', or it is private", f"{fix}; for a private one: `hf auth login`"
        case RevisionNotFoundError():
            fix = f"see the branches and tags at {host()}/{name}/tree/main, or leave it out"
            return f"{name} has no revision '{revision}'", fix
        case HfHubHTTPError() if error.response.status_code == 401:
            return f"{host()} refused the access token", "`hf auth login` with a valid one, or unset HF_TOKEN"
        case HfHubHTTPError():
            fix = "try again later, or give a directory"
            return f"{host()} answered {error.response.status_code} when asked for {name}", fix
        case httpx2.TimeoutException():
            fix = "try again; for a slow line set HF_HUB_ETAG_TIMEOUT=60 and HF_HUB_DOWNLOAD_TIMEOUT=60"
            return f"{host()} did not answer within {seconds} s", fix
    return f"no connection to {host()} ({error})", "check the network and the proxy, or give a directory"


def _broken_off(error: Exception, name: str, revision: str | None, seconds: float) -> HfkitError:
    """What broke off a download."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return ModelError(*_explain(error, name, revision, seconds))
    if isinstance(error, OSError) and error.errno:  # the network's errors are httpx2's, and carry no errno
        fix = "make room there, or set HF_HOME to a directory on another disk"
        return StorageError(f"can't write {name} into {constants.HF_HUB_CACHE}: {error.strerror}", fix)
    silence = isinstance(error, httpx2.TimeoutException)
    reason = f"no answer for {seconds} s" if silence else str(error).partition("\n")[0] or type(error).__name__
    fix = "run the same command again to continue: files that arrived whole are kept"
    return ModelError(f"the download of {name} from {host()} broke off ({reason})", fix)
