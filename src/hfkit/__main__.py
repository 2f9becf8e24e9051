"""`python -m hfkit`, the console script `hfkit`, and the module that `accelerate launch -m` starts."""

from __future__ import annotations

from hfkit.cli.main import run

if __name__ == "__main__":
    run()
