"""What a run takes, before it begins: memory, disk, steps and time, on each asked number of processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel, TrainingArguments, get_scheduler

from hfkit.data.sources import offline_for
from hfkit.models.loading import new_or_pretrained
from hfkit.runs.manifest import checkpoint_bytes, default_directory
from hfkit.runs.run import Run
from hfkit.settings import Recipe
from hfkit.system import console, files
from hfkit.system.console import counted, duration, say, scaled, size
from hfkit.tasks import TASKS
from hfkit.tasks.base import Examples, Task
from hfkit.training.arguments import set_steps, training_arguments
from hfkit.training.batch import BatchSize, batch_size, batch_sizes, num_devices
from hfkit.training.pace import Pace, number_of_steps, pace, padded_tokens, trial
from hfkit.training.prepare import prepare, stream_of, with_batch_that_fits
from hfkit.training.prepared import Prepared
from hfkit.training.stream import MEGABATCH, StreamedExamples, TrainingStream

Facts = dict[str, Any]

PEAK_SIZE = (1024, 8192)  # of the square matrices whose product shows what a CPU, or else a GPU, can do

CURVE = (60, 4)  # columns and lines of the learning rate's plot

BARS = " ▁▂▃▄▅▆▇█"

# Numbers that an optimizer keeps for each weight; all others as many as AdamW.
OPTIMIZER_NUMBERS = {"sgd": 1, "adafactor": 0}


class Measured(NamedTuple):
    """What the model and the data take on one device of this machine."""

    total: int  # weights
    trained: int
    itemsize: int  # bytes of a weight
    flops: float  # of a forward and backward pass, per token
    activations: float | None  # bytes kept for the backward pass, per token; None: not measured
    kept: float  # bytes kept for it whatever the number of tokens: weights converted to the dtype of the computation
    pace: Pace
    peak: float  # FLOP/s that the device reaches at most
    mean: float  # tokens of an example
    longest: int


def plan(recipe: Recipe, processes: Sequence[int] = (), parallel: str = "ddp") -> Facts:
    """What `recipe` takes on each number of `processes` (none: as this command was started); ready for JSON.

    Nothing is trained, and nothing is written but the caches of data. Forward and backward passes are timed on this
    machine; the figures for more processes assume as many devices of its kind and leave out their communication. For
    a new model that does not fit into memory, compute is estimated and time is a lower bound.

    parallel: "ddp", or "fsdp2" if the weights are sharded. Raises what training raises before its first step.
    """
    task = TASKS[recipe.task or ""]
    processes = list(processes) or [num_devices(recipe)]
    for number in processes:
        batch_size(recipe, number)  # a batch that can't be divided is refused before data is read
    with offline_for(recipe):
        return _plan(task, recipe, processes, parallel)


def _plan(task: Task, recipe: Recipe, processes: Sequence[int], parallel: str) -> Facts:
    directory = Path(recipe.train.output_dir or default_directory(recipe, task.command, continued=False))
    ready = prepare_to_plan(task, recipe, directory)
    on_paper = ready.model.device.type == "meta"
    args = training_arguments(ready.recipe, directory)
    stream = stream_of(MEGABATCH, ready)
    measured = measure(ready, stream, args, on_paper=on_paper)
    runs = [run_facts(recipe, ready, measured, args, number, parallel) for number in processes]
    return {
        "model": {
            "type": ready.config.model_type,
            "parameters": measured.total,
            "trained_parameters": measured.trained,
            "dtype": recipe.model.dtype,
        },
        "data": data_facts(ready, stream, measured.mean),
        "compute": {
            "flops_per_token": measured.flops,
            "counted": not on_paper,
            "peak_flops_per_second": measured.peak,
            "peak": f"measured on this machine in a product of square matrices of {peak_size(args):,} rows",
        },
        "disk": disk_facts(recipe, measured, directory),
        "learning_rate": {
            "peak": recipe.train.learning_rate,
            "schedule": recipe.train.lr_scheduler_type,
            "curve": learning_rates(args, recipe, runs[0]["steps"]),
        },
        "parallel": parallel,
        "runs": runs,
    }


def prepare_to_plan(task: Task, recipe: Recipe, directory: Path) -> Prepared:
    """What training starts from; a new model that does not fit into memory has shapes only, on the meta device."""
    new = recipe.model.from_scratch
    with torch.device("meta") if new else nullcontext():
        ready = prepare(task, recipe, Run(directory, task.command, recipe, None, False))
    if new:
        if 2 * ready.model.num_parameters() * ready.model.dtype.itemsize > free_memory():
            return ready
        ready = ready._replace(
            model=new_or_pretrained(task.auto_model, recipe.model, ready.config, ready.tokenizer, recipe)
        )
    if recipe.train.per_device_train_batch_size == "auto":
        ready = with_batch_that_fits(ready, directory)
    return ready


def measure(
    ready: Prepared, stream: TrainingStream | StreamedExamples, args: TrainingArguments, *, on_paper: bool
) -> Measured:
    """What the model and the data take on this machine; `on_paper`: estimated from the shapes of the weights."""
    weights = list(ready.model.parameters())
    total, trained = (sum(w.numel() for w in some) for some in (weights, [w for w in weights if w.requires_grad]))
    batches, _ = stream.spread(args.train_batch_size, 3)
    two, longest = batches[len(batches) // 2][:2], max(len(row["input_ids"]) for row in stream.longest(1))
    mean = stream.mean_length or padded_tokens(two) / len(two)
    peak = matmul_flops(args)
    activations: float | None = None
    kept = 0.0
    if on_paper:
        say(f"{total:,} parameters don't fit into memory: compute is estimated; time is a lower bound")
        flops = 6.0 * matrix_parameters(ready.model)
        own = Pace(flops * mean / peak, 0.0)
    else:
        ready.task.adapt(ready.model.to(args.device), ready.collate(two))
        flops, activations, kept = counted_passes(ready, two, args)
        own = pace(ready, stream, args)
    return Measured(total, trained, ready.model.dtype.itemsize, flops, activations, kept, own, peak, mean, longest)


def run_facts(
    recipe: Recipe, ready: Prepared, measured: Measured, args: TrainingArguments, processes: int, parallel: str
) -> Facts:
    """What the run takes on so many processes."""
    batch = batch_size(recipe, processes)
    if recipe.train.per_device_train_batch_size == "auto":  # it was looked for, and other devices are of the same kind
        limit = args.train_batch_size
        batch = next(one for one in batch_sizes(batch.total, processes) if one.per_device <= limit)
    shards = processes if parallel == "fsdp2" else 1
    own = measured.pace._replace(update=measured.pace.update / shards)
    seconds = own.step(batch.per_device * batch.accumulation_steps)
    steps = number_of_steps(recipe.train, ready.rows, batch.total, partial(float, seconds))
    step_flops = measured.flops * measured.mean * batch.total
    return {
        "processes": processes,
        "rows_in_pass": batch.per_device,
        "passes": batch.accumulation_steps,
        "rows_in_step": batch.total,
        "tokens_in_step": round(measured.mean * batch.total),
        "steps": steps,
        "epochs": None if ready.rows is None else steps * batch.total / len(ready.rows),
        "tokens": round(measured.mean * batch.total * steps),
        "flops": step_flops * steps,
        "memory": memory_facts(recipe, measured, batch, shards),
        "step_seconds": seconds,
        "seconds": seconds * steps,
        "mfu": step_flops / (seconds * measured.peak * processes),
        "warmup_steps": args.get_warmup_steps(steps),
    }


def memory_facts(recipe: Recipe, measured: Measured, batch: BatchSize, shards: int) -> dict[str, int | None]:
    """Bytes in each process, and their sum."""
    gradients = measured.trained * measured.itemsize // shards
    numbers = OPTIMIZER_NUMBERS.get(recipe.train.optimizer, 2)
    buckets = gradients if batch.devices > 1 and shards == 1 else 0  # in which DDP sends them
    memory = {
        "weights": measured.total * measured.itemsize // shards,
        "gradients": gradients + buckets,
        "optimizer": numbers * gradients,
    }
    activations = None
    if measured.activations is not None:
        activations = round(measured.activations * measured.longest * batch.per_device + measured.kept)
    return {**memory, "activations": activations, "sum": sum(memory.values()) + (activations or 0)}


def data_facts(ready: Prepared, stream: TrainingStream | StreamedExamples, mean: float) -> Facts:
    """The number of examples and their lengths in tokens."""
    return {
        "rows": None if ready.rows is None else len(ready.rows),
        "validation_rows": 0 if ready.held_out is None else len(ready.held_out),
        "tokens_in_row": {"mean": mean, **length_facts(ready.rows)},
        "padding": stream.padding(),
    }


def disk_facts(recipe: Recipe, measured: Measured, directory: Path) -> Facts:
    """Bytes of the checkpoints and of the model."""
    bytes_of_one = checkpoint_bytes(measured.trained if recipe.lora.enabled else measured.total)
    copies = recipe.train.save_total_limit + 1  # one more while the newest is written
    return {
        "directory": str(directory),
        "checkpoint_bytes": bytes_of_one,
        "checkpoints": copies,
        "bytes": bytes_of_one * copies + 4 * measured.total,
        "free_bytes": files.free(directory),
    }


def matrix_parameters(model: PreTrainedModel) -> int:
    """The number of weights that every token is multiplied by: all but an input embedding, which is looked up."""
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    return sum(weight.numel() for weight in model.parameters() if tied or weight is not embedding)


def free_memory() -> int:
    """Free bytes of this machine's accelerator or, without one, of its main memory."""
    if torch.accelerator.is_available():
        free: int = torch.accelerator.get_memory_info()[0]
        return free
    available: int = psutil.virtual_memory().available
    return available


