"""Whole commands of hfkit and of the tools that a user would pick instead: `python benchmarks/peers.py [--help]`.

A work is one job from the shell prompt to the files or lines it ends with: start of Python, imports, data and saving
included. Each round runs hfkit and then each peer, as processes of their own with an empty cache. A ratio is the
peer's seconds by hfkit's in the same round: the median, the lowest and highest round in brackets, then the same in CPU
time. Memory is that of the largest process of a command (ru_maxrss). The last column compares what the commands print
or write. The causal, masked and text works train without evaluation and save once, at the end, in every program. The
masked work is measured in useful tokens per second: run_mlm.py pads lines, so it gets as many lines in a batch as have
the tokens of hfkit's blocks.

Not part of this repository, and skipped where they are absent:

- `--peers DIR`: run_clm.py, run_mlm.py and run_glue.py (transformers' examples/pytorch of the installed version or one
  close to it) and a checkout of nanoGPT. They run offline. run_glue.py loads the metric `accuracy` from the Hub; here
  it finds one in its working directory, which this file writes.
- Packages: ctranslate2, onnxruntime (with onnx and onnxscript for the export), rouge-score-rs, bleuscore. A folder of
  packages can be named by PYTHONPATH.
- `--model MINILM`, `--data sst2/train.tsv`, `--decoder SMOLLM2`: works without their input are skipped. The text is
  `--text FILE` or the built-in one.

Models are converted for ctranslate2 and onnxruntime before anything is timed. `--quick` makes tiny models and data,
and checks that everything still runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu import tail, versions

ROOT = Path(__file__).resolve().parents[1]

FULL: dict[str, Any] = {
    "steps": 60,
    "gpt2": {"n_layer": 6, "n_embd": 384, "n_head": 6},
    "bert": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "entries": 8192,  # of the tokenizers of both
    "clm": {"block": 256, "batch": 8},
    "mlm": {"block": 128, "batch": 16},
    "long_text": 10_000_000,  # bytes
    "rows": 4_000,
    "pairs": 10_000,
    "new_tokens": 128,
}

QUICK: dict[str, Any] = {
    "steps": 3,
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2},
    "bert": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "entries": 500,
    "clm": {"block": 32, "batch": 2},
    "mlm": {"block": 32, "batch": 2},
    "long_text": 200_000,
    "rows": 60,
    "pairs": 60,
    "new_tokens": 8,
}

TEXT_BYTES = 2_000_000  # of --text that the causal and masked works train on
QUICK_ROWS = 300  # made-up labeled rows of --quick
BATCH = 32  # SST-2, and rows in a batch of onnxruntime
HELD_OUT = 0.05  # hfkit's default, for run_glue.py too

HFKIT = [sys.executable, "-m", "hfkit"]

# The peers' scripts, as a user would write them. Each is its own process: `python -c SCRIPT ARGUMENTS`.

PIPELINE_TEXT = """
import sys
from transformers import pipeline
model, prompt, tokens = sys.argv[1:]
generator = pipeline("text-generation", model=model, dtype="float32")
print(generator(prompt, max_new_tokens=int(tokens), do_sample=False, return_full_text=False)[0]["generated_text"])
"""

CTRANSLATE2_TEXT = """
import os, sys
import ctranslate2, tokenizers
model, converted, prompt, tokens = sys.argv[1:]
threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
generator = ctranslate2.Generator(converted, compute_type="float32", intra_threads=threads)
tokenizer = tokenizers.Tokenizer.from_file(model + "/tokenizer.json")
start = tokenizer.encode(prompt).tokens
found = generator.generate_batch(
    [start], max_length=int(tokens), sampling_topk=1, include_prompt_in_result=False
)
print(tokenizer.decode(found[0].sequences_ids[0]))
"""

PIPELINE_ROWS = """
import json, sys
from transformers import pipeline
model, source, target, *size = sys.argv[1:]
with open(source, encoding="utf-8") as file:
    texts = file.read().splitlines()
classify = pipeline("text-classification", model=model)
with open(target, "w", encoding="utf-8") as file:
    for text, answer in zip(texts, classify(texts, truncation=True, **({"batch_size": int(size[0])} if size else {}))):
        file.write(json.dumps({"text": text, **answer}) + "\\n")
