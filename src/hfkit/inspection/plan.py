"""What a run will take, told before it begins: memory, disk, steps and time, on as many processes as are asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.data.sources import stay_local
from hfkit.runs.manifest import checkpoint_bytes, default_directory
from hfkit.runs.run import Run
from hfkit.system import console, files
from hfkit.system.console import counted, duration, say, scaled, size
from hfkit.tasks import TASKS
from hfkit.training.arguments import set_steps, training_arguments
from hfkit.training.batch import batch_size, batch_sizes, num_devices
from hfkit.training.pace import Pace, number_of_steps, pace, padded_tokens, trial

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

    from hfkit.settings import Recipe
    from hfkit.tasks.base import Rows
    from hfkit.training.prepared import Prepared

Facts = dict[str, Any]

PEAK_SIZE = (1024, 8192)  # of the square matrices whose product shows what a CPU, or else a GPU, can do

CURVE = (60, 4)  # columns and lines of the learning rate's plot

BARS = " ▁▂▃▄▅▆▇█"

# Numbers that an optimizer keeps for each weight; for most that are not named, as AdamW.
OPTIMIZER_NUMBERS = {"sgd": 1, "adafactor": 0}


def plan(recipe: Recipe, processes: Sequence[int] = (), parallel: str = "ddp") -> Facts:
    """What `recipe` will take on each number of `processes` (none: as this command was started); nothing is trained
    and nothing written but the caches of data.

    Passes are timed and counted on this machine, and figures for more processes say what as many of its kind would
    take, without the time in which they talk to each other. A new model that is too large for the memory is reckoned
    on paper. `parallel`: "ddp", or "fsdp2" where weights are divided among the processes.
    """
    import torch

    from hfkit.models.loading import new_or_pretrained
    from hfkit.training.prepare import prepare, stream_of, with_batch_that_fits
    from hfkit.training.stream import MEGABATCH

    task = TASKS[recipe.task or ""]
    processes = list(processes) or [num_devices(recipe)]
    for number in processes:
        batch_size(recipe, number)  # what can't be divided is told before data is read
    stay_local(recipe)
    directory = Path(recipe.train.output_dir or default_directory(recipe, task.command, continued=False))
    new = recipe.model.from_scratch
    with torch.device("meta") if new else nullcontext():  # the shapes alone
        ready = prepare(task, recipe, Run(directory, task.command, recipe, None, False))
    total, trained = (sum(w.numel() for w in weights) for weights in weights_of(ready.model))
    on_paper = new and 2 * total * ready.model.dtype.itemsize > free_memory()
    if new and not on_paper:
        ready = ready._replace(model=new_or_pretrained(task.auto_model, recipe, ready.config, ready.tokenizer))
    if recipe.train.per_device_train_batch_size == "auto" and not on_paper:
        ready = with_batch_that_fits(ready, directory)
    args = training_arguments(ready.recipe, directory)
    stream = stream_of(MEGABATCH, ready)
    batches, _ = stream.spread(args.train_batch_size, 3)
    two, longest = batches[len(batches) // 2][:2], max(len(row["input_ids"]) for row in stream.longest(1))
    mean = stream.mean_length or padded_tokens(two) / len(two)
    peak = matmul_flops(args)
    if on_paper:
        say(f"{total:,} parameters don't fit the memory: compute is reckoned, time is the least possible")
        flops, kept = 6.0 * matrix_parameters(ready.model), None
        own = Pace(flops * mean / peak, 0.0)
    else:
        task.adapt(ready.model, ready.collate(two))
        flops, kept = counted_pass(ready, two, args)
        own = pace(ready, stream, args)

    runs = []
    for number in processes:
        batch = batch_size(recipe, number)
        if ready.recipe is not recipe:  # what was found for this machine is what a device of its kind takes
            limit = args.train_batch_size
            batch = next(one for one in batch_sizes(batch.total, number) if one.per_device <= limit)
        shards = number if parallel == "fsdp2" else 1
        seconds = own._replace(update=own.update / shards).step(batch.per_device * batch.accumulation_steps)
        steps = number_of_steps(recipe.train, ready.rows, batch.total, partial(float, seconds))
        memory = memory_of(recipe, total, trained, ready.model.dtype.itemsize, number, shards)
        activations = None if kept is None else round(kept * longest * batch.per_device)
        step_flops = flops * mean * batch.total
        runs.append(
            {
                "processes": number,
                "rows_in_pass": batch.per_device,
                "passes": batch.accumulation_steps,
                "rows_in_step": batch.total,
                "tokens_in_step": round(mean * batch.total),
                "steps": steps,
                "epochs": None if ready.rows is None else steps * batch.total / len(ready.rows),
                "tokens": round(mean * batch.total * steps),
                "flops": step_flops * steps,
                "memory": {**memory, "activations": activations, "sum": sum(memory.values()) + (activations or 0)},
                "step_seconds": seconds,
                "seconds": seconds * steps,
                "mfu": step_flops / (seconds * peak * number),
                "warmup_steps": args.get_warmup_steps(steps),
            }
        )
    size = checkpoint_bytes(trained if recipe.lora.enabled else total)
    copies = recipe.train.save_total_limit + 1  # one more while the newest is written
    return {
        "model": {
            "type": ready.config.model_type,
            "parameters": total,
            "trained_parameters": trained,
            "dtype": recipe.model.dtype,
        },
        "data": {
            "rows": None if ready.rows is None else len(ready.rows),
            "validation_rows": 0 if ready.held_out is None else len(ready.held_out),
            "tokens_in_row": {"mean": mean, **length_facts(ready.rows)},
            "padding": stream.padding(),
        },
        "compute": {
            "flops_per_token": flops,
            "counted": not on_paper,
            "peak_flops_per_second": peak,
            "peak": f"measured on this machine in a product of square matrices of {peak_size(args):,} rows",
        },
        "disk": {
            "directory": str(directory),
            "checkpoint_bytes": size,
            "checkpoints": copies,
            "bytes": size * copies + 4 * total,
            "free_bytes": files.free(directory),
        },
        "learning_rate": {
            "peak": recipe.train.learning_rate,
            "schedule": recipe.train.lr_scheduler_type,
            "curve": learning_rates(args, recipe, runs[0]["steps"]),
        },
        "parallel": parallel,
        "runs": runs,
    }


def weights_of(model: PreTrainedModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """All weights of the model, and those that are trained."""
    weights = list(model.parameters())
    return weights, [weight for weight in weights if weight.requires_grad]


def matrix_parameters(model: PreTrainedModel) -> int:
    """Weights that every token is multiplied by: all but an input embedding, which is looked up."""
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    return sum(weight.numel() for weight in model.parameters() if tied or weight is not embedding)


def free_memory() -> int:
    """Bytes that a model could take on this machine's accelerator or, without one, in its main memory."""
    import psutil
    import torch

    if torch.accelerator.is_available():
        free: int = torch.accelerator.get_memory_info()[0]
        return free
    available: int = psutil.virtual_memory().available
    return available


