"""Conversations from files of all forms to a model that answers, stops, and is scored."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_models import CHATML, GEMMA, MARKED, OWN_SYSTEM, TOOLS, make_chat_model
from hfkit.cli.main import main

WORDS = ["fox", "dog", "lazy", "quick", "brown", "world", "tiny", "model", "jumps", "over"]

ROWS = [(f"the {first}, the {second}", f"{second} {first}") for first in WORDS[:5] for second in WORDS[5:9]]


def messages_of(ask, answer):
    return [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]


FORMS = {
    "messages": [{"messages": messages_of(*row)} for row in ROWS],
    "conversations": [
        {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]} for ask, answer in ROWS
    ],
    "prompt and completion": [
        {"prompt": messages_of(*row)[:1], "completion": messages_of(*row)[1:]} for row in ROWS
    ],
    "instruction, input and output": [
        {"instruction": ask.split(" ", 1)[0], "input": ask.split(" ", 1)[1], "output": answer} for ask, answer in ROWS
    ],
}  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    make_chat_model(folder / "base", None, control=False)  # a base model: no template, its pad token is its EOS
    make_chat_model(folder / "chatml", CHATML)
    make_chat_model(folder / "own", OWN_SYSTEM)
    for name, rows in FORMS.items():
        write(folder / f"{name.split()[0].strip(',')}.jsonl", rows)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Runs a command in the folder of models and data; its exit code, stdout and stderr."""
    monkeypatch.chdir(folder)

    def run(*words):
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


LEARN = ("--epochs", "40", "--global-batch-size", "5", "--lr", "5e-3", "--validation-split", "0", "--no-samples")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of the base model that knows ROWS by heart."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    data = str(folder / "messages.jsonl")
    command = ["finetune", "--model", str(folder / "base"), "--data", data, "--chat-template", "chatml", *LEARN]
    assert main([*command, "-o", str(directory)]) == 0
    return directory


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognized_and_gives_the_same_run(folder, run, tmp_path, form):
    flags = ("--chat-template", "chatml", "--max-steps", "2", "--validation-split", "0", "--no-samples")
    file = f"{form.split()[0].strip(',')}.jsonl"
    code, _, err = run("finetune", "--model", "./base", "--data", file, *flags, "-o", tmp_path / "a")
    assert code == 0
    where = "columns of prompts and answers" if " " in form else f"the column {form}"
    assert f"task: chat, because the data has {where} (change with --task)" in err
    named = f"columns {form}" if " " in form else f"column {form} (change with --text-column)"
    assert f"conversations: {named}" in err
    if "instruction" in form:
        return  # a line feed stands between instruction and input
    code, *_ = run(
        "finetune", "--task", "chat", "--model", "./base", "--data", "messages.jsonl", *flags, "-o", tmp_path / "b"
    )
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_plain_prompts_and_completions_are_for_completion_unless_chat_is_asked_for(folder, run, tmp_path):
    write(tmp_path / "pairs.jsonl", [{"completion": answer, "prompt": ask} for ask, answer in ROWS])
    command = ("finetune", "--model", "./chatml", "--data", tmp_path / "pairs.jsonl", "--max-steps", "1")
    flags = ("--max-length", "60", "--max-target-length", "30", "-o", tmp_path / "a")
    code, _, err = run(*command, *flags)
    assert code == 0
    assert "task: completion, because the data has texts in the columns prompt and completion" in err
    assert "source column: prompt, target column: completion" in err
    code, _, err = run(*command, "--task", "chat", "-o", tmp_path / "b")
    assert code == 0
    assert "conversations: columns prompt and completion" in err


