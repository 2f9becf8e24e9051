"""`hfkit export`: a model without the rest of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hfkit.cli.options import AllowPickle, Debug, TrustRemoteCode, Verbose
from hfkit.errors import UsageError
from hfkit.system import console


def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, a model directory, a name on the Hub or a .gguf file.")
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", metavar="DIR", help="New directory.")],
    merge: Annotated[
        bool, typer.Option("--merge", metavar="", help="Add a LoRA adapter to the weights: a plain model.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(metavar="TEXT", help="Number type of the weights (default: as they are).", show_default=False),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Write the model of a run, a checkpoint or a GGUF file to a new directory.

    The weights of a checkpoint that FSDP2 sharded are merged.

    [bold]Examples[/bold]

    hfkit export runs/finetune-bert-base-uncased --output-dir classifier

    hfkit export runs/finetune-bert-base-uncased --output-dir classifier --merge  [dim]# trained with --lora[/dim]

    hfkit export runs/pretrain-gpt2/checkpoint-5000 --output-dir model  [dim]# of a sharded run[/dim]

    hfkit export model-Q4_1.gguf --output-dir model  [dim]# a plain model, to train or to use[/dim]
    """
    from hfkit.models.export import export as export_model
    from hfkit.models.export import export_gguf

    if model.lower().endswith(".gguf"):
        if merge:
            raise UsageError(f"{model} has no adapter to merge", "leave out --merge")
        export_gguf(Path(model).expanduser(), output_dir, dtype=dtype)
    else:
        export_model(model, output_dir, merged=merge, dtype=dtype)
    console.result(str(output_dir))
