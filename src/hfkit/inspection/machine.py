"""What this machine has, and what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from hfkit.runs.manifest import versions

GIB = 2**30


def diagnose() -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Facts by name, and problems, each with the command that fixes it."""
    problems = [
        (f"{package} is missing", f"{sys.executable} -m pip install {package}")
        for package, version in versions().items()
        if version == "missing"
    ]
    facts = {"versions": ", ".join(f"{name} {version}" for name, version in versions().items())}
    if any("torch" in problem for problem, _ in problems):
        return facts, problems
    import torch
    from huggingface_hub import constants

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("Apple GPU (mps)")
    facts["devices"] = ", ".join([*devices, f"CPU, {torch.get_num_threads()} threads for {os.cpu_count()} cores"])
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts["memory"] = f"{pages / GIB:.1f} GiB"
    for name, folder in (("working directory", Path.cwd()), ("Hub cache", Path(constants.HF_HUB_CACHE))):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        facts[name] = f"{folder}, {free / GIB:.1f} GiB free"
        if free < 2 * GIB:
            problems.append((f"the disk of {folder} is almost full", f"df -h {existing}"))
        if not os.access(existing, os.W_OK):
            problems.append((f"{existing} is not writable", "set HF_HOME to a folder that you can write to"))
    facts["Hub"] = "offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    return facts, problems
