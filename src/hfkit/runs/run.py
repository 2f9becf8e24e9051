"""The run directory: a plain Hugging Face model directory, plus who made it, how, and what state it is in."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.errors import (
    HfkitError,
    StoppedError,
    StorageError,
    UsageError,
)
from hfkit.metrics.sample import Score, loss_of
from hfkit.models import adapters, push
from hfkit.models.saving import export
from hfkit.recipe.resolve import dump_yaml
from hfkit.runs.failure import failure_of
from hfkit.runs.manifest import (
    MANIFEST,
    _holds_something,
    checkpoint_bytes,
    default_directory,
    git_commit,
    identity,
    versions,
)
from hfkit.runs.results import DETAILS, METRICS_LOG, RESULTS, cut_log, write_scores
from hfkit.runs.resume import newest_whole, require_same_run, require_same_settings
from hfkit.system import checkpoints, files
from hfkit.system.console import is_main_process, say, warn
from hfkit.system.files import LOCK, is_disk_full, lock_directory, read_json, require_writable, write_atomically
from hfkit.system.signals import StopSignal, stop_signals

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.settings import Recipe

STATUS = "status.json"

RECIPE = "recipe.yaml"

REWIND = "rewinding to"  # in the manifest: the checkpoint of a rewind that is not done yet


class Run:
    """One training run in its directory, from the first check to the last file."""

    signals: StopSignal

    def __init__(self, directory: Path, command: str, recipe: Recipe, resume: str | None, overwrite: bool) -> None:
        self.directory, self.command, self.recipe = directory, command, recipe
        self.resume, self.overwrite = resume, overwrite
        self.id = uuid.uuid4().hex
        self.manifest: dict[str, Any] = {}
        self.saved: int | None = None  # the step of the last complete checkpoint, as far as this process knows
        self.extend = False  # whether a finished run may go on to more steps
        self._lock: BaseFileLock | None = None
        self._started = False
        self._saving: tuple[Path, checkpoints.Found] | None = None  # the save in progress, and what lay there before

    @classmethod
    @contextmanager
    def open(cls, recipe: Recipe, command: str, *, resume: str | None, overwrite: bool, extend: bool) -> Iterator[Run]:
        """The run of these settings, for the time of the work inside.

        Whatever ends the work is written to `status.json`. A finished run is uploaded if train.push says so.
        """
        pushes = recipe.train.push is not None and is_main_process()
        if pushes:
            push.require_access(recipe)
        run = cls.plan(recipe, command, resume=resume, overwrite=overwrite)
        run.extend = extend
        with stop_signals() as run.signals:
            with run._outcome():
                yield run
            if pushes:
                run.signals.heed()  # the run is finished, and the upload can take long
                push.upload(recipe, command, run.results())

    @classmethod
    def plan(cls, recipe: Recipe, command: str, *, resume: str | None, overwrite: bool) -> Run:
        """The run that these settings name; refuses a directory in use. Nothing but the lock is written yet."""
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
        if not _holds_something(directory):
            require_writable(directory)
            return run
        if not resume and not overwrite:
            if (directory / LOCK).exists():
                lock_directory(directory, announce=False).release()
            raise UsageError(f"{directory}: not empty", "--resume auto, --overwrite, or --output-dir NEW")
        manifest = read_json(directory / MANIFEST) if resume else {}
        is_damaged = bool(resume) and not isinstance(manifest.get("run_id"), str)
        whole = checkpoints.newest(directory)[0] if is_damaged else None
        if not (directory / MANIFEST).exists() and whole is None:
            raise UsageError(f"{directory}: not empty and not made by hfkit", "--output-dir NEW")
        if resume:
            run.manifest = manifest
            if whole is not None:
                marker = checkpoints.read_marker(whole)
                run.manifest = {name: marker[name] for name in ("run_id", "identity", "versions") if name in marker}
                warn(f"{directory / MANIFEST} can't be read: its facts are taken from {whole.name}")
            run.id = run.manifest.get("run_id", run.id)
            found = run.manifest.get("identity", {})
            measured = {  # for the first start, and not again
                name: found[f"train.{name}"]
                for name in ("per_device_train_batch_size", "precision")
                if getattr(recipe.train, name) == "auto" and f"train.{name}" in found
            }
            run.recipe = replace(recipe, train=replace(recipe.train, **measured))
        if not run.finished and is_main_process():
            require_writable(directory)
            run._lock = lock_directory(directory)
        return run

    @property
    def finished(self) -> bool:
        """Whether `--resume` finds a run that came to its end."""
        return bool(self.resume) and read_json(self.directory / STATUS).get("state") == "finished"

    def is_complete(self, steps: int | None = None) -> bool:
        """Whether nothing is left to do, and says so: the run is finished, if it is to be extended after `steps`.

        Raises UsageError if the finished run had other settings.
        """
        if not self.finished or (self.extend and (steps is None or steps > self.manifest["steps"])):
            return False
        if steps is None:
            old = self.manifest.get("identity", {})
            require_same_settings(self.directory, old, identity(self.recipe), self.recipe.train.max_steps)
        after = "" if steps is None else f" after {self.manifest['steps']:,} steps"
        say(f"{self.directory} is finished{after}, nothing to do")
        return True

    def results(self) -> dict[str, Any]:
        """The directory ("run") and, on the main process, the final numbers as `all_results.json` holds them."""
        numbers = (self.directory / RESULTS).read_text(encoding="utf-8") if is_main_process() else "{}"
        return {"run": str(self.directory), **json.loads(numbers)}

    def start(
        self,
        identity: Mapping[str, Any],
        parameters: int,
        *,
        allow_changed: bool = False,
        require_fit: Callable[[Path], None] = lambda checkpoint: None,
    ) -> Path | None:
        """Takes the directory and returns the checkpoint to resume from, None for a fresh start.

        `identity` says what must not change in a resumed run, except "train.max_steps", which `extend` lets grow.
        `require_fit` raises if the weights of a checkpoint can't be loaded. Checkpoints after the one to resume from
        are set aside. Raises BusyError, StorageError, UsageError.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or lock_directory(self.directory)
        except OSError as error:
            raise StorageError(f"{self.directory}: {error.strerror}", "--output-dir ELSEWHERE") from error
        if not self.resume and not self.overwrite and _holds_something(self.directory):
            raise UsageError(f"{self.directory}: not empty any more", "--output-dir NEW")
        checkpoint = self._resumed_from(identity, allow_changed, require_fit) if self.resume else None
        self.saved = None if checkpoint is None else checkpoints.step_of(checkpoint)
        self._checkpoint_bytes = checkpoint_bytes(parameters) if checkpoint is None else checkpoints.size(checkpoint)
        kept = self.recipe.train.save_total_limit
        if self.overwrite:
            self._remove_older()
        there = len(checkpoints.all_checkpoints(self.directory)) if self.resume else 0
        needed = self._checkpoint_bytes * max(kept + 1 - there, 1) + 4 * parameters
        files.require_space(self.directory, needed, "this run", self.safe() if self.resume else "")
        self.identity, self._versions = dict(identity), versions()
        if checkpoint is None:
            self.manifest = {**self._facts(), "identity": self.identity}
        else:
            self.manifest.pop(REWIND, None)  # it is done
            resumed = [*self.manifest.get("resumed", []), {"from": self._place(checkpoint), **self._facts()}]
            self.manifest = {**self._facts(), **self.manifest, "resumed": resumed, "identity": self.identity}
        self.manifest["run_id"] = self.id
        header = f"# Every setting of this run; run it again with: hfkit {self.command} recipe.yaml --output-dir NEW\n"
        self._write_manifest()  # first: it makes the directory one of hfkit's
        write_atomically(self.directory / RECIPE, header + dump_yaml(self.recipe, self.command))
        cut_log(self.directory, self.saved or 0)
        self._started = True
        self.set_status("running", step=self.saved or 0)
        return checkpoint

    def _resumed_from(
        self, identity: Mapping[str, Any], allow_changed: bool, require_fit: Callable[[Path], None]
    ) -> Path | None:
        checkpoint = self._newest() if self.resume == "auto" else Path(str(self.resume))
        if checkpoint is not None:
            known = self.manifest.get("identity") == identity  # allowed when the run was last started
            allowed = allow_changed or known
            require_same_run(checkpoint, identity, versions(), allow_changed=allowed, extend=self.extend)
            require_fit(checkpoint)
            self._rewind_to(checkpoint, identity)
        return checkpoint

    def _newest(self) -> Path | None:
        """The newest checkpoint of the branch that the last command named; None if none is saved yet."""
        if (rewind := self.manifest.get(REWIND)) is not None:  # it was interrupted
            return checkpoints.named(self.directory / rewind)
        checkpoint = newest_whole(self.directory, self.id)
        begun = [entry["from"] for entry in self.manifest.get("resumed", [])[-1:]]
        if checkpoint is None and begun and (self.directory / begun[0]).is_dir():  # elsewhere, or set aside
            return checkpoints.named(self.directory / begun[0])
        return checkpoint

    def _place(self, checkpoint: Path) -> str:
        """Where `checkpoint` is, for the manifest: from the run directory, which can be moved, if it is in there."""
        place, directory = checkpoint.resolve(), self.directory.resolve()
        return str(place.relative_to(directory) if place.is_relative_to(directory) else place)

    def _rewind_to(self, checkpoint: Path, identity: Mapping[str, Any]) -> None:
        """Sets the checkpoints aside that come after this one, so that none of them is resumed in its place.

        What is about to be done is in the manifest first: a rewind that is interrupted is finished by the next start.
        """
        is_own = checkpoint.resolve().parent == self.directory.resolve()
        step = checkpoints.step_of(checkpoint) if is_own else -1
        whole = [path for path in checkpoints.all_checkpoints(self.directory) if checkpoints.step_of(path) > step]
        if not any((path / checkpoints.MARKER).exists() for path in whole):
            return
        self.manifest |= {REWIND: self._place(checkpoint), "identity": dict(identity)}
        self._write_manifest()
        moved = checkpoints.set_aside(self.directory, step)
        names = ", ".join(path.name for path in reversed(moved))
        say(f"rewound to {checkpoint.name}: {names} set aside in {moved[0].parent}, and never removed by hfkit")

    def _remove_older(self) -> None:
        for old in checkpoints.all_checkpoints(self.directory):
            if checkpoints.defect(old) is None:
                checkpoints.remove(old)
        for name in (METRICS_LOG, RESULTS, DETAILS):
            (self.directory / name).unlink(missing_ok=True)

    def _facts(self) -> dict[str, Any]:
        return {
            "command": ["hfkit", *sys.argv[1:]],
            "versions": versions(),
            "git_commit": git_commit(),
            "host": socket.gethostname(),
            "directory": os.getcwd(),  # relative paths of data are relative to it
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }

    def set_status(self, state: str, **facts: Any) -> None:
        """`status.json`: running, stopped, failed or finished, by whom, at which step."""
        path = self.directory / STATUS
        status = {
            "state": state,
            "step": read_json(path).get("step", 0),
            **facts,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        text = json.dumps(status, indent=1)
        try:
            write_atomically(path, text)
        except OSError as error:
            if not is_disk_full(error) or not path.exists():
                raise
            with path.open("r+", encoding="utf-8") as file:  # in the room that the file has already
                file.write(text)
                file.truncate()

    @contextmanager
    def _outcome(self) -> Iterator[None]:
        """Whatever ends the work inside is written to `status.json`. A full disk or memory becomes its own error."""
        try:
            yield
        except BaseException as error:
            failure = failure_of(error, self.recipe.train, self.recipe.data, self.directory, self.signals, self.safe())
            self._discard_save()
            stopped = isinstance(failure, StoppedError)
            if self._lock is not None and (self._started or stopped):
                with suppress(OSError):  # what is broken already must not hide why
                    reason = str(failure).splitlines()[0] if str(failure) else repr(failure)
                    code = failure.exit_code if isinstance(failure, HfkitError) else 1
                    self.set_status("stopped" if stopped else "failed", reason=reason, exit_code=code)
            if failure is error:
                raise
            raise failure from error
        finally:
            self.unlock()

    def unlock(self) -> None:
        """Releases the directory."""
        if self._lock is not None:
            self._lock.release()

    def safe(self) -> str:
        """What is saved of the run: its last complete checkpoint."""
        saved = self.saved
        if not is_main_process():  # which alone knows what it has committed
            there = checkpoints.all_checkpoints(self.directory)
            saved = next((checkpoints.step_of(path) for path in there if (path / checkpoints.MARKER).exists()), None)
        return "no step is saved yet" if saved is None else f"step {saved} is saved"

    def _discard_save(self) -> None:
        """Removes what a save that failed has left, if the folder is its own work alone."""
        if self._saving is not None and not self._saving[1] and is_main_process():
            shutil.rmtree(self._saving[0], ignore_errors=True)

    def steps_of_time(self) -> int | None:
        """The steps that a run to be resumed took for its time when it began; None where no time decides."""
        timed = bool(self.resume) and self.recipe.train.max_time is not None
        return self.manifest.get("identity", {}).get("train.max_steps") if timed else None

    def saved_tokenizer(self) -> Path | None:
        """The tokenizer of a resumed run, None if no checkpoint holds one."""
        found = checkpoints.all_checkpoints(self.directory) if self.resume else []
        whole = (path for path in found if (path / checkpoints.MARKER).exists() and (path / "tokenizer.json").exists())
        return next(whole, None)

    def prepare_save(self, step: int) -> None:
        """Before a checkpoint is written: StorageError if it has no room or something else has its name."""
        checkpoint = self.checkpoint(step)
        if checkpoint.is_symlink() or (checkpoint.exists() and not checkpoint.is_dir()):
            raise StorageError(f"{checkpoint}: is not a folder of this run; {self.safe()}", f"rm {checkpoint}")
        files.require_space(self.directory, self._checkpoint_bytes, f"step {step}", self.safe())
        before = checkpoints.found_in(checkpoint)
        (checkpoint / checkpoints.MARKER).unlink(missing_ok=True)  # from here on it is not whole
        self._saving = (checkpoint, before)

    def commit(self, step: int, seconds: float, best: int | None = None) -> None:
        """Commits the checkpoint that was just written, then removes older ones of this run, but that of step `best`.

        `seconds`: how long the run has trained until here, over all its starts.
        """
        assert self._saving is not None
        checkpoint, before = self._saving
        if (self.directory / METRICS_LOG).exists():
            files.sync(self.directory / METRICS_LOG)  # it tells which checkpoint was the best
        facts = {"run_id": self.id, "identity": self.identity, "versions": self._versions}
        checkpoints.commit(checkpoint, before, step=step, seconds=round(seconds, 3), **facts)
        self._saving, self.saved, self._checkpoint_bytes = None, step, checkpoints.size(checkpoint)
        self.set_status("running", step=step)
        protected = [checkpoint, self.checkpoint(best)] if best is not None else [checkpoint]
        checkpoints.rotate(self.directory, self.recipe.train.save_total_limit, self.id, protect=protected)

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or will be."""
        return self.directory / f"checkpoint-{step}"

    def export(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """The model in the run directory: staged, read back, and only then moved over what was there."""
        base = adapters.base_for(self.recipe.model) if adapters.has_adapter(model) else None
        export(self.directory, model, tokenizer, base)

    def finish(self, scores: Mapping[str, Mapping[str, Score]], **facts: Any) -> None:
        """Writes the results and the end of the manifest on the main process; `scores` by split."""
        if not is_main_process():
            return
        self.signals.ignore()  # the outcome is about to be there
        results: dict[str, Any] = {}
        for split, prefix in (("validation", "eval"), ("test", "test")):
            found = scores.get(split, {})
            for name, score in found.items():
                results[f"{prefix}_{name}"] = score.value
                if name == "perplexity" and split == "validation":
                    results["perplexity"] = score.value
            if (loss := loss_of(found)) is not None:
                results[f"{prefix}_loss"] = loss
        details = {
            split: {name: dataclasses.asdict(score) for name, score in named.items()} for split, named in scores.items()
        }
        write_atomically(self.directory / RESULTS, json.dumps(results, indent=1))
        write_scores(self.directory, details, self.recipe.task)
        self.manifest |= facts
        self._write_manifest()
        self.set_status("finished", step=facts["steps"])

    def keep_scores_before(self, scores: Mapping[str, Score]) -> None:
        """Puts the scores before training into the manifest, where a resumed run finds them."""
        self.manifest["before_training"] = {name: dataclasses.asdict(score) for name, score in scores.items()}
        if is_main_process():
            self._write_manifest()

    def scores_before(self) -> dict[str, Score]:
        """The scores before training that the run kept, none where it kept none."""
        return {name: Score(**score) for name, score in self.manifest.get("before_training", {}).items()}

    def _write_manifest(self) -> None:
        write_atomically(self.directory / MANIFEST, json.dumps(self.manifest, indent=1, ensure_ascii=False))
