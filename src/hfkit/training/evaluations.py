"""How often, and on which validation examples, a run is evaluated while it trains."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hfkit.system.console import counted, say, silence

if TYPE_CHECKING:
    from hfkit.tasks.base import Examples
    from hfkit.training.prepared import Prepared

USUAL = 5  # evaluations in a run, if they cost no more than COST

FEWEST = 2  # on all validation examples; a run that has no time for them is evaluated on some

COST = 0.1  # FLOPs of all evaluations over those of training, at most

# FLOPs of a forward pass over those of a training step (Kaplan et al. 2020, arXiv 2001.08361): the backward pass takes
# twice as many, or as many where most weights have no gradient.
FORWARD = {"all": 1 / 3, "some": 1 / 2}


class Evaluations(NamedTuple):
    """`eval_steps`: steps between evaluations, 0 for none; `examples`: what they are on; `save_steps`."""

    eval_steps: int
    examples: Examples | None
    save_steps: int


def evaluations(ready: Prepared, steps: int, trained_tokens: float) -> Evaluations:
    """The evaluations of a run of `steps` steps over `trained_tokens` tokens.

    Where nobody chose (train.eval_steps, or train.best and train.early_stopping, which need all examples each time),
    there are USUAL ones, or fewer, or some on a seeded sample, so that they cost at most COST. That depends on numbers
    of tokens alone, and not on the machine. Fewer ones are printed.
    """
    settings, held_out, usual = ready.recipe.train, ready.held_out, math.ceil(steps / USUAL)
    if held_out is None:
        return Evaluations(0, None, settings.save_steps or settings.eval_steps or usual)
    if settings.eval_steps or settings.best or settings.early_stopping:
        every = settings.eval_steps or usual
        return Evaluations(every, held_out, settings.save_steps or every)
    trains_all = ready.model.num_parameters(only_trainable=True) == ready.model.num_parameters()
    cost = FORWARD["all" if trains_all else "some"] / trained_tokens  # of a token
    affordable = COST / (cost * float(held_out.lengths.sum()))  # evaluations on all examples
    number = min(int(affordable), USUAL - 1)  # the last step is scored anyway
    some = held_out if number >= FEWEST else _sample(ready, held_out, affordable / FEWEST)
    every = usual * math.ceil(USUAL / (max(number, FEWEST) + 1))  # at a step that is saved
    counts = (steps - 1) // every
    costs = cost * float(some.lengths.sum()) * counts
    if some is held_out and costs > 2 * COST and counts:
        say(f"validation while training: none, it would take {costs:.0%} of the time (change with --eval-steps)")
        return Evaluations(0, held_out, settings.save_steps or usual)
    if counts and (every, some) != (usual, held_out):
        on = "" if some is held_out else f" on {counted(len(some), 'example')} of {len(held_out):,}"
        say(
            f"validation while training: every {counted(every, 'step')}{on}, to take about {costs:.0%} of the time "
            "(change with --eval-steps)"
        )
    return Evaluations(every, some, settings.save_steps or usual)


def _sample(ready: Prepared, held_out: Examples, fraction: float) -> Examples:
    """About this fraction of the validation data, by characters, encoded by itself and the same in each run."""
    data = ready.splits["validation"]
    sizes = np.array([len(str(text)) for text in data[data.column_names[0]]])
    order = np.array(random.Random(ready.recipe.train.seed).sample(range(len(data)), len(data)))
    rows = max(1, int((np.cumsum(sizes[order]) <= fraction * sizes.sum()).sum()))
    if rows == len(data):
        return held_out
    with silence():
        return ready.encode(data.select(sorted(order[:rows].tolist())))
