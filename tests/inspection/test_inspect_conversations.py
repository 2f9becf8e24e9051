"""`hfkit data inspect` of conversations: turns, lengths as rendered, and what is learned of one of them."""

import json

import pytest

from chat_models import CHATML, GEMMA, make_chat_model
from hfkit.cli.main import main

ASK = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "a fox"}

ROWS = [[ASK, ANSWER], [ASK, ANSWER, ASK, ANSWER], [{"role": "system", "content": "be brief"}, ASK, ANSWER]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in ROWS))
    make_chat_model(tmp_path / "model", CHATML)
    make_chat_model(tmp_path / "base", None)
    return tmp_path


def inspect(capsys, *words):
    assert main(["data", "inspect", "chats.jsonl", *words]) == 0
    return capsys.readouterr()


def test_turns_roles_and_one_conversation_are_shown(folder, capsys):
    found = json.loads(inspect(capsys, "--model", "./model", "--json").out)
    train = found["splits"]["train"]
    assert found["task"] == "chat"
    assert train["turns"]["histogram"] == {"1": 2, "2": 1}
    assert train["roles"] == {"user": 4, "assistant": 4, "system": 1}
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\na fox<|im_end|>\n"
    assert found["conversation"]["text"] == text
    assert [text[begin:end] for begin, end in found["conversation"]["learned"]] == ["a fox<|im_end|>"]
    out = inspect(capsys, "--model", "./model").out
    assert "what is learned of it in [[ ]]\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[a fox" in out
    assert "answers in a conversation, train\n  1       2  #" in out


def test_what_is_learned_and_the_template_are_settings(folder, capsys):
    out = inspect(capsys, "--model", "./base", "--chat-template", "chatml", "--train-on", "all").out
    assert "[[<|im_start|>user\nhello<|im_end|>\n" in out
    said = inspect(capsys, "--model", "./base")
    assert "warning: the model has no chat template to put messages into (fix: --chat-template chatml" in said.err
    assert "hello" in said.out


def test_rows_that_the_template_refuses_are_counted(folder, capsys):
    (folder / "gemma.jinja").write_text(GEMMA)
    (folder / "chats.jsonl").write_text(
        "".join(json.dumps({"messages": row}) + "\n" for row in [[ASK, ANSWER], [ASK, ASK, ANSWER]])
    )
    said = inspect(capsys, "--model", "./model", "--chat-template", "gemma.jinja")
    assert (
        "train: 1 of 2 rows (50.0%) can't be rendered: the chat template refuses the messages: Conversation" in said.err
    )


def test_long_conversations_are_counted_as_they_are_rendered(folder, capsys):
    found = json.loads(inspect(capsys, "--model", "./model", "--max-length", "40", "--json").out)
    tokens = found["splits"]["train"]["tokens"]
    assert (tokens["limit"], tokens["cut"]) == (40, 2)
