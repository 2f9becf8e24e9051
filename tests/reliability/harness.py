"""Runs of hfkit in forked processes, which a test can kill, stop, starve of space and look into.

A server imports the libraries once and forks for each run, so a run takes a second and a fault hits training and
saving rather than imports. Faults are real: signals, file size limits of the kernel, full file systems.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tiny_models

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("OMP_NUM_THREADS", "1")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["warm"])
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
PATIENCE = 60.0  # seconds that no run of these tests may take
STEPS, EVERY = 20, 5
STREAMING = ("--streaming", "--documents", "blank-line", "--shuffle-buffer", "20", "--validation-split", "0")
# The files of a checkpoint in the order in which they are written.
FILES = (
    "config.json",
    "model.safetensors",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)


class Material:
    """Tiny models and data in a folder, and the command lines that train on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gpt2 = tiny_models.make_gpt2(folder / "gpt2-tiny")
        self.bert = tiny_models.make_bert(folder / "bert-tiny")
        words = [word for text in tiny_models.TEXT for word in text.split()]
        draw = random.Random(0)
        rows = [" ".join(draw.choices(words, k=draw.randint(4, 20))) for _ in range(60)]
        self.text, self.table, self.tags = folder / "text.txt", folder / "table.csv", folder / "tags.conll"
        self.questions = folder / "questions.jsonl"
        self.text.write_text("\n\n".join(rows), encoding="utf-8")
        labelled = [f'"{row}",{"yes" if "fox" in row else "no"}' for row in rows]
        self.table.write_text("\n".join(["text,label", *labelled]), encoding="utf-8")
        tag = {"fox": "B-animal", "dog": "B-animal"}
        tagged = ["".join(f"{word} {tag.get(word, 'O')}\n" for word in row.split()) for row in rows]
        self.tags.write_text("\n".join(tagged), encoding="utf-8")
        asked = ({"question": row.split()[0], "context": row, "answers": [row.split()[-1]]} for row in rows)
        self.questions.write_text("".join(json.dumps(one) + "\n" for one in asked), encoding="utf-8")
        self.chats, self.template = folder / "chats.jsonl", folder / "chat.jinja"
        turns = [[(role, word) for word in row.split()[:4] for role in ("user", "assistant")] for row in rows]
        said = ({"messages": [{"role": role, "content": word} for role, word in turn]} for turn in turns)
        self.chats.write_text("".join(json.dumps(one) + "\n" for one in said), encoding="utf-8")
        self.template.write_text(
            "{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}a{% endif %}"
        )

    def command(self, task: str, run: Path, *more: str) -> list[str]:
        """The command line of a run of STEPS steps with dropout, saved and evaluated every EVERY steps."""
        kind = {
            "clm": ["pretrain", "--model", str(self.gpt2), "--data", str(self.text), "--block-size", "16"],
            "mlm": ["pretrain", "--objective", "mlm", "--model", str(self.bert), "--data", str(self.text)],
            "classification": ["finetune", "--model", str(self.bert), "--data", str(self.table)],
            "tags": ["finetune", "--model", str(self.bert), "--data", str(self.tags)],
            "questions": [
                *("finetune", "--task", "question-answering", "--model", str(self.bert)),
                *("--data", str(self.questions)),
            ],
            "completion": [
                *("finetune", "--task", "completion", "--model", str(self.gpt2), "--data", str(self.questions)),
                *("--text-column", "context", "--target-column", "question", "--max-length", "50"),
                *("--max-target-length", "14", "--allow-truncation", "--metrics", "chrf"),
            ],
            "chat": [
                *("finetune", "--model", str(self.gpt2), "--data", str(self.chats)),
                *("--chat-template", str(self.template)),
            ],
        }[task]
        settings = {
            "--max-steps": STEPS,
            "--save-steps": EVERY,
            "--eval-steps": EVERY,
            "--logging-steps": 1,
            "--batch-size": 4,
            "--validation-split": 0.1,
            "--dropout": 0.1,
            "--learning-rate": 1e-3,
            "--output-dir": run,
        }
        if "--validation" in more:
            del settings["--validation-split"]
        if task == "mlm":
            settings["--block-size"] = 16
        given = set(more)
        return [
            *kind,
            *(str(word) for pair in settings.items() if pair[0] not in given for word in pair),
            "--no-interval",
            *more,
        ]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended: the exit code of each rank (minus the signal that killed it) and what rank 0 said."""

    codes: list[int]
    out: str
    err: str
    seconds: float

    @property
    def code(self) -> int:
        return self.codes[0]


class Launched:
    """A run on its way: one process for each rank, rank 0 first."""

    def __init__(self, processes: Sequence[Any], said: Path) -> None:
        self.processes, self.said, self.start = processes, said, time.monotonic()

    def signal(self, number: int, *ranks: int) -> None:
        """Sends a signal to these ranks, or to all."""
        for rank in ranks or range(len(self.processes)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Returns as soon as something holds; fails where the run ends before."""
        while not holds():
            if not self.processes[0].is_alive() or time.monotonic() > self.start + PATIENCE:
                raise AssertionError(f"the run ended before it came so far:\n{self.err()}")
            time.sleep(0.001)

    def err(self) -> str:
        return self.said.with_suffix(".err").read_text(encoding="utf-8")

    def wait(self) -> Ended:
        """How it ends; a run that hangs is killed and fails the test."""
        for process in self.processes:
            process.join(max(self.start + PATIENCE - time.monotonic(), 0.01))
        hung = [process.pid for process in self.processes if process.is_alive()]
        for pid in hung:
            os.killpg(pid, signal.SIGKILL)
        for process in self.processes:
            process.join()
        seconds = time.monotonic() - self.start
        out = self.said.with_suffix(".out").read_text(encoding="utf-8")
        assert not hung, f"hung for {PATIENCE} s:\n{self.err()}"
        return Ended([process.exitcode for process in self.processes], out, self.err(), seconds)


