"""What is printed in columns."""

import pytest

from hfkit.system.console import score_table, table


@pytest.mark.parametrize(
    ("rows", "align", "lines"),
    [
        ([], "<", []),
        ([["a", "1"], ["long", "23"]], "<>", ["a      1", "long  23"]),
        ([["a", "1", "x"], ["b", "23", "yy"]], "<>", ["a   1   x", "b  23  yy"]),
        ([["a heading that is long"], ["a", "b"], ["c"]], "<>", ["a heading that is long", "a  b", "c"]),
        ([["a", "", "x"], ["b", "c"]], "<", ["a     x", "b  c"]),
        ([["你好", "1"], ["né", "2"]], "<", ["你好  1", "né    2"]),  # as wide as four letters, and as two
    ],
)
def test_cells_stand_in_columns(rows: list[list[str]], align: str, lines: list[str]) -> None:
    assert table(rows, align).splitlines() == lines


def test_scores_stand_below_each_other_and_what_they_share_stands_once() -> None:
    ending = "; 1000 resamples"
    scores = {
        "f1": {"value": 0.25, "low": 0.125, "high": 0.5, "n": 1234, "definition": f"mean F1{ending}"},
        "perplexity": {
            "value": 123456,
            "low": None,
            "high": None,
            "n": 1234,
            "definition": f"exp(nats){ending}",
        },
    }
    assert score_table(scores).splitlines() == [
        "  f1          0.25       [0.125, 0.5]       mean F1",
        "  perplexity  1.235e+05                     exp(nats)",
        "  (1000 resamples, n=1,234, 95% intervals)",
    ]
