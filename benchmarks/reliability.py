"""What a run survives, hfkit beside the stock Trainer: `python benchmarks/reliability.py`, about ten minutes.

The Trainer is used as the example scripts use it: its own checkpoints and `resume_from_checkpoint=True`. Both train
the same tiny GPT-2 or BERT with dropout 0.1 on the same 60 rows, and get the same faults from the same harness.
"Identical": one hash over all weights and all optimizer tensors equals that of the run that nothing happened to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "reliability")]

from harness import FILES, STREAMING, DiesInSave, Ended, Material, SignalAt, launch, state_hash  # noqa: E402

POINTS = [(file, half) for file in FILES for half in (True, False)][
    2:13
]  # 11: from model.safetensors to half of the last
STEPS = 20
LATER = {1: 16, 2: 8}  # rows a process and step with which checkpoint 10 lies inside a later pass, for either program


def stock(arguments: list[str]) -> int:
    """A Trainer program: stock KIND RUN FOLDER WORKERS SEED BATCH [resume]."""
    import torch
    import transformers
    from datasets import Dataset

    kind, run, folder, workers, seed, batch, *resume = arguments
    transformers.logging.set_verbosity_error()
    transformers.set_seed(int(seed))
    name, auto = ("bert-tiny", "MaskedLM") if kind == "mlm" else ("gpt2-tiny", "CausalLM")
    model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(Path(folder) / name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(folder) / name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = (Path(folder) / "text.txt").read_text(encoding="utf-8").split("\n\n")
    rows: Any = Dataset.from_dict(dict(tokenizer(texts, truncation=True, max_length=16)))
    if kind == "stream":
        rows = rows.to_iterable_dataset(num_shards=4).shuffle(seed=int(seed), buffer_size=20)
    args = transformers.TrainingArguments(
        output_dir=run,
        max_steps=STEPS,
        per_device_train_batch_size=int(batch),
        save_steps=5,
        logging_steps=1,
        seed=int(seed),
        dataloader_num_workers=int(workers),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=kind == "mlm")
    trainer = transformers.Trainer(model, args, data_collator=collator, train_dataset=rows)
    trainer.add_callback(_log_file(Path(run))())
    trainer.train(resume_from_checkpoint=bool(resume) or None)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if trainer.is_world_process_zero():
        trainer.save_model()
    return 0


def _log_file(run: Path) -> Any:
    """A callback that writes the log to a file, whose n-th line is where the harness strikes."""
    from transformers import TrainerCallback

    class LogFile(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                run.mkdir(exist_ok=True)
                with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step}) + "\n")

    return LogFile


@dataclasses.dataclass(frozen=True)
class Setting:
    """One kind of run."""

    kind: str = "map"  # map, stream or mlm
    ranks: int = 1
    workers: int = 0
    seed: int = 42
    batch: int = 4


class Side:
    """One of the two programs, and how it is started, killed and resumed."""

    def __init__(self, name: str, material: Material, folder: Path) -> None:
        self.name, self.material, self.folder = name, material, folder
        self._unbroken: dict[Setting, str] = {}
        self.hung = 0

    def run(self, setting: Setting, run: Path, *faults: Callable[[], None], resume: bool = False) -> Ended:
        return self.start(setting, run, *faults, resume=resume).wait()

    def start(self, setting: Setting, run: Path, *faults: Callable[[], None], resume: bool = False) -> Any:
        said = self.folder / "said"
        if self.name == "Trainer":
            values = (setting.kind, run, self.material.folder, setting.workers, setting.seed, setting.batch)
            arguments = [*map(str, values), *(["resume"] if resume else [])]
            return launch(arguments, said, ranks=setting.ranks, faults=faults, program=stock)
        more = {
            "--dataloader-num-workers": setting.workers,
            "--seed": setting.seed,
            "--batch-size": setting.batch,
            "--eval-steps": 100,
        }
        words = [str(word) for pair in more.items() for word in pair]
        if setting.kind == "stream":
            words += STREAMING
        command = self.material.command("mlm" if setting.kind == "mlm" else "clm", run, *words)
        return launch([*command, *(["--resume", "auto"] if resume else [])], said, ranks=setting.ranks, faults=faults)

    def unbroken(self, setting: Setting) -> str:
        if setting not in self._unbroken:
            run = self.fresh()
            ended = self.run(setting, run)
            assert ended.code == 0, ended.err
            self._unbroken[setting] = final_hash(run)
        return self._unbroken[setting]

    def killed(self, setting: Setting, step: int) -> Path:
        """A run that was killed at a step."""
        run = self.fresh()
        try:
            self.run(setting, run, SignalAt(signal.SIGKILL, "metrics.jsonl", step))
        except AssertionError:  # the other rank waits for the dead one
            self.hung += 1
        return run

    def fresh(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / "run"

    def end(self, setting: Setting, run: Path, of: Setting | None = None) -> str:
        """How the resumed run ends: identical, refused, stuck, or silent: exit code 0 and other tensors."""
        ended = self.run(setting, run, resume=True)
        if ended.code:
            return "stuck" if "Traceback" in ended.err else "refused"
        return "identical" if final_hash(run) == self.unbroken(of or setting) else "silent"


def final_hash(run: Path) -> str:
    return state_hash(run, run / f"checkpoint-{STEPS}")


def survival(side: Side) -> str:
    """Kills inside the save of step 10, at 11 points, each followed by a resume."""
    setting = Setting()
    base, model = side.killed(setting, 8), side.killed(setting, 18) / "checkpoint-15"
    ends = []
    for file, half in POINTS:
        run = side.fresh()
        shutil.copytree(base, run)
        side.run(setting, run, DiesInSave(model, 10, file, half), resume=True)
        ends.append(side.end(setting, run))
    return f"{ends.count('identical')} of {len(ends)} ({counted(ends)})"


def cells(side: Side) -> dict[str, str]:
    """Killed and resumed, for each kind of data, number of processes and of loader workers."""
    found = {}
    for kind, label in (
        ("map", "map-style"),
        ("mlm", "masked LM"),
        ("stream", "stream, pass 1"),
        ("stream", "stream, later"),
    ):
        for ranks in (1, 2):
            for workers in (0, 2):
                later = label == "stream, later"
                setting = Setting(kind, ranks, workers, batch=LATER[ranks] if later else 4)
                found[f"{label}, {ranks} x {workers}"] = side.end(setting, side.killed(setting, 12 if later else 6))
    return found


def corruptions(side: Side) -> dict[str, str]:
    """Twelve things that happen between a kill at step 12 and the resume."""
    setting = Setting()
    base = side.killed(setting, 12)
    found = {}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        found[f"{name} removed"] = _after(side, base, lambda run, name=name: (run / name).unlink())
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        found[f"bit flipped in {name}"] = _after(side, base, lambda run, name=name: flip(run / name))
    text = side.material.text
    held = text.read_text(encoding="utf-8")
    side.unbroken(setting)
    text.write_text(held.replace("fox", "cat"), encoding="utf-8")
    found["data edited"] = _after(side, base)
    text.write_text(held, encoding="utf-8")
    found["other seed"] = _after(side, base, setting=dataclasses.replace(setting, seed=1))
    found["other batch size"] = _after(side, base, setting=dataclasses.replace(setting, batch=8))
    two = Setting(ranks=2)
    found["2 processes, then 1"] = _after(side, side.killed(two, 12), of=two)
    found["masked LM"] = side.end(Setting("mlm"), side.killed(Setting("mlm"), 12))
    stream = Setting("stream", batch=LATER[1])
    found["stream, later pass"] = side.end(stream, side.killed(stream, 12))
    return found


def _after(
    side: Side,
    base: Path,
    damage: Callable[[Path], Any] = lambda run: None,
    setting: Setting = Setting(),
    of: Setting = Setting(),
) -> str:
    run = side.fresh()
    shutil.copytree(base, run)
    damage(run / "checkpoint-10")
    return side.end(setting, run, of)


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 4
    path.write_bytes(held)


def stopping(side: Side, trials: int) -> str:
    """Seconds from SIGTERM to exit while training, and what they end in."""
    draw, seconds, ends, lost = random.Random(0), [], [], []
    for _ in range(trials):
        run = side.fresh()
        launched = side.start(Setting(), run)
        launched.wait_until(lambda run=run: (run / "metrics.jsonl").exists())
        time.sleep(draw.uniform(0, 0.2))
        start = time.monotonic()
        launched.signal(signal.SIGTERM)
        ended = launched.wait()
        seconds.append(time.monotonic() - start)
        saved = max((int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*")), default=0)
        made = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]
        lost.append(made - saved)
        ends.append(f"exit code {ended.code}")
    seconds.sort()
    p50, p95 = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.95)]
    return f"{p50:.2f} / {p95:.2f} ({counted(ends)}; up to {max(lost)} steps lost)"


class Timers:
    """Times the parts of saving in a run of hfkit and writes them to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        from transformers import Trainer

        from hfkit.runs.run import Run
        from hfkit.training import callbacks

        spent: dict[str, list[float]] = {}

        def timed(owner: Any, name: str) -> None:
            function = getattr(owner, name)

            def wrapped(*values: Any, **options: Any) -> Any:
                start = time.perf_counter()
                try:
                    return function(*values, **options)
                finally:
                    spent.setdefault(name, []).append(time.perf_counter() - start)
                    self.path.write_text(json.dumps(spent), encoding="utf-8")

            setattr(owner, name, wrapped)

        timed(callbacks.RunCallback, "on_pre_optimizer_step")
        timed(callbacks.RunCallback, "on_step_end")
        timed(callbacks.RunCallback, "on_save")
        timed(Run, "commit")
        timed(Trainer, "_save_checkpoint")
        timed(Trainer, "training_step")
        timed(Trainer, "train")


