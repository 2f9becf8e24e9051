"""Figures of ../shared/data/README.md, on the real predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU

from hfkit.metrics.table import compute

XSUM = Path(__file__).parents[3] / "shared" / "data" / "xsum_predictions"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not XSUM.is_dir(), reason=f"the real data sets are not at {XSUM}"),
]


def lines(name: str) -> list[str]:
    return (XSUM / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")


def test_rouge_and_bleu_of_xsum() -> None:
    predictions, references = lines("convs2s-test-output.txt"), lines("gold-test-sentences.txt")
    scores = compute(["rouge", "rouge_stem", "bleu_none"], predictions, references)
    rounded = [round(scores[key].value, 3) for key in ("rouge1", "rouge2", "rougeL", "rougeLsum")]
    assert rounded == [30.002, 10.798, 24.489, 24.489]  # rouge_score 0.1.2 without stemmer
    stemmed = [round(scores[f"{key}_stem"].value, 3) for key in ("rouge1", "rouge2", "rougeL")]
    assert stemmed == [30.945, 11.023, 25.050]  # and with
    assert scores["rouge1"].n == 11_334
    assert scores["bleu_none"].value == BLEU(tokenize="none", force=True).corpus_score(predictions, [references]).score
    assert all(score.low < score.value < score.high for score in scores.values())  # type: ignore[operator]