def matmul_flops(args: TrainingArguments) -> float:
    """FLOP/s of a large matrix product in the run's dtype: the most that this device can reach."""
    size = peak_size(args)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    matrix = torch.randn(size, size, device=args.device, dtype=dtype)
    seconds = []
    for _ in range(8):
        start = time.monotonic()
        matrix @ matrix
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.monotonic() - start)
    return float(2 * size**3 / min(seconds))


def peak_size(args: TrainingArguments) -> int:
    return PEAK_SIZE[args.device.type != "cpu"]


def counted_passes(
    ready: Prepared, two: Sequence[dict[str, Any]], args: TrainingArguments
) -> tuple[float, float, float]:
    """FLOPs per token of a forward and a backward pass, and bytes that the first keeps for the second: per token, and
    whatever the number of tokens. The latter are what one example and `two` have in common."""
    flops, kept = counted_pass(ready, two, args)
    tokens, first = padded_tokens(two), padded_tokens(two[:1])
    if tokens == first:
        return flops / tokens, kept / tokens, 0.0
    _, kept_of_first = counted_pass(ready, two[:1], args)
    per_token = (kept - kept_of_first) / (tokens - first)
    return flops / tokens, per_token, max(kept - per_token * tokens, 0.0)


def counted_pass(ready: Prepared, examples: Sequence[dict[str, Any]], args: TrainingArguments) -> tuple[float, int]:
    """FLOPs of a forward and a backward pass, and bytes that the first keeps for the second."""
    weights = {weight.untyped_storage().data_ptr() for weight in ready.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    aten = torch.ops.aten  # torch itself counts attention only on GPUs
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),  # type: ignore[no-untyped-call]
            aten._scaled_dot_product_flash_attention_for_cpu_backward: (
                lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])  # type: ignore[no-untyped-call]
            ),
        },
    )
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with trial(ready, args) as run_micro_batch, counter, hooks:
        run_micro_batch(examples)
    return counter.get_total_flops(), sum(kept.values())


