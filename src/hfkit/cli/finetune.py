"""`hfkit finetune`: a pretrained model learns a task from labeled data."""

from __future__ import annotations

from functools import partial
from typing import Any

from hfkit.cli.options import with_settings
from hfkit.cli.training import run_training


@with_settings("finetune", partial(run_training, "finetune"))
def finetune(settings: dict[str, Any], **options: Any) -> None:
    """Fine-tune a model on labels, tagged words, questions, pairs of texts or chats.

    [bold]Examples[/bold]

    hfkit finetune --model bert-base-uncased  [dim]# on a built-in data set[/dim]

    hfkit finetune --model bert-base-uncased --data train.csv --validation dev.csv

    hfkit finetune --model runs/pretrain-bert --data a.tsv --label-column stars

    hfkit finetune --model bert-base-cased --data train.conll --test dev.conll

    hfkit finetune --model bert-base-cased --task question-answering --data a.json

    hfkit finetune --task completion --model gpt2 --data pairs.jsonl --lora

    hfkit finetune --task chat --model ./smollm2 --data chats.jsonl --lora

    hfkit finetune finetune-docstrings --model bert-base-uncased --epochs 2

    `hfkit recipes schema` lists all settings, --set KEY=VALUE sets any of them.
    """
    run_training("finetune", settings, **options)
