"""What hfkit does on a GPU: `python benchmarks/gpu.py [--only NAME,...] [--budget SECONDS] [--device cpu --quick]`.

A table of speeds, beside the stock Trainer and the library's pipeline in the same run, and PASS or FAIL for each claim
of correctness: equal scores on GPU and CPU, a killed run that resumes to the same bits, an out-of-memory message that
helps, LoRA, FSDP2 on one device, and memory as planned. Speeds never fail: machines are shared. It needs a checkout and
the packages of hfkit, no network and no installation. Models start from random weights, the text comes with Python.

Each section runs for itself: one that fails is reported with the end of the failing command's stderr, and the next one
starts. The exit code is 0 if nothing has failed. About eight minutes on one H100. `--device cpu --quick` checks in a
minute on two cores that the script itself still works.

MFU: FLOPs of the model per second by the card's dense bfloat16 peak. FLOPs per token: 6 N + 12 L d T for N parameters
(without position embeddings), L layers of width d and T tokens (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
It counts attention to all T tokens, and the vocabulary head at every token, in both programs alike.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# Dense bfloat16 FLOP/s by a part of the card's name, from NVIDIA's data sheets; the first match counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}

FULL: dict[str, Any] = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50_304},
    "bert": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "bert_entries": 30_528,
    "entries": 8192,  # of the tokenizers, which are trained on the text
    "documents": (405, 22),  # of the text and of what is held out of it: all of both
    "clm": {"batch": 16, "block": 1024, "steps": 60},
    "mlm": {"batch": 64, "block": 256, "steps": 60},
    "classify": {"batch": 32, "steps": 200, "rows": 8000},
    "small": {"size": "mini", "block": 256, "steps": 400},  # the model of the claims
    "generate": {"prompts": 64, "alone": 12, "tokens": 64, "one": 128, "rounds": 3},
    "evaluated": 300,  # labeled examples
}

QUICK: dict[str, Any] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 2048, "vocab_size": 1024},
    "bert": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
    "bert_entries": 1024,
    "entries": 1000,
    "documents": (40, 3),
    "clm": {"batch": 4, "block": 64, "steps": 20},
    "mlm": {"batch": 4, "block": 64, "steps": 20},
    "classify": {"batch": 8, "steps": 20, "rows": 200},
    "small": {"size": "tiny", "block": 64, "steps": 40},
    "generate": {"prompts": 3, "alone": 2, "tokens": 4, "one": 8, "rounds": 1},
    "evaluated": 40,
}

STOCK = "stock clm, compiled"

LOG_LINES, WARM_UP = 12, 3  # log lines of a timed run, and how many of them are not counted

TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}  # relative, of a mean loss against float32 on the CPU

MERGED = 1e-4  # relative, of the loss of a merged adapter

SHARDED = 1e-3  # relative, of each logged loss under FSDP2

PLANNED = 1.5  # factor between planned and measured peak memory, either way

ROOM = 10  # GiB of GPU memory that the section oom leaves free

TIMEOUT = 300  # seconds of one command

NEEDED = 40 << 30  # bytes free, to work in memory

TAIL = 15  # lines of stderr that are shown of a failed command


class CommandFailed(Exception):
    """A command that ended in another way than it should."""


class Skipped(Exception):
    """A section, or a part of one, that can't act here."""


class Done(NamedTuple):
    """An ended command; `marks`: when each line with a step was read, and the step."""

    code: int
    out: str
    err: str
    marks: list[tuple[float, int]]

    def steps_per_second(self) -> float:
        """The median over the intervals between log lines, without the first ones."""
        marks = self.marks[min(WARM_UP, max(len(self.marks) - 2, 0)) :]
        if len(marks) < 2:
            raise CommandFailed(f"{len(self.marks)} log lines are too few to measure a speed:\n{tail(self.err)}")
        return statistics.median((b[1] - a[1]) / max(b[0] - a[0], 1e-9) for a, b in itertools.pairwise(marks))


