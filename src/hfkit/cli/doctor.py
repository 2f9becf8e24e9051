"""`hfkit doctor`: what this machine has, and the command that fixes what is missing."""

from __future__ import annotations

from hfkit.cli.options import Debug, Json
from hfkit.system import console


def doctor(json: Json = False, debug: Debug = False) -> None:
    """Check versions, devices, memory, disk and caches of this machine."""
    from hfkit.inspection.machine import diagnose

    facts, problems = diagnose()
    if json:
        console.result_json({"facts": facts, "problems": [{"problem": p, "fix": fix} for p, fix in problems]})
        return
    console.result(console.table(facts.items()))
    for problem, fix in problems:
        console.result(f"problem: {problem} (fix: {fix})")
    if not problems:
        console.result("nothing is missing")
