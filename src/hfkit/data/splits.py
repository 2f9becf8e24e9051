"""Mixtures of sources, and rows held out for validation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from hfkit.errors import DataError, UsageError
from hfkit.system import console

if TYPE_CHECKING:
    from datasets import Dataset


def mix(parts: Sequence[Dataset], weights: Sequence[float], seed: int, names: Sequence[str] = ()) -> Dataset:
    """Rows of `parts` in the proportions of `weights`, until each row was drawn once; prints how often
    each part repeats.

    Each part is read in its order, again and again; `seed` decides which part the next row comes from. `names`: of the
    parts, for messages.
    """
    import numpy as np
    from datasets import Dataset, concatenate_datasets, interleave_datasets

    if len(weights) != len(parts) or min(weights) <= 0:
        problem = f"{len(weights)} for {len(parts)} sources" if len(weights) != len(parts) else "all must be above 0"
        fix = f"--set 'data.mixture=[{', '.join(['1'] * len(parts))}]'"
        raise UsageError(f"data.mixture {', '.join(f'{weight:g}' for weight in weights)}: {problem}", fix)
    starts = np.cumsum([0, *map(len, parts)])
    numbered = [Dataset.from_dict({"row": np.arange(start, stop)}) for start, stop in itertools.pairwise(starts)]
    shares = [weight / sum(weights) for weight in weights]
    drawn = interleave_datasets(numbered, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")
    rows = np.asarray(drawn["row"][:])
    counts = np.histogram(rows, bins=starts)[0]
    for name, part, share, count in zip(names or _numbered(parts), parts, shares, counts, strict=True):
        times = f"{len(part):,} rows, each {count / len(part):.2f} times"
        console.say(f"mixture: {name}: {share:.1%} wanted, {count:,} of {len(rows):,} rows drawn from {times}")
    return concatenate_datasets(list(parts)).select(rows)


def _numbered(parts: Sequence[Dataset]) -> list[str]:
    return [f"source {number}" for number in range(1, len(parts) + 1)]


def hold_out(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(train, validation): a random `share` of the rows is held out, at least one row on each side."""
    if len(dataset) < 2:
        raise DataError(
            f"{len(dataset)} row can't be split into training and validation data",
            "add rows, or give --validation FILE, or --validation-split 0",
        )
    num_held_out = min(max(1, round(len(dataset) * share)), len(dataset) - 1)
    halves = dataset.train_test_split(test_size=num_held_out, seed=seed)
    return halves["train"], halves["test"]


def hold_out_known(
    dataset: Dataset, share: float, seed: int, labels: Callable[[Dataset], Iterable[Iterable[str]]]
) -> dict[str, Dataset]:
    """Training and validation examples; none is held out that has a label which no training example has.

    `labels` gives the labels of each example. Prints how many were held out.
    """
    from datasets import concatenate_datasets

    train, validation = hold_out(dataset, share, seed)
    known = set(itertools.chain.from_iterable(labels(train)))
    is_known = [known.issuperset(some) for some in labels(validation)]
    back = [row for row, fine in enumerate(is_known) if not fine]
    if back:
        console.say(f"validation: {len(back):,} examples stay in the training data, which has no other of their label")
        train = concatenate_datasets([train, validation.select(back)])
        validation = validation.select([row for row, fine in enumerate(is_known) if fine])
    if len(validation) == 0:
        console.warn("no example can be held out: each would take the only one of its label", "--validation FILE")
        return {"train": train}
    console.say(f"validation: {len(validation):,} examples held out of the training data")
    return {"train": train, "validation": validation}


def hold_out_groups(dataset: Dataset, column: str, share: float, seed: int) -> dict[str, Dataset]:
    """Training and validation examples; those with the same value in `column` stay together, which is printed."""
    from datasets import Dataset

    values: list[str] = dataset[column][:]
    unique = list(dict.fromkeys(values))
    _, held_out = hold_out(Dataset.from_dict({"value": unique}), share, seed)
    chosen = set(held_out["value"])
    console.say(f"validation: {len(chosen):,} of {len(unique):,} {column}s held out of the training data")
    return {
        "train": dataset.select([row for row, value in enumerate(values) if value not in chosen]),
        "validation": dataset.select([row for row, value in enumerate(values) if value in chosen]),
    }


def hold_out_end(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """(train, validation) of a data set of one row: the last `share` of its text is held out, which is printed."""
    text = dataset["text"][0]
    cut = int(len(text) * (1 - share))  # as nanoGPT splits tinyshakespeare
    if not 0 < cut < len(text):
        raise DataError(f"one document of {len(text)} characters can't be split", "give --validation FILE")
    console.say(f"validation: the last {len(text) - cut:,} of {len(text):,} characters of the one document")
    first, last = (dataset.map(lambda _, part=part: {"text": part}) for part in (text[:cut], text[cut:]))
    return first, last
