"""`hfkit predict`: labels for texts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hfkit import console
from hfkit.cli.options import Debug, JsonLines, ModelArgument, Set, Verbose, with_settings
from hfkit.errors import UsageError


@with_settings("predict")
def predict(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A text; can be given several times.")
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option("--input", metavar="FILE", help="A file of texts: .txt (one a line), .csv, .jsonl, ..."),
    ] = None,
    set_: Set = None,
    json: JsonLines = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Label texts with a fine-tuned classifier.

    A line per text: label, probability, and the next three labels with theirs.

    [bold]Examples[/bold]

    hfkit predict runs/finetune-bert-base-uncased --text "a fine film"

    hfkit predict runs/finetune-bert-base-uncased --input new.csv --json
    """
    from hfkit.resolve import resolve

    recipe = resolve("predict", run=model_, flags=settings, sets=set_ or ())
    if not text and not input_:
        raise UsageError("there is no text to classify", "--text 'some text' or --input FILE")

    from hfkit.prediction import predict as predict_texts
    from hfkit.prediction import read_texts

    texts, pairs = (list(text), None) if text else read_texts(recipe, str(input_))
    for answer in predict_texts(recipe, texts, pairs):
        if json:
            console.result_json(answer)
        else:
            others = sorted(answer["probabilities"].items(), key=lambda pair: -pair[1])[1:4]
            beside = ", ".join(f"{label} {p:.3f}" for label, p in others)
            console.result(f"{answer['label']}\t{answer['score']:.3f}\t({beside})")
