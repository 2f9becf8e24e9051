"""Where a setting has an effect: for which tasks, and with which other settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfkit.errors import Problem
from hfkit.settings import SETTINGS
from hfkit.tasks import TASKS


def tasks_with(name: str) -> list[str]:
    """The tasks that the setting `name` is for; empty if it is for all of them."""
    return [task for task, one in TASKS.items() if name in one.settings]


def acts_for(task: str | None, name: str) -> bool:
    """Whether the setting `name` has an effect for `task`; True if the task is not known yet."""
    tasks = tasks_with(name)
    return task is None or not tasks or task in tasks


def idle_because(name: str, values: Mapping[str, Any], task: str | None) -> Problem | None:
    """The problem that another setting leaves `name` without effect; None if it has one.

    A setting that `task` does not have is not needed there either.
    """
    metadata = SETTINGS[name].metadata if name in SETTINGS else {}
    for other in metadata.get("unless", ()):
        if values.get(other) not in (None, [], False):
            return f"has no effect with {other}", "leave one of them out"
    needed, _, wanted = metadata.get("needs", "").partition("=")
    if not needed or not acts_for(task, needed):
        return None
    if values.get(needed, SETTINGS[needed].default) != wanted if wanted else not values.get(needed):
        return f"has no effect without {needed}{wanted and f'={wanted}'}", f"--set {needed}={wanted or 'true'}"
    return None


def description(key: str) -> str:
    """The help text of the setting `key`."""
    text: str = SETTINGS[key].metadata["description"]
    tasks = ", ".join(f"{name} ({task.summary})" for name, task in TASKS.items())
    return f"{text.removesuffix('.')}: {tasks}." if key == "task" else text