class Check:
    """One run of this script: what is measured, and what is printed."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.device, self.quick, self.folder = options.device, options.quick, folder
        self.sizes = QUICK if options.quick else FULL
        self.rows: list[tuple[str, str, str]] = []
        self.counts = {"PASS": 0, "FAIL": 0, "SKIP": 0}
        self.rates: dict[str, float] = {}  # steps per second, by program
        self.machine: dict[str, Any] = {}
        self.text, self.held_out = str(folder / "text.txt"), str(folder / "held-out.txt")
        self._commands = threading.Semaphore(2 if options.quick else 8)
        self._printing, self._base = threading.Lock(), threading.Lock()

    def print(self, line: str) -> None:
        with self._printing:
            print(line, flush=True)

    def row(self, figure: str, target: str, measured: str) -> None:
        self.rows.append((figure, target, measured))
        self.print(f"| {figure} | {target} | {measured} |")

    def claim(self, holds: bool, what: str) -> None:
        self.verdict("PASS" if holds else "FAIL", what)

    def verdict(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.print(f"{kind} {what}")

    def hfkit(self, *arguments: Any, **options: Any) -> Done:
        """`hfkit ARGUMENTS` as a process."""
        return self.run([sys.executable, "-m", "hfkit", *map(str, arguments)], **options)

    def child(self, name: str, **values: Any) -> Done:
        """A function of this file as a process; it gets `values` and prints its result as JSON."""
        common = {"device": self.device, "quick": self.quick, "folder": str(self.folder)}
        return self.run([sys.executable, __file__, "--child", name, json.dumps({**common, **values})])

    def run(self, command: Sequence[str], *, check: bool = True, device: str | None = None) -> Done:
        """Runs a command to its end; CommandFailed, with the end of its stderr, if its exit code is not 0."""
        with self._commands, tempfile.TemporaryFile("w+") as out:
            process = self.start(command, device=device, stdout=out)
            lines: list[str] = []
            marks: list[tuple[float, int]] = []

            def read() -> None:
                for line in process.stderr or ():
                    lines.append(line)
                    if found := re.match(r"step\s+(\d+)/", line):
                        marks.append((time.perf_counter(), int(found[1])))

            reader = threading.Thread(target=read)
            reader.start()
            try:
                code = process.wait(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                lines.append(f"still running after {TIMEOUT} s\n")
                code = -signal.SIGKILL
            finally:
                end(process)  # also what it has left behind, which would keep stderr open
                process.wait()
                reader.join()
            out.seek(0)
            done = Done(code, out.read(), "".join(lines), marks)
        if check and code != 0:
            raise CommandFailed(f"exit code {code} of: {' '.join(command)}\n{tail(done.err)}")
        return done

    def start(self, command: Sequence[str], *, device: str | None = None, stdout: Any = None) -> subprocess.Popen[str]:
        """Starts a command on the device of this check; its stderr is a pipe."""
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        environment |= {
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
            "HF_HOME": str(self.folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "true",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
        }
        environment.setdefault("OMP_NUM_THREADS", "1" if self.quick else str(min(8, os.cpu_count() or 1)))
        if (device or self.device) == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return subprocess.Popen(
            command,
            env=environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout or subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def together(self, *work: Callable[[], Any]) -> list[Any]:
        """The results of functions that run at the same time."""
        with ThreadPoolExecutor(len(work)) as pool:
            return [one.result() for one in [pool.submit(function) for function in work]]

    def small(self, directory: str, *more: str) -> list[str]:
        """The arguments of a run of a small new GPT-2, whose weights are compared."""
        small = self.sizes["small"]
        return [
            *("pretrain", "--model-type", "gpt2", "--size", small["size"], "--block-size", str(small["block"])),
            *("--vocab-size", str(self.sizes["entries"]), "--data", self.text, "--documents", "blank-line"),
            *("--batch-size", "8", "--gradient-accumulation-steps", "1", "--max-steps", str(small["steps"])),
            *("--save-steps", str(small["steps"] // 4), "--validation-split", "0", "--no-interval"),
            *("--output-dir", str(self.folder / directory), *more),
        ]

    def base(self) -> Path:
        """The run of a small GPT-2 that several sections need; it is trained once."""
        with self._base:
            directory = self.folder / "base"
            if not (directory / "all_results.json").exists():
                self.hfkit(*self.small("base"))
            return directory


def main() -> int:
    options = read_options()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](json.loads(options.child[1]))))
        return 0
    names = options.only.split(",") if options.only else [name for group in GROUPS for name in group]
    if unknown := set(names) - SECTIONS.keys():
        sys.exit(f"error: no section {', '.join(sorted(unknown))} (fix: --only {','.join(SECTIONS)})")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hfkit-gpu-", dir=fastest_disk()) as name:
        check = Check(options, Path(name))
        if attempt(check, "prepare", prepare):
            groups = [[name for name in group if name in names] for group in GROUPS]
            if options.quick:  # no speed counts: all at once, as many commands as there are cores
                groups = [[name for group in groups for name in group]]
            for group in filter(None, groups):
                if time.monotonic() - began > options.budget:
                    check.verdict("SKIP", f"{', '.join(group)}: the budget of {options.budget} s is spent")
                    continue
                with ThreadPoolExecutor(len(group)) as pool:
                    list(pool.map(lambda name: attempt(check, name, SECTIONS[name]), group))
    print(f"\n{check.machine.get('name', 'no device')}, {versions()}, {time.monotonic() - began:.0f} s\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in [("figure", "target", "measured"), ("---",) * 3, *check.rows]))
    print(f"\n{check.counts['PASS']} passed, {check.counts['FAIL']} failed, {check.counts['SKIP']} skipped")
    return int(check.counts["FAIL"] > 0)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models: does everything still run?")
    parser.add_argument("--only", help="sections, separated by commas: " + ", ".join(SECTIONS))
    parser.add_argument("--budget", type=float, default=600, help="seconds after which no section starts")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def fastest_disk() -> str | None:
    """Memory as a disk, where it has enough room: checkpoints of hundreds of megabytes are synced to it."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > NEEDED else None


