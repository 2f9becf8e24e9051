"""`hfkit export`: a model without the rest of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hfkit import console
from hfkit.cli.options import Debug, Verbose


def export(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run, a model directory or a name on the Hub.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", metavar="DIR", help="New directory.")],
    merge: Annotated[
        bool, typer.Option("--merge", metavar="", help="Add a LoRA adapter to the weights: a plain model.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(metavar="TEXT", help="Number type of the weights (default: as they are).", show_default=False),
    ] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Write the model of a run to a directory of its own: weights, config and tokenizer, and no checkpoints.

    [bold]Examples[/bold]

    hfkit export runs/finetune-bert-base-uncased --output-dir classifier

    hfkit export runs/finetune-bert-base-uncased --output-dir classifier --merge  [dim]# trained with --lora[/dim]
    """
    from hfkit.adapters import export as export_model

    export_model(model, output_dir, merged=merge, dtype=dtype)
    console.result(str(output_dir))