def launch(
    arguments: Sequence[str],
    said: Path,
    *,
    ranks: int = 1,
    faults: Sequence[Callable[[], None]] = (),
    faulty_rank: int = 0,
    program: Callable[[list[str]], int] | None = None,
) -> Launched:
    """Starts `hfkit ARGUMENTS`, or another program; stdout and stderr of rank 0 go to `said`.out and .err.

    `faults` are called first.
    """
    said.parent.mkdir(parents=True, exist_ok=True)
    port = str(_free_port())
    processes = []
    for rank in range(ranks):
        environment = {}
        if ranks > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "ACCELERATE_USE_CPU": "true",
            }
        process = FORKS.Process(
            target=_run,
            args=(
                list(arguments),
                environment,
                said if rank == 0 else said.with_name(f"{said.name}-{rank}"),
                list(faults) if rank == faulty_rank else [],
                program,
            ),
        )
        process.start()
        processes.append(process)
    launched = Launched(processes, said)
    while not said.with_suffix(".err").exists():
        time.sleep(0.001)
    return launched


def hfkit(arguments: Sequence[str], said: Path, **options: Any) -> Ended:
    """`hfkit ARGUMENTS` from start to end; `options` as for `launch`."""
    return launch(arguments, said, **options).wait()


def _run(
    arguments: list[str],
    environment: dict[str, str],
    said: Path,
    faults: list[Callable[[], None]],
    program: Callable[[list[str]], int] | None,
) -> None:
    """The forked process: a session of its own, its words in files, its faults armed, then the command line."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own: how loader workers start
    os.environ |= environment
    os.chdir(said.parent)
    for number, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(said.with_suffix(suffix), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", line_buffering=True)
    for fault in faults:
        fault()
    from hfkit.cli.main import main

    sys.exit((program or main)(arguments))


@dataclasses.dataclass(frozen=True)
class SignalAt:
    """The process sends itself a signal the n-th time it opens a path with this end to write (or read) it, or does
    another `event` of sys.addaudithook with it.

    The n-th time it opens metrics.jsonl is the n-th line of the log, and so a certain step.
    """

    number: int
    path: str
    nth: int = 1
    event: str = "open"
    reading: bool = False

    def __call__(self) -> None:
        left = [self.nth]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event != self.event or not str(arguments[0]).endswith(self.path):
                return
            if event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)) == self.reading:
                return
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), self.number)

        sys.addaudithook(hook)


def at_step(step: int, number: int = signal.SIGKILL) -> SignalAt:
    """A signal when `step` is logged: after its update and before it would be saved. Evaluations are logged too."""
    return SignalAt(number, "metrics.jsonl", step + (step - 1) // EVERY)


@dataclasses.dataclass(frozen=True)
class DiesInSave:
    """The kernel ends the process inside the save of `step`, when `file` is written whole or (`half`) to its middle.

    Sizes come from `model`, a whole checkpoint. Half a file: the kernel's limit on file sizes, exceeded.
    """

    model: Path
    step: int
    file: str
    half: bool

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it and would see an error instead
        sizes = {name: (self.model / name).stat().st_size for name in FILES}
        before = dict(zip(FILES[1:], FILES, strict=False)).get(self.file)

        def arm(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "os.mkdir" and str(arguments[0]).endswith(f"checkpoint-{self.step}"):
                folder = Path(str(arguments[0]))
                shutil.rmtree(folder, ignore_errors=True)  # of an earlier death, whose sizes would mislead
                sys.setprofile(lambda *_: look(folder))

        def look(folder: Path) -> None:
            if self.half and (before is None or _size(folder / before) >= sizes[before]):
                resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[self.file] // 2, resource.RLIM_INFINITY))
                sys.setprofile(None)
            elif not self.half and _size(folder / self.file) >= sizes[self.file]:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(arm)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


def state_hash(run: Path, last: Path | None = None) -> str:
    """One hash over every exported weight and every weight and optimizer tensor of the last checkpoint."""
    import torch
    from safetensors.torch import load_file

    last = last or run / f"checkpoint-{committed(run)[-1]}"
    total = hashlib.sha256(last.name.encode())
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    file = "model.safetensors" if (run / "model.safetensors").exists() else "adapter_model.safetensors"
    for state in (load_file(run / file), load_file(last / file), *optimizer.values()):
        for name in sorted(state):
            tensor = torch.as_tensor(state[name]).detach().contiguous()
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text(encoding="utf-8"))
    return found


def committed(run: Path) -> list[int]:
    """Steps of the committed checkpoints, in order."""
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in run.glob("checkpoint-*/committed.json"))


def contents(folder: Path) -> dict[str, str]:
    """Hash and mtime of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() + str(path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A tmpfs with these mount options at `folder`, e.g. size=300k; PermissionError where mounting isn't allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        raise PermissionError("mounting a tmpfs needs root")
    if os.spawnl(os.P_WAIT, mount, "mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)):
        raise PermissionError("mounting a tmpfs isn't allowed here")
    try:
        yield folder
    finally:
        os.spawnl(os.P_WAIT, str(shutil.which("umount")), "umount", "-l", str(folder))


def resize(folder: Path, kibibytes: int) -> None:
    options = f"remount,size={kibibytes}k"
    assert os.spawnl(os.P_WAIT, str(shutil.which("mount")), "mount", "-o", options, str(folder)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
