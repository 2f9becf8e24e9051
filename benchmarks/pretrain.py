"""How fast language models are pretrained, hfkit beside the stock Trainer: `python benchmarks/pretrain.py [TEXT.txt]`.

Everything is a ratio of neighbours in time: training steps, or whole preparations, of the two programs alternate in
one process, and each ratio is one of a pair. Shown are the median of these ratios and, in brackets, their quartiles;
then the median of the same ratios in CPU time, which says more where other programs hold the cores.
About five minutes on two cores. TEXT.txt is for the preparation alone; without it the built-in text is used.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

GPT2 = {"n_embd": 384, "n_layer": 6, "n_head": 6}  # 13.9 million weights with the vocabulary of 8,192 entries
BERT = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
BERT_ENTRIES = 30_522  # of BERT's vocabulary
TEXT_BYTES = 8_000_000
BLOCK = 256
WARM_UP = 2  # rounds that are not counted
ROUNDS = {"causal": 12, "masked": 16, "preparation": 3}
OVERHEAD_STEPS = 200

Row = tuple[str, str, str]  # figure, target, reached
Seconds = dict[str, list[tuple[float, float]]]  # by side: of the wall clock and of CPU time


def main() -> None:
    from hfkit.models.config import quiet_libraries

    quiet_libraries()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hfkit-pretrain-") as name:
        folder = Path(name)
        use_cache(folder / "cache")
        text = Path(sys.argv[1]) if len(sys.argv) > 1 else builtin_text(folder / "text.txt")
        for figures in (
            lambda: causal(folder),
            lambda: masked(folder),
            lambda: preparation(text, folder),
            lambda: overhead(folder),
        ):
            for row in figures():
                rows.append(row)
                print(" | ".join(row), file=sys.stderr, flush=True)
    print("\n".join(f"| {' | '.join(row)} |" for row in [("figure", "target", "reached"), ("---",) * 3, *rows]))


def causal(folder: Path) -> list[Row]:
    """A GPT-2 in 8 x 256 tokens a step."""
    from transformers import GPT2Config, GPT2LMHeadModel

    hfkit = Hfkit("clm", folder, 8, {"model.type": "gpt2", "model.config": GPT2, "data.document_masking": False})
    masking = Hfkit("clm", folder, 8, {"model.type": "gpt2", "model.config": GPT2}, like=hfkit)
    sizes = {**GPT2, "vocab_size": hfkit.model.config.vocab_size, "n_positions": BLOCK}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sides = {
        "stock": Stock(GPT2LMHeadModel(GPT2Config(**sizes, **none)), hfkit),
        "hfkit": hfkit,
        "stock, dropout": Stock(GPT2LMHeadModel(GPT2Config(**sizes)), hfkit),
        "hfkit, documents": masking,
    }
    seconds, losses = interleaved(sides, ROUNDS["causal"])
    tokens = per_second(8 * BLOCK, seconds["hfkit"])
    return [
        (
            "causal LM, tokens/s against stock model and Trainer, dropout 0 in both",
            "1.12",
            f"{ratio(seconds, 'stock', 'hfkit')}; {tokens:,.0f} tokens/s",
        ),
        ("- largest difference of the losses: first step, all steps", "1e-4, -", differences(losses)),
        ("- dropout 0 in hfkit, 0.1 (the default) in the stock model", "-", ratio(seconds, "stock, dropout", "hfkit")),
        (
            "- dropout 0 in both, hfkit with documents masked from each other (its default)",
            "-",
            ratio(seconds, "stock", "hfkit, documents"),
        ),
    ]


def masked(folder: Path) -> list[Row]:
    """A BERT in 16 x 128 tokens a step, of which 15% are hidden."""
    from transformers import BertConfig, BertForMaskedLM

    settings = {"model.type": "bert", "model.config": BERT, "data.block_size": 128}
    hfkit = Hfkit("mlm", folder, 16, settings, entries=BERT_ENTRIES)
    sizes = {
        **BERT,
        "intermediate_size": 4 * BERT["hidden_size"],
        "vocab_size": hfkit.model.config.vocab_size,
        "max_position_embeddings": 128,
    }
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    seconds, losses = interleaved({"stock": Stock(BertForMaskedLM(config), hfkit), "hfkit": hfkit}, ROUNDS["masked"])
    tokens = per_second(16 * 128, seconds["hfkit"])
    return [
        (
            "masked LM, tokens/s against stock model and Trainer, dropout 0 in both",
            "1.6",
            f"{ratio(seconds, 'stock', 'hfkit')}; {tokens:,.0f} tokens/s",
        ),
        ("- largest difference of the losses: first step, all steps", "1e-4, -", differences(losses)),
    ]


class Hfkit:
    """Model, batches and Trainer as `hfkit pretrain` makes them; a step includes making its batch."""

    def __init__(
        self,
        task: str,
        folder: Path,
        batch_size: int,
        settings: Mapping[str, Any],
        entries: int = 8192,
        like: Hfkit | None = None,
    ) -> None:
        from hfkit import load_recipe
        from hfkit.models.config import load_config
        from hfkit.models.loading import new_or_pretrained
        from hfkit.tasks import TASKS
        from hfkit.tasks.base import LossOptions
        from hfkit.training.arguments import training_arguments
        from hfkit.training.stream import TrainingStream

        self.task, self.batch_size = TASKS[task], batch_size
        self.recipe = recipe = load_recipe(
            "pretrain",
            task=task,
            **{"train.per_device_train_batch_size": batch_size, "data.validation_split": 0.0, **settings},
        )
        texts = self.task.load(recipe)["train"]
        self.tokenizer = tokenizer_of(texts, str(recipe.model.type), entries) if like is None else like.tokenizer
        head = self.task.auto_model
        config = load_config(
            recipe.model, auto_model=head, block_size=recipe.data.block_size, dropout=recipe.train.dropout
        )
        self.model = new_or_pretrained(head, recipe.model, config, self.tokenizer, recipe)
        if like is not None:
            self.model.load_state_dict(like.model.state_dict())
        rows = self.task.encode(texts, self.tokenizer, self.model, recipe)
        self.stream = TrainingStream(rows, steps=1000, global_batch_size=batch_size, seed=recipe.train.seed)
        self.task.adapt(self.model, self.batch(0))
        args = training_arguments(recipe, folder / "run")
        loss = partial(self.task.loss, options=LossOptions(global_batch_size=batch_size))
        self.trainer = new_trainer(self.model, args, compute_loss_func=loss)

    def batch(self, number: int) -> dict[str, Any]:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return self.task.collate([self.stream[place] for place in places], self.tokenizer)


class Stock:
    """A stock model with the weights of hfkit's, in a Trainer with the same settings, which gets the same batches.

    The model computes its loss itself, from `labels`, and gets a mask of ones, as the example scripts have it.
    """

    def __init__(self, model: Any, hfkit: Hfkit) -> None:
        import torch
        from transformers import TrainingArguments

        model.load_state_dict(hfkit.model.state_dict())
        same = ("per_device_train_batch_size", "learning_rate", "weight_decay", "adam_beta2", "max_grad_norm")
        args = hfkit.trainer.args
        own = TrainingArguments(output_dir=args.output_dir, **{name: getattr(args, name) for name in same})
        self.trainer = new_trainer(model, own)
        self.batches = []
        for number in range(WARM_UP + max(ROUNDS.values())):  # made beforehand, to the stock Trainer's advantage
            batch = hfkit.batch(number)
            ids = batch["input_ids"]
            mask = batch.get("attention_mask", torch.ones_like(ids))
            self.batches.append({"input_ids": ids, "attention_mask": mask, "labels": batch["labels"]})

    def batch(self, number: int) -> dict[str, Any]:
        return self.batches[number]


def new_trainer(model: Any, args: Any, **options: Any) -> Any:
    """A Trainer that is ready for `training_step`."""
    from transformers import Trainer

    trainer = Trainer(model=model, args=args, **options)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def tokenizer_of(texts: Any, model_type: str, entries: int) -> Any:
    """A tokenizer trained on `texts`, filled up to `entries` with unused ones, as BERT's own is."""
    from hfkit.models.new_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(texts["text"], model_type, entries)
    tokenizer.add_tokens([f"[unused{number}]" for number in range(entries - len(tokenizer))])
    return tokenizer