def attempt(check: Check, name: str, section: Callable[[Check], None]) -> bool:
    """Runs one section; whatever ends it early is printed, and False is returned."""
    began = time.monotonic()
    try:
        section(check)
    except Skipped as reason:
        check.verdict("SKIP", f"{name}: {reason}")
    except CommandFailed as error:
        check.verdict("FAIL", f"{name}: {error}")
        return False
    except Exception:
        check.verdict("FAIL", f"{name}: a fault of this script\n{tail(traceback.format_exc())}")
        return False
    check.print(f"-- {name}: {time.monotonic() - began:.0f} s")
    return True


def tail(text: str) -> str:
    """The last lines, and hfkit's own errors before them: launchers add a report of many lines."""
    lines = text.strip().splitlines()
    errors = [line for line in lines[:-TAIL] if line.startswith("error:") or re.match(r"\w+(\.\w+)*Error: ", line)]
    return "\n".join(f"    {line}" for line in [*errors[-5:], *lines[-TAIL:]])


def end(process: subprocess.Popen[str]) -> None:
    """Ends a command and the processes that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def versions() -> str:
    from importlib import metadata

    found = (f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "accelerate"))
    return f"Python {platform.python_version()}, {', '.join(found)}"


# The sections, in the order of GROUPS.


def prepare(check: Check) -> None:
    """The device and its limits; models, tokenizers, text and labeled examples."""
    check.machine = machine = json.loads(check.child("prepare").out.splitlines()[-1])
    if check.device == "cuda" and not machine["cuda"]:
        raise CommandFailed("torch finds no GPU here (--device cpu --quick checks the script)")
    peak = machine["peak"]
    share = "unknown card: no MFU" if peak is None else f"{machine['matmul'] / peak:.0%} of {peak / 1e12:,.0f} TFLOP/s"
    check.row(f"{machine['name']}: product of matrices, TFLOP/s", "-", f"{machine['matmul'] / 1e12:,.2f} ({share})")
    check.row("- copy bandwidth of its memory, read and written, GB/s", "-", f"{machine['bandwidth'] / 1e9:,.0f}")


def pretrain(check: Check) -> None:
    """Training of language models in bfloat16 beside the stock Trainer."""
    for task in ("clm", "mlm"):
        runs: dict[str, tuple[str, ...]] = {task: ()}
        if task == "clm" and not check.quick:
            runs["clm, documents not masked"] = ("--no-document-masking",)
        for name, more in runs.items():
            check.rates[name] = pretrain_run(check, task, name, *more).steps_per_second()
        check.rates[f"stock {task}"] = check.child("stock", task=task, compile=False).steps_per_second()
        speed_row(check, task, f"{task}, hfkit", task, f"stock {task}")
        if task == "clm" and not check.quick:
            name = "clm, documents not masked"
            speed_row(check, task, "- documents not masked from each other", name, "stock clm")


def pretrain_run(check: Check, task: str, name: str, *more: str) -> Done:
    directory = check.folder / name.replace(", ", "-").replace(" ", "-")
    done = check.hfkit(*pretrain_arguments(check, task, directory), *more)
    shutil.rmtree(directory)  # two gigabytes
    return done


def pretrain_arguments(check: Check, task: str, directory: Path, steps: int | None = None) -> list[Any]:
    size = check.sizes[task]
    steps = steps or size["steps"]
    return [
        *("pretrain", "--model", check.folder / ("gpt2" if task == "clm" else "bert"), "--objective", task),
        *("--data", check.text, "--documents", "blank-line", "--block-size", size["block"]),
        *("--batch-size", size["batch"], "--gradient-accumulation-steps", 1, "--max-steps", steps),
        *("--logging-steps", max(1, steps // LOG_LINES), "--save-steps", steps, "--validation-split", 0),
        *("--precision", "float32" if check.device == "cpu" else "bfloat16", "--no-interval"),
        *("--output-dir", directory),
    ]


def speed_row(check: Check, task: str, what: str, name: str, stock: str) -> None:
    size = check.sizes[task]
    tokens = {one: check.rates[one] * size["batch"] * size["block"] for one in (name, stock) if one in check.rates}
    program = "run_clm.py" if task == "clm" else "run_mlm.py"
    mfus = {one: mfu(check, task, rate) for one, rate in tokens.items()}
    if stock in tokens:
        figure = f"{what}: tokens/s relative to the stock Trainer as in {program}"
        measured = f"{tokens[name] / tokens[stock]:.2f}; {tokens[name]:,.0f}{mfus[name]}"
        measured += f" and {tokens[stock]:,.0f}{mfus[stock]} tokens/s"
    else:
        figure, measured = f"{what}: tokens/s", f"{tokens[name]:,.0f}{mfus[name]}"
    check.row(figure, "1", measured)


def mfu(check: Check, task: str, tokens_per_second: float) -> str:
    peak = check.machine["peak"]
    return "" if peak is None else f" (MFU {tokens_per_second * check.machine['flops'][task] / peak:.1%})"


def compiled(check: Check) -> None:
    """The same with torch.compile, and generation; last, since compiling takes most of the time."""
    if check.device == "cpu":
        raise Skipped("compiling is tried on GPUs only")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        raise Skipped("torch.compile needs a C compiler, and there is none")
    size = check.sizes["clm"]
    runs: dict[str, tuple[str, ...]] = {
        STOCK: ("clm",),
        "clm, compiled, documents not masked": ("clm", "--no-document-masking"),
        "clm, compiled": ("clm",),
        "mlm, compiled": ("mlm",),
    }
    for name, (task, *more) in runs.items():
        began = time.monotonic()
        try:
            if name == STOCK:
                done = check.child("stock", task=task, compile=True)
            else:
                done = pretrain_run(check, task, name, "--compile", *more)
            check.rates[name] = done.steps_per_second()
        except CommandFailed as error:
            check.verdict("FAIL", f"compile: {name}: {error}")
            continue
        check.print(f"   {name}: {time.monotonic() - began:.0f} s")
        if name == STOCK:
            tokens = check.rates[name] * size["batch"] * size["block"]
            check.row(f"{name}: tokens/s", "-", f"{tokens:,.0f}{mfu(check, task, tokens)}")
        else:
            speed_row(check, task, name, name, STOCK if task == "clm" else "stock mlm")
        before = check.rates.get(name.replace(", compiled", ""))
        if before is not None:
            check.row("- relative to the same without torch.compile", "-", f"{check.rates[name] / before:.2f}")
    generation = json.loads(check.child("generate", compile=True).out.splitlines()[-1])
    for name, rates in generation["compiled"].items():
        first = f"; the first text after {rates['first']:.0f} s"
        check.row(
            f"generate, one prompt, {name}: relative to plain", "-", f"{rates['gain']:.2f}; {rates['rate']}{first}"
        )


def finetune(check: Check) -> None:
    """A classifier beside the stock Trainer, which pads to 128 tokens as run_glue.py does, or each batch."""
    size = check.sizes["classify"]
    done = check.hfkit(
        *("finetune", "--model", check.folder / "bert", "--data", check.folder / "rows.tsv"),
        *("--text-column", "sentence", "--label-column", "label", "--batch-size", size["batch"]),
        *("--max-steps", size["steps"], "--logging-steps", max(1, size["steps"] // LOG_LINES)),
        *("--save-steps", size["steps"], "--validation-split", 0, "--output-dir", check.folder / "classifier"),
    )
    rate = done.steps_per_second() * size["batch"]
    programs = {True: "run_glue.py's defaults", False: "dynamic padding"}
    for padded in [True] if check.quick else programs:
        stock = check.child("stock_classifier", padded=padded).steps_per_second() * size["batch"]
        check.row(
            f"finetune: examples/s relative to the stock Trainer with {programs[padded]}",
            "1",
            f"{rate / stock:.2f}; {rate:,.0f} and {stock:,.0f} examples/s",
        )


def generate(check: Check) -> None:
    """A file of prompts beside the library's pipeline, and one prompt beside the bound that memory sets."""
    found = json.loads(check.child("generate", compile=False).out.splitlines()[-1])
    rates = found["rates"]
    check.row(
        f"generate, {found['prompts']} prompts: tokens/s relative to pipeline() one by one",
        "4",
        f"{rates['hfkit'] / rates['pipeline']:.2f}; {rates['hfkit']:,.0f} and {rates['pipeline']:,.0f} tokens/s",
    )
    check.row(f"generate, one prompt, {found['dtype']}: tokens/s", "-", f"{rates['one']:,.0f}")
    check.row(
        "- bound: copy bandwidth by the bytes of weights and cache read per token",
        "-",
        f"{rates['bound']:,.0f} tokens/s, of which {rates['one'] / rates['bound']:.1%} are reached",
    )
    check.claim(found["same"], "generate: the text of one prompt is that of pipeline()")
    equal = f"{found['equal']} of {found['compared']}"
    check.row("- greedy texts equal to pipeline()'s, where batches round in another way", "-", equal)


