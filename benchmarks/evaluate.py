"""How fast evaluations are and what memory they take: `python benchmarks/evaluate.py [--tiny]`.

Perplexity: the same rows, model and definition in hfkit and as the metric `perplexity` of Hugging Face `evaluate` goes
about it (rows in the order of the file, sixteen at a time, each batch padded to its longest row); both in turn, so
that a ratio is one of neighbours in time. Metrics: each in a process of its own, whose peak memory is shown beside
that of a tenth of the rows. About twenty minutes on two cores; --tiny checks in one that everything still runs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

TINY = "--tiny" in sys.argv
ROWS = 48 if TINY else 320  # of the perplexity
ROUNDS = 1 if TINY else 5
PAIRS = 1_000 if TINY else 100_000
LABELLED = 10_000 if TINY else 1_000_000
CLASSES = 10

Row = tuple[str, str, str]  # figure, target, reached


def main() -> None:
    rows: list[Row] = []
    for figures in (perplexity, lambda: in_process("texts", PAIRS), lambda: in_process("labels", LABELLED)):
        for row in figures():
            rows.append(row)
            print(" | ".join(row), file=sys.stderr, flush=True)
    print("\n".join(f"| {' | '.join(row)} |" for row in [("figure", "target", "reached"), ("---",) * 3, *rows]))


def perplexity() -> list[Row]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hfkit.metrics.perplexity import compatible

    tokenizer, texts = tokenizer_and_texts()
    torch.manual_seed(0)
    sizes = {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 256}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).eval()
    tokens = sum(min(len(ids), 255) for ids in tokenizer(texts)["input_ids"])
    sides = {
        "evaluate": lambda: in_file_order(model, tokenizer, texts),
        "hfkit": lambda: compatible("evaluate", model, tokenizer, texts)["mean_perplexity"].value,
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    values: dict[str, float] = {}
    for _ in range(ROUNDS + 1):  # the first to warm up
        for side, run in sides.items():
            start = time.process_time()
            values[side] = run()
            seconds[side].append(time.process_time() - start)
    ratios = [stock / ours for stock, ours in zip(seconds["evaluate"][1:], seconds["hfkit"][1:], strict=True)]
    rate = tokens / statistics.median(seconds["hfkit"][1:])
    apart = abs(values["hfkit"] / values["evaluate"] - 1)
    reached = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); {rate:,.0f} tokens/s"
    return [
        ("perplexity, tokens per CPU second against the code path of evaluate", "2", reached),
        ("- relative difference of the two numbers", "1e-4", f"{apart:.1e}"),
    ]


def tokenizer_and_texts() -> tuple[Any, list[str]]:
    """A byte-level tokenizer of 8,192 entries and rows of very different lengths, from the built-in text."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    from hfkit.data.sources import load_builtin

    documents = [text for text in load_builtin("builtin:python-docs")["train"]["text"] if text.strip()]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents, vocab_size=8192, special_tokens=["<|end|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<|end|>", pad_token="<|end|>")
    paragraphs = [part for text in documents for part in text.split("\n\n") if part.strip()]
    return tokenizer, paragraphs[:: max(1, len(paragraphs) // ROWS)][:ROWS]


def in_file_order(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The mean over rows of exp(nats per token), as `evaluate` comes to it."""
    import torch

    encoded = tokenizer(texts, add_special_tokens=False, padding=True, truncation=True, max_length=255)
    ids, mask = (torch.tensor(encoded[name]) for name in ("input_ids", "attention_mask"))
    start = torch.full((len(ids), 1), tokenizer.bos_token_id)
    ids, mask = torch.cat([start, ids], dim=1), torch.cat([torch.ones_like(start), mask], dim=1)
    found = []
    for begin in range(0, len(ids), 16):
        batch, seen = ids[begin : begin + 16], mask[begin : begin + 16]
        with torch.no_grad():
            logits = model(batch, attention_mask=seen).logits
        predicted, wanted, counts = logits[:, :-1].contiguous(), batch[:, 1:].contiguous(), seen[:, 1:]
        losses = torch.nn.functional.cross_entropy(predicted.transpose(1, 2), wanted, reduction="none")
        found += torch.exp((losses * counts).sum(1) / counts.sum(1)).tolist()
    return float(statistics.fmean(found))


def in_process(kind: str, size: int) -> list[Row]:
    """Seconds and peak memory of metrics with intervals on `size` rows, each kind in a process of its own."""
    names = (
        ("bleu", "rouge") if kind == "texts" else ("accuracy", "f1_macro,mcc", "log_loss", "accuracy,log_loss,brier")
    )
    rows: list[Row] = []
    for metrics in names:
        (_, small), (seconds, whole) = (measured(kind, number, metrics) for number in (size // 10, size))
        what = "sentence pairs" if kind == "texts" else f"rows of {CLASSES} classes"
        memory = f"{whole:,} MB at its peak, {small:,} MB with a tenth of them"
        rows.append((f"{metrics} with intervals, {size:,} {what}", "-", f"{seconds:.0f} s; {memory}"))
    return rows


def measured(kind: str, size: int, metrics: str) -> tuple[float, int]:
    command = [sys.executable, __file__, "--measure", kind, str(size), metrics]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, memory = json.loads(done.stdout)
    return seconds, memory


def measure(kind: str, size: int, metrics: str) -> None:
    import numpy as np

    from hfkit.metrics.table import compute

    rng = np.random.default_rng(0)
    if kind == "texts":
        words = np.array([f"word{number}" for number in range(5000)])
        chosen = np.minimum(rng.zipf(1.3, (size, 20)), len(words)) - 1
        wrong = np.where(rng.random(chosen.shape) < 0.3, rng.integers(len(words), size=chosen.shape), chosen)
        references, predictions = ([" ".join(row) for row in words[part]] for part in (chosen, wrong))
    else:
        references = rng.integers(CLASSES, size=size)
        logits = rng.normal(size=(size, CLASSES))
        logits[np.arange(size), references] += 2
        predictions = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        if not {"log_loss", "brier"} & set(metrics.split(",")):
            predictions = predictions.argmax(axis=1)
    start = time.perf_counter()
    compute(metrics.split(","), predictions, references)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak_megabytes()]))


def peak_megabytes() -> int:
    """Of this process alone: getrusage's figure begins at that of the process which started it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024


if __name__ == "__main__":
    if "--measure" in sys.argv:
        measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
