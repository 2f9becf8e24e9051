"""How fast texts are classified, hfkit beside the stock Trainer: `python benchmarks/finetune.py [--help]`.

Three programs train the same weights with the same batch size: the stock Trainer as transformers' run_glue.py has it
(every row padded to 128 tokens), the stock Trainer with dynamic padding, and hfkit. Speed is measured in one process
that takes one step of each in turn, from its own data loader, over a whole shuffled bucket of hfkit's, since its
steps differ in length: a ratio is one of total seconds, in brackets its lowest and highest value over five parts of
the run; then the same in CPU time. Peak memory is that of a process of its own for each, over as many steps.

Without --model a new BERT of MiniLM's size (6 layers of 384, vocabulary of 30,522) is trained, without --data rows as
long as those of SST-2. About twenty minutes on two cores, most of them spent on padding.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pretrain import BERT_ENTRIES, WARM_UP, Row, Seconds, interleaved, new_trainer, tokenizer_of, train_step, use_cache

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
PADDED = 128  # run_glue.py's --max_seq_length
WORDS = {"median": 7, "sigma": 0.77, "most": 52}  # of a row of SST-2's training data, whose mean is 9.4
PARTS = 5  # of a run, for the spread


def main() -> None:
    from hfkit.models.config import quiet_libraries

    quiet_libraries()
    options = read_options()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory(prefix="hfkit-finetune-") as name:
        folder = Path(name)
        use_cache(folder / "cache")
        options.folder = str(folder)
        options.data = options.data or str(rows_like_sst2(folder / "train.tsv", options.rows))
        options.model = options.model or str(new_minilm(folder / "model", options.data))
        rows = [*speed(options), *memory(options)]
    print("\n".join(f"| {' | '.join(row)} |" for row in [("figure", "target", "reached"), ("---",) * 3, *rows]))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", help="a model directory (default: a new BERT of MiniLM's size)")
    parser.add_argument("--data", help="a .tsv file with the columns sentence and label (default: made up)")
    parser.add_argument("--validation", help="such a file: also score what the measured steps have learned")
    parser.add_argument("--rows", type=int, default=20_000, help="made-up rows")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--steps", type=int, default=50, help="measured steps of each, by default one bucket of hfkit's"
    )
    parser.add_argument("--measure", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def speed(options: argparse.Namespace) -> list[Row]:
    seconds, _ = interleaved({name: side(options) for name, side in SIDES.items()}, options.steps)
    rates = {name: options.batch_size * options.steps / sum(wall for wall, _ in seconds[name]) for name in SIDES}
    targets = {"run_glue": ("run_glue.py's defaults", "4"), "dynamic": ("dynamic padding", "1.3")}
    return [
        (
            f"samples/s against the stock Trainer with {what}",
            target,
            f"{ratio(seconds, name, 'hfkit')}; {rates['hfkit']:,.1f} and {rates[name]:,.1f} samples/s",
        )
        for name, (what, target) in targets.items()
    ]


def ratio(seconds: Seconds, slow: str, fast: str) -> str:
    """How many times as fast as `slow` `fast` is: by total time, its range over parts of the run, by CPU time."""

    def of(start: int, stop: int, clock: int) -> float:
        return sum(s[clock] for s in seconds[slow][start:stop]) / sum(s[clock] for s in seconds[fast][start:stop])

    steps = len(seconds[fast])
    size = max(1, steps // PARTS)
    parts = [of(start, start + size, 0) for start in range(0, steps - size + 1, size)]
    return f"{of(0, steps, 0):.2f} ({min(parts):.2f} to {max(parts):.2f}; {steps} steps), CPU {of(0, steps, 1):.2f}"


def memory(options: argparse.Namespace) -> list[Row]:
    """Peak memory of each in a process of its own and, with --validation, the accuracy that it ends with."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    found = {}
    for name in SIDES:
        command = [sys.executable, __file__, *flags, f"--measure={name}"]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(name, found[name], file=sys.stderr)
    order = ("hfkit", "dynamic", "run_glue")
    peaks = ", ".join(f"{found[name]['peak_mib']:,}" for name in order)
    rows = [("peak memory in MiB: hfkit, dynamic padding, run_glue.py", "below both", peaks)]
    if options.validation:
        shown = ", ".join(f"{found[name]['accuracy']:.4f}" for name in order)
        what = f"accuracy of the same after {options.steps} steps, n={found['hfkit']['n']:,}"
        rows.append((what, f"within {found['hfkit']['margin']:.4f}", shown))
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One program alone."""
    use_cache(Path(options.folder) / "cache")
    side = SIDES[options.measure](options)
    for number in range(options.steps):
        train_step(side, number)
    found: dict[str, Any] = {"peak_mib": peak_mib()}
    return found | (score(side, options.validation) if options.validation else {})


def peak_mib() -> int:
    """Largest resident size so far, by Linux alone: ru_maxrss begins at what the parent had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


def score(side: Any, path: str) -> dict[str, Any]:
    """Accuracy, by the same code for all, and half of its 95% interval."""
    import torch

    texts, labels = read_rows(path)
    names = {str(name): index for index, name in side.model.config.id2label.items()}
    right = 0
    side.model.eval()
    for start in range(0, len(texts), 64):
        batch = side.tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            chosen = side.model(**batch.to(side.model.device)).logits.argmax(-1).tolist()
        right += sum(one == names[label] for one, label in zip(chosen, labels[start : start + 64], strict=True))
    accuracy = right / len(texts)
    return {"accuracy": accuracy, "n": len(texts), "margin": 1.96 * (accuracy * (1 - accuracy) / len(texts)) ** 0.5}


