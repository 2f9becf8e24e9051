"""The commands, one file each: they parse options and call one function. Torch is imported only when work starts."""

from __future__ import annotations

from typing import Annotated

import typer

from hfkit import __version__
from hfkit.cli.chat import chat
from hfkit.cli.compare import compare
from hfkit.cli.data import data
from hfkit.cli.doctor import doctor
from hfkit.cli.evaluate import evaluate
from hfkit.cli.export import export
from hfkit.cli.finetune import finetune
from hfkit.cli.generate import generate
from hfkit.cli.predict import predict
from hfkit.cli.pretrain import pretrain
from hfkit.cli.recipes import recipes
from hfkit.cli.tokenizer import tokenizer
from hfkit.system import console

# In options, `_` and `-` are alike.
_CONTEXT = {"token_normalize_func": lambda name: name.replace("_", "-"), "help_option_names": ["-h", "--help"]}


def _version(asked: bool) -> None:
    if asked:
        console.result(f"hfkit {__version__}")
        raise typer.Exit()


app = typer.Typer(
    name="hfkit",
    help="Pretrain, fine-tune, evaluate and use text models with the Hugging Face libraries.\n\n"
    "Try it without your own data: hfkit pretrain --max-steps 50",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=_CONTEXT,
)


@app.callback()
def hfkit(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", is_eager=True, help="Print the version and exit.", callback=_version),
    ] = False,
) -> None:
    """The options that come before a command."""


for command in (pretrain, finetune, predict, generate, chat, evaluate, compare, export, doctor):
    app.command(context_settings=_CONTEXT)(command)
app.add_typer(data, name="data")
app.add_typer(recipes, name="recipes")
app.add_typer(tokenizer, name="tokenizer")