def test_a_base_model_whose_pad_token_is_its_eos_learns_to_answer_and_to_stop(trained, run, tmp_path):
    config = json.loads((trained / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert (config["eos_token_id"], tokenizer.pad_token_id) == ([tokenizer.eos_token_id], tokenizer.eos_token_id)
    write(tmp_path / "chats.jsonl", [{"messages": messages_of(*row)[:1]} for row in ROWS])
    command = ("generate", trained, "--input", tmp_path / "chats.jsonl", "--output", tmp_path / "out.jsonl")
    code, *_ = run(*command, "--max-new-tokens", "30")
    assert code == 0
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["finish_reason"] for one in answers] == ["eos"] * len(ROWS)
    assert [one["text"] for one in answers] == [answer for _, answer in ROWS]


def test_the_run_is_evaluated_with_its_own_template(trained, folder, run):
    code, out, _ = run("evaluate", trained, "--data", "conversations.jsonl", "--json")
    assert code == 0
    metrics = json.loads(out)["metrics"]
    assert metrics["perplexity"]["value"] < 1.1
    assert metrics["perplexity"]["low"] <= metrics["perplexity"]["value"] <= metrics["perplexity"]["high"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    nats = count = 0
    for row in ROWS:
        whole = tokenizer.apply_chat_template(messages_of(*row), return_tensors="pt", return_dict=True)["input_ids"]
        asked = tokenizer.apply_chat_template(messages_of(*row)[:1], add_generation_prompt=True)["input_ids"]
        learned = whole[0, len(asked) : -1]  # without the line feed behind the end of the turn
        assert learned[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            logits = model(whole).logits[0, len(asked) - 1 : len(asked) - 1 + len(learned)].double()
        nats += torch.nn.functional.cross_entropy(logits, learned, reduction="sum").item()
        count += len(learned)
    assert metrics["nll"]["n"] == count
    assert metrics["nll"]["value"] == pytest.approx(nats / count, rel=1e-5)


def test_an_end_of_turn_that_is_not_eos_ends_generation(folder, run, tmp_path):
    command = ("finetune", "--model", "./chatml", "--data", "messages.jsonl", "--max-steps", "1")
    assert run(*command, "-o", tmp_path / "run")[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    ends = sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")])
    assert json.loads((tmp_path / "run" / "generation_config.json").read_text())["eos_token_id"] == ends


@pytest.mark.parametrize("template", ["gemma", "marked"])
def test_a_template_in_a_file_replaces_the_own_one_and_is_saved(folder, run, tmp_path, template):
    (tmp_path / "t.jinja").write_text({"gemma": GEMMA, "marked": MARKED}[template])
    command = ("finetune", "--model", "./chatml", "--data", "messages.jsonl", "--max-steps", "1")
    assert run(*command, "--chat-template", tmp_path / "t.jinja", "-o", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == (tmp_path / "t.jinja").read_text()
    (tmp_path / "t.jinja").unlink()
    assert run("evaluate", tmp_path / "run")[0] == 0


def test_packed_conversations_have_the_loss_of_those_apart(folder, run, tmp_path):
    from datasets import Dataset

    from hfkit.data.conversations import load_conversations
    from hfkit.recipe.resolve import resolve
    from hfkit.tasks import TASKS

    model = AutoModelForCausalLM.from_pretrained(folder / "own").eval()
    tokenizer, task = AutoTokenizer.from_pretrained(folder / "own"), TASKS["chat"]
    losses, sizes = [], []
    for packing in (False, True):
        flags = {"task": "chat", "model.name": "own", "data.train": ["x"], "data.packing": packing}
        recipe = resolve("finetune", flags=flags)
        (dataset,) = load_conversations({"train": Dataset.from_list(FORMS["messages"])}, recipe.data).values()
        rows = task.encode(dataset, tokenizer, model, recipe)
        batch = task.collate([rows.example(index) for index in range(len(rows))], tokenizer)
        task.adapt(model, batch)
        labels = batch.pop("labels")
        with torch.no_grad():
            losses.append(task.loss(model(**batch), labels).item())
        sizes.append((len(rows), int(rows.lengths.sum())))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert sizes[1][0] < sizes[0][0] == len(ROWS)
    assert sizes[1][1] == sizes[0][1]
    command = ("finetune", "--model", "./own", "--data", "messages.jsonl", "--packing", "--max-steps", "2")
    assert run(*command, "-o", tmp_path / "run")[0] == 0


def test_lora_learns_conversations_and_merges_to_the_same_model(folder, run, tmp_path):
    command = ("finetune", "--model", "./chatml", "--data", "messages.jsonl", "--lora", "--max-steps", "10")
    assert run(*command, "-o", tmp_path / "run")[0] == 0
    assert run("export", tmp_path / "run", "--merge", "--output-dir", tmp_path / "merged")[0] == 0
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == CHATML
    ends = [json.loads((tmp_path / name / "generation_config.json").read_text())["eos_token_id"]
            for name in ("run", "merged")]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert ends[0] == ends[1] == sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")])
    scores, texts = [], []
    for name in ("run", "merged"):
        code, out, err = run("evaluate", tmp_path / name, "--data", "messages.jsonl", "--json")
        assert (code, "task: chat, because the data has the column messages" in err) == (0, name == "merged")
        scores.append(json.loads(out)["metrics"]["nll"]["value"])
        texts.append(run("generate", tmp_path / name, "--prompt", ROWS[0][0], "--max-new-tokens", "8")[1])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"messages": []}, "line 3: column 'messages' has no messages"),
        ({"messages": None}, "line 3: column 'messages' has no messages"),
        ({"messages": messages_of("a", "b")[:1]}, "line 3: no message is an answer of the assistant"),
        ({"messages": [{"role": "robot", "content": "a"}, *messages_of("a", "b")]},
         "line 3: message 1 has the unknown role 'robot'"),
        ({"messages": [{"content": "a"}, *messages_of("a", "b")]}, "line 3: message 1 has no role"),
        ({"messages": [{"role": "user"}, *messages_of("a", "b")]}, "line 3: message 1 (user) has no content"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_named_with_its_reason(folder, run, tmp_path, row, error):
    write(tmp_path / "bad.jsonl", [FORMS["messages"][0], FORMS["messages"][1], row, row])
    code, _, err = run("finetune", "--task", "chat", "--model", "./chatml", "--data", tmp_path / "bad.jsonl")
    assert code == 3
    assert f"bad.jsonl: {error}" in err
    assert "(and 1 other rows have a problem)" in err


def test_a_text_where_a_list_is_due_is_named(folder, run, tmp_path):
    write(tmp_path / "text.jsonl", [{"messages": json.dumps(messages_of("a", "b"))}])
    code, _, err = run("finetune", "--task", "chat", "--model", "./chatml", "--data", tmp_path / "text.jsonl")
    assert code == 3
    assert "text.jsonl: line 1: column 'messages' is text instead of a list of messages" in err


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("--data", "messages.jsonl"), 2, "no model is named (fix: --model "),
        (("--data", "messages.jsonl", "--model", "./base"), 5,
         "the model has no chat template to put messages into (fix: --chat-template chatml, or --chat-template FILE"),
        (("--data", "messages.jsonl", "--model", "./base", "--chat-template", "none.jinja"), 2,
         "--chat-template none.jinja: "),
        (("--data", "messages.jsonl", "--model", "./base", "--task", "completion", "--train-on", "last"), 2,
         "has no effect for completion (fix: leave it out; it acts for chat)"),
        (("--data", "messages.jsonl", "--model", "./base", "--text-column", "message"), 3,
         "messages.jsonl has no column 'message', found: messages (fix: --text-column messages)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_with_what_to_type(folder, run, words, code, error):
    found, _, err = run("finetune", *words)
    assert (found, error in err) == (code, True), err


def test_the_same_messages_are_refused_in_training_and_use(folder, run, tmp_path):
    (tmp_path / "gemma.jinja").write_text(GEMMA)
    twice = [{"role": "user", "content": "a"}, *messages_of("a", "b")]
    write(tmp_path / "twice.jsonl", [FORMS["messages"][0], {"messages": twice}])
    write(tmp_path / "asked.jsonl", [{"messages": twice[:2]}])
    template = ("--chat-template", tmp_path / "gemma.jinja")
    code, _, err = run("finetune", "--model", "./chatml", "--data", tmp_path / "twice.jsonl", *template)
    assert code == 3
    assert "twice.jsonl: line 2: the chat template refuses the messages: Conversation roles must alternate" in err
    code, _, err = run("generate", "./chatml", "--input", tmp_path / "asked.jsonl", *template)
    assert code == 3
    assert "the chat template refuses the messages: Conversation roles must alternate" in err


def test_tools_and_sharegpt_reach_the_template_in_generation_as_in_training(folder, run, tmp_path):
    make_chat_model(tmp_path / "tools", TOOLS, positions=512)
    call = {"type": "function", "function": {"name": "dog", "arguments": {"n": 1}}}
    asked = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "fox"},
    ]
    tools = [{"type": "function", "function": {"name": "dog"}}]
    sharegpt = [
        {"from": "human", "value": "hello"},
        {"from": "function_call", "value": json.dumps(call["function"])},
        {"from": "observation", "value": "fox"},
    ]
    write(tmp_path / "a.jsonl", [{"messages": asked, "tools": tools}])
    write(tmp_path / "b.jsonl", [{"conversations": sharegpt, "tools": json.dumps(tools)}])
    texts = []
    for name in "ab":
        command = ("generate", tmp_path / "tools", "--input", tmp_path / f"{name}.jsonl", "--max-new-tokens", "6")
        assert run(*command, "--output", tmp_path / f"{name}.out.jsonl")[0] == 0
        texts.append(json.loads((tmp_path / f"{name}.out.jsonl").read_text())["text"])
    model, tokenizer = (kind.from_pretrained(tmp_path / "tools") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer.apply_chat_template(asked, tools=tools, add_generation_prompt=True, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=1)
    expected = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert texts == [expected, expected]


def test_tool_calls_stay_as_they_are_written(folder, run, tmp_path):
    """Arrow would give all arguments the same keys, refuse two types of one, and write 1 as 1.0 beside 0.5."""
    from hfkit.data.conversations import load_conversations
    from hfkit.data.loading import load_data
    from hfkit.settings import Data

    def row(arguments):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]}

    exact = 0.30000000000000004
    rows = [row({"a": 1}), row({"a": exact}), row({"a": "s", "b": {"c": None}}), row({}), *FORMS["messages"][:2]]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        data = Data(train=[str(tmp_path / name)])
        read = load_conversations(load_data(data), data)["train"]["messages"]
        assert [json.loads(messages) for messages in read] == [one["messages"] for one in rows]
