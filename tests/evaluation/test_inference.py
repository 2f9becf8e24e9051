"""One pass over encoded rows: longest first, and every row with random choices of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from hfkit.evaluation.inference import EvaluationRows
from hfkit.tasks.base import Examples


class DrawnRows(Examples):
    """Examples of so many tokens, each with a number drawn at random."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = np.array(lengths)

    def example(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        return {"row": index, "drawn": random.random()}


def drawn(rows: EvaluationRows) -> dict[int, float]:
    return {example["row"]: example["drawn"] for example in map(rows.__getitem__, range(len(rows)))}


def test_random_choices_of_a_row_do_not_depend_on_the_other_rows() -> None:
    few, more = drawn(EvaluationRows(DrawnRows(3, 9, 5), seed=0)), drawn(EvaluationRows(DrawnRows(3, 9, 5, 20), seed=0))
    assert list(few) == [1, 2, 0]
    assert list(more) == [3, 1, 2, 0]
    assert {row: more[row] for row in few} == few
    assert len(set(more.values())) == 4
    assert drawn(EvaluationRows(DrawnRows(3, 9, 5), seed=1)) != few


def test_results_come_back_in_the_order_of_the_rows() -> None:
    rows = EvaluationRows(DrawnRows(3, 9, 5), seed=0)
    assert rows.in_row_order(np.array([[10], [20], [30]])).tolist() == [[30], [10], [20]]
