"""Conversations in all forms become the same messages; what is none is named."""

import json

import pytest
from datasets import Dataset

from hfkit.data.conversations import first_row, form_of, load_conversations
from hfkit.data.loading import load_data
from hfkit.errors import DataError
from hfkit.settings import Data

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "a fox"},
    {"role": "user", "content": "and?\na dog"},
    {"role": "assistant", "content": "lazy"},
]

SAME = {
    "messages": {"messages": TURNS},
    "messages with a column of system messages": {"system": "be brief", "messages": TURNS[1:]},
    "ShareGPT": {
        "system": "be brief",
        "conversations": [
            {"from": "human", "value": "hello"},
            {"from": "gpt", "value": "a fox"},
            {"from": "user", "value": "and?\na dog"},
            {"from": "assistant", "value": "lazy"},
        ],
    },
    "Alpaca": {
        "system": "be brief",
        "history": [["hello", "a fox"]],
        "instruction": "and?",
        "input": "a dog",
        "output": "lazy",
    },
    "prompt and completion": {"prompt": TURNS[:4], "completion": TURNS[4:]},
    "prompt and a text": {"prompt": TURNS[:4], "completion": "lazy"},
}


@pytest.mark.parametrize("form", SAME)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_the_same_conversation_in_every_form(tmp_path, form, suffix):
    path, row = tmp_path / f"a.{suffix}", SAME[form]
    if suffix == "parquet":
        Dataset.from_list([row] * 2).to_parquet(path)
    else:
        path.write_text(json.dumps([row] * 2) if suffix == "json" else f"{json.dumps(row)}\n" * 2)
    assert form_of(first_row([str(path)])) in row
    data = Data(train=[str(path)])
    found = load_conversations(load_data(data), data)["train"][1]
    assert json.loads(found["messages"]) == TURNS
    assert (found["text"], found["target"], found["row"], found["split"]) == ("and?\na dog", "lazy", 1, "train")


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"instruction": "", "output": "a"}, "column 'instruction' is empty"),
        ({"instruction": "a", "output": None}, "column 'output' is empty"),
        ({"prompt": " ", "completion": "a"}, "column 'prompt' is empty"),
        ({"conversations": [{"from": "cat", "value": "a"}]}, "message 1 has the unknown role 'cat'"),
        ({"conversations": [{"from": "function_call", "value": "f("}]}, "message 1 (function_call) holds no call"),
        ({"messages": ["hello"]}, "column 'messages' is no list of messages"),
        ({"messages": TURNS, "tools": "f("}, "column 'tools' holds no list of tools"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(row, error):
    dataset = Dataset.from_list([row])
    with pytest.raises(DataError) as found:
        load_conversations({"train": dataset}, Data(train=["x"]))
    assert f"row 1: {error}" in str(found.value)


def test_data_without_conversations_says_what_there_is():
    with pytest.raises(DataError, match="no column holds conversations, found: text, label"):
        load_conversations({"train": Dataset.from_list([{"text": "a", "label": "b"}])}, Data(train=["x"]))