class Side:
    """A program that trains: its Trainer, ready for `training_step`, and the batches of its data loader."""

    trainer: Any
    model: Any
    tokenizer: Any

    def batch(self, number: int) -> dict[str, Any]:
        if number == 0:
            self.batches: Iterator[dict[str, Any]] = iter(self.trainer.get_train_dataloader())
        batch: dict[str, Any] = next(self.batches)
        return batch


class Stock(Side):
    """The stock Trainer on rows that are tokenized as run_glue.py does it."""

    def __init__(self, options: argparse.Namespace, *, pad_to_max_length: bool, **arguments: Any) -> None:
        from datasets import Dataset
        from transformers import (
            AutoModelForSequenceClassification,
            AutoTokenizer,
            DataCollatorWithPadding,
            TrainingArguments,
            default_data_collator,
            set_seed,
        )

        texts, labels = read_rows(options.data)
        names = sorted(set(labels))
        set_seed(42)
        self.tokenizer = tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            options.model, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)}
        )
        length = min(PADDED, self.model.config.max_position_embeddings)
        padding = "max_length" if pad_to_max_length else False

        def tokenize(rows: dict[str, Any]) -> Any:
            encoded = tokenizer(rows["sentence"], padding=padding, max_length=length, truncation=True)
            return {**encoded, "label": [names.index(label) for label in rows["label"]]}

        dataset = Dataset.from_dict({"sentence": texts, "label": labels}).map(
            tokenize, batched=True, remove_columns=["sentence"]
        )
        usual = {
            "output_dir": options.folder,
            "per_device_train_batch_size": options.batch_size,
            "dataloader_pin_memory": False,
        }
        args = TrainingArguments(**{**usual, **arguments})
        collator = default_data_collator if pad_to_max_length else DataCollatorWithPadding(tokenizer)
        self.trainer = new_trainer(self.model, args, train_dataset=dataset, data_collator=collator)


class Hfkit(Side):
    """Model, batches and Trainer as `hfkit finetune` makes them, with some settings of the data."""

    def __init__(self, options: argparse.Namespace, settings: dict[str, Any]) -> None:
        from transformers import set_seed

        from hfkit import load_recipe
        from hfkit.models.config import load_config
        from hfkit.models.loading import new_or_pretrained
        from hfkit.models.tokenizer import load_tokenizer
        from hfkit.tasks import TASKS
        from hfkit.tasks.base import LossOptions
        from hfkit.training.arguments import training_arguments
        from hfkit.training.prepare import load_splits
        from hfkit.training.stream import TrainingStream
        from hfkit.training.trainer import collate

        recipe = load_recipe(
            "finetune",
            **{"model.name": options.model, "data.train": [options.data], "data.validation_split": 0.0, **settings},
            **{"train.per_device_train_batch_size": options.batch_size},
        )
        task = TASKS[str(recipe.task)]
        config = load_config(recipe.model)
        splits = load_splits(task, recipe)
        set_seed(recipe.train.seed)
        self.tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
        for key, value in task.model_config(splits, config).items():
            setattr(config, key, value)
        self.model = new_or_pretrained(task.auto_model, recipe.model, config, self.tokenizer, recipe)
        rows = task.encode(splits["train"], self.tokenizer, self.model, recipe)
        size = options.batch_size
        steps = WARM_UP + options.steps
        stream = TrainingStream(rows, steps=steps, global_batch_size=size, seed=recipe.train.seed)
        task.adapt(self.model, task.collate(stream.sample(size), self.tokenizer))
        self.trainer = new_trainer(
            self.model,
            training_arguments(recipe, Path(options.folder) / "run"),
            train_dataset=stream,
            data_collator=partial(collate, task, self.tokenizer),
            compute_loss_func=partial(task.loss, options=LossOptions(global_batch_size=size)),
        )


SIDES: dict[str, Any] = {
    "run_glue": partial(Stock, pad_to_max_length=True),
    "dynamic": partial(Stock, pad_to_max_length=False),
    "hfkit": partial(Hfkit, settings={"data.columns.text": "sentence", "data.columns.label": "label"}),
}


def read_rows(path: str) -> tuple[list[str], list[str]]:
    """Sentences and labels of a .tsv file as GLUE writes them: no quotes, the names of the columns on top."""
    head, *lines = Path(path).read_text(encoding="utf-8").splitlines()
    columns = head.split("\t")
    rows = [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]
    return [row["sentence"] for row in rows], [row["label"] for row in rows]


def rows_like_sst2(path: Path, num_rows: int) -> Path:
    """Words of the built-in text, as many in a row as in SST-2; the labels say nothing."""
    from hfkit.data.sources import load_builtin

    draw = random.Random(0)
    words = [
        word for text in load_builtin("builtin:python-docs")["train"]["text"] for word in text.split() if word.isalpha()
    ]
    lines = ["sentence\tlabel"]
    for number in range(num_rows):
        length = min(WORDS["most"], max(1, round(WORDS["median"] * draw.lognormvariate(0, WORDS["sigma"]))))
        start = draw.randrange(len(words) - length)
        lines.append(f"{' '.join(words[start : start + length])}\t{number % 2}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def new_minilm(folder: Path, data: str) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    texts, _ = read_rows(data)
    tokenizer = tokenizer_of({"text": texts}, "bert", BERT_ENTRIES)
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **MINILM)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