"""

ONNXRUNTIME_ROWS = """
import json, os, sys
import numpy, onnxruntime, tokenizers
model, source, target, size = sys.argv[1:]
with open(source, encoding="utf-8") as file:
    texts = file.read().splitlines()
with open(model + "/config.json", encoding="utf-8") as file:
    config = json.load(file)
names = {int(number): name for number, name in config["id2label"].items()}
tokenizer = tokenizers.Tokenizer.from_file(model + "/tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation(config["max_position_embeddings"])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
session = onnxruntime.InferenceSession(model + "/model.onnx", options, providers=["CPUExecutionProvider"])
encoded = [one.ids for one in tokenizer.encode_batch(texts)]
order = sorted(range(len(texts)), key=lambda number: len(encoded[number]))
answers = [None] * len(texts)
for start in range(0, len(order), int(size)):
    chosen = order[start : start + int(size)]
    ids = numpy.zeros((len(chosen), max(len(encoded[number]) for number in chosen)), dtype=numpy.int64)
    mask = numpy.zeros_like(ids)
    for row, number in enumerate(chosen):
        ids[row, : len(encoded[number])] = encoded[number]
        mask[row, : len(encoded[number])] = 1
    logits = session.run(None, {"ids": ids, "mask": mask})[0]
    odds = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    for number, row in zip(chosen, odds / odds.sum(axis=1, keepdims=True)):
        answers[number] = {"label": names[int(row.argmax())], "score": float(row.max())}
with open(target, "w", encoding="utf-8") as file:
    for text, answer in zip(texts, answers):
        file.write(json.dumps({"text": text, **answer}) + "\\n")
"""

PIPELINE_LABEL = """
import json, sys
from transformers import pipeline
print(json.dumps(pipeline("text-classification", model=sys.argv[1])(sys.argv[2])[0]))
"""

PAIRS = """
import json, sys
predictions, references = (open(path, encoding="utf-8").read().splitlines() for path in sys.argv[1:])
"""

ROUGE_SCORE = f"""{PAIRS}
from rouge_score.rouge_scorer import RougeScorer
names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
scorer = RougeScorer(names)
scores = [scorer.score(reference, prediction) for reference, prediction in zip(references, predictions)]
print(json.dumps({{name: 100 * sum(one[name].fmeasure for one in scores) / len(scores) for name in names}}))
"""

ROUGE_SCORE_RS = f"""{PAIRS}
from rouge_score_rs.rouge_scorer import RougeScorer
names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
scores = RougeScorer(names, use_stemmer=False).score_batch(references, predictions)
print(json.dumps({{name: 100 * sum(one[name].fmeasure for one in scores) / len(scores) for name in names}}))
"""

BLEUSCORE = f"""{PAIRS}
import bleuscore
found = bleuscore.compute([[reference] for reference in references], predictions, ref_len_method="closest")
print(json.dumps({{"bleu": 100 * found["bleu"]}}))
"""

ACCURACY = """
import datasets
import evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": sum(a == b for a, b in zip(predictions, references)) / len(references)}
"""


class Ended(NamedTuple):
    """A command that has ended: seconds, largest resident size of one of its processes, and where its output is."""

    wall: float
    cpu: float
    mib: int
    out: Path

    def printed(self) -> str:
        return (self.out / "stdout.txt").read_text(encoding="utf-8").strip()


class Program(NamedTuple):
    """One side of a work; `{out}` in its arguments is the folder that it may write to."""

    name: str
    arguments: Sequence[Any]
    goal: str = "-"
    packages: tuple[str, ...] = ()
    cwd: Path | None = None  # default: its output folder


class Work(NamedTuple):
    """hfkit and its peers on the same job; `useful`: the amount that a program gets done, where it differs."""

    title: str
    hfkit: Program
    peers: list[Program]
    compare: Callable[[Ended, Ended], str] = lambda ours, theirs: "-"
    useful: Callable[[Ended], float] = lambda ended: 1.0


class CommandFailed(Exception):
    """A command whose exit code is not 0."""


class Bench:
    """One run of this script: its options, the folder of its inputs and whether a command has failed."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.sizes = QUICK if options.quick else FULL
        self.failed = False

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def script(self, name: str) -> Path:
        """A file of --peers, which may be absent."""
        return (self.options.peers or self.folder / "absent") / name

    def report(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def run(self, program: Program, out: Path) -> Ended:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        arguments = [str(argument).replace("{out}", str(out)) for argument in program.arguments]
        own = {"HF_HOME": str(out / "cache"), "HF_HUB_OFFLINE": "1"}
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        with (out / "stdout.txt").open("wb") as stdout, (out / "stderr.txt").open("wb") as stderr:
            start = time.perf_counter()
            process = subprocess.Popen(
                arguments,
                cwd=program.cwd or work_folder(out),
                env={**os.environ, **own, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
            wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors = (out / "stderr.txt").read_text(encoding="utf-8", errors="replace")
            raise CommandFailed(f"exit code {process.returncode} of: {' '.join(arguments)}\n{tail(errors)}")
        # ru_maxrss begins at the size of this process, which therefore imports no library.
        return Ended(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024, out)


def main() -> int:
    options = read_options()
    if options.child:
        name, settings = options.child
        CHILDREN[name](json.loads(settings))
        return 0
    names = options.only.split(",") if options.only else list(WORKS)
    if unknown := sorted(set(names) - WORKS.keys()):
        sys.exit(f"error: no work {', '.join(unknown)} (fix: --only {','.join(WORKS)})")
    with tempfile.TemporaryDirectory(prefix="hfkit-peers-") as name:
        bench = Bench(options, Path(name))
        child(bench, "prepare", names=names)
        rows = [row for name in names for row in measure(bench, name)]
    print(f"{versions()}; {os.cpu_count()} cores; rounds: {options.pairs}\n")
    head = ("work", "peer", "wall time", "CPU time", "peak memory", "result", "goal")
    print("\n".join(f"| {' | '.join(row)} |" for row in [head, ("---",) * len(head), *rows]))
    return int(bench.failed)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=Path, metavar="DIR", help="has run_clm.py, run_mlm.py, run_glue.py, nanoGPT/")
    parser.add_argument("--model", type=Path, help="an encoder's directory: MiniLM")
    parser.add_argument("--decoder", type=Path, help="a decoder's directory: SmolLM2-135M")
    parser.add_argument("--data", type=Path, help="a .tsv file with the columns sentence and label: SST-2's train.tsv")
    parser.add_argument("--text", type=Path, help="a text file (default: the built-in text)")
    parser.add_argument("--only", help="works, separated by commas: " + ", ".join(WORKS))
    parser.add_argument("--pairs", type=int, metavar="N", help="rounds of hfkit and its peers (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny models and data: does everything still run?")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.pairs = options.pairs or (1 if options.quick else 3)
    for name in ("peers", "model", "decoder", "data", "text"):
        if path := getattr(options, name):
            if not path.exists():
                parser.error(f"--{name}: no {path}")
            setattr(options, name, path.resolve())
    return options


def work_folder(out: Path) -> Path:
    """A working directory with nothing in it but a metric that run_glue.py finds without a network."""
    folder = out / "work"
    (folder / "accuracy").mkdir(parents=True)
    (folder / "accuracy" / "accuracy.py").write_text(ACCURACY, encoding="utf-8")
    return folder


def measure(bench: Bench, name: str) -> list[tuple[str, ...]]:
    """Runs a work in rounds; a row for each of its peers that is here."""
    absent = [f"--{flag}" for flag in NEEDS.get(name, ()) if not getattr(bench.options, flag)]
    if absent and not bench.options.quick:
        bench.report(f"skipped: {name}: needs {' and '.join(absent)}")
        return []
    work = WORKS[name](bench)
    peers = [peer for peer in work.peers if present(bench, name, peer)]
    ended: dict[str, list[Ended]] = {program.name: [] for program in (work.hfkit, *peers)}
    faults: dict[str, str] = {}
    for _ in range(bench.options.pairs if peers else 0):
        for program in (work.hfkit, *peers):
            if program.name in faults or work.hfkit.name in faults:
                continue
            try:
                ended[program.name].append(bench.run(program, bench.folder / name / program.name.replace(" ", "-")))
                bench.report(f"{name}, {program.name}: {ended[program.name][-1].wall:.1f} s")
            except CommandFailed as fault:
                bench.failed, faults[program.name] = True, str(fault)
                bench.report(f"failed: {name}, {program.name}: {fault}")
    if work.hfkit.name in faults:
        return [(work.title, peer.name, *["-"] * 3, "hfkit failed", peer.goal) for peer in peers]
    rows = [row(work, peer, ended) if peer.name not in faults else failed_row(work, peer) for peer in peers]
    shutil.rmtree(bench.folder / name, ignore_errors=True)
    return rows


def present(bench: Bench, name: str, peer: Program) -> bool:
    """Whether this peer can be run; what is absent is reported."""
    scripts = [argument for argument in peer.arguments if isinstance(argument, Path)]
    absent = [f"{path.relative_to(bench.script(''))} in --peers" for path in scripts if not path.exists()]
    absent += [f"the package {package}" for package in peer.packages if importlib.util.find_spec(package) is None]
    if not absent and (prepare := CONVERTERS.get(peer.name)):
        try:
            child(bench, prepare)
        except CommandFailed as fault:
            bench.failed = True
            absent = [f"a converted model: {fault}"]
    if absent:
        bench.report(f"skipped: {name}, {peer.name}: needs {' and '.join(absent)}")
    return not absent


def row(work: Work, peer: Program, ended: Mapping[str, list[Ended]]) -> tuple[str, ...]:
    ours, theirs = ended[work.hfkit.name], ended[peer.name]
    amount = work.useful(ours[-1]) / work.useful(theirs[-1])  # every round does the same
    walls = [amount * b.wall / a.wall for a, b in zip(ours, theirs, strict=True)]
    cpus = [amount * b.cpu / a.cpu for a, b in zip(ours, theirs, strict=True)]
    seconds = " and ".join(f"{statistics.median(one.wall for one in side):.1f}" for side in (ours, theirs))
    return (
        work.title,
        peer.name,
        f"{statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f}); {seconds} s",
        f"{statistics.median(cpus):.2f} ({min(cpus):.2f} to {max(cpus):.2f})",
        f"{max(one.mib for one in ours):,} and {max(one.mib for one in theirs):,} MiB",
        work.compare(ours[-1], theirs[-1]),
        peer.goal,
    )


def failed_row(work: Work, peer: Program) -> tuple[str, ...]:
    return (work.title, peer.name, "-", "-", "-", "failed", peer.goal)


def child(bench: Bench, name: str, **more: Any) -> None:
    """Runs a function of this file in a process of its own, so that this one imports no library."""
    given = {**vars(bench.options), "folder": str(bench.folder), **more}
    settings = json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in given.items()})
    arguments = [sys.executable, __file__, "--child", name, settings]
    bench.run(Program(name, arguments, cwd=bench.folder), bench.folder / f"child-{name}")


# The works.


def causal(bench: Bench) -> Work:
    sizes = bench.sizes
    block, batch, steps = sizes["clm"]["block"], sizes["clm"]["batch"], sizes["steps"]
    shape = [f"--{name}={number}" for name, number in sizes["gpt2"].items()]
    return Work(
        f"causal LM from scratch, {steps} steps",
        pretrain(bench, "clm", "text.txt", steps),
        [
            Program("run_clm.py", run_clm(bench, "text.txt", steps), goal="1.45"),
            Program(
                "nanoGPT, eager",
                [
                    *(sys.executable, bench.script("nanoGPT/train.py"), f"--dataset={bench.path('nanogpt')}"),
                    *("--out_dir={out}/run", "--device=cpu", "--dtype=float32", "--compile=False", "--bias=True"),
                    *(*shape, f"--block_size={block}", f"--batch_size={batch}", "--gradient_accumulation_steps=1"),
                    # Steps are counted from 0. The last one is where it saves, after an evaluation on one batch.
                    *(f"--max_iters={steps - 1}", f"--eval_interval={steps - 1}", "--eval_iters=1"),
                ],
                goal="1.15",
                cwd=bench.script("nanoGPT"),
            ),
        ],
    )


def masked(bench: Bench) -> Work:
    sizes = bench.sizes
    tokens = sizes["mlm"]["block"] * sizes["mlm"]["batch"] * sizes["steps"]

    def useful(ended: Ended) -> float:
        states = list((ended.out / "run").glob("trainer_state.json"))
        return float(json.loads(states[0].read_text())["num_input_tokens_seen"]) if states else float(tokens)

    return Work(
        f"masked LM from scratch, lines, {sizes['steps']} steps (useful tokens/s)",
        pretrain(bench, "mlm", "lines.txt", sizes["steps"], "--objective", "mlm", "--documents", "row"),
        [
            Program(
                "run_mlm.py --line_by_line",
                [sys.executable, bench.script("run_mlm.py"), bench.path("run_mlm.json")],
                goal="2",
            )
        ],
        useful=useful,
    )


def sst2(bench: Bench) -> Work:
    out = ["--output_dir", "{out}/run", "--report_to", "none"]
    return Work(
        f"SST-2, {bench.sizes['steps']} steps",
        Program(
            "hfkit",
            [
                *(*HFKIT, "finetune", "--model", bench.path("encoder"), "--data", bench.path("train.tsv")),
                *("--text-column", "sentence", "--label-column", "label", "--max-steps", bench.sizes["steps"]),
                *("-o", "{out}/run"),
            ],
        ),
        [
            Program(
                "run_glue.py, group_by_length",
                [
                    *(sys.executable, bench.script("run_glue.py"), "--model_name_or_path", bench.path("encoder")),
                    *("--train_file", bench.path("train.csv"), "--validation_file", bench.path("dev.csv"), *out),
                    *("--do_train", "--do_eval", "--max_steps", bench.sizes["steps"], "--pad_to_max_length", "False"),
                    *("--per_device_train_batch_size", BATCH, "--train_sampling_strategy", "group_by_length"),
                ],
                goal="2",
            )
        ],
        compare=accuracies,
    )


def text(bench: Bench) -> Work:
    return Work(
        f"a .txt file of {bench.sizes['long_text'] / 1e6:g} MB to the first step",
        pretrain(bench, "clm", "long.txt", 1),
        [Program("run_clm.py", run_clm(bench, "long.txt", 1), goal="2, half the memory")],
    )


def generate(bench: Bench) -> Work:
    model, prompt, tokens = bench.path("decoder"), "The history of the world begins with", bench.sizes["new_tokens"]
    return Work(
        f"one prompt, {tokens} new tokens, greedy",
        Program(
            "hfkit",
            [
                *(*HFKIT, "generate", "--model", model, "--prompt", prompt, "--max-new-tokens", tokens),
                *("--greedy", "--raw"),
            ],
        ),
        [
            Program("pipeline", [sys.executable, "-c", PIPELINE_TEXT, model, prompt, tokens]),
            Program(
                "ctranslate2, float32",
                [sys.executable, "-c", CTRANSLATE2_TEXT, model, bench.path("ctranslate2"), prompt, tokens],
                goal="0.9",
                packages=("ctranslate2",),
            ),
        ],
        compare=lambda ours, theirs: "same text" if ours.printed() == theirs.printed() else "another text",
    )


def predict(bench: Bench) -> Work:
    model, rows, target = bench.path("classifier"), bench.path("rows.txt"), "{out}/answers.jsonl"
    script = [sys.executable, "-c", PIPELINE_ROWS, model, rows, target]
    return Work(
        f"labels of {bench.sizes['rows']:,} rows",
        Program("hfkit", [*HFKIT, "predict", model, "--input", rows, "--output", target]),
        [
            Program("pipeline", script),
            Program("pipeline, batch_size=16", [*script, 16]),
            Program(
                "onnxruntime, float32",
                [sys.executable, "-c", ONNXRUNTIME_ROWS, model, rows, target, BATCH],
                goal="1",
                packages=("onnxruntime", "onnx", "onnxscript"),
            ),
        ],
        compare=equal_labels,
    )


def rouge(bench: Bench) -> Work:
    return Work(
        f"ROUGE of {bench.sizes['pairs']:,} pairs, with interval in hfkit alone",
        score(bench, "rouge"),
        [
            Program("rouge_score", pair_script(bench, ROUGE_SCORE), goal="1", packages=("rouge_score",)),
            Program("rouge-score-rs", pair_script(bench, ROUGE_SCORE_RS), goal="1", packages=("rouge_score_rs",)),
        ],
        compare=scores,
    )


def bleu(bench: Bench) -> Work:
    predictions, references = bench.path("predictions.txt"), bench.path("references.txt")
    return Work(
        f"BLEU of {bench.sizes['pairs']:,} pairs, with interval in hfkit alone",
        score(bench, "bleu"),
        [
            Program(
                "sacrebleu",
                [sys.executable, "-m", "sacrebleu", references, "-i", predictions, "-m", "bleu", "-b", "-w", 6],
                goal="1",
                packages=("sacrebleu",),
            ),
            Program("bleuscore", pair_script(bench, BLEUSCORE), goal="1", packages=("bleuscore",)),
        ],
        compare=scores,
    )


def label(bench: Bench) -> Work:
    model, row = bench.path("classifier"), "a fine film, if you like the sea"
    return Work(
        "one text to a label",
        Program("hfkit", [*HFKIT, "predict", model, "--text", row, "--json"]),
        [Program("pipeline", [sys.executable, "-c", PIPELINE_LABEL, model, row], goal="1.5")],
        compare=lambda ours, theirs: same_label(json.loads(ours.printed()), json.loads(theirs.printed())),
    )


WORKS: dict[str, Callable[[Bench], Work]] = {
    "causal": causal,
    "masked": masked,
    "sst2": sst2,
    "text": text,
    "generate": generate,
    "predict": predict,
    "rouge": rouge,
    "bleu": bleu,
    "label": label,
}

NEEDS = {"sst2": ("model", "data"), "generate": ("decoder",), "predict": ("model", "data"), "label": ("model",)}


def pretrain(bench: Bench, kind: str, data: str, steps: int, *more: str) -> Program:
    size = bench.sizes[kind]
    return Program(
        "hfkit",
        [
            *(*HFKIT, "pretrain", "--model", bench.path(kind), "--from-scratch", "--data", bench.path(data), *more),
            *("--block-size", size["block"], "--batch-size", size["batch"], "--global-batch-size", size["batch"]),
            *("--max-steps", steps, "--save-steps", steps, "--validation-split", 0, "-o", "{out}/run"),
        ],
    )


def run_clm(bench: Bench, data: str, steps: int) -> list[Any]:
    size = bench.sizes["clm"]
    return [
        *(sys.executable, bench.script("run_clm.py"), "--config_name", bench.path("clm")),
        *("--tokenizer_name", bench.path("clm"), "--train_file", bench.path(data)),
        *("--validation_file", bench.path("short.txt")),  # or it holds out 5%; not evaluated
        *("--block_size", size["block"], "--per_device_train_batch_size", size["batch"], "--max_steps", steps),
        *("--do_train", "--output_dir", "{out}/run", "--report_to", "none"),
    ]


def score(bench: Bench, metric: str) -> Program:
    files = ["--predictions", bench.path("predictions.txt"), "--references", bench.path("references.txt")]
    return Program("hfkit", [*HFKIT, "evaluate", *files, "--metrics", metric, "--json"])


def pair_script(bench: Bench, script: str) -> list[str]:
    return [sys.executable, "-c", script, bench.path("predictions.txt"), bench.path("references.txt")]


# The results of two programs, compared.


def accuracies(ours: Ended, theirs: Ended) -> str:
    sides = [json.loads((ended.out / "run" / "all_results.json").read_text()) for ended in (ours, theirs)]
    return " and ".join(f"{side['eval_accuracy']:.3f}" for side in sides) + " accuracy"


def equal_labels(ours: Ended, theirs: Ended) -> str:
    sides = [read_json_lines(ended.out / "answers.jsonl") for ended in (ours, theirs)]
    pairs = list(zip(*sides, strict=True))
    equal = sum(a["label"] == b["label"] for a, b in pairs)
    apart = max(abs(a["score"] - b["score"]) for a, b in pairs)
    return f"{equal:,} of {len(pairs):,} labels equal, probabilities within {apart:.0e}"


def same_label(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return "same label" if ours["label"] == theirs["label"] else "another label"


def scores(ours: Ended, theirs: Ended) -> str:
    metrics = json.loads(ours.printed())["metrics"]
    found = json.loads(theirs.printed())
    if not isinstance(found, dict):  # sacrebleu -b
        found = {"bleu": found}
    apart = max(abs(metrics[name]["value"] - value) for name, value in found.items())
    return f"within {apart:.0e} points"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# What is prepared, in processes of their own.


def prepare(given: Mapping[str, Any]) -> None:
    """Text, models and data of all works, in `folder`."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder, sizes, names = Path(given["folder"]), QUICK if given["quick"] else FULL, given["names"]
    source = text_of(given)
    (folder / "text.txt").write_text(first_bytes(source, TEXT_BYTES // (10 if given["quick"] else 1)), encoding="utf-8")
    (folder / "long.txt").write_text(first_bytes(source, sizes["long_text"]), encoding="utf-8")
    lines = [line.strip() for line in (folder / "text.txt").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line]
    (folder / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "short.txt").write_text(" ".join(lines)[: 100 * sizes["clm"]["block"]], encoding="utf-8")
    if {"causal", "text"} & set(names):
        prepare_causal(folder, sizes)
    if "masked" in names:
        prepare_masked(folder, sizes, lines)
    if {"rouge", "bleu"} & set(names):
        prepare_pairs(folder, lines, sizes["pairs"])
    if {"sst2", "predict"} & set(names) and (given["data"] or given["quick"]):
        prepare_rows(folder, given, sizes["rows"])
    if {"sst2", "predict", "label"} & set(names) and (given["model"] or given["quick"]):
        prepare_encoder(folder, given, lines)
    if "generate" in names and (given["decoder"] or given["quick"]):
        prepare_decoder(folder, given)


def text_of(given: Mapping[str, Any]) -> str:
    if given["text"]:
        return Path(given["text"]).read_text(encoding="utf-8")
    from hfkit.data.sources import load_builtin

    return "\n\n".join(load_builtin("builtin:python-docs")["train"]["text"]) + "\n\n"


def first_bytes(source: str, number: int) -> str:
    """The text up to `number` bytes, repeated if it is shorter."""
    once = source.encode()[:number]
    return (once * -(-number // len(once)))[:number].decode(errors="ignore")


def prepare_causal(folder: Path, sizes: Mapping[str, Any]) -> None:
    """A GPT-2 without weights, and the tokens of the text as nanoGPT reads them."""
    import pickle

    import numpy as np
    from pretrain import tokenizer_of
    from transformers import GPT2Config

    source = (folder / "text.txt").read_text(encoding="utf-8")
    tokenizer = tokenizer_of({"text": [source]}, "gpt2", sizes["entries"])
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=sizes["clm"]["block"], **sizes["gpt2"], **dropout, **ids)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder / "clm")
    tokenizer.save_pretrained(folder / "clm")
    (folder / "nanogpt").mkdir()
    tokens = np.array(tokenizer(source)["input_ids"], dtype=np.uint16)
    for name in ("train.bin", "val.bin"):
        tokens.tofile(folder / "nanogpt" / name)
    (folder / "nanogpt" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(tokenizer)}))


def prepare_masked(folder: Path, sizes: Mapping[str, Any], lines: list[str]) -> None:
    """A BERT without weights, and run_mlm.py's arguments.

    They stand in a file because "non_padding" is not possible on its command line.
    """
    block = sizes["mlm"]["block"]
    config, tokenizer = new_bert(sizes, lines, block)
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(folder / "mlm")
    tokenizer.save_pretrained(folder / "mlm")
    lengths = [len(ids) for ids in tokenizer(lines, truncation=True, max_length=block)["input_ids"]]
    batch = round(sizes["mlm"]["batch"] * block * len(lines) / sum(lengths))
    arguments = {
        "config_name": str(folder / "mlm"),
        "tokenizer_name": str(folder / "mlm"),
        "train_file": str(folder / "lines.txt"),
        "validation_file": str(folder / "short.txt"),
        "line_by_line": True,
        "max_seq_length": block,
        "per_device_train_batch_size": batch,
        "max_steps": sizes["steps"],
        "do_train": True,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": "none",
        "output_dir": "../run",  # from its working directory
    }
    (folder / "run_mlm.json").write_text(json.dumps(arguments), encoding="utf-8")


def new_bert(sizes: Mapping[str, Any], lines: list[str], positions: int) -> tuple[Any, Any]:
    """Its config, without dropout, and a tokenizer trained on `lines`."""
    from pretrain import tokenizer_of
    from transformers import BertConfig

    tokenizer = tokenizer_of({"text": lines}, "bert", sizes["entries"])
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return BertConfig(max_position_embeddings=positions, **ids, **sizes["bert"], **dropout), tokenizer


def prepare_pairs(folder: Path, lines: list[str], number: int) -> None:
    """References from the text, and predictions that have lost or swapped some of their words."""
    choice = random.Random(0)
    long_enough = [line for line in lines if len(line.split()) >= 5]
    references = [long_enough[at % len(long_enough)] for at in range(number)]
    predictions = []
    for line in references:
        words = [word for word in line.split() if choice.random() > 0.2] or ["nothing"]
        at = choice.randrange(len(words))
        words[at], words[0] = words[0], words[at]
        predictions.append(" ".join(words))
    for name, rows in (("references", references), ("predictions", predictions)):
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def prepare_rows(folder: Path, given: Mapping[str, Any], number: int) -> None:
    """Labeled rows for hfkit, the same with some held out for run_glue.py, and sentences without labels."""
    import csv

    from finetune import read_rows, rows_like_sst2

    target = folder / "train.tsv"
    if given["data"]:
        shutil.copyfile(given["data"], target)
    else:
        rows_like_sst2(target, QUICK_ROWS)
    sentences, labels = read_rows(str(target))
    rows = list(zip(sentences, labels, strict=True))
    (folder / "rows.txt").write_text("\n".join(sentences[:number]) + "\n", encoding="utf-8")
    random.Random(0).shuffle(rows)
    held_out = round(HELD_OUT * len(rows))
    for name, part in (("dev", rows[:held_out]), ("train", rows[held_out:])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("sentence", "label"), *part])


def prepare_encoder(folder: Path, given: Mapping[str, Any], lines: list[str]) -> None:
    """The encoder, and a classifier of two labels made from it, whose head is randomly initialized."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

    torch.manual_seed(0)
    if given["quick"]:
        config, tokenizer = new_bert(QUICK, lines, positions=512)
        BertForMaskedLM(config).save_pretrained(folder / "encoder")
        tokenizer.save_pretrained(folder / "encoder")
    else:
        shutil.copytree(given["model"], folder / "encoder")
    names = {"negative": 0, "positive": 1}
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "encoder", id2label={number: name for name, number in names.items()}, label2id=names
    )
    model.save_pretrained(folder / "classifier")
    AutoTokenizer.from_pretrained(folder / "encoder").save_pretrained(folder / "classifier")


def prepare_decoder(folder: Path, given: Mapping[str, Any]) -> None:
    if given["quick"]:
        sys.path.insert(0, str(ROOT / "tests"))
        from tiny_models import make_gpt2

        make_gpt2(folder / "decoder")
    else:
        (folder / "decoder").symlink_to(Path(given["decoder"]).resolve())


def convert_to_onnx(given: Mapping[str, Any]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = Path(given["folder"]) / "classifier"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, attention_mask=mask).logits  # type: ignore[no-any-return]

    ones = torch.ones(2, 9, dtype=torch.long)
    longest = model.config.max_position_embeddings
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", max=longest)}
    torch.onnx.export(
        Logits(),
        (ones, ones.clone()),  # one tensor for both would become one input
        folder / "model.onnx",
        input_names=["ids", "mask"],
        output_names=["logits"],
        dynamic_shapes=(axes, axes),
        dynamo=True,
    )


def convert_to_ctranslate2(given: Mapping[str, Any]) -> None:
    import ctranslate2

    folder = Path(given["folder"])
    ctranslate2.converters.TransformersConverter(str(folder / "decoder")).convert(str(folder / "ctranslate2"))


CHILDREN = {"prepare": prepare, "onnx": convert_to_onnx, "ctranslate2": convert_to_ctranslate2}

CONVERTERS = {"onnxruntime, float32": "onnx", "ctranslate2, float32": "ctranslate2"}


if __name__ == "__main__":
    sys.exit(main())
