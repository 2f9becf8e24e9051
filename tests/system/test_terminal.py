"""What a person sees in a real terminal or pipe: text as it is made, Ctrl-C, a reader that goes away."""

import codecs
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import psutil
import pytest

from hfkit.cli.main import main
from hfkit.models.new_tokenizer import train_tokenizer
from tiny_models import TEXT, make_causal_model, make_speaker, make_word_tokenizer

WORLD = "hello 你好，世界 😀👩‍👩‍👧 שלום عالم né"
PATIENCE = 300  # seconds without a byte

# The terminal becomes the one that Ctrl-C is typed in: the first that the leader of a session opens.
START = "import os; os.close(os.open(os.ttyname(0), os.O_RDWR)); from hfkit.cli.main import run; run()"


class Terminal:
    """A command in a terminal of its own; `screen` is all that was written to it, what was typed included."""

    def __init__(self, *arguments):
        self.keyboard, inner = pty.openpty()
        environment = os.environ | {"LC_ALL": "C.UTF-8", "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *arguments],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True, env=environment,
        )  # fmt: skip
        os.close(inner)
        self.decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self.screen, self.seen = "", 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)

    def type(self, text):
        os.write(self.keyboard, text.encode())

    def until(self, pattern):
        """Reads on to the next match of the pattern and returns it."""
        while (found := re.compile(pattern).search(self.screen, self.seen)) is None:
            assert self.read(), f"{pattern!r} did not come: {self.screen!r}"
        self.seen = found.end()
        return found[0]

    def prompt(self, pattern="> "):
        """Reads on to the prompt, until the program waits there.

        CPython's readline module loses a Ctrl-C that comes after it writes the prompt and before it waits for a key.
        """
        self.until(pattern)
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            time.sleep(0.01)

    def read(self):
        """Takes what has been written; False at the end."""
        assert select.select([self.keyboard], [], [], PATIENCE)[0], f"nothing more came: {self.screen!r}"
        try:
            data = os.read(self.keyboard, 7)  # few bytes: most characters are cut in two
        except OSError:  # Linux has no other end of file here
            data = b""
        self.screen += self.decoder.decode(data, final=not data)
        return bool(data)

    def exit_code(self):
        while self.read():
            pass
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model with a chat template that never stops by itself: its answers would take hours."""
    directory = tmp_path_factory.mktemp("models") / "endless"
    tokenizer = make_word_tokenizer(eos=None)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}w9"
    model = make_causal_model(positions=2_000_000, vocabulary=len(tokenizer))
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def polyglot(tmp_path_factory):
    """A model that says WORLD to "x", byte by byte or nearly so."""
    tokenizer = train_tokenizer([*TEXT, WORLD], "gpt2", 280)
    ids = tokenizer(WORLD)["input_ids"]
    assert len(ids) > len(WORLD)
    tokenizer.chat_template = "{{ messages[-1].content[:1] }}"
    directory = tmp_path_factory.mktemp("models") / "polyglot"
    return str(make_speaker(directory, tokenizer, ids + [tokenizer.eos_token_id] * 4 * len(ids)))


HOURS = ("--max-new-tokens", "1000000")


def test_text_comes_as_it_is_made_and_ctrl_c_ends_it_without_a_traceback(endless):
    with Terminal("generate", endless, "--raw", "--prompt", "w1 w2", *HOURS) as terminal:
        terminal.until(r"(w\d+ ){20}")
        terminal.type("\x03")
        assert terminal.exit_code() == 130
        assert terminal.screen.endswith("error: stopped by Ctrl-C\r\n")
        assert "Traceback" not in terminal.screen


def test_characters_of_many_bytes_are_streamed_whole(polyglot, capsys):
    command = ["generate", polyglot, "--raw", "--prompt", "x"]
    assert main(command) == 0
    assert capsys.readouterr().out == WORLD + "\n"
    with Terminal(*command) as terminal:
        assert terminal.exit_code() == 0
        assert terminal.screen == WORLD + "\r\n"


def test_ctrl_c_stops_an_answer_and_not_the_chat(endless, tmp_path):
    path = tmp_path / "chat.jsonl"
    with Terminal("chat", endless, *HOURS) as terminal:
        terminal.until("/help says what can be typed")
        terminal.prompt()
        terminal.type("w1 w2\r")
        terminal.until(r"(w\d+ ){20}")
        terminal.type("\x03")
        terminal.until(r"\(stopped\)")
        terminal.prompt()
        terminal.type("/set max_new_tokens=-1\r")
        terminal.until(r"error: max_new_tokens: must be at least 1, not -1 \(fix: e.g. 8\)")
        terminal.prompt()
        terminal.type("/set max_new_tokens=3\r")
        terminal.prompt()
        terminal.type("w3\r")
        terminal.until("warning: the answer was cut after 3 tokens")
        terminal.prompt()
        terminal.type(f"/save {path}\r")
        terminal.until("1 conversation")
        terminal.prompt()
        terminal.type("\x03")
        terminal.until(r"\(Ctrl-C again or Ctrl-D ends the chat\)")
        terminal.prompt()
        terminal.type("\x03")
        assert terminal.exit_code() == 130
        assert "Traceback" not in terminal.screen
    messages = json.loads(path.read_text())["messages"]
    assert [message["content"] for message in messages[::2]] == ["w1 w2", "w3"]
    assert [message["finish_reason"] for message in messages[1::2]] == ["interrupted", "length"]
    assert len(messages[1]["content"].split()) >= 20
    shown, _, _ = messages[1]["content"].rpartition(" ")  # the last word was made, and perhaps not shown yet
    assert shown in terminal.screen
    assert len(messages[3]["content"].split()) == 3


def test_any_script_can_be_typed_and_ctrl_d_ends_the_chat(polyglot, tmp_path):
    path = tmp_path / "chat.jsonl"
    with Terminal("chat", polyglot) as terminal:
        terminal.prompt()
        terminal.type('"""x你好 😀\r')
        terminal.prompt(r"\. ")
        terminal.type('שלום"""\r')
        terminal.until("né")
        terminal.prompt()
        terminal.type(f"/save {path}\r")
        terminal.until("1 conversation")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.exit_code() == 0
    said, answer = json.loads(path.read_text())["messages"]
    assert said["content"] == "x你好 😀\nשלום"
    assert answer["content"] == WORLD


@pytest.mark.parametrize(("reader", "read"), [("head -c 5", "hello"), ("true", "")])
def test_reader_that_goes_away_is_no_error(polyglot, reader, read):
    command = f"{sys.executable} -m hfkit generate {polyglot} --raw -p x -p x -p x"
    ended = subprocess.run(
        ["bash", "-c", f"{{ {command}; echo $? >&2; }} | {reader}"], capture_output=True, text=True, timeout=600
    )
    assert (ended.stdout, ended.stderr) == (read, "0\n")
