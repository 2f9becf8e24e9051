"""`hfkit data`: what is in your data, before compute is spent on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from hfkit.cli.options import Debug, Json, TrustRemoteCode
from hfkit.settings import SETTINGS, Columns, Csv, Data
from hfkit.system import console

Task = Annotated[
    str | None, typer.Option("--task", metavar="NAME", help="Task that will be trained on it (default: guessed).")
]

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

data = typer.Typer(help="Inspect data before training on it.", no_args_is_help=True)


def _option(key: str, metavar: str | None = None) -> Any:
    metadata = SETTINGS[key].metadata
    least = {"min": metadata["ge"]} if "ge" in metadata else {}
    return typer.Option(
        metadata["flags"][0], metavar=metavar, help=metadata["description"], show_default=False, **least
    )


@data.callback()
def _group() -> None:
    """Without this, typer would drop the word `inspect`: it is the only command."""


@data.command()
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Training data, as --data takes it.")],
    validation: Annotated[list[str] | None, _option("data.validation", "FILE")] = None,
    test: Annotated[list[str] | None, _option("data.test", "FILE")] = None,
    task: Task = None,
    model: Annotated[str | None, _option("model.name", "NAME")] = None,
    tokenizer: Annotated[str | None, _option("tokenizer.name", "NAME")] = None,
    text_column: Annotated[str | None, _option("data.columns.text", "NAME")] = None,
    text_pair_column: Annotated[str | None, _option("data.columns.text_pair", "NAME")] = None,
    label_column: Annotated[str | None, _option("data.columns.label", "NAME")] = None,
    target_column: Annotated[str | None, _option("data.columns.target", "NAME")] = None,
    source_lang: Annotated[str | None, _option("data.source_lang", "NAME")] = None,
    target_lang: Annotated[str | None, _option("data.target_lang", "NAME")] = None,
    problem_type: Annotated[ProblemType | None, _option("data.problem_type")] = None,
    label_separator: Annotated[str | None, _option("data.label_separator", "TEXT")] = None,
    documents: Annotated[Literal["file", "blank-line", "row"] | None, _option("data.documents")] = None,
    header: Annotated[bool | None, _option("data.header", "")] = None,
    separator: Annotated[str | None, _option("data.csv.separator", "TEXT")] = None,
    quoting: Annotated[bool | None, _option("data.csv.quoting", "")] = None,
    encoding: Annotated[str, _option("data.encoding", "TEXT")] = "utf-8",
    max_length: Annotated[int | None, _option("data.max_length", "N")] = None,
    chat_template: Annotated[str | None, _option("data.chat_template", "NAME")] = None,
    train_on: Annotated[Literal["all", "assistant", "last"], _option("data.train_on")] = "assistant",
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count rows, repeats, leaks, lengths and labels, and list what needs a decision.

    With --model or --tokenizer it also counts tokens: unknown ones, and rows that would be truncated.

    [bold]Examples[/bold]

    hfkit data inspect reviews.csv --validation dev.csv --model ./bert

    hfkit data inspect book.txt --task mlm --tokenizer gpt2

    hfkit data inspect chats.jsonl --model ./my-chat-model
    """
    from hfkit.inspection import data, data_tables

    source = Data(
        train=files, validation=validation or [], test=test or [], problem_type=problem_type, header=header,
        columns=Columns(text=text_column, text_pair=text_pair_column, label=label_column, target=target_column),
        documents=documents, source_lang=source_lang, target_lang=target_lang,
        max_length=max_length, label_separator=label_separator, csv=Csv(separator=separator, quoting=quoting),
        encoding=encoding, chat_template=chat_template, train_on=train_on,
    )  # fmt: skip
    facts = data.inspect(source, task=task, model=model, tokenizer=tokenizer)
    if json:
        console.result_json(facts)
    else:
        data_tables.show(facts)
