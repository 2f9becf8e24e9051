"""What an error says to type is typed: it works, or the next message is another one."""

from __future__ import annotations

import difflib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from test_bad_input import CASES, TUNE, folder  # noqa: F401 - the fixture

from hfkit.cli.main import main

MORE = {  # what no case of test_bad_input has
    "tabs in text": f"{TUNE} tabs.txt",
    "unknown flag": f"{TUNE} good.csv --learning-rat 1e-3",
    "extra field": f"{TUNE} good.csv --set train.extra.weight_decay=0.1",
    "no data": "finetune --model ./bert --validation good.csv --validation-split 0.2 --data good.csv",
    "two schedules": f"{TUNE} good.csv --max-steps 1 --max-time 1m",
    "batch": f"{TUNE} good.csv --global-batch-size 6 --batch-size 4",
    "number as text": f"{TUNE} good.csv --epochs many",
    "greedy with samples": "generate ./gpt2 --prompt x --greedy --num-return-sequences 3",
    "beams and samples": "generate ./gpt2 --prompt x --num-beams 2 --num-return-sequences 3",
    "negative tokens": "generate ./gpt2 --prompt x --max-new-tokens -3",
    "output kind": "generate ./gpt2 --input book.txt --output out.csv",
    "predictions alone": "evaluate --predictions good.csv --metrics bleu",
    "other columns": "evaluate --predictions good.csv --references other-label.csv --metrics accuracy --column nosuch",
    "column that is not": "evaluate --predictions good.csv --references good.csv --metrics f1 --prediction-column x",
    "allowed download": "evaluate --predictions book.txt --references book.txt --metrics bleu --allow-download",
    "pseudo": "evaluate ./gpt2 --data book.txt --pseudo-perplexity",
    "chat of no chat": "generate ./gpt2 --input chats.jsonl",
    "repeated key": f"{TUNE} twice.jsonl",
    "masked decoder": "evaluate ./bert --data book.txt --context 8",
    "one system": "compare book.txt --references book.txt",
    "metric of texts": "evaluate --predictions good.csv --references good.csv --metrics acuracy",
    "labels of other names": "evaluate --predictions good.csv --references stars.csv --metrics accuracy",
    "nan label": f"{TUNE} nan.csv",
    "tokenizer too small": "tokenizer train book.txt --vocab-size 10 -o small",
}
FILES = {
    "tabs.txt": "text\tlabel\na fox\tgood\nthe dog\tbad\na cat\tgood\n",
    "chats.jsonl": '{"messages": [{"role": "user", "content": "hi"}]}\n',
    "twice.jsonl": '{"text": "a", "label": "x", "text": "b"}\n{"text": "c", "label": "y"}\n',
    "stars.csv": "text,label\nhello world,5\nthe dog,1\na fox,5\nthe fox,1\n",
    "nan.csv": "text,label\na,1\nb,nan\nc,0\nd,1\n",
}
WORDS = {"NEW": "new-place", "OTHER": "other-place", "ELSEWHERE": "elsewhere", "FILE": "good.csv", "FOLDER": "cache"}

SHORT = {"--learning-rate": ("--lr",), "--num-train-epochs": ("--epochs",)}


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
    clause = re.split(r"; |, or | or |, if |, and ", fix)[0].rstrip(",")
    if not re.fullmatch(r"(--[\w-]+( [^\s-]\S*)?)( --[\w-]+( [^\s-]\S*)?)*", clause):
        return None
    for option, value in re.findall(r"(--[\w-]+)(?: ([^\s-]\S*))?", clause):
        word = WORDS.get(value, value)
        if word.isupper():
            return None
        line = with_option(line, option, [word] if word else [])
    return line


def without_option(line: list[str], option: str) -> list[str]:
    at = line.index(option)
    takes = at + 1 < len(line) and not line[at + 1].startswith("--")
    return line[:at] + line[at + 1 + takes :]


def with_option(line: list[str], option: str, value: list[str]) -> list[str]:
    line = without_option(line, option) if option in line else line
    return [*line, option, *value]


def errors_of(said: str) -> list[str]:
    return [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_what_is_advised_can_be_typed(
    folder: Path,  # noqa: F811
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    shutil.copytree(folder, place)
    for name, content in FILES.items():
        (place / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(place)
    line = shlex.split(MORE[case] if case in MORE else CASES[case][0])
    assert main(line) != 0
    (error, *_) = errors_of(capsys.readouterr().err)
    problem, _, fix = error.rpartition(" (fix: ")
    fix = fix.removesuffix(")")
    if found := re.search(r"(iconv|tr|mv) .*?(?= *(?:, and|$))", fix):
        subprocess.run(found[0].replace("> NEW", "> new.txt"), shell=True, check=True)  # noqa: S602
        made = next(iter(set(place.iterdir()) - {place / name for name in (*FILES, *line)}), None)
        assert made is not None
        return
    again = typed(problem, fix, line)
    if again is None:
        return
    if again[0] in ("pretrain", "finetune") and "--max-steps" not in again:
        again += ["--max-steps", "1"]
    code = main(again)
    said = capsys.readouterr()
    assert code != 1, said.err
    assert "Traceback" not in said.err
    assert [one for one in errors_of(said.err) if one.startswith(problem)] == [], f"{shlex.join(again)}: {said.err}"
