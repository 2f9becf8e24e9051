"""How often, and on which validation examples, a run is evaluated while it trains."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

from hfkit.system.console import counted, say, silence

if TYPE_CHECKING:
    from hfkit.tasks.base import Examples
    from hfkit.training.prepared import Prepared

USUAL = 5  # evaluations in a run, if they cost no more than SHARE

FEWEST = 2  # on all validation examples; a run that has no time for them is evaluated on some

SHARE = 0.1  # of the FLOPs of training that evaluations may cost

FORWARD = 1 / 3  # of the FLOPs of a training step are its forward pass (Kaplan et al. 2020, arXiv 2001.08361)


class Evaluations(NamedTuple):
    """`eval_steps`: steps between evaluations, 0 for none; `examples`: what they are on; `save_steps`."""

    eval_steps: int
    examples: Examples | None
    save_steps: int


def evaluations(ready: Prepared, steps: int, trained_tokens: float) -> Evaluations:
    """The evaluations of a run of `steps` steps over `trained_tokens` tokens.

    Where nobody chose (train.eval_steps, or train.best and train.early_stopping, which need all examples each time),
    there are USUAL ones, or fewer, or some on a seeded sample, so that they cost at most SHARE of the training. That
    depends on numbers of tokens alone, and not on the machine. Fewer ones are printed.
    """
    settings, held_out, usual = ready.recipe.train, ready.held_out, math.ceil(steps / USUAL)
    if held_out is None:
        return Evaluations(0, None, settings.save_steps or settings.eval_steps or usual)
    if settings.eval_steps or settings.best or settings.early_stopping:
        every = settings.eval_steps or usual
        return Evaluations(every, held_out, settings.save_steps or every)
    affordable = SHARE * trained_tokens / (FORWARD * float(held_out.lengths.sum()))  # passes over all examples
    saves = settings.save_steps or usual
    if affordable >= USUAL - 1:  # the last step is scored anyway
        return Evaluations(usual, held_out, saves)
    number = max(int(affordable), FEWEST if len(ready.splits["validation"]) > 1 else 1)
    every = math.ceil(steps / (number + 1))
    some = _sample(ready, held_out, affordable / number) if affordable < number else held_out
    on = "" if some is held_out else f" on {counted(len(some), 'example')} of {len(held_out):,}"
    say(
        f"validation while training: every {counted(every, 'step')}{on}, to take at most {SHARE:.0%} of the time "
        "(change with --eval-steps)"
    )
    return Evaluations(every, some, saves)


def _sample(ready: Prepared, held_out: Examples, share: float) -> Examples:
    """This share of the validation data, encoded by itself, the same in each run; all of it if it is one batch."""
    data = ready.splits["validation"]
    rows = max(int(share * len(data)), ready.recipe.train.per_device_eval_batch_size or 1)
    if rows >= len(data):
        return held_out
    places = sorted(random.Random(ready.recipe.train.seed).sample(range(len(data)), rows))
    with silence():
        return ready.encode(data.select(places))