def resume(check: Check) -> None:
    """A killed and resumed run against an uninterrupted one, bit by bit."""

    def difference(name: str, whole: Callable[[], Path], more: Sequence[str]) -> float:
        directory, _ = check.together(whole, lambda: killed(check, name, more))
        check.hfkit(*check.small(name, "--resume", "auto", *more))
        return largest_difference(directory, check.folder / name)

    found = difference("killed", check.base, ())
    if found == 0 or check.device == "cpu":
        check.claim(found == 0, f"resume after SIGKILL: {bits(found)}")
        return
    check.print(f"   resume with the usual kernels: {bits(found)}")
    setting = ("--set", "train.extra.full_determinism=true")

    def whole() -> Path:
        check.hfkit(*check.small("deterministic", *setting))
        return check.folder / "deterministic"

    found = difference("killed-deterministic", whole, setting)
    check.claim(found == 0, f"resume after SIGKILL with {' '.join(setting)}: {bits(found)}")


def killed(check: Check, name: str, more: Sequence[str]) -> None:
    """A small run that is killed as soon as its first checkpoint is committed."""
    command = [sys.executable, "-m", "hfkit", *check.small(name, *more)]
    with tempfile.TemporaryFile("w+") as err:
        process = check.start(command)
        drain = threading.Thread(target=lambda: err.writelines(process.stderr or ()))
        drain.start()
        deadline = time.monotonic() + TIMEOUT
        try:
            while not list((check.folder / name).glob("checkpoint-*/committed.json")):
                if process.poll() is not None or time.monotonic() > deadline:
                    break
                time.sleep(0.01)
        finally:
            end(process)
            process.wait()
            drain.join()
        if process.returncode != -signal.SIGKILL:
            err.seek(0)
            raise CommandFailed(f"exit code {process.returncode} before it was killed: {tail(err.read())}")
    if (check.folder / name / "all_results.json").exists():
        raise CommandFailed("the run was finished before it was killed")


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two runs; 0: the same bits."""
    import numpy as np
    from safetensors.numpy import load_file

    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    if first.keys() != second.keys():
        raise CommandFailed(f"{one.name} and {other.name} have weights of other names")
    return max(float(np.abs(first[name].astype("f8") - second[name].astype("f8")).max()) for name in first)


def bits(difference: float) -> str:
    return "the same bits" if difference == 0 else f"weights differ by up to {difference:.1e}"


def evaluate(check: Check) -> None:
    """The same scores on GPU and CPU, in float32 and in bfloat16."""
    classifier = check.folder / "topics"

    def train_classifier() -> None:
        check.hfkit(
            *("finetune", "--model", check.folder / "bert-small", "--data", check.folder / "topics.jsonl"),
            *("--max-length", 64, "--allow-truncation", "--lr", "5e-4", "--batch-size", 16),
            *("--max-steps", check.sizes["classify"]["steps"], "--validation-split", 0, "--output-dir", classifier),
        )

    base, _ = check.together(check.base, train_classifier)
    models = {
        "nll": (base, ["--data", check.held_out, "--documents", "blank-line", "--metrics", "nll"]),
        "log_loss": (
            classifier,
            ["--data", check.folder / "topics-held-out.jsonl", "--metrics", "log_loss,accuracy", "--allow-truncation"],
        ),
    }
    ways = [("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")]
    if check.device == "cpu":
        ways = [("cpu", "float32"), ("cpu", "bfloat16")]
        check.print("   evaluate: there is one device, so bfloat16 is compared with float32")
    scores = check.together(
        *(lambda model=model, way=way: score(check, *models[model], *way) for model in models for way in ways)
    )
    for place, metric in enumerate(models):
        expected, *others = scores[place * len(ways) : (place + 1) * len(ways)]
        for (device, dtype), found in zip(ways[1:], others, strict=True):
            relative = abs(found[metric] - expected[metric]) / abs(expected[metric])
            accuracy = f", accuracy {found['accuracy']:.4f} and {expected['accuracy']:.4f}" if place else ""
            check.claim(
                relative <= TOLERANCES[dtype],
                f"evaluate: {metric} in {dtype} on {device} is that of float32 on cpu within {TOLERANCES[dtype]:g}: "
                f"{relative:.1e} ({found[metric]:.6f} and {expected[metric]:.6f}{accuracy})",
            )


def score(check: Check, model: Path, more: Sequence[Any], device: str, dtype: str) -> dict[str, float]:
    done = check.hfkit("evaluate", model, *more, "--dtype", dtype, "--no-interval", "--json", device=device)
    return {name: found["value"] for name, found in json.loads(done.out)["metrics"].items()}


def lora(check: Check) -> None:
    """Adapters that learn, and that are merged into the same model."""
    run, merged = check.folder / "lora", check.folder / "merged"
    small, steps = check.sizes["small"], check.sizes["classify"]["steps"]
    check.hfkit(
        *("pretrain", "--model", check.base(), "--objective", "clm", "--lora", "--lr", "5e-3", "--max-steps", steps),
        *("--data", check.text, "--validation", check.held_out, "--documents", "blank-line"),
        *("--block-size", small["block"], "--batch-size", 8, "--no-interval", "--no-samples", "--output-dir", run),
    )
    check.hfkit("export", run, "--merge", "--output-dir", merged)
    before = json.loads((run / "run.json").read_text(encoding="utf-8"))["before_training"]["nll"]["value"]
    data = ["--data", check.held_out, "--documents", "blank-line", "--metrics", "nll"]
    adapted, whole = check.together(
        *(lambda model=model: score(check, model, data, check.device, "float32")["nll"] for model in (run, merged))
    )
    check.claim(adapted < before, f"lora: trains, validation nll {before:.4f} before and {adapted:.4f} after")
    relative = abs(whole - adapted) / adapted
    check.claim(relative <= MERGED, f"lora: merged, the nll differs by {relative:.1e}, at most {MERGED:g}")


def sharded(check: Check) -> None:
    """FSDP2 on one device against the plain run."""
    if check.device == "cpu":
        raise Skipped("FSDP2 needs a GPU")
    more = ["--precision", "float32", "--max-steps", "20", "--save-steps", "20", "--logging-steps", "1"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"),
        *("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_state_dict_type", "SHARDED_STATE_DICT"),
        *("--fsdp_cpu_ram_efficient_loading", "false", "--num_processes", "1", "--num_machines", "1"),
        *("--machine_rank", "0", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "hfkit"),
    ]
    check.together(
        lambda: check.hfkit(*check.small("unsharded", *more)),
        lambda: check.run([*launcher, *check.small("sharded", *more)]),
    )
    plain, other = (losses(check.folder / name) for name in ("unsharded", "sharded"))
    relative = max(abs(a - b) / a for a, b in zip(plain, other, strict=True))
    apart = largest_difference(check.folder / "unsharded", check.folder / "sharded")
    check.claim(
        len(plain) == 20 and relative <= SHARDED,
        f"fsdp2 on one device: {len(plain)} losses differ by at most {relative:.1e} from the plain run's, allowed are "
        f"{SHARDED:g}; {bits(apart)}",
    )


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def planned(check: Check) -> None:
    """Peak GPU memory as --plan predicts it."""
    if check.device == "cpu":
        raise Skipped("the memory of a process is mostly that of its libraries on a CPU")
    for task in ("clm", "mlm"):
        directory = check.folder / f"planned-{task}"
        arguments = pretrain_arguments(check, task, directory, steps=6)
        plan, _ = check.together(
            lambda arguments=arguments: check.hfkit(*arguments, "--plan", "--json"),
            lambda arguments=arguments: check.hfkit(*arguments),
        )
        parts = json.loads(plan.out)["runs"][0]["memory"]
        measured = json.loads((directory / "run.json").read_text(encoding="utf-8"))["peak_device_memory_mib"] / 1024
        expected = parts["sum"] / (1 << 30)
        shown = ", ".join(f"{name} {value / (1 << 30):.2f}" for name, value in parts.items() if name != "sum" and value)
        check.claim(
            1 / PLANNED <= measured / expected <= PLANNED,
            f"plan: {task} takes {measured:.2f} GiB, planned {expected:.2f} ({shown}): a factor of "
            f"{measured / expected:.2f}, allowed are {1 / PLANNED:.2f} to {PLANNED}",
        )


def out_of_memory(check: Check) -> None:
    """The message for too large a batch, what it says to type, and --batch-size auto."""
    if check.device == "cpu":
        raise Skipped("the memory of a CPU machine is shared with others")
    size, block = 128, check.sizes["clm"]["block"]
    with occupied(check):

        def arguments(directory: str, *batch: Any) -> list[Any]:
            return [
                *("pretrain", "--model-type", "gpt2", "--size", "mini", "--tokenizer", check.folder / "gpt2"),
                *("--data", check.text, "--documents", "blank-line", "--block-size", block, "--max-steps", 3),
                *("--validation-split", 0, "--no-interval", "--output-dir", check.folder / directory, *batch),
            ]

        done = check.hfkit(*arguments("too-large", "--batch-size", size), check=False)
        problems = [line for line in done.err.splitlines() if line.startswith("error:")]
        fix = re.search(r"\(fix: (--batch-size .*) for the same step\)", done.err)
        check.claim(
            done.code == 7 and len(problems) == 1 and fix is not None and "Traceback" not in done.err,
            f"out of memory: exit code {done.code}, {problems[0] if problems else tail(done.err)}",
        )
        typed = []
        while fix and done.code == 7 and len(typed) < 4:
            typed.append(fix[1])
            done = check.hfkit(*arguments("too-large", *fix[1].split(), "--overwrite"), check=False)
            fix = re.search(r"\(fix: (--batch-size .*) for the same step\)", done.err)
        what = ", then ".join(typed) or "nothing"
        check.claim(
            done.code == 0,
            f"out of memory: {what} typed, exit code {done.code}{'' if done.code == 0 else tail(done.err)}",
        )
        done = check.hfkit(*arguments("auto", "--batch-size", "auto", "--global-batch-size", size), check=False)
        found = next((line for line in done.err.splitlines() if line.startswith("batch:")), tail(done.err))
        check.claim(done.code == 0, f"--batch-size auto: exit code {done.code}, {found.strip()}")


@contextlib.contextmanager
def occupied(check: Check) -> Any:
    """Inside, another process leaves ROOM GiB of the GPU's memory free."""
    values = json.dumps({"device": "cuda", "quick": check.quick, "folder": str(check.folder)})
    process = check.start([sys.executable, __file__, "--child", "occupy", values], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        if not process.stdout.readline():
            raise CommandFailed(f"GPU memory can't be occupied\n{tail(process.stderr.read())}")
        yield
    finally:
        end(process)
        process.wait()


SECTIONS: dict[str, Callable[[Check], None]] = {
    "pretrain": pretrain,
    "resume": resume,
    "evaluate": evaluate,
    "lora": lora,
    "fsdp": sharded,
    "plan": planned,
    "oom": out_of_memory,
    "finetune": finetune,
    "generate": generate,
    "compile": compiled,
}

# Sections of a group run at the same time. Those that measure a speed are alone, and so is the one that fills memory.
GROUPS = [
    ["pretrain"],
    ["resume", "evaluate", "lora", "fsdp", "plan"],
    ["oom"],
    ["finetune"],
    ["generate"],
    ["compile"],
]


# What runs in a process of its own: this file with --child.


def child_prepare(given: Mapping[str, Any]) -> dict[str, Any]:
    """Writes models, text and labeled examples; measures the device."""
    import torch
    from finetune import rows_like_sst2
    from pretrain import tokenizer_of
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    from hfkit.data.sources import load_builtin
    from hfkit.models.config import quiet_libraries

    quiet_libraries()
    sizes, folder = QUICK if given["quick"] else FULL, Path(given["folder"])
    text = load_builtin("builtin:python-docs")
    documents: list[str] = []
    for name, split, count in zip(("held-out", "text"), ("test", "train"), reversed(sizes["documents"]), strict=True):
        documents = [" ".join(document.split()) for document in text[split]["text"][:count]]
        (folder / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    rows_like_sst2(folder / "rows.tsv", sizes["classify"]["rows"])
    labeled = load_builtin("builtin:python-docstrings")
    for name, split, count in (("topics", "train", 2000), ("topics-held-out", "test", sizes["evaluated"])):
        pairs = list(zip(labeled[split]["text"], labeled[split]["label"], strict=True))[:count]
        lines = [json.dumps({"text": text, "label": str(label)}) for text, label in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    flops = {}
    for kind, task in (("gpt2", "clm"), ("bert", "mlm")):
        tokenizer = tokenizer_of({"text": documents}, kind, sizes["entries"])
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        block = sizes[task]["block"]
        models: dict[str, Any] = {}
        if kind == "gpt2":
            none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            models["gpt2"] = GPT2LMHeadModel(GPT2Config(**sizes["gpt2"], **none, **ids))
            positions = models["gpt2"].transformer.wpe.weight.numel()
            layers, width = sizes["gpt2"]["n_layer"], sizes["gpt2"]["n_embd"]
        else:
            none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            small = {**QUICK["bert"], "vocab_size": -(-len(tokenizer) // 64) * 64}
            models["bert"] = BertForMaskedLM(
                BertConfig(**sizes["bert"], vocab_size=sizes["bert_entries"], **none, **ids)
            )
            models["bert-small"] = BertForMaskedLM(BertConfig(**small, **none, **ids))
            positions = models["bert"].bert.embeddings.position_embeddings.weight.numel()
            layers, width = sizes["bert"]["num_hidden_layers"], sizes["bert"]["hidden_size"]
        parameters = sum(weight.numel() for weight in models[kind].parameters()) - positions
        flops[task] = 6 * parameters + 12 * layers * width * block
        for name, model in models.items():
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    device, cuda = given["device"], torch.cuda.is_available()
    found: dict[str, Any] = {"cuda": cuda, "flops": flops, "name": platform.processor() or platform.machine()}
    if device == "cuda" and not cuda:
        return found
    if cuda:
        found["name"] = torch.cuda.get_device_name(0)
    peak = next((value for name, value in PEAKS.items() if name in found["name"]), None)
    return {**found, "peak": peak if cuda else None, **limits(device)}


def limits(device: str) -> dict[str, float]:
    """FLOP/s of a large product of matrices, in bfloat16 on a GPU, and bytes per second of a copy."""
    import torch

    size, count = (8192, 1 << 30) if device == "cuda" else (1024, 1 << 26)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    one = torch.randn(size, size, device=device, dtype=dtype)
    source = torch.ones(count, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = fastest(device, lambda: one @ one)
    return {
        "matmul": 2 * size**3 / seconds,
        "bandwidth": 2 * count / fastest(device, lambda: target.copy_(source)),
    }


def fastest(device: str, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of several repetitions."""
    import torch

    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def child_stock(given: Mapping[str, Any]) -> None:
    """The stock Trainer on packed blocks, as transformers' run_clm.py and run_mlm.py have it."""
    import numpy as np
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )

    folder, task = Path(given["folder"]), given["task"]
    size = (QUICK if given["quick"] else FULL)[task]
    directory = folder / ("gpt2" if task == "clm" else "bert")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = (folder / "text.txt").read_text(encoding="utf-8").split("\n\n")
    encoded = tokenizer(texts, return_special_tokens_mask=task == "mlm", return_token_type_ids=False, verbose=False)
    columns = {}
    for name, values in encoded.items():
        tokens = np.concatenate([np.asarray(ids) for ids in values])
        columns[name] = tokens[: len(tokens) // size["block"] * size["block"]].reshape(-1, size["block"]).tolist()
    if task == "clm":
        columns["labels"] = columns["input_ids"]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    collator = default_data_collator if task == "clm" else DataCollatorForLanguageModeling(tokenizer)
    auto = AutoModelForCausalLM if task == "clm" else AutoModelForMaskedLM
    args = TrainingArguments(**stock_arguments(given, size), torch_compile=given["compile"])
    trainer = Trainer(auto.from_pretrained(directory), args, train_dataset=rows, data_collator=collator)
    train_stock(trainer)


def stock_arguments(given: Mapping[str, Any], size: Mapping[str, int]) -> dict[str, Any]:
    return {
        "output_dir": str(Path(given["folder"]) / "stock"),
        "per_device_train_batch_size": size["batch"],
        "max_steps": size["steps"],
        "logging_steps": max(1, size["steps"] // LOG_LINES),
        "bf16": given["device"] == "cuda",
        "use_cpu": given["device"] == "cpu",
        "dataloader_pin_memory": given["device"] == "cuda",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def train_stock(trainer: Any) -> None:
    """Trains, and prints each logged step as hfkit does."""
    from transformers import PrinterCallback, TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            print(f"step {state.global_step:>5}/{state.max_steps}", file=sys.stderr, flush=True)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Steps())
    trainer.train()


def child_stock_classifier(given: Mapping[str, Any]) -> None:
    """The stock Trainer as transformers' run_glue.py has it."""
    from finetune import Stock

    folder = Path(given["folder"])
    size = (QUICK if given["quick"] else FULL)["classify"]
    options = argparse.Namespace(
        data=str(folder / "rows.tsv"),
        model=str(folder / "bert"),
        folder=str(folder / "stock"),
        batch_size=size["batch"],
    )
    train_stock(Stock(options, pad_to_max_length=given["padded"], **stock_arguments(given, size)).trainer)


def child_generate(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens per second of several ways to generate."""
    import generate as ways

    from hfkit.models.config import quiet_libraries
    from hfkit.system.console import silence

    quiet_libraries()
    sizes, model = (QUICK if given["quick"] else FULL)["generate"], Path(given["folder"]) / "gpt2"
    with silence():
        plain, single = ways.load(model, sizes["tokens"]), ways.load(model, sizes["one"])
        prompts = ways.prompts_of(sizes["prompts"])
        ids = single.encode(prompts[0])
        one_rate, text, _ = timed_texts(single, ids, sizes["rounds"])
        if given["compile"]:
            return {"compiled": compiled_ways(ways, model, sizes, ids, one_rate)}
        ways.by_hfkit(plain, prompts)  # warms up
        rates = {"one": one_rate}
        texts, seconds = {}, {}
        for name, run in (
            ("hfkit", lambda: ways.by_hfkit(plain, prompts)),
            ("pipeline", lambda: ways.one_by_one(plain, prompts[: sizes["alone"]], sizes["tokens"])),
        ):
            began = time.perf_counter()
            texts[name] = run()
            seconds[name] = time.perf_counter() - began
            rates[name] = sum(map(len, texts[name])) / seconds[name]
        ((alone,),) = plain.batch([0], [plain.encode(prompts[0])])
    weights = sum(weight.numel() * weight.element_size() for weight in plain.model.parameters())
    config = plain.model.config
    cached = 2 * config.num_hidden_layers * config.hidden_size * (len(ids) + len(text) / 2)
    item = next(plain.model.parameters()).element_size()
    rates["bound"] = limits(given["device"])["bandwidth"] / (weights + cached * item)
    return {
        "rates": rates,
        "dtype": str(plain.model.dtype).removeprefix("torch."),
        "prompts": len(prompts),
        "same": alone.ids == texts["pipeline"][0],
        "equal": sum(map(list.__eq__, texts["hfkit"], texts["pipeline"])),
        "compared": len(texts["pipeline"]),
    }


def timed_texts(generator: Any, ids: list[int], rounds: int) -> tuple[float, list[int], float]:
    """Tokens per second of one prompt, its text as ids, and the seconds of the first one, which is not counted."""
    began = time.perf_counter()
    ((answer,),) = generator.batch([0], [ids])
    first, rates = time.perf_counter() - began, []
    for _ in range(rounds):
        began = time.perf_counter()
        ((answer,),) = generator.batch([0], [ids])
        rates.append(len(answer.ids) / (time.perf_counter() - began))
    return statistics.median(rates), answer.ids, first


def compiled_ways(ways: Any, model: Path, sizes: Mapping[str, int], ids: list[int], plain: float) -> dict[str, Any]:
    """--compile, and the static cache for which the library compiles each decoding step by itself."""
    static = ways.load(model, sizes["one"])
    static.settings.cache_implementation = "static"
    found = {}
    for name, load in (
        ("a static cache", lambda: static),
        ("--compile", lambda: ways.load(model, sizes["one"], compile=True)),
    ):
        try:
            rate, _, first = timed_texts(load(), ids, sizes["rounds"])
            found[name] = {"gain": rate / plain, "rate": f"{rate:,.0f} tokens/s", "first": first}
        except Exception as error:
            found[name] = {"gain": 0.0, "rate": f"{type(error).__name__}: {str(error)[:200]}", "first": 0.0}
    return found


def child_occupy(given: Mapping[str, Any]) -> None:
    """Holds all GPU memory but ROOM GiB until it is ended."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(free - (ROOM << 30), 0), dtype=torch.uint8, device="cuda")
    print(f"{held.numel():,} bytes", flush=True)
    time.sleep(TIMEOUT * 3)


CHILDREN: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "prepare": child_prepare,
    "stock": child_stock,
    "stock_classifier": child_stock_classifier,
    "generate": child_generate,
    "occupy": child_occupy,
}


if __name__ == "__main__":
    sys.exit(main())
