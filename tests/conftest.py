"""Fixtures for every test module, and an empty Hugging Face cache with no network for all of them."""

import atexit
import contextlib
import os
import shutil
import tempfile

HOME = tempfile.mkdtemp(prefix="hfkit-tests-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
for variable in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "RANK"):
    os.environ.pop(variable, None)
os.environ |= {"HF_HOME": HOME, "HF_HUB_OFFLINE": "1"}  # read once, at import
os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are two test workers; `make test-portable` asks for others
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # more threads than cores: those that wait leave the core to others

with contextlib.suppress(ModuleNotFoundError):
    from stand_in_hub import hub as hub