def length_facts(rows: Examples | None) -> dict[str, int]:
    """The lengths of the shortest, median and longest example in tokens; nothing for a stream."""
    if rows is None:
        return {}
    return {
        "shortest": int(rows.lengths.min()),
        "median": int(np.median(rows.lengths)),
        "longest": int(rows.lengths.max()),
    }


def learning_rates(args: TrainingArguments, recipe: Recipe, steps: int) -> list[float]:
    """The learning rate at evenly spaced steps from the first to the last."""
    set_steps(args, recipe.train, steps)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate),
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    points = np.linspace(0, steps - 1, min(steps, CURVE[0])).round().astype(int).tolist()
    return [args.learning_rate * scheduler.lr_lambdas[0](point) for point in points]


def as_text(facts: Facts) -> str:
    """The facts of `plan` in lines and a table."""
    model, data, compute, disk, rate = (facts[name] for name in ("model", "data", "compute", "disk", "learning_rate"))
    lengths, runs = data["tokens_in_row"], facts["runs"]
    spread = f", {lengths['shortest']:,} to {lengths['longest']:,}" if "shortest" in lengths else ""
    examples = "a stream of" if data["rows"] is None else f"{data['rows']:,}"
    how = "counted on two examples" if compute["counted"] else "estimated, 6 per weight"
    lines = [
        f"model    {model['type']}, {model['parameters']:,} parameters, {model['trained_parameters']:,} trained",
        f"data     {examples} examples of {lengths['mean']:,.1f} tokens on average{spread}; "
        f"{data['padding']:.1%} padding; {data['validation_rows']:,} validation examples",
        f"compute  {scaled(compute['flops_per_token'])}FLOPs per token, {how}; at most "
        f"{scaled(compute['peak_flops_per_second'])}FLOP/s",
        f"         ({compute['peak']})",
        f"disk     {size(disk['bytes'])} for {disk['checkpoints']} checkpoints of {size(disk['checkpoint_bytes'])} and "
        f"the model in {disk['directory']}, {size(disk['free_bytes'])} free",
        f"learning rate  {rate['schedule']}, {counted(runs[0]['warmup_steps'], 'step')} to {rate['peak']:g}, then to "
        f"{rate['curve'][-1]:.2g} at step {runs[0]['steps']:,}",
        *(f"  |{line}" for line in plot(rate["curve"])),
    ]
    return "\n".join([*lines, "", _table(facts)])