def interleaved(sides: Mapping[str, Any], rounds: int) -> tuple[Seconds, dict[str, list[float]]]:
    """Seconds and losses of each side's steps, one step of each in turn, another side first in every round."""
    names = list(sides)
    seconds: Seconds = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            loss, spent = timed(train_step, sides[name], number)
            losses[name].append(loss)
            if number >= WARM_UP:
                seconds[name].append(spent)
    return seconds, losses


def timed(function: Callable[..., Any], *values: Any) -> tuple[Any, tuple[float, float]]:
    """What `function` returns for `values`, and its seconds of the wall clock and of CPU time."""
    start = time.perf_counter(), time.process_time()
    result = function(*values)
    return result, (time.perf_counter() - start[0], time.process_time() - start[1])


def train_step(side: Any, number: int) -> float:
    """What the Trainer's loop does in a step: batch, forward, loss, backward, clip, update; returns the loss."""
    trainer = side.trainer
    (batch,), items = trainer.get_batch_samples(iter([side.batch(number)]), 1, trainer.args.device)
    loss = trainer.training_step(trainer.model, batch, items)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    return float(loss)


def ratio(seconds: Seconds, slow: str, fast: str) -> str:
    """How many times as fast as `slow` `fast` is, round by round: median and quartiles, and in CPU time."""
    pairs = list(zip(seconds[slow], seconds[fast], strict=True))
    low, middle, high = statistics.quantiles([a[0] / b[0] for a, b in pairs], n=4, method="inclusive")
    cpu = statistics.median(a[1] / b[1] for a, b in pairs)
    return f"{middle:.2f} ({low:.2f} to {high:.2f}; {len(pairs)} pairs), CPU {cpu:.2f}"


