"""`hfkit generate`: text from a prompt."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfkit.cli.options import JsonLines, ModelArgument, Set, require_file_options, with_settings
from hfkit.data.lines import utf8_stdin
from hfkit.errors import UsageError
from hfkit.settings import Generation, Recipe
from hfkit.system import console
from hfkit.system.launcher import Launch
from hfkit.system.launcher import run as run_processes
from hfkit.system.processes import num_processes

if TYPE_CHECKING:
    from hfkit.generation.generator import Generator


Prompt = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", "-p", metavar="TEXT", help="What the text begins with; - is stdin. Can be given several times."
    ),
]
Echo = Annotated[bool, typer.Option("--echo", metavar="", help="Print the prompt before its continuation.")]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="FILE", help="A file of prompts: .txt (one a line), .csv, .jsonl, ...; - is stdin."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="Write JSON lines to this file, not to stdout; the texts alone if it ends in .txt or in an unknown "
        "suffix such as .en.",
    ),
]
Resume = Annotated[str | None, typer.Option("--resume", metavar="", help="Keep an --output that is finished already.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace an --output that exists.")]
References = Annotated[
    str | None,
    typer.Option(
        "--references",
        metavar="COLUMN|FILE",
        help="Column of --input with the expected texts, or a text file with a line for each prompt; prints a score.",
    ),
]
Choices = Annotated[
    str | None,
    typer.Option("--choices", metavar="A,B,C", help="Generate nothing: rank these after each prompt by likelihood."),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        metavar="[N]",
        min=0,
        help="Show how likely each token is, and the N likeliest in its place.",
        show_default=False,
    ),
]
Convert = Annotated[
    Path | None,
    typer.Option("--convert", metavar="DIR", help="Keep a plain copy of a GGUF --model there, and use it."),
]


@with_settings("generate")
def generate(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    prompt: Prompt = None,
    echo: Echo = False,
    input_: Input = None,
    output: Output = None,
    resume: Resume = None,
    overwrite: Overwrite = False,
    references: References = None,
    choices: Choices = None,
    logprobs: Logprobs = None,
    convert: Convert = None,
    set_: Set = None,
    json: JsonLines = False,
    launch: Launch | None = None,
) -> None:
    """Continue prompts, or answer them with a chat model.

    Stdout holds the text and nothing else. A file of prompts that was stopped
    goes on with the same command.

    [bold]Examples[/bold]

    hfkit generate --model gpt2 --prompt "Once upon a time"

    hfkit generate --model gpt2 --prompt "Dear Sir" --do-sample --temperature 0.8

    hfkit generate runs/pretrain-gpt2 --input prompts.jsonl --output texts.jsonl

    hfkit generate --model gpt2 --prompt "The sky is" --choices blue,green
    """
    from hfkit.recipe.resolve import resolve

    recipe = resolve("generate", run=model_, flags=settings, sets=set_ or ())
    files = {"--references": references, "--metrics": recipe.evaluation.metrics}
    ways = {"--echo": echo, "--choices": choices, "--logprobs": logprobs}
    _require_sense((input_, output, resume, overwrite), files, prompt, ways, launch)
    recipe = _with_plain_copy(recipe, convert)
    if launch is not None:
        raise typer.Exit(run_processes(launch))
    if input_ is not None:
        _answer_file(recipe, input_, output, json, resume is not None, overwrite, references)
    else:
        _answer_prompts(recipe, prompt or [], choices, logprobs, echo=echo, json=json)


def _require_sense(
    of_files: tuple[str | None, Path | None, str | None, bool],
    files: dict[str, Any],
    prompt: list[str] | None,
    ways: dict[str, Any],
    launch: Launch | None,
) -> None:
    """UsageError for options that exclude each other or act on files alone."""
    input_, output, resume, overwrite = of_files
    if input_ is not None and (prompt or ways["--echo"]):
        raise UsageError("--input and --prompt or --echo exclude each other", "choose one")
    several = launch is not None or num_processes() > 1
    require_file_options(input_, output, resume, overwrite, files | {"--num-processes": several}, several=several)
    scoring = next((flag for flag in ("--choices", "--logprobs") if ways[flag] is not None), None)
    others = {"--input": input_ is not None, "--echo": ways["--echo"]}
    others["--logprobs"] = scoring == "--choices" and ways["--logprobs"] is not None
    if scoring is not None and (other := next((flag for flag, given in others.items() if given), None)):
        raise UsageError(f"{scoring} and {other} exclude each other", "choose one")
    if ways["--choices"] is not None:
        _split(ways["--choices"])
    if input_ is None and launch is None and not prompt:
        raise UsageError("there is no prompt", "--prompt 'Once upon a time' or --input FILE")


def _with_plain_copy(recipe: Recipe, directory: Path | None) -> Recipe:
    """The recipe with the GGUF file that is its model replaced by a plain copy in `directory`, if one is named."""
    if directory is None:
        return recipe
    from hfkit.models.export import with_plain_copy

    return with_plain_copy(recipe, directory)


def _answer_file(
    recipe: Recipe, file: str, output: Path | None, json: bool, resume: bool, overwrite: bool, references: str | None
) -> None:
    from hfkit.generation.files import generate_file

    write = console.result_json if json else lambda row: console.result(row["text"])
    scores = generate_file(recipe, file, output, write, resume=resume, overwrite=overwrite, references=references)
    if scores:
        _print_scores({name: dataclasses.asdict(one) for name, one in scores.items()}, json)


def _answer_prompts(
    recipe: Recipe, given: list[str], choices: str | None, logprobs: int | None, *, echo: bool, json: bool
) -> None:
    from hfkit.generation.generator import load_generator

    with utf8_stdin():
        prompts = [_all_of_stdin() if text == "-" else text for text in given]
    if choices is not None:
        _warn_of_idle(recipe)
        _rank(load_generator(recipe), prompts, _split(choices), json)
        return
    generator = load_generator(recipe)
    ids = [generator.encode(text) for text in prompts]
    generator.warn_of_truncation()
    if json or logprobs is not None:
        _print_scored(generator, prompts, ids, logprobs, json)
    elif len(prompts) * generator.num_sequences == 1 and sys.stdout.isatty():
        _stream(generator, prompts[0] if echo else "", ids)
    else:
        for start, answers in zip(prompts, generator.answers(ids), strict=True):
            for answer in answers:
                console.result(start + answer.text if echo else answer.text)


def _stream(generator: Generator, start: str, ids: Sequence[list[int]]) -> None:
    """One answer, printed while it is generated."""
    from hfkit.generation.generator import warn_of_cut

    console.result(start, end="")
    ((answer,),) = generator.batch([0], ids, write=lambda text: console.result(text, end=""))
    console.result("")
    warn_of_cut([(answer.finish_reason, len(answer.ids))])


def _all_of_stdin() -> str:
    """Without its last line end, which `echo` and editors add."""
    return sys.stdin.read().removesuffix("\n")


def _print_scored(
    generator: Generator, prompts: Sequence[str], ids: Sequence[list[int]], logprobs: int | None, json: bool
) -> None:
    """The answers with the log-probabilities of their tokens, as JSON lines or for a person."""
    from hfkit.cli.likelihood import as_object, print_tokens
    from hfkit.generation.choices import scored_answers

    for place, answers in enumerate(scored_answers(generator, ids, logprobs or 0)):
        for scored in answers:
            if json:
                console.result_json(as_object(generator, prompts[place], ids[place], scored, each=logprobs is not None))
            else:
                print_tokens(generator, ids[place], scored, logprobs or 0)


def _rank(generator: Generator, prompts: Sequence[str], choices: Sequence[str], json: bool) -> None:
    """The choices after each prompt, the likeliest first."""
    from hfkit.cli.likelihood import choices_object, print_choices
    from hfkit.generation.choices import ranked

    for prompt in prompts:
        found = ranked(generator, prompt, choices)
        if json:
            console.result_json(choices_object(prompt, found))
        else:
            print_choices(prompt, found)


def _split(choices: str) -> list[str]:
    """The choices in a line, as a CSV row has its cells; UsageError if they are no choice."""
    found = next(csv.reader([choices], skipinitialspace=True), [])
    if not all(choice.strip() for choice in found):
        raise UsageError(f"--choices {choices!r}: one of them is empty", "leave out the comma beside it")
    if len(found) < 2 or len(set(found)) < len(found):
        fix = """--choices yes,no, with quotes around a comma: --choices '"yes, sir",no'"""
        raise UsageError(f"--choices {choices!r}: give two different ones at least", fix)
    return found


def _warn_of_idle(recipe: Recipe) -> None:
    """Says which settings decide how a text is made, where none is."""
    plain = Generation()
    acting = ("raw", "chat_template", "language", "compile")
    idle = [name for name, value in vars(recipe.generation).items() if value != getattr(plain, name)]
    if idle := [name for name in idle if name not in acting]:
        console.warn(f"{', '.join(idle)} has no effect with --choices, which makes no text", "leave it out")


def _print_scores(scores: dict[str, dict[str, Any]], json: bool) -> None:
    """As `hfkit evaluate` prints them."""
    from hfkit.runs.manifest import versions

    if json:
        console.result_json({"metrics": scores, "versions": versions()})
    else:
        console.result(console.score_table(scores))
