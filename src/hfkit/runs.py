"""The run directory: a plain Hugging Face model directory, plus who made it, how, and what state it is in."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hfkit import checkpoints
from hfkit.checkpoints import write_atomically
from hfkit.console import is_main_process, warn
from hfkit.errors import (
    BusyError,
    DivergedError,
    HfkitError,
    ModelError,
    OutOfMemoryError,
    StoppedError,
    StorageError,
    UsageError,
)
from hfkit.recipe import SETTINGS
from hfkit.resolve import dump_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics import Score
    from hfkit.recipe import Recipe

MANIFEST, STATUS, RECIPE, LOCK, STAGED = "run.json", "status.json", "recipe.yaml", "lock.json", ".staged"
RESULTS, METRICS_LOG = "all_results.json", "metrics.jsonl"
PACKAGES = ("hfkit", "torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors", "numpy")

# Settings that may differ between a run and its continuation without changing a weight.
_FREE_TO_CHANGE = {
    "train.output_dir",
    "train.eval_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.logging_steps",
    "train.dataloader_num_workers",
    "train.per_device_eval_batch_size",
    "train.num_train_epochs",
    "data.train",
    "data.validation",
    "data.test",
}


class Run:
    """One training run in its directory, from the first check to the last file."""

    def __init__(self, directory: Path, command: str, recipe: Recipe, resume: str | None, overwrite: bool) -> None:
        self.directory, self.command, self.recipe = directory, command, recipe
        self.resume, self.overwrite = resume, overwrite
        self.id = uuid.uuid4().hex
        self.manifest: dict[str, Any] = {}
        self._lock: IO[str] | None = None

    @classmethod
    def plan(cls, recipe: Recipe, command: str, *, resume: str | None, overwrite: bool) -> Run:
        """The run that these settings name; refuses a directory in use. Nothing is written yet."""
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other", "choose one")
        if recipe.train.output_dir is not None:
            directory = Path(recipe.train.output_dir)
        elif resume not in (None, "auto"):
            directory = Path(str(resume)).parent
        else:
            directory = default_directory(recipe, command, continued=resume is not None or overwrite)
        if directory.exists() and not directory.is_dir():
            raise StorageError(f"{directory}: is a file", "--output-dir NEW")
        run = cls(directory, command, recipe, resume, overwrite)
        if resume not in (None, "auto"):
            checkpoints.named(Path(str(resume)))
        if _holds_something(directory):
            if not resume and not overwrite:
                raise UsageError(f"{directory}: not empty", "--resume auto, --overwrite, or --output-dir NEW")
            if not (directory / MANIFEST).exists():
                raise UsageError(f"{directory}: not empty and not made by hfkit", "--output-dir NEW")
            run.manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            if resume:
                run.id = run.manifest["run_id"]
        return run

    @property
    def finished(self) -> bool:
        """Whether `--resume` finds a run that came to its end."""
        return bool(self.resume) and read_json(self.directory / STATUS).get("state") == "finished"

    def results(self) -> dict[str, Any]:
        """The final numbers, as `all_results.json` holds them."""
        results: dict[str, Any] = json.loads((self.directory / RESULTS).read_text(encoding="utf-8"))
        return results

    def start(self, identity: Mapping[str, Any], parameters: int, *, allow_changed: bool = False) -> Path | None:
        """Takes the directory and returns the checkpoint to go on from, None for a fresh start.

        `identity` says what must not change in a resumed run. Raises BusyError, StorageError, UsageError.
        """
        # fp32 weights and both Adam moments, for the kept checkpoints, the one being written, and the export
        needed = 4 * parameters * (3 * (self.recipe.train.save_total_limit + 1) + 1)
        checkpoints.require_space(self.directory, needed, "this run")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.directory)
        except OSError as error:
            raise StorageError(f"{self.directory}: {error.strerror}", "--output-dir ELSEWHERE") from error
        checkpoint = self._checkpoint(identity, allow_changed) if self.resume else None
        if self.overwrite:
            for old in checkpoints.all_checkpoints(self.directory):
                if checkpoints.defect(old) is None:
                    checkpoints.remove(old)
            for name in (METRICS_LOG, RESULTS):
                (self.directory / name).unlink(missing_ok=True)
        self.identity = dict(identity)
        self.manifest = (
            {**self.manifest, **self._facts(), "identity": self.identity}
            if checkpoint is None
            else {
                **self.manifest,
                "resumed": [*self.manifest.get("resumed", []), {"from": checkpoint.name, **self._facts()}],
            }
        )
        self.manifest["run_id"] = self.id
        header = f"# Every setting of this run; run it again with: hfkit {self.command} recipe.yaml --output-dir NEW\n"
        write_atomically(self.directory / RECIPE, header + dump_yaml(self.recipe, self.command))
        self._write_manifest()
        self.set_status("running", step=0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2]))
        return checkpoint

    def _checkpoint(self, identity: Mapping[str, Any], allow_changed: bool) -> Path | None:
        if self.resume == "auto":
            checkpoint, skipped = checkpoints.newest(self.directory)
            for path, reason in skipped:
                warn(f"{path.name} is passed over, {reason}")
            if checkpoint is None and skipped:
                raise ModelError(
                    f"{self.directory}: none of its {len(skipped)} checkpoints is whole", "--overwrite to start again"
                )
        else:
            checkpoint = Path(str(self.resume))
        if checkpoint is None:
            return None
        marker = checkpoints.read_marker(checkpoint)
        old = marker.get("identity", {})
        changed = [
            f"{key}: {old.get(key)} -> {identity.get(key)}"
            if key != "training data"
            else f"training data changed since step {marker.get('step')}"
            for key in sorted({*old, *identity})
            if old.get(key) != identity.get(key)
        ]
        if changed and not allow_changed:
            raise UsageError.of(
                [
                    (f"not the run that {checkpoint} was saved by: {change}", "undo the change, or --allow-changed")
                    for change in changed
                ]
            )
        if changed:
            warn(f"resuming a changed run, the result will not be that of an unbroken one: {'; '.join(changed)}")
        return checkpoint

    def _facts(self) -> dict[str, Any]:
        return {
            "command": ["hfkit", *sys.argv[1:]],
            "versions": versions(),
            "git_commit": git_commit(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def set_status(self, state: str, **facts: Any) -> None:
        """`status.json`: running, stopped, failed or finished, by whom, at which step."""
        status = {
            **read_json(self.directory / STATUS),
            "state": state,
            **facts,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_atomically(self.directory / STATUS, json.dumps(status, indent=1))

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Whatever ends the work inside: `status.json` tells it, and a full disk or memory becomes its own error."""
        try:
            yield
        except BaseException as error:
            failure = as_hfkit_error(error, self.directory)
            if isinstance(failure, StoppedError) and read_json(self.directory / STATUS).get("state") == "finished":
                return  # the signal came after the last file was written
            if is_main_process():
                with suppress(OSError):  # a full disk must not hide what filled it
                    state = "stopped" if isinstance(failure, StoppedError) else "failed"
                    self.set_status(state, reason=str(failure).splitlines()[0] if str(failure) else repr(failure))
            if failure is error:
                raise
            raise failure from error
        finally:
            if self._lock is not None:
                self._lock.close()

    def log(self, entry: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`."""
        with (self.directory / METRICS_LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def commit(self, step: int) -> None:
        """Commits the checkpoint that was just written, then removes older ones of this run."""
        checkpoint = self.directory / f"checkpoint-{step}"
        checkpoints.commit(checkpoint, step=step, run_id=self.id, identity=self.identity)
        checkpoints.rotate(self.directory, self.recipe.train.save_total_limit, self.id, protect=[checkpoint])

    def export(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """The model in the run directory: staged, read back, and only then moved over what was there."""
        export(self.directory, model, tokenizer)

    def finish(self, scores: Mapping[str, Mapping[str, Score]], **facts: Any) -> None:
        """Writes the results and the end of the manifest; `scores` by split."""
        results: dict[str, Any] = {}
        for split, prefix in (("validation", "eval"), ("test", "test")):
            for name, score in scores.get(split, {}).items():
                results[f"{prefix}_{name}"] = score.value
                if name == "perplexity" and split == "validation":
                    results["perplexity"] = score.value
        results |= {name: facts[name] for name in ("train_loss", "train_runtime", "eval_loss") if name in facts}
        details = {
            split: {name: dataclasses.asdict(score) for name, score in named.items()} for split, named in scores.items()
        }
        write_atomically(self.directory / RESULTS, json.dumps(results, indent=1))
        write_atomically(self.directory / "eval_results.json", json.dumps({"metrics": details}, indent=1))
        self.manifest |= facts
        self._write_manifest()
        self.set_status("finished", step=facts["steps"])

    def _write_manifest(self) -> None:
        write_atomically(self.directory / MANIFEST, json.dumps(self.manifest, indent=1, ensure_ascii=False))


def export(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Saves model and tokenizer so that `directory` holds the old model whole or the new one whole.

    Raises DivergedError for a tensor that is not finite, StorageError for a full disk, ModelError where the saved
    model does not read back.
    """
    import torch

    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise DivergedError(
            f"{len(broken)} tensors are not finite, first '{broken[0]}': the model is not saved",
            "resume from the last good checkpoint with a smaller --learning-rate",
        )
    staged = directory / STAGED
    shutil.rmtree(staged, ignore_errors=True)
    try:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        for path in staged.iterdir():
            path.chmod(0o666 & ~umask())  # safetensors makes its files readable by their owner alone
            checkpoints.sync(path)
        _, info = type(model).from_pretrained(staged, output_loading_info=True, local_files_only=True)
    except Exception as error:
        shutil.rmtree(staged, ignore_errors=True)
        if is_disk_full(error):
            raise StorageError(
                f"{directory}: disk full while saving the model; what was there is untouched",
                "free some space, then --resume auto",
            ) from error
        raise
    unread = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if unread:
        raise ModelError(f"{staged}: the saved model does not read back: {unread[0]}", "report this as a bug")
    for path in [directory / "config.json", *directory.glob("model*.safetensors*")]:
        path.unlink(missing_ok=True)  # without config.json no half-old, half-new model can be loaded
    for path in sorted(staged.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, directory / path.name)
    staged.rmdir()
    checkpoints.sync(directory)


def default_directory(recipe: Recipe, command: str, *, continued: bool) -> Path:
    """runs/<command>-<model>, then -2, -3, ...: the first free one, or the last used one where `continued`."""
    model = Path(recipe.model.name).name if recipe.model.name else str(recipe.model.type)
    base = Path("runs") / f"{command}-{model}"
    last, number = base, 1
    while _holds_something(last):
        number += 1
        following = base.with_name(f"{base.name}-{number}")
        if continued and not _holds_something(following):
            return last
        last = following
    return last


def identity(recipe: Recipe, **facts: Any) -> dict[str, Any]:
    """What a resumed run must share with the run it continues, by the name a person would change it under."""
    values = {}
    for key in SETTINGS:
        section, _, _ = key.partition(".")
        if section in ("task", "model", "data", "train", "tokenizer") and key not in _FREE_TO_CHANGE:
            value: Any = recipe
            for name in key.split("."):
                value = getattr(value, name)
            values[key] = value
    return json.loads(json.dumps({**values, **facts}))  # type: ignore[no-any-return]


def lock(directory: Path) -> IO[str]:
    """Holds `directory` for this process until it ends; BusyError names who has it. lockf, not flock: a worker that
    outlives its parent must not keep the lock."""
    file = (directory / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        owner = read_json(directory / LOCK)
        raise BusyError(
            f"{directory}: in use by pid {owner.get('pid')} on host {owner.get('host')}",
            "wait for it, or --output-dir NEW",
        ) from None
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    file.flush()
    return file


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of ours; empty where there is none or it can't be read."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value


def as_hfkit_error(error: BaseException, directory: Path) -> BaseException:
    """`error` itself, or the HfkitError that a person can act on."""
    import torch

    if isinstance(error, HfkitError):
        return error
    if is_disk_full(error):
        good, _ = checkpoints.newest(directory)
        last = f"{good.name} is whole" if good else "no checkpoint was saved"
        return StorageError(
            f"{directory}: disk full: {shutil.disk_usage(directory).free:,} bytes are free; {last}",
            "free some space, then --resume auto",
        )
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
        return OutOfMemoryError("out of memory", "halve --batch-size and double --gradient-accumulation-steps")
    return error


def read_scores(directory: str | Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The final metrics of a run by split and name, each as Score has it."""
    return dict(read_json(Path(directory) / "eval_results.json").get("metrics", {}))


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` or one of its causes means a full disk, which torch calls 'unexpected pos'."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(error) for sign in ("unexpected pos", "No space left", "os error 28")):
            return True
        error = error.__cause__ or error.__context__
    return False


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def git_commit() -> str | None:
    """The commit of the working directory, None outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory_mib() -> int:
    """Largest resident size of this process so far, in MiB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 if sys.platform == "linux" else 1024 * 1024)


def _holds_something(directory: Path) -> bool:
    return directory.is_dir() and any(path.name != LOCK for path in directory.iterdir())