def per_second(amount: float, seconds: Sequence[tuple[float, float]]) -> float:
    """`amount` by the median of the wall clock."""
    return amount / statistics.median(wall for wall, _ in seconds)


def differences(losses: Mapping[str, Sequence[float]]) -> str:
    found = [abs(a - b) for a, b in zip(losses["stock"], losses["hfkit"], strict=True)]
    assert found[0] <= 1e-4, f"the losses of the first step differ by {found[0]:.2g}"
    return f"{found[0]:.1e}, {max(found):.1e}"


def preparation(text: Path, folder: Path) -> list[Row]:
    """A text file, one document a paragraph, to blocks of 256 tokens, each time in an empty cache."""
    from hfkit.data.loading import load_source

    use_cache(folder / "for-tokenizer")
    tokenizer = tokenizer_of(load_source([str(text)], "blank-line"), "gpt2", 8192)
    ways = {"run_clm": tokenize_and_group, "hfkit": tokens_in_a_map}
    seconds: Seconds = {name: [] for name in ways}
    caches, counts = {}, {}
    for number in range(ROUNDS["preparation"]):
        for name, prepare in ways.items():
            cache = folder / f"{name}-{number}"
            use_cache(cache)
            dataset = load_source([str(text)], "blank-line")
            before = bytes_in(cache)
            counts[name], spent = timed(prepare, dataset, tokenizer)
            caches[name] = (bytes_in(cache) - before) / 1e6
            seconds[name].append(spent)
    size = sum(len(document.encode()) for document in dataset["text"]) / 1e6
    rates = " and ".join(f"{per_second(size, seconds[name]):.1f}" for name in ("hfkit", "run_clm"))
    lost = (f"{counts[name][0] - counts[name][1]:,} of {counts[name][0]:,}" for name in ("hfkit", "run_clm"))
    return [
        (
            f"preparation of {size:.1f} MB, {len(dataset):,} documents: MB/s against run_clm's tokenize and group",
            "2",
            f"{ratio(seconds, 'run_clm', 'hfkit')}; {rates} MB/s",
        ),
        (
            "- its cache against that of run_clm",
            "0.20",
            f"{caches['hfkit'] / caches['run_clm']:.2f}; {caches['hfkit']:.1f} and {caches['run_clm']:.1f} MB",
        ),
        ("- tokens lost by hfkit and by run_clm (which puts no EOS after a document)", "0, -", " and ".join(lost)),
    ]


