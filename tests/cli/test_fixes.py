"""What an error says to type is typed, again and again: it works, or ends in an error that no one has seen before."""

from __future__ import annotations

import ast
import difflib
import importlib
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from test_bad_input import CASES as BAD_INPUT
from test_bad_input import folder  # noqa: F401 - the fixture

import hfkit
from hfkit.cli import app
from hfkit.cli.main import main
from hfkit.settings import SETTINGS, setting_of
from tiny_models import make_t5

# Each has FILES, and CASES: a command line, behind what is piped into it, if anything is.
AREAS = {area: importlib.import_module(f"fixes_{area}") for area in ("data", "generation", "models")}

FILES = {name: content for area in AREAS.values() for name, content in area.FILES.items()}
CASES = {f"bad input: {name}": case[0] for name, case in BAD_INPUT.items()} | {
    f"{area}: {name}": case for area, module in AREAS.items() for name, case in module.CASES.items()
}
RUNS = {  # directory: the command that makes it
    "classifier": "finetune --model ./bert --data good.csv",
    "pairs": "finetune --model ./bert --data two-texts.csv --text-column a --text-pair-column b",
    "tagger": "finetune --model ./bert --data tags.jsonl --task token-classification",
    "reader": "finetune --model ./bert --data questions.jsonl --task question-answering",
    "completer": "finetune --model ./gpt2 --data pairs.tsv --task completion",
    "masked": "pretrain --model ./bert --objective mlm --data book.txt --block-size 16",
    "adapter": "finetune --model ./bert --data good.csv --lora",
    "to-extend": "finetune --model ./bert --data good.csv",  # by one case alone: models are shared by all
}
WORDS = {"NEW": "new-place", "OTHER": "other-place", "ELSEWHERE": "elsewhere", "FILE": "good.csv", "FOLDER": "cache"}

SHORT = {"--learning-rate": ("--lr",), "--num-train-epochs": ("--epochs",)}

SECTIONS = "|".join(dict.fromkeys(key.partition(".")[0] for key in SETTINGS if "." in key))

STEPS = 5  # that a person follows at most


@pytest.fixture(scope="module")
def place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """All that test_bad_input has, FILES, and RUNS."""
    place = tmp_path_factory.mktemp("fixes") / "place"
    shutil.copytree(folder, place)
    make_t5(place / "t5")
    for name, content in FILES.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, line in RUNS.items():
            assert main([*shlex.split(line), *f"--max-steps 2 --validation-split 0 -o {name}".split()]) == 0
    return place


def typed(error: str, fix: str, line: list[str]) -> list[str] | None:
    """The command line of a person who does what `fix` says; None if it is not about what is typed."""
    if found := re.search(r"did you mean '([^']+)'", fix):
        near = difflib.get_close_matches(found[1], [word for word in line if word != found[1]], 1, 0.5) or [
            word for word in line if found[1].split(".")[0] in word
        ]
        if not near and (option := re.match(r"(--[\w-]+)[: ]", error)):
            near = [line[line.index(option[1]) + 1]]
        return [found[1] if word == near[0] else word for word in line] if near else None
    if found := re.match(r"e\.g\. (\S+)", fix):
        option = re.match(r"(--[\w-]+)", error)
        names = [] if option is None else [option[1], *SHORT.get(option[1], ())]
        return next((with_option(line, name, [found[1]]) for name in names if name in line), None)
    if fix.startswith("leave it out"):
        option = re.search(r"--[\w-]+", error)
        return without_option(line, option[0]) if option and option[0] in line else None
    options: list[list[str]] = []  # each with its value, if it has one
    for word in words_of(fix):
        if word in ("or", "if", "and"):
            break
        if word.startswith("--"):
            options.append([word.rstrip(",;")])
        elif options and len(options[-1]) == 1:
            value = word.rstrip(",;") or word
            options[-1].append(WORDS.get(value, value))
        else:
            return None
        if word.endswith((",", ";")):
            break
    if not options or any(value.isupper() for _, *values in options for value in values):
        return None
    for option, *value in options:
        line = with_option(line, option, value)
    return line


