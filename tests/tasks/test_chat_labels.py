"""What is learned of a conversation, to the id: every template renders once, and labels follow positions."""

import json

import pytest
import torch
from datasets import Dataset

import chat_models
from chat_models import CHATML, GEMMA, LLAMA3, MARKED, MARKED_WITHOUT_END, MISTRAL, OWN_SYSTEM, PLAIN, QWEN, TOOLS
from hfkit.data.conversations import load_conversations
from hfkit.data.labels import IGNORED
from hfkit.errors import DataError, ModelError
from hfkit.models.chat_template import ChatTemplate
from hfkit.recipe.resolve import resolve
from hfkit.system import console
from hfkit.tasks import TASKS
from hfkit.tasks.encoded_conversations import EncodedConversations

SYSTEM = {"role": "system", "content": "be brief"}
ASK = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "a fox"}
ASK_AGAIN = {"role": "user", "content": "and a dog?"}
ANSWER_AGAIN = {"role": "assistant", "content": "the lazy dog"}

TWO_TURNS = [ASK, ANSWER, ASK_AGAIN, ANSWER_AGAIN]


def encoded(template, *rows, settings=None, control=True, positions=512, more=()):
    """The conversations of `rows` (messages, or whole rows) as the task encodes them, and the tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    console.begin()
    tokenizer = chat_models.chat_tokenizer(template, control=control, more=more)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **sizes)
    flags = {"task": "chat", "model.name": "m", "data.train": ["x"], **(settings or {})}
    recipe = resolve("finetune", flags=flags)
    given = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    (dataset,) = load_conversations({"train": Dataset.from_list(given)}, recipe.data).values()
    rows = TASKS["chat"].encode(dataset, tokenizer, LlamaForCausalLM(config), recipe)
    assert isinstance(rows, EncodedConversations)
    return rows, tokenizer


def pieces(tokenizer, parts):
    """The ids and labels of [text, learned text, text, ...], each tokenized alone."""
    ids, labels = [], []
    for place, part in enumerate(parts):
        own = tokenizer(part, add_special_tokens=False)["input_ids"]
        ids += own
        labels += own if place % 2 else [IGNORED] * len(own)
    return ids, labels


def check(rows, tokenizer, *expected):
    assert len(rows) == len(expected)
    for index, parts in enumerate(expected):
        example = rows.example(index)
        ids, labels = pieces(tokenizer, parts)
        assert tokenizer.decode(example["input_ids"]) == "".join(parts)
        assert example["input_ids"].tolist() == ids
        assert example["labels"].tolist() == labels


U, A = "<|im_start|>user\n", "<|im_start|>assistant\n"

BEGIN = "<|start_header_id|>"


@pytest.mark.parametrize(
    ("template", "messages", "parts"),
    [
        (CHATML, TWO_TURNS, [f"{U}hello<|im_end|>\n{A}", "a fox<|im_end|>", f"\n{U}and a dog?<|im_end|>\n{A}",
                             "the lazy dog<|im_end|>", "\n"]),
        (MARKED, TWO_TURNS, [f"{U}hello<|im_end|>\n{A}", "a fox<|im_end|>", f"\n{U}and a dog?<|im_end|>\n{A}",
                             "the lazy dog<|im_end|>", "\n"]),
        (MARKED_WITHOUT_END, TWO_TURNS, [f"{U}hello<|im_end|>\n{A}", "a fox<|im_end|>",
                                         f"\n{U}and a dog?<|im_end|>\n{A}", "the lazy dog<|im_end|>", "\n"]),
        (CHATML, [SYSTEM, ASK, ANSWER], [f"<|im_start|>system\nbe brief<|im_end|>\n{U}hello<|im_end|>\n{A}",
                                         "a fox<|im_end|>", "\n"]),
        (OWN_SYSTEM, [ASK, ANSWER], [f"<|im_start|>system\nhello world<|im_end|>\n{U}hello<|im_end|>\n{A}",
                                     "a fox<|im_end|>", "\n"]),
        (CHATML, [ASK, {"role": "assistant", "content": ""}], [f"{U}hello<|im_end|>\n{A}", "<|im_end|>", "\n"]),
        (MARKED, [ASK, {"role": "assistant", "content": ""}], [f"{U}hello<|im_end|>\n{A}", "<|im_end|>", "\n"]),
        (CHATML, [ASK, {"role": "assistant", "content": " a \n\n"}],  # blanks at the ends of an answer
         [f"{U}hello<|im_end|>\n{A}", " a \n\n<|im_end|>", "\n"]),
        (MARKED, [ASK, {"role": "assistant", "content": " a \n\n"}],
         [f"{U}hello<|im_end|>\n{A}", " a \n\n<|im_end|>", "\n"]),
        (CHATML, [ASK, ANSWER, ASK_AGAIN], [f"{U}hello<|im_end|>\n{A}", "a fox<|im_end|>", "\n"]),
        (CHATML, [ANSWER, ASK, ANSWER_AGAIN],  # nobody asked for the greeting
         [f"{A}a fox<|im_end|>\n{U}hello<|im_end|>\n{A}", "the lazy dog<|im_end|>", "\n"]),
        (LLAMA3, [SYSTEM, *TWO_TURNS],
         [f"<s>{BEGIN}system<|end_header_id|>\n\nbe brief<|eot_id|>{BEGIN}user<|end_header_id|>\n\nhello<|eot_id|>"
          f"{BEGIN}assistant<|end_header_id|>\n\n", "a fox<|eot_id|>",
          f"{BEGIN}user<|end_header_id|>\n\nand a dog?<|eot_id|>{BEGIN}assistant<|end_header_id|>\n\n",
          "the lazy dog<|eot_id|>"]),
        (GEMMA, TWO_TURNS,
         ["<s><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n", "a fox<end_of_turn>",
          "\n<start_of_turn>user\nand a dog?<end_of_turn>\n<start_of_turn>model\n", "the lazy dog<end_of_turn>",
          "\n"]),
        (GEMMA, [SYSTEM, ASK, ANSWER],
         ["<s><start_of_turn>user\nbe brief\n\nhello<end_of_turn>\n<start_of_turn>model\n", "a fox<end_of_turn>",
          "\n"]),
        (GEMMA, [ASK, {"role": "assistant", "content": "  a fox \n"}],  # which the template strips
         ["<s><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n", "a fox<end_of_turn>", "\n"]),
        (MISTRAL, TWO_TURNS, ["<s>[INST] hello [/INST]", " a fox</s>", "[INST] and a dog? [/INST]",
                              " the lazy dog</s>"]),
        (QWEN, [ASK, {**ANSWER, "reasoning_content": "hm"}],
         [f"{U}hello<|im_end|>\n{A}", "<think>\nhm\n</think>\n\na fox<|im_end|>", "\n"]),
    ],
)  # fmt: skip
def test_answers_and_what_ends_them_are_learned(template, messages, parts):
    check(*encoded(template, messages), parts)


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize(
    ("train_on", "parts"),
    [
        ("last", [f"{U}hello<|im_end|>\n{A}a fox<|im_end|>\n{U}and a dog?<|im_end|>\n{A}",
                  "the lazy dog<|im_end|>", "\n"]),
        ("all", ["<|im_start|>", f"user\nhello<|im_end|>\n{A}a fox<|im_end|>\n{U}and a dog?<|im_end|>\n{A}"
                 "the lazy dog<|im_end|>\n"]),
    ],
)  # fmt: skip
def test_train_on_says_what_is_learned(template, train_on, parts):
    check(*encoded(template, TWO_TURNS, settings={"data.train_on": train_on}), parts)


@pytest.mark.parametrize("train_on", ["all", "assistant", "last"])
@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (GEMMA, "<end_of_turn>"), (MISTRAL, "</s>"), (PLAIN, "</s>")]
)
def test_what_ends_an_answer_is_known(template, end, train_on):
    rows, tokenizer = encoded(template, TWO_TURNS, settings={"data.train_on": train_on})
    assert rows.ends == {tokenizer.convert_tokens_to_ids(end)}


def test_another_end_of_some_answers_is_known_too():
    two_ends = CHATML.replace("'<|im_end|>\\n'", "('<|eot_id|>' if 'dog' in m.content else '<|im_end|>\\n')")
    rows, tokenizer = encoded(two_ends, TWO_TURNS)
    check(rows, tokenizer, [f"{U}hello<|im_end|>\n{A}", "a fox<|im_end|>",
                            f"\n{U}and a dog?<|eot_id|>{A}", "the lazy dog<|eot_id|>"])  # fmt: skip
    assert rows.ends == set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|eot_id|>"]))


def test_an_answer_whose_thoughts_are_left_out_later_is_learned_as_it_is_given(capsys):
    thoughtful = [ASK, {**ANSWER, "reasoning_content": "hm"}, ASK_AGAIN, {**ANSWER_AGAIN, "reasoning_content": "so"}]
    first = [f"{U}hello<|im_end|>\n{A}", "<think>\nhm\n</think>\n\na fox<|im_end|>", "\n"]
    last = [f"{U}hello<|im_end|>\n{A}a fox<|im_end|>\n{U}and a dog?<|im_end|>\n{A}",
            "<think>\nso\n</think>\n\nthe lazy dog<|im_end|>", "\n"]  # fmt: skip
    check(*encoded(QWEN, thoughtful), last, first)
    assert "earlier answers otherwise than the last one: 1 more examples" in capsys.readouterr().err


def test_what_a_tool_says_is_read_and_its_call_is_learned_as_the_template_writes_it():
    call = {"type": "function", "function": {"name": "dog", "arguments": {"n": 1}}}
    messages = [ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "fox"}, ANSWER]
    tools = [{"type": "function", "function": {"name": "dog"}}]
    parts = [
        f"<|im_start|>system\n{json.dumps(tools)}<|im_end|>\n{U}hello<|im_end|>\n{A}",
        f"{json.dumps(call['function'])}<|im_end|>",
        f"\n<|im_start|>tool\nfox<|im_end|>\n{A}",
        "a fox<|im_end|>",
        "\n",
    ]
    check(*encoded(TOOLS, {"messages": messages, "tools": tools}), parts)
    check(*encoded(TOOLS, {"messages": messages, "tools": json.dumps(tools)}), parts)


def test_a_template_that_ends_no_answer_gets_an_eos(capsys):
    rows, tokenizer = encoded(PLAIN, [ASK, ANSWER])
    check(rows, tokenizer, ["user: hello\nassistant:", " a fox\n</s>"])
    assert "the chat template ends no answer: </s> is added behind each conversation" in capsys.readouterr().err
    assert rows.ends == {tokenizer.eos_token_id}


def test_a_token_on_the_border_of_an_answer_is_learned_and_counted(capsys):
    open_blank = PLAIN.replace("'assistant:'", "'assistant: '")  # what follows begins within the token " a"
    rows, tokenizer = encoded(open_blank, [ASK, ANSWER])
    check(rows, tokenizer, ["user: hello\nassistant:", " a fox\n</s>"])
    assert "in 1 of 1 conversations a model reads other tokens before it answers" in capsys.readouterr().err


def test_the_own_system_message_of_a_template_is_printed(capsys):
    encoded(OWN_SYSTEM, [ASK, ANSWER])
    said = capsys.readouterr().err
    assert 'the chat template puts a system message before conversations without one: "hello world"' in said
    encoded(CHATML, [ASK, ANSWER])
    assert "puts a system message" not in capsys.readouterr().err


@pytest.mark.parametrize("template", [CHATML, LLAMA3, GEMMA, MISTRAL, QWEN, OWN_SYSTEM, MARKED])
def test_a_model_reads_before_its_answer_what_it_learned_from(template):
    messages = [*TWO_TURNS[:3], {**ANSWER_AGAIN, "reasoning_content": "so"}]
    rows, tokenizer = encoded(template, messages, settings={"data.train_on": "last"})
    (example,) = map(rows.example, range(len(rows)))
    first = int((example["labels"] != IGNORED).argmax())
    assert example["input_ids"][:first].tolist() == ChatTemplate(tokenizer).prompt_ids(messages[:-1])
    library = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert library == ChatTemplate(tokenizer).prompt_ids(messages[:-1])


def test_an_answer_begun_otherwise_than_in_use_is_refused():
    begun = CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>' }}")
    with pytest.raises(DataError, match="train row 1: the chat template renders the beginning of an answer otherwise"):
        encoded(begun, [ASK, ANSWER])


def test_a_row_that_can_not_be_rendered_or_learned_is_named():
    refused = "train row 2: the chat template refuses the messages: Conversation roles must alternate"
    with pytest.raises(DataError, match=refused):
        encoded(GEMMA, [ASK, ANSWER], [ASK, ASK, ANSWER])
    marks = "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    empty = MARKED.replace(marks, "{% generation %}{% endgeneration %}{{ m.content }}!")
    with pytest.raises(DataError, match="train row 1: no token of it is learned"):
        encoded(empty, [ASK, ANSWER])


def test_a_missing_or_broken_template_is_named():
    with pytest.raises(ModelError, match="the model has no chat template to put messages into"):
        encoded(None, [ASK, ANSWER])
    with pytest.raises(ModelError, match="the chat template leaves out what the assistant says"):
        encoded("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", [ASK, ANSWER])
    with pytest.raises(ModelError, match="the chat template is broken: line 1"):
        encoded("{% for m in messages %}", [ASK, ANSWER])


@pytest.mark.parametrize("packing", [False, True])
def test_the_gradient_of_what_is_only_read_is_zero(packing):
    rows, tokenizer = encoded(CHATML, TWO_TURNS, [SYSTEM, ASK, ANSWER], settings={"data.packing": packing})
    task = TASKS["chat"]
    batch = task.collate([rows.example(index) for index in range(len(rows))], tokenizer)
    labels = batch["labels"]
    logits = torch.randn(*labels.shape, len(tokenizer), requires_grad=True)
    task.loss({"logits": logits}, labels).backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.sum() == sum(int((rows.example(index)["labels"] != IGNORED).sum()) for index in range(len(rows)))
    assert (touched[:, :-1] == (labels[:, 1:] != IGNORED)).all()


def test_long_conversations_end_with_an_earlier_answer_or_are_left_out(capsys):
    short, long = [ASK, ANSWER], [*TWO_TURNS, {"role": "user", "content": "x " * 40}, ANSWER]
    never = [{"role": "user", "content": "y " * 40}, ANSWER]
    settings = {"data.max_length": 60, "data.allow_truncation": True}
    rows, _ = encoded(CHATML, short, long, never, settings=settings)
    same, _ = encoded(CHATML, short, TWO_TURNS)
    assert [rows.example(index)["input_ids"].tolist() for index in range(2)] == [
        same.example(index)["input_ids"].tolist() for index in range(2)
    ]
    assert len(rows) == 2
    said = capsys.readouterr().err
    assert "2 of 3 conversations (66.7%) are longer than 60 tokens and were truncated" in said
    assert "of these 1 end with an earlier answer, 1 have no answer that fits and are left out" in said
    with pytest.raises(DataError, match=r"2 of 3 conversations \(66.7%\) are longer than 60 tokens"):
        encoded(CHATML, short, long, never, settings={"data.max_length": 60})
    with pytest.raises(DataError, match="longer than 10 tokens up to the end of their first answer"):
        encoded(CHATML, short, settings={"data.max_length": 10, "data.allow_truncation": True})


def test_of_last_a_long_conversation_is_left_out(capsys):
    settings = {"data.max_length": 40, "data.allow_truncation": True, "data.train_on": "last"}
    rows, _ = encoded(CHATML, [ASK, ANSWER], TWO_TURNS, settings=settings)
    assert len(rows) == 1
    assert "of these 0 end with an earlier answer, 1 have no answer that fits" in capsys.readouterr().err


def test_a_conversation_of_very_many_turns_is_cut_too():
    settings = {"data.max_length": 60, "data.allow_truncation": True}
    rows, _ = encoded(CHATML, TWO_TURNS * 25_000, settings=settings)
    same, _ = encoded(CHATML, TWO_TURNS)
    assert rows.example(0)["input_ids"].tolist() == same.example(0)["input_ids"].tolist()


def test_messages_that_are_not_learned_are_counted(capsys):
    encoded(CHATML, [ASK, ANSWER, ASK_AGAIN], [ANSWER, ASK, ANSWER_AGAIN], [ASK, ANSWER])
    said = capsys.readouterr().err
    assert "1 of 3 conversations end with messages without an answer, and these messages are left out" in said
    assert "1 of 3 conversations begin with the assistant: read, not learned" in said


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "fox"}}}


def test_a_template_without_tool_calls_is_told_from_one_that_writes_them(capsys):
    row = [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "fox"}, ANSWER]
    with pytest.raises(DataError, match="row 1: the chat template leaves out tool calls, which are answers"):
        encoded(CHATML, row)
    rows, tokenizer = encoded(TOOLS, row)
    assert '"look"' in tokenizer.decode(rows.example(0)["input_ids"])
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    encoded(CHATML, {"messages": TWO_TURNS, "tools": json.dumps(tools)})
    assert "the chat template leaves out the tools that conversations declare" in capsys.readouterr().err


def test_other_tokens_before_an_answer_than_in_use_are_said(capsys):
    more = ["\n\n"] * 50  # one token at the end of a prompt, and two before an answer
    rows, tokenizer = encoded(LLAMA3, TWO_TURNS, more=more)
    first = int((torch.tensor(rows.example(0)["labels"]) != IGNORED).nonzero()[0])
    asked = ChatTemplate(tokenizer).prompt_ids([ASK])
    differs = rows.example(0)["input_ids"][:first].tolist() != asked
    said = "in 1 of 1 conversations a model reads other tokens before it answers than it learned from"
    assert differs
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_greeting_is_read_and_not_learned(template):
    rows, tokenizer = encoded(template, [ANSWER, ASK, ANSWER_AGAIN])
    labels = rows.example(0)["labels"]
    assert tokenizer.decode(labels[labels != IGNORED]) == "the lazy dog<|im_end|>"


def test_an_answer_to_a_system_message_alone_is_none():
    with pytest.raises(DataError, match="row 1: no message is an answer of the assistant"):
        encoded(GEMMA, [SYSTEM, ANSWER, ASK])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"input": 5}, "column 'input' is not text: 5"),
        ({"system": 7}, "column 'system' is not text: 7"),
        ({"output": 6}, "column 'output' is not text: 6"),
        ({"output": None}, "column 'output' is empty"),
        ({"history": "q and a"}, "column 'history' holds no questions with their answers"),
        ({"history": [["q"]]}, "column 'history' holds no questions with their answers"),
        ({"history": [["q", None]]}, "column 'history' holds no questions with their answers"),
    ],
)
def test_columns_of_instructions_hold_text(row, problem):
    with pytest.raises(DataError, match=f"row 1: {problem}"):
        encoded(CHATML, {"instruction": "hello", "output": "a fox", **row})


def test_history_can_be_json_text():
    rows, tokenizer = encoded(CHATML, {"instruction": "and?", "output": "a dog", "history": '[["hello", "a fox"]]'})
    check(
        rows,
        tokenizer,
        [f"{U}hello<|im_end|>\n{A}", "a fox<|im_end|>", f"\n{U}and?<|im_end|>\n{A}", "a dog<|im_end|>", "\n"],
    )


def test_parts_of_text_are_one_text():
    rows = [SYSTEM, ASK, ANSWER]
    parts = [
        {**one, "content": [{"type": "text", "text": text} for text in (one["content"][:2], one["content"][2:])]}
        for one in rows
    ]
    whole, other = (encoded(GEMMA, row)[0].example(0)["input_ids"] for row in (parts, rows))
    assert whole.tolist() == other.tolist()


def test_empty_answers_are_counted(capsys):
    encoded(CHATML, [ASK, {"role": "assistant", "content": ""}], TWO_TURNS)
    assert "1 of 2 conversations have an empty answer: the model learns to end at once" in capsys.readouterr().err