def cost(material: Material, folder: Path) -> dict[str, float]:
    """What the safety takes of a run with 13 million weights, saved every 10 of 30 steps."""
    path = folder / "timers.json"
    command = ["pretrain", "--data", str(material.text), "--size", "small", "--block-size", "128", "--batch-size", "8"]
    command += ["--max-steps", "30", "--save-steps", "10", "--eval-steps", "100", "--validation-split", "0"]
    ended = launch([*command, "--output-dir", str(folder / "cost")], folder / "said", faults=[Timers(path)]).wait()
    assert ended.code == 0, ended.err
    spent = {name: sum(values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()}
    safety = spent["on_pre_optimizer_step"] + spent["on_step_end"] + spent["on_save"]
    size = sum(file.stat().st_size for file in (folder / "cost" / "checkpoint-30").iterdir())
    return {
        "steps/s with": 30 / spent["train"],
        "steps/s without": 30 / (spent["train"] - safety),
        "ms a step for the guard": 1000 * spent["on_pre_optimizer_step"] / 30,
        "s a save of the Trainer": spent["_save_checkpoint"] / 3,
        "s a commit": spent["commit"] / 3,
        "MB a checkpoint": size / 1e6,
    }


def hashing(folder: Path) -> dict[str, float]:
    """Seconds per GB, of a file that was just written."""
    from hfkit.system.files import file_hash

    path = folder / "gigabyte"
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(954):
            file.write(block)
    start = time.perf_counter()
    file_hash(path)
    middle = time.perf_counter()
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    end = time.perf_counter()
    path.unlink()
    return {"xxh3_128 s/GB": middle - start, "sha256 s/GB": end - middle}


def counted(ends: list[str]) -> str:
    return ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="hfkit-reliability-"))
    try:
        material = Material(folder)
        sides = []
        for name in ("hfkit", "Trainer"):
            (folder / name).mkdir()
            sides.append(Side(name, material, folder / name))
        rows: list[list[str]] = [["", *(side.name for side in sides)]]

        def row(title: str, *values: str) -> None:
            rows.append([title, *values])
            print(" | ".join(rows[-1]), flush=True)

        row("killed inside a save, 11 points: identical after resume", *map(survival, sides))
        found = [cells(side) for side in sides]
        identical = (f"{list(each.values()).count('identical')} of {len(each)}" for each in found)
        row("killed and resumed, 16 cells: identical", *identical)
        for cell in found[0]:
            row(f"- {cell}", *(each[cell] for each in found))
        row("rank 0 killed: the other one waits for more than a minute", *(str(side.hung) for side in sides))
        found = [corruptions(side) for side in sides]
        row("silent corruptions, 12 trials", *(str(list(each.values()).count("silent")) for each in found))
        for cell in found[0]:
            row(f"- {cell}", *(each[cell] for each in found))
        row("SIGTERM to exit, seconds, p50 / p95 of 20", *(stopping(side, 20) for side in sides))
        for name, value in {**cost(material, folder), **hashing(folder)}.items():
            row(name, f"{value:.3g}", "")
        print("\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0], ["---"] * 3, *rows[1:]]))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
