"""`hfkit predict`: labels for texts, and entities in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hfkit.cli.options import JsonLines, ModelArgument, Set, require_file_options, with_settings
from hfkit.errors import UsageError
from hfkit.system import console
from hfkit.system.launcher import Launch
from hfkit.system.launcher import run as run_processes
from hfkit.system.processes import num_processes

Text = Annotated[
    list[str] | None, typer.Option("--text", "--question", metavar="TEXT", help="A text, or a question; repeatable.")
]

TextPair = Annotated[
    list[str] | None,
    typer.Option(
        "--text-pair",
        "--context",
        metavar="TEXT",
        help="The second text of a pair, or the text that a question is about: one per --text, or one for all.",
    ),
]

Input = Annotated[
    str | None,
    typer.Option("--input", metavar="FILE", help="A file of texts: .txt (one a line), .csv, .jsonl, ...; - is stdin."),
]

Output = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Write JSON lines to this file, not to stdout.")
]

Resume = Annotated[str | None, typer.Option("--resume", metavar="", help="Go on with an --output that was stopped.")]

Overwrite = Annotated[bool, typer.Option("--overwrite", metavar="", help="Write an --output anew.")]


@with_settings("predict")
def predict(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    text: Text = None,
    text_pair: TextPair = None,
    input_: Input = None,
    output: Output = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    set_: Set = None,
    json: JsonLines = False,
    launch: Launch | None = None,
) -> None:
    """Label texts, find entities in them, or answer questions about them.

    A line per text: its label with probability and the next three, or all its
    labels, or its number; or its entities, each with type, probability and
    place (the first character and the one after the last).

    [bold]Examples[/bold]

    hfkit predict runs/finetune-bert-base-uncased --text "a fine film"

    hfkit predict runs/my-classifier --input new.csv --output answers.jsonl

    hfkit predict runs/squad --question "Who?" --context "Ada wrote it."

    cat new.txt | hfkit predict runs/finetune-bert-base-uncased --input - --json
    """
    from hfkit.recipe.resolve import resolve

    files = [] if input_ is None else [input_]
    recipe = resolve("predict", run=model_, flags=settings, sets=set_ or (), files=files)
    if not text and input_ is None:
        raise UsageError("there is no text to classify", "--text 'some text' or --input FILE")
    if text and input_ is not None:
        raise UsageError("--text and --input exclude each other", "leave one of them out")
    require_file_options(input_, output, resume, overwrite, several=launch is not None or num_processes() > 1)
    if launch is not None:
        raise typer.Exit(run_processes(launch))

    from hfkit.evaluation.predict import predict as predict_texts
    from hfkit.evaluation.predict import predict_file

    write = console.result_json if json else lambda answer: console.result(shown(answer))
    if input_ is not None:
        predict_file(recipe, input_, write, output, resume=resume is not None, overwrite=overwrite)
    for answer in predict_texts(recipe, text, text_pair) if text else ():
        write(answer)


def shown(answer: dict[str, Any]) -> str:
    """An answer as one line: the answer itself, its probability, what else was likely."""
    if "entities" in answer:
        parts = ((one, f"{one['label']} {one['score']:.3f}, {one['start']}-{one['end']}") for one in answer["entities"])
        return "; ".join(f"{one['text']} ({facts})" for one, facts in parts) or "-"
    if "answer" in answer:
        others = ", ".join(f"{one['answer'] or '-'} {one['score']:.3f}" for one in answer["others"])
        return f"{answer['answer'] or '-'}\t{answer['score']:.3f}\t({others})"
    if "words" in answer:
        return " ".join(f"{one['text']}/{one['label']}" for one in answer["words"])
    if "value" in answer:
        return f"{answer['value']:.4g}"
    ranked = sorted(answer["probabilities"].items(), key=lambda pair: -pair[1])
    given = answer["labels"] if "labels" in answer else [answer["label"]]
    shares = ", ".join(f"{answer['probabilities'][label]:.3f}" for label in given)
    beside = ", ".join(f"{label} {p:.3f}" for label, p in [pair for pair in ranked if pair[0] not in given][:3])
    return f"{', '.join(given)}\t{shares}\t({beside})"