def _table(facts: Facts) -> str:
    """A column for each number of processes."""
    measured = facts["compute"]["counted"]
    shown: dict[str, Any] = {
        "processes": lambda run: f"{run['processes']:,}",
        "micro-batch": lambda run: f"{run['rows_in_pass']:,}",
        "gradient accumulation": lambda run: f"{run['passes']:,}",
        "global batch": lambda run: f"{run['rows_in_step']:,}",
        "tokens per step": lambda run: f"{run['tokens_in_step']:,}",
        "steps": lambda run: f"{run['steps']:,}",
        "  warm-up": lambda run: f"{run['warmup_steps']:,}",
        "tokens": lambda run: f"{run['tokens']:,}",
        "FLOPs": lambda run: scaled(run["flops"]).strip(),
        "memory per process": lambda run: size(run["memory"]["sum"]),
        **{
            f"  {part}": lambda run, part=part: size(run["memory"][part])
            for part in ("weights", "gradients", "optimizer", *(["activations"] if measured else []))
        },
        "time per step": lambda run: f"{run['step_seconds']:.3g} s",
        "time" if measured else "time at least": lambda run: duration(run["seconds"]),
        "MFU": lambda run: f"{run['mfu']:.0%}",
    }
    rows = [[name, *(show(run) for run in facts["runs"])] for name, show in shown.items()]
    notes = ["time: training only, without evaluations and saves; batches in examples"]
    if any(run["processes"] > 1 for run in facts["runs"]):
        kind = "data parallel" if facts["parallel"] == "ddp" else "sharded weights (FSDP2)"
        notes.append(f"several processes, {kind}: on devices as fast as this one, communication not included")
    return console.table([*rows, *([f"({note})"] for note in notes)], "<>")


def plot(values: Sequence[float]) -> list[str]:
    """A bar chart of the values, all at least 0: some lines of text, one column for each value."""
    most = max(values) or 1.0
    levels = [round(value / most * 8 * CURVE[1]) for value in values]
    return [
        "".join(BARS[min(max(level - 8 * line, 0), 8)] for level in levels).rstrip()
        for line in reversed(range(CURVE[1]))
    ]
