"""`hfkit chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfkit.cli.options import ModelArgument, Set, with_settings
from hfkit.errors import DataError, HfkitError, UsageError, did_you_mean, format_problem
from hfkit.settings import SETTINGS
from hfkit.system import console
from hfkit.system.signals import stop_signals

if TYPE_CHECKING:
    from hfkit.generation.chat import ChatSession

COMMANDS = {
    "/reset": "Forget the conversation; the system message stays.",
    "/system TEXT": "Sets the system prompt; without TEXT, removes it.",
    "/set NAME=VALUE": "A generation setting: temperature=0.7, or as on the command line: --do-sample.",
    "/save FILE": "Add the conversation to a file, one a line; save again to replace it by its longer self.",
    "/load FILE": "Go on with the last conversation in a file.",
    "/help": "This.",
    "/quit": "End, as Ctrl-D does.",
}

HELP = '''A line is a message; several are one between """ and """. One that begins with / needs a blank before it.
Ctrl-C stops an answer; twice at the prompt it ends the chat.'''

BLOCK = '"""'


@with_settings("chat")
def chat(
    settings: dict[str, Any],
    model_: ModelArgument = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System prompt of the conversation.")
    ] = None,
    set_: Set = None,
) -> None:
    """Chat with a model.

    It remembers what was said, and leaves out the oldest turns when it is full.
    Piped in, each line is a message or a command. Stdout holds the answers alone.

    [bold]Examples[/bold]

    hfkit chat HuggingFaceTB/SmolLM2-135M-Instruct

    hfkit chat runs/my-chat-model --system "Answer in one sentence." --do-sample

    printf 'Hello\\n/save chat.jsonl\\n' | hfkit chat runs/my-chat-model
    """
    from hfkit.recipe.resolve import resolve

    recipe = resolve("chat", run=model_, flags=settings, sets=set_ or ())

    from hfkit.generation.chat import ChatSession

    session = ChatSession(recipe)
    session.set_system(system or "")
    in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if in_terminal:
        with contextlib.suppress(ModuleNotFoundError):
            import readline

            readline.parse_and_bind("set enable-bracketed-paste on")  # several lines that are pasted are one message
        console.say(f"chat with {recipe.model.name} (/help says what can be typed, Ctrl-D ends)")
    _converse(session, in_terminal)


def _converse(session: ChatSession, in_terminal: bool) -> None:
    """Messages and commands until there are no more; in a terminal, what goes wrong is said and the chat goes on."""
    from hfkit.data.lines import utf8_stdin

    asking = asked_to_end = False
    with stop_signals() as signals:
        while True:
            try:
                asking = True
                with utf8_stdin():
                    message = _typed(in_terminal)
                asking = asked_to_end = False
                if message is None or message.rstrip() == "/quit":
                    return
                if message.startswith("/"):
                    _obey(session, message)
                elif message.strip():
                    _answer(session, message.removeprefix(" "))
            except KeyboardInterrupt:
                if not in_terminal or asked_to_end:
                    raise
                signals.caught, asked_to_end = 0, asking  # it is dealt with
                if asking:
                    console.say("\n(Ctrl-C again or Ctrl-D ends the chat)")
            except HfkitError as error:
                if not in_terminal:
                    raise
                for problem in error.problems:
                    console.say(f"error: {format_problem(*problem)}")


def _typed(in_terminal: bool) -> str | None:
    """The next message or command, None at the end of the input."""
    lines: list[str] = []
    try:
        lines.append(input("> " if in_terminal else ""))
        if not lines[0].startswith(BLOCK):
            return lines[0]
        lines[0] = lines[0].removeprefix(BLOCK)
        while not lines[-1].endswith(BLOCK):
            lines.append(input(". " if in_terminal else ""))
    except EOFError as error:
        if in_terminal:
            console.result("")
        if lines:
            raise DataError(f"the input ended within {BLOCK}", f"end the message with {BLOCK}") from error
        return None
    lines[-1] = lines[-1].removesuffix(BLOCK)
    return " " + "\n".join(lines).strip("\n")


def _answer(session: ChatSession, message: str) -> None:
    num_messages = len(session.messages)
    try:
        answer = session.answer(message, write=lambda text: console.result(text, end=""))
    except KeyboardInterrupt:
        kept = len(session.messages) > num_messages
        console.say("\n(stopped)" if kept else "\n(stopped before the first word: as if nothing had been said)")
        raise
    console.result("")
    if answer.finish_reason == "length":
        num_tokens = len(answer.ids)
        console.warn(f"the answer was cut after {num_tokens} tokens", f"/set max_new_tokens={2 * num_tokens}")


def _obey(session: ChatSession, line: str) -> None:
    """Does what a command says; UsageError if there is no such command or it lacks something."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    usage = {known.partition(" ")[0]: known for known in COMMANDS}
    if command not in usage:
        raise UsageError(f"unknown command '{command}'", did_you_mean(command, usage) or "/help")
    if not rest and usage[command].endswith(("FILE", "VALUE")):
        raise UsageError(f"{command} alone says too little", usage[command])
    match command:
        case "/reset":
            session.reset()
            console.say("(forgotten)")
        case "/system":
            session.set_system(rest)
            console.say("(from here on)" if rest else "(no system message)")
        case "/set":
            session.set(_assignment(rest))
        case "/save":
            num_conversations = session.save(Path(rest).expanduser())
            console.say(f"({rest}: {num_conversations} conversation{'s' * (num_conversations > 1)})")
        case "/load":
            session.load(Path(rest).expanduser())
            console.say(f"({len(session.messages)} messages)")
        case "/help":
            width = max(map(len, COMMANDS))
            console.say("\n".join([*(f"{known:<{width}}  {what}" for known, what in COMMANDS.items()), HELP]))


def _assignment(text: str) -> str:
    """`name=value` of what may be a flag and its value, as the hints of other commands have them."""
    if not text.startswith("--"):
        return text
    flag, _, value = text.replace("=", " ", 1).partition(" ")
    for key, setting in SETTINGS.items():
        for on, _, off in (flags.partition("/") for flags in setting.metadata["flags"]):
            if flag in (on, off) and key.startswith("generation."):
                return f"{key}={value or str(flag == on).lower()}"
    return text