def words_of(text: str) -> list[str]:
    """As a shell divides it, or at blanks if it holds an apostrophe."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def without_option(line: list[str], option: str) -> list[str]:
    at = line.index(option)
    takes = at + 1 < len(line) and not line[at + 1].startswith("--")
    return line[:at] + line[at + 1 + takes :]


def with_option(line: list[str], option: str, value: list[str]) -> list[str]:
    line = without_option(line, option) if option in line else line
    return [*line, option, *value]


def errors_of(said: str) -> list[tuple[str, str]]:
    """Each problem and its fix."""
    errors = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    parts = [error.partition(" (fix: ") for error in errors]
    return [(problem, fix.removesuffix(")")) for problem, _, fix in parts]


def unknown_options(fix: str, line: list[str]) -> set[str]:
    """The options in `fix` that the command does not have: that of `line`, or behind "hfkit" the one named there."""
    here, *others = fix.split("hfkit ")
    parts = [(line, here)]
    for other in others:
        command, _, then = other.partition(", then ")
        parts += [(command.replace("`", " ").split(), command), (line, then)]
    return {
        option
        for words, part in parts
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", part)
        if option not in options_of(words)
    }


def options_of(words: list[str]) -> set[str]:
    """The options of the command that a command line begins with."""
    command: click.Command = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            break
        command = command.commands[word]
    return {"--help", *(option for one in command.params for option in (*one.opts, *one.secondary_opts))}


def run(line: list[str], stdin: bytes, patch: pytest.MonkeyPatch) -> int:
    patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    return main(line)


def test_what_errors_name_is_there() -> None:
    """Each option in the text of an error is one of some command, each key one of a setting."""
    options = set().union(*(options_of(list(words)) for words in commands()))
    unknown = {}
    for path in sorted(Path(hfkit.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).removesuffix(".of").endswith("Error"):
                text = " ".join(part.value for part in ast.walk(call) if isinstance(getattr(part, "value", 0), str))
                named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - options
                named |= {
                    key for key in re.findall(rf"\b(?:{SECTIONS})\.(?!json)[a-z_]+\b", text) if not is_setting(key)
                }
                unknown |= dict.fromkeys(named, f"{path.name}:{call.lineno}")
    assert unknown == {}


def commands(group: click.Command | None = None, *before: str) -> Iterator[tuple[str, ...]]:
    """The words of each command."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        yield from commands(command, *before, name) if hasattr(command, "commands") else [(*before, name)]


def is_setting(key: str) -> bool:
    """Whether this is a setting, or begins one."""
    return setting_of(key) is not None or any(name.startswith(f"{key}.") for name in SETTINGS)


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for one case: links to all models, which nothing writes to, and copies of all else."""
    for path in place.iterdir():
        if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
            (tmp_path / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:
            shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_what_is_advised_can_be_typed(
    here: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin, command = ("", CASES[case]) if isinstance(CASES[case], str) else CASES[case]
    piped = stdin if isinstance(stdin, bytes) else stdin.encode()
    line, seen = shlex.split(command), set[str]()
    assert run(line, piped, monkeypatch) not in (0, 1)
    for _ in range(STEPS):
        said = capsys.readouterr().err
        assert "Traceback" not in said
        errors = errors_of(said)
        if not errors:
            return
        for _, fix in errors:
            assert unknown_options(fix, line) == set(), f"{shlex.join(line)}: {fix}"
        problem, fix = errors[0]
        assert problem not in seen, f"{shlex.join(line)}: {said}"
        seen.add(problem)
        if found := re.search(r"(?:^|or )((iconv|tr|mv) .*?)(?= *(?:, and|$))", fix):
            before = set(here.iterdir())
            file = next(word for word in line if (here / word).is_file())
            command = found[1].replace("> NEW", "> new.txt").replace("FILE", file)
            subprocess.run(command, shell=True, check=True)  # noqa: S602
            assert len(set(here.iterdir()) - before) == 1
            return
        again = typed(problem, fix, line)
        if again is None:
            return
        line = again
        if line[0] in ("pretrain", "finetune") and "--max-steps" not in line:
            line += ["--max-steps", "1"]
        assert run(line, piped, monkeypatch) != 1
    raise AssertionError(f"still no end: {shlex.join(line)}: {said}")
