"""`hfkit tokenizer`: train a tokenizer on text, or compare tokenizers on a text."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hfkit.cli.options import Debug, Json, TrustRemoteCode, Verbose
from hfkit.settings import SETTINGS
from hfkit.system import console

if TYPE_CHECKING:
    from hfkit.inspection.tokenizers import Inspection

tokenizer = typer.Typer(help="Train a tokenizer, or compare tokenizers on a text.", no_args_is_help=True)

TextColumn = Annotated[
    str | None, typer.Option("--text-column", metavar="NAME", help="Column with the text.", show_default=False)
]


@tokenizer.command()
def train(
    data: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Files, folders, patterns, builtin:NAME or names of data on the Hub."),
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", metavar="DIR", help="New directory.")],
    algorithm: Annotated[
        Literal["bpe", "wordpiece", "unigram", "char"] | None,
        typer.Option(help=SETTINGS["tokenizer.algorithm"].metadata["description"], show_default=False),
    ] = None,
    vocab_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Entries, special tokens included; a maximum for --algorithm char.")
    ] = 8192,
    model_type: Annotated[
        str, typer.Option(metavar="TYPE", help="Model type whose special tokens it gets: gpt2, bert, t5, ...")
    ] = "gpt2",
    text_column: TextColumn = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Train a new tokenizer on text and save it. A .txt file is one document, with its line ends.

    [bold]Examples[/bold]

    hfkit tokenizer train book.txt --vocab-size 8000 --output-dir my-tokenizer

    hfkit tokenizer train book.txt --algorithm char --output-dir my-characters

    hfkit tokenizer train 'corpus/*.jsonl' --model-type bert --output-dir my-wordpieces
    """
    from hfkit.models.new_tokenizer import train_on

    start = time.monotonic()
    trained = train_on(
        data, output_dir, vocab_size=vocab_size, algorithm=algorithm, model_type=model_type, text_column=text_column
    )
    console.say(f"{len(trained):,} entries in {time.monotonic() - start:.1f} s")
    objective = " --objective mlm" if trained.mask_token else " --objective denoising" if model_type == "t5" else ""
    sources = " ".join(f"--data {shlex.quote(source)}" for source in data)
    tokens = shlex.quote(str(output_dir))
    console.say(f"next: hfkit pretrain --model-type {model_type}{objective} --tokenizer {tokens} {sources}")
    console.result(str(output_dir))


@tokenizer.command()
def inspect(
    names: Annotated[
        list[str], typer.Argument(metavar="TOKENIZER", help="Directories of tokenizers or models, or Hub names.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Text to encode (default: builtin:python-docs)."),
    ] = None,
    text_column: TextColumn = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Compare tokenizers on the same text. In .txt files, a paragraph is a document.

    Special tokens around a document are not counted. Words are separated by white space and include punctuation; a
    word is split if it is divided among several tokens. A round trip fails if decoding does not return the text.

    [bold]Examples[/bold]

    hfkit tokenizer inspect my-tokenizer gpt2 --data book.txt
    """
    from hfkit.inspection.tokenizers import inspect

    inspections = inspect(names, data or ["builtin:python-docs"], text_column)
    if json:
        console.result_json({"tokenizers": [dataclasses.asdict(inspection) for inspection in inspections]})
    else:
        console.result(_table(inspections))
        for inspection in inspections:
            if inspection.first_difference:
                console.result(f"{inspection.tokenizer}: {inspection.first_difference}")


def _table(inspections: Sequence[Inspection]) -> str:
    """A line for each number, a column for each tokenizer."""
    columns = [_column(seen) for seen in inspections]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows = [("", *(seen.tokenizer for seen in inspections))]
    rows += [(label, *(column.get(label, "-") for column in columns)) for label in labels]
    return console.table(rows)


def _column(seen: Inspection) -> dict[str, str]:
    special = {f"{role} token": token for role, token in seen.special_tokens.items()}
    return {
        "entries": f"{seen.entries:,}",
        "documents": f"{seen.documents:,}",
        "tokens": f"{seen.tokens:,}",
        "bytes per token": f"{seen.bytes_per_token:.3f}",
        "characters per token": f"{seen.characters_per_token:.3f}",
        "unknown tokens": f"{seen.unknown:,} ({seen.unknown_share:.2%})",
        "words split": f"{seen.words_split:.2%}",
        "round trips failed": f"{seen.round_trip_failures:,} ({seen.round_trip_failure_share:.2%})",
        "longest document": f"{seen.longest:,}",
        **special,
        **({"other special tokens": f"{seen.other_special_tokens:,}"} if seen.other_special_tokens else {}),
    }
