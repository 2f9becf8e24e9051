"""`hfkit data`: what is in your data, before compute is spent on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from hfkit.cli.options import Debug, Json, TrustRemoteCode
from hfkit.errors import UsageError, did_you_mean
from hfkit.settings import SETTINGS, Columns, Csv, Data, Model, Recipe, Tokenizer
from hfkit.system import console
from hfkit.tasks import DEFAULT_TASKS, TASKS

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

data = typer.Typer(help="Look into data before training on it.", no_args_is_help=True)


def _option(key: str, metavar: str | None = None) -> Any:
    metadata = SETTINGS[key].metadata
    least = {"min": metadata["ge"]} if "ge" in metadata else {}
    return typer.Option(
        metadata["flags"][0], metavar=metavar, help=metadata["description"], show_default=False, **least
    )


@data.callback()
def _group() -> None:
    """Keeps `inspect` a word of its own while it is the only command."""


@data.command()
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Training data, as --data takes it.")],
    validation: Annotated[list[str] | None, _option("data.validation", "FILE")] = None,
    test: Annotated[list[str] | None, _option("data.test", "FILE")] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="What it is for; guessed otherwise.")
    ] = None,
    model: Annotated[str | None, _option("model.name", "NAME")] = None,
    tokenizer: Annotated[str | None, _option("tokenizer.name", "NAME")] = None,
    text_column: Annotated[str | None, _option("data.columns.text", "NAME")] = None,
    text_pair_column: Annotated[str | None, _option("data.columns.text_pair", "NAME")] = None,
    label_column: Annotated[str | None, _option("data.columns.label", "NAME")] = None,
    problem_type: Annotated[ProblemType | None, _option("data.problem_type")] = None,
    label_separator: Annotated[str | None, _option("data.label_separator", "TEXT")] = None,
    documents: Annotated[Literal["file", "blank-line", "row"] | None, _option("data.documents")] = None,
    header: Annotated[bool | None, _option("data.header", "")] = None,
    separator: Annotated[str | None, _option("data.csv.separator", "TEXT")] = None,
    quoting: Annotated[bool | None, _option("data.csv.quoting", "")] = None,
    encoding: Annotated[str, _option("data.encoding", "TEXT")] = "utf-8",
    max_length: Annotated[int | None, _option("data.max_length", "N")] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count rows, repeats, leaks, lengths and labels, and say what needs a decision.

    With --model or --tokenizer it also counts tokens: what is unknown, and what gets cut.

    [bold]Examples[/bold]

    hfkit data inspect reviews.csv --validation dev.csv --model ./bert

    hfkit data inspect book.txt --task mlm --tokenizer gpt2
    """
    if task is not None and task not in TASKS:
        fix = did_you_mean(task, TASKS) or f"--task {next(iter(TASKS))}"
        raise UsageError(f"'{task}' is no task: {', '.join(TASKS)}", fix)
    unit = documents or TASKS[task or DEFAULT_TASKS["pretrain"]].defaults({}).get("data.documents")
    columns = Columns(text=text_column, text_pair=text_pair_column, label=label_column)
    recipe = Recipe(
        task=task,
        model=Model(name=model, from_scratch=True),  # its weights are not needed
        tokenizer=Tokenizer(name=tokenizer),
        data=Data(
            train=files,
            validation=validation or [],
            test=test or [],
            columns=columns,
            problem_type=problem_type,
            label_separator=label_separator,
            documents=unit,
            header=header,
            csv=Csv(separator=separator, quoting=quoting),
            encoding=encoding,
            max_length=max_length,
        ),
    )

    from hfkit.inspection.data import as_text
    from hfkit.inspection.data import inspect as inspect_data

    facts = inspect_data(recipe)
    if json:
        console.result_json(facts)
        return
    console.result(as_text(facts))
    for finding in facts["findings"]:
        console.warn(finding["problem"], finding["fix"])
