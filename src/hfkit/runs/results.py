"""The files of a run's numbers: final scores and the log of its steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfkit.system.files import read_json, write_atomically

RESULTS, DETAILS, METRICS_LOG = "all_results.json", "eval_results.json", "metrics.jsonl"


def read_scores(directory: str | Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The final metrics of a run by split and name, each as Score has it."""
    return dict(read_json(Path(directory) / DETAILS).get("metrics", {}))


def read_task(directory: str | Path) -> str | None:
    """The task that the final metrics of a run are of; None in older runs, and where files were scored."""
    task: str | None = read_json(Path(directory) / DETAILS).get("task")
    return task


def write_scores(directory: Path, scores: Mapping[str, Mapping[str, Any]], task: str | None) -> None:
    """Writes the final metrics by split and name, in place of any that are there."""
    named = {} if task is None else {"task": task}
    write_atomically(directory / DETAILS, json.dumps({**named, "metrics": scores}, indent=1))


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    path = directory / METRICS_LOG
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append_log(directory: Path, entry: Mapping[str, Any]) -> None:
    """Adds one line to `metrics.jsonl`."""
    with (directory / METRICS_LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def cut_log(directory: Path, step: int) -> None:
    """Leaves the lines of `metrics.jsonl` up to `step`; a resumed run writes the later ones again."""
    path = directory / METRICS_LOG
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_atomically(path, "".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    """The step of a line of `metrics.jsonl`; beyond all steps for a torn one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