def matmul_flops(args: TrainingArguments) -> float:
    """FLOP/s of a large product of matrices in the number type of the run's arithmetic: what can be reached at most."""
    import torch

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


def counted_pass(ready: Prepared, examples: Sequence[dict[str, Any]], args: TrainingArguments) -> tuple[float, float]:
    """FLOPs of a forward and backward pass, and bytes that its forward part keeps for its backward part, per token."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    weights = {weight.untyped_storage().data_ptr() for weight in ready.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def attention(*shapes: Any, **_: Any) -> int:
        flops: int = sdpa_flop_count(*shapes[:3])  # type: ignore[no-untyped-call]
        return flops

    def attention_backward(*shapes: Any, **_: Any) -> int:
        flops: int = sdpa_backward_flop_count(*shapes[:4])  # type: ignore[no-untyped-call]
        return flops

    aten = torch.ops.aten  # torch itself counts attention on GPUs alone
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        },
    )
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with trial(ready, args) as run_pass, counter, hooks:
        run_pass(examples)
    tokens = padded_tokens(examples)
    return counter.get_total_flops() / tokens, sum(kept.values()) / tokens


def memory_of(recipe: Recipe, total: int, trained: int, itemsize: int, processes: int, shards: int) -> dict[str, int]:
    """Bytes in each process, but for activations."""
    gradients = trained * itemsize // shards
    numbers = OPTIMIZER_NUMBERS.get(recipe.train.optimizer, 2)
    buckets = gradients if processes > 1 and shards == 1 else 0  # in which DDP sends them
    return {
        "weights": total * itemsize // shards,
        "gradients": gradients + buckets,
        "optimizer": numbers * gradients,
    }


def length_facts(rows: Rows | None) -> dict[str, int]:
    """Shortest, median and longest row in tokens."""
    import numpy as np

    if rows is None:
        return {}
    return {
        "shortest": int(rows.lengths.min()),
        "median": int(np.median(rows.lengths)),
        "longest": int(rows.lengths.max()),
    }


def learning_rates(args: TrainingArguments, recipe: Recipe, steps: int) -> list[float]:
    """The learning rate at equal distances from the first step to the last."""
    import numpy as np
    import torch
    from transformers import get_scheduler

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
    """The plan as a person reads it."""
    model, data, compute, disk, rate = (facts[name] for name in ("model", "data", "compute", "disk", "learning_rate"))
    lengths, runs = data["tokens_in_row"], facts["runs"]
    spread = f", {lengths['shortest']:,} to {lengths['longest']:,}" if "shortest" in lengths else ""
    rows = "a stream of" if data["rows"] is None else f"{data['rows']:,}"
    how = "counted in a pass over two rows" if compute["counted"] else "reckoned, 6 for each weight"
    lines = [
        f"model    {model['type']}, {model['parameters']:,} parameters, {model['trained_parameters']:,} trained",
        f"data     {rows} rows of {lengths['mean']:,.1f} tokens in the mean{spread}; "
        f"{data['padding']:.1%} padding; {data['validation_rows']:,} validation rows",
        f"compute  {scaled(compute['flops_per_token'])}FLOPs a token, {how}; at most "
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
    """One column for each number of processes."""
    measured = facts["compute"]["counted"]
    shown: dict[str, Any] = {
        "processes": lambda run: f"{run['processes']:,}",
        "rows in a pass": lambda run: f"{run['rows_in_pass']:,}",
        "passes in a step": lambda run: f"{run['passes']:,}",
        "rows in a step": lambda run: f"{run['rows_in_step']:,}",
        "tokens in a step": lambda run: f"{run['tokens_in_step']:,}",
        "steps": lambda run: f"{run['steps']:,}",
        "of them warm-up": lambda run: f"{run['warmup_steps']:,}",
        "tokens": lambda run: f"{run['tokens']:,}",
        "FLOPs": lambda run: scaled(run["flops"]).strip(),
        "memory of a process": lambda run: size(run["memory"]["sum"]),
        **{
            f"  {part}": lambda run, part=part: size(run["memory"][part])
            for part in ("weights", "gradients", "optimizer", *(["activations"] if measured else []))
        },
        "time of a step": lambda run: f"{run['step_seconds']:.3g} s",
        "time" if measured else "time at least": lambda run: duration(run["seconds"]),
        "MFU": lambda run: f"{run['mfu']:.0%}",
    }
    rows = [[name, *(show(run) for run in facts["runs"])] for name, show in shown.items()]
    notes = ["time is that of training alone, without evaluations and saves"]
    if any(run["processes"] > 1 for run in facts["runs"]):
        kind = "data parallel" if facts["parallel"] == "ddp" else "weights divided among them (FSDP2)"
        notes.append(f"several processes, {kind}: on devices as fast as this one, their talk not counted")
    return console.table([*rows, *([f"({note})"] for note in notes)], "<>")


def plot(values: Sequence[float]) -> list[str]:
    """The values, none below 0, as columns of a few lines."""
    most = max(values) or 1.0
    levels = [round(value / most * 8 * CURVE[1]) for value in values]
    return [
        "".join(BARS[min(max(level - 8 * line, 0), 8)] for level in levels).rstrip()
        for line in reversed(range(CURVE[1]))
    ]