def tokenize_and_group(dataset: Any, tokenizer: Any) -> tuple[int, int]:
    """As transformers' run_clm.py prepares: two cached maps, the second cuts each 1,000 rows and drops their tail."""

    def tokenize(rows: dict[str, Any]) -> Any:
        return tokenizer(rows["text"])

    def group(rows: dict[str, Any]) -> dict[str, Any]:
        joined = {name: list(chain(*values)) for name, values in rows.items()}
        end = len(joined["input_ids"]) // BLOCK * BLOCK
        blocks = {name: [v[at : at + BLOCK] for at in range(0, end, BLOCK)] for name, v in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    tokenized = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
    blocks = tokenized.map(group, batched=True)
    column = tokenized.data.column("input_ids")
    return sum(len(chunk.flatten()) for chunk in column.chunks), len(blocks) * BLOCK


def tokens_in_a_map(dataset: Any, tokenizer: Any) -> tuple[int, int]:
    """As hfkit prepares: one memory map of tokens, and blocks as views of it."""
    from hfkit.tasks.packing import Blocks, token_store

    store = token_store(dataset, tokenizer, end=tokenizer.eos_token_id)
    return len(store.tokens), int(Blocks(store, BLOCK).lengths.sum())


def overhead(folder: Path) -> list[Row]:
    """A plain `hfkit pretrain` of the smallest model, whose steps are the shortest: what is spent beside them.

    Measured from inside one run, since two runs differ by more than 2% from each other: each function that the
    stock Trainer would not call is timed, and their sum is divided by the rest of `Trainer.train`, evaluations apart.
    """
    from transformers import Trainer

    import hfkit
    from hfkit.runs.run import Run
    from hfkit.tasks import packing
    from hfkit.training import prepare
    from hfkit.training.callbacks import RunCallback

    use_cache(folder / "overhead")
    spent: dict[str, float] = {}

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def wrapped(*values: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*values, **options)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

        setattr(owner, name, wrapped)

    at_steps = ("on_train_begin", "on_pre_optimizer_step", "on_step_end", "on_save", "on_log", "on_prediction_step")
    once = {prepare: ("data_hash", "text_hash"), packing: ("_key", "_read"), Run: ("start",)}
    owners = {RunCallback: (*at_steps, "evaluate"), **once, Trainer: ("train",)}
    for owner, names in owners.items():
        for name in names:
            watch(owner, name)
    settings = {"train.max_steps": OVERHEAD_STEPS, "train.output_dir": str(folder / "overhead-run")}
    hfkit.train(hfkit.load_recipe("pretrain", **settings))
    evaluated = spent.pop("evaluate")
    spent["on_save"] -= evaluated  # which it calls
    beside = sum(spent[name] for name in at_steps if name in spent)
    before = sum(spent[name] for names in once.values() for name in names)
    steps = spent["train"] - evaluated - beside

    def share(seconds: float) -> str:
        return f"{100 * seconds / steps:.2f}%"

    return [
        (
            f"callbacks, hashing and logging, share of training time ({OVERHEAD_STEPS} steps of the tiny GPT-2)",
            "under 2%",
            f"{share(beside + before)}; {1000 * steps / OVERHEAD_STEPS:.0f} ms a step",
        ),
        (
            "- of it, each step: is the gradient a number; schedule, signals",
            "-",
            share(spent["on_pre_optimizer_step"] + spent["on_step_end"]),
        ),
        ("- of it, checkpoints: hash, sync and commit", "-", share(spent["on_save"])),
        ("- of it, logging", "-", share(spent["on_log"])),
        ("- of it, before the first step: hashes of data and tokens, manifest", "-", share(before)),
    ]


def builtin_text(path: Path) -> Path:
    """The built-in text over and over, up to TEXT_BYTES."""
    from hfkit.data.sources import load_builtin

    once = "\n\n".join(load_builtin("builtin:python-docs")["train"]["text"]) + "\n\n"
    path.write_text(once * -(-TEXT_BYTES // len(once.encode())), encoding="utf-8")
    return path


def use_cache(folder: Path) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = folder


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
