"""`hfkit pretrain`: language models from scratch or continued."""

from __future__ import annotations

from functools import partial
from typing import Any

from hfkit.cli.options import with_settings
from hfkit.cli.training import run_training


@with_settings("pretrain", partial(run_training, "pretrain"))
def pretrain(settings: dict[str, Any], **options: Any) -> None:
    """Train a language model on text, from scratch or continued.

    [bold]Examples[/bold]

    hfkit pretrain  [dim]# a small GPT-2 on Python's own documentation[/dim]

    hfkit pretrain --data book.txt --model-type gpt2 --size mini --epochs 5

    hfkit pretrain --data book.txt --model gpt2 --output-dir runs/my-gpt2

    hfkit pretrain --data 'corpus/*.txt' --objective mlm --model bert-base-uncased

    hfkit pretrain pretrain-mlm --max-steps 50  [dim]# see: hfkit recipes list[/dim]

    `hfkit recipes schema` lists all settings, --set KEY=VALUE sets any of them.
    """
    run_training("pretrain", settings, **options)
