"""The files of a run's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfkit.system.files import read_json

RESULTS, DETAILS, METRICS_LOG = "all_results.json", "eval_results.json", "metrics.jsonl"


def read_scores(directory: str | Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The final metrics of a run by split and name, each as Score has it."""
    return dict(read_json(Path(directory) / DETAILS).get("metrics", {}))
