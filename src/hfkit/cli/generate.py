"""`hfkit generate`: text from a prompt."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hfkit import console
from hfkit.cli.options import Debug, JsonLines, ModelArgument, Set, Verbose, with_settings
from hfkit.errors import UsageError


@with_settings("generate")
def generate(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="What the text begins with; can be given several times."),
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", metavar="", help="Print the prompt before its continuation.")] = False,
    set_: Set = None,
    json: JsonLines = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Continue a prompt.

    Stdout holds the continuation and nothing else.

    [bold]Examples[/bold]

    hfkit generate --model gpt2 --prompt "Once upon a time"

    hfkit generate --model gpt2 --prompt "Dear Sir" --do-sample --temperature 0.8

    hfkit generate runs/pretrain-gpt2 --prompt "Return the" --max-new-tokens 40
    """
    from hfkit.resolve import resolve

    recipe = resolve("generate", run=model_, flags=settings, sets=set_ or ())
    if not prompt:
        raise UsageError("there is no prompt", "--prompt 'Once upon a time'")

    from hfkit.generation import generate as generate_texts

    texts = generate_texts(recipe, prompt)
    for start, text in zip(prompt, texts, strict=True):
        if json:
            console.result_json({"prompt": start, "text": text})
        else:
            console.result(start + text if echo else text)
