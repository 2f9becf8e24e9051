"""Chat: what is remembered, what is left out when the model is full, what can be typed."""

import io
import json
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import hfkit
from hfkit.cli.main import main
from hfkit.errors import DataError, UsageError
from hfkit.generation.chat import ChatSession
from tiny_models import make_gpt2, make_speaker, make_word_tokenizer, spread

# A message of n words is n + 1 tokens: w0 and its words, those of an answer end in </s>; an answer begins behind w9.
TEMPLATE = (
    "{% for m in messages %}{{ {'system': 'w1 ', 'user': 'w2 ', 'assistant': 'w3 '}[m.role] }}{{ m.content }} "
    "{% endfor %}w9"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """64 positions; behind n tokens it says w<n mod 50>, w<n+1 mod 50>, ... up to the next position divisible by 8, so
    that an answer tells how long its prompt was."""
    tokenizer = make_word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    script = [tokenizer.eos_token_id if n % 8 == 0 else 1 + n % 50 for n in range(1, 65)]
    return str(make_speaker(tmp_path_factory.mktemp("models") / "speaker", tokenizer, script))


def session_with(model, **settings):
    return ChatSession(hfkit.load_recipe("chat", **{"model.name": model}, **settings))


def said_behind(num_tokens):
    """What the speaker answers to a prompt of so many tokens."""
    return " ".join(f"w{n % 50}" for n in range(num_tokens, -(-num_tokens // 8) * 8))


def type_in(monkeypatch, *lines):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_each_answer_is_to_the_whole_conversation(model):
    session = session_with(model)
    parts = []
    first = session.answer("w5 w6", parts.append)
    assert first.text.split() == ["w4", "w5", "w6", "w7"] == said_behind(4).split()
    assert "".join(parts) == first.text
    second = session.answer("w7")
    # w2 w5 w6, w3 and the four words of the first answer, w2 w7, w9
    assert second.text.split() == said_behind(3 + 5 + 2 + 1).split() == ["w11", "w12", "w13", "w14", "w15"]
    assert session.messages == [
        {"role": "user", "content": "w5 w6"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "w7"},
        {"role": "assistant", "content": second.text},
    ]


def test_system_message_comes_first_can_change_and_stays_when_all_else_is_forgotten(model):
    session = session_with(model)
    session.set_system("w8 w8")
    assert session.answer("w5").text.split() == said_behind(3 + 2 + 1).split()
    session.set_system("w8")
    assert [message["content"] for message in session.messages[:2]] == ["w8", "w5"]
    session.reset()
    assert session.messages == [{"role": "system", "content": "w8"}]
    assert session.answer("w5").text.split() == said_behind(2 + 2 + 1).split()
    session.set_system("")
    session.reset()
    assert session.messages == []


def test_oldest_turns_are_left_out_when_the_model_is_full(model, capsys):
    """With 16 tokens kept for the answer, 48 positions are there for the conversation."""
    session = session_with(model)
    session.set_system("w8")  # 2 tokens
    widths, prompts = [], []
    for _ in range(7):
        answer = session.answer("w5 w6 w7 w5 w6")  # 6 tokens
        prompts.append(2 + sum(widths[session.num_forgotten :]) + 6 + 1)
        assert answer.text.split() == said_behind(prompts[-1]).split()
        widths.append(6 + 1 + len(answer.text.split()))
    assert prompts == [9, 23, 31, 39, 47, 41, 47]  # 55 would have been too long, twice
    assert session.num_forgotten == 2
    assert len(session.messages) == 1 + 2 * 7  # the transcript has them all
    assert capsys.readouterr().err.splitlines() == [
        "(the conversation is longer than the model can read: the oldest turn is left out from here on)",
        "(the conversation is longer than the model can read: the 2 oldest turns are left out from here on)",
    ]


def test_message_that_does_not_fit_even_alone_is_refused_and_not_remembered(model):
    session = session_with(model)
    session.answer("w5")
    before = list(session.messages)
    with pytest.raises(
        UsageError, match=r"prompt 52 \+ new 16 > 64 positions of the model \(fix: --max-new-tokens 12\)"
    ):
        session.answer(" ".join(["w5"] * 50))
    assert session.messages == before
    session.set("max_new_tokens=12")
    assert session.answer(" ".join(["w5"] * 50)).text.split() == said_behind(52).split()


def test_answer_that_is_interrupted_stays_as_far_as_it_came(model):
    session = session_with(model)

    def stop_at(count):
        heard = []

        def hear(text):
            heard.append(text)
            if len(heard) == count:
                raise KeyboardInterrupt

        return hear

    with pytest.raises(KeyboardInterrupt):
        session.answer("w5", stop_at(2))
    partial = session.messages[1]["content"]
    assert partial.split() == said_behind(3).split()[:2]
    assert session.messages == [
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": partial, "finish_reason": "interrupted"},
    ]
    assert session.answer("w6").text.split() == said_behind(2 + 3 + 2 + 1).split()


def test_message_whose_answer_has_not_begun_is_taken_back(model, monkeypatch):
    session = session_with(model)
    session.answer("w5")
    before = list(session.messages)

    def interrupted(*ids, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.generator.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.answer("w6")
    assert session.messages == before


def test_conversation_is_saved_as_a_line_of_messages_and_goes_on_when_loaded(model, tmp_path):
    path = tmp_path / "chats.jsonl"
    session = session_with(model)
    with pytest.raises(UsageError, match="nothing has been said yet"):
        session.save(path)
    session.set_system("w8")
    session.answer("w5")
    assert session.save(path) == 1
    session.answer("w6")
    assert session.save(path) == 1  # in place of its beginning
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"messages": session.messages}]
    first = list(session.messages)
    session.reset()
    session.set("max_new_tokens=2")
    session.answer("w7")
    assert session.messages[-1]["finish_reason"] == "length"
    assert session.save(path) == 2
    assert [json.loads(line)["messages"] for line in path.read_text().splitlines()] == [first, session.messages]

    other = session_with(model)
    other.load(path)
    assert other.messages == session.messages
    session.set("max_new_tokens=16")
    assert other.answer("w5").text == session.answer("w5").text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("just a note\n", "line 1 is no conversation"),
        ('{"messages": [{"role": "user", "content": "w5"}]}\n', "line 1 is no conversation"),  # without an answer
        ('{"messages": []}\n', "line 1 is no conversation"),
        ('\n{"messages": [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "x"}]}', "line 1 is no"),
        ('{"messages": [{"role": "assistant", "content": ["x"]}]}\n', "line 1 is no conversation"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_file_of_something_else_is_neither_loaded_nor_overwritten(model, tmp_path, content, message):
    path = tmp_path / "notes.txt"
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    session = session_with(model)
    session.answer("w5")
    before = list(session.messages)
    for use in (session.load, session.save):
        with pytest.raises(DataError, match=message):
            use(path)
    assert session.messages == before
    assert path.read_bytes() == data


def test_settings_change_for_all_further_answers(model):
    session = session_with(model)
    session.set("max_new_tokens=2")
    assert session.answer("w5").text.split() == ["w3", "w4"]
    session.set("max_new_tokens=9")
    session.set("stop=w11")
    assert session.answer("w5 w6").text.split() == ["w9", "w10"]  # behind 2 + 3 + 3 + 1 tokens


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("temperature=-1", "temperature: must be above 0, not -1 (fix: e.g. 0.1)"),
        ("temperatur=1", "temperatur: unknown setting (fix: did you mean 'temperature'?)"),
        ("temperature", "temperature: not an assignment (fix: temperature=0.7)"),
        (
            "num_return_sequences=2",
            "num_return_sequences: has no effect in `hfkit chat` (fix: leave it out; it acts in gen",
        ),
        ("compile=true", "compile acts when the model is loaded (fix: begin anew with --compile)"),
        ("model.name=other", "model.name: unknown setting"),
    ],
)
def test_wrong_setting_is_refused_and_changes_nothing(model, assignment, message):
    session = session_with(model)
    before, generator = session.recipe, session.generator
    with pytest.raises(UsageError) as caught:
        session.set(assignment)
    assert str(caught.value).startswith(message)
    assert (session.recipe, session.generator) == (before, generator)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A model of any text, which sees the last message alone."""
    directory = make_gpt2(tmp_path_factory.mktemp("models") / "gpt2")
    spread(AutoModelForCausalLM.from_pretrained(directory)).save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_drawn_answers_repeat_with_their_seed_and_differ_from_turn_to_turn(gpt2):
    def answers(seed):
        more = {"generation.do_sample": True, "generation.seed": seed, "generation.max_new_tokens": 8}
        session = session_with(gpt2, **more)
        return [session.answer("hello").text for _ in range(3)]

    assert answers(1) == answers(1)
    assert len(set(answers(1) + answers(2))) == 6


def test_answer_of_beams_is_that_of_generate(gpt2):
    settings = {"generation.num_beams": 3, "generation.max_new_tokens": 6}
    parts = []
    answer = session_with(gpt2, **settings).answer("hello", parts.append)
    assert [answer.text] == parts == hfkit.generate(gpt2, ["hello"], **settings)


def test_lines_that_are_piped_in_are_messages_and_commands(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    type_in(
        monkeypatch, "w5 w6", "/save a.jsonl", "", "/reset", "/set max_new_tokens=3", '"""w5', 'w6 w7"""', "/quit", "w5"
    )
    assert main(["chat", model, "--system", "w8"]) == 0
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first.split() == said_behind(2 + 3 + 1).split()
    assert second.split() == said_behind(2 + 4 + 1).split()
    assert captured.err.splitlines() == ["(a.jsonl: 1 conversation)", "(forgotten)"]
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {
        "messages": [
            {"role": "system", "content": "w8"},
            {"role": "user", "content": "w5 w6"},
            {"role": "assistant", "content": first},
        ]
    }
    type_in(monkeypatch, "/load a.jsonl", "/system", "w5")
    assert main(["chat", "--model", model]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == said_behind(3 + 1 + len(first.split()) + 2 + 1).split()
    assert captured.err.splitlines() == ["(3 messages)", "(no system message)"]


def test_answer_that_was_cut_is_warned_about_with_what_to_type(gpt2, monkeypatch, capsys):
    type_in(monkeypatch, "hello", "/set --max-new-tokens 5", "hello", "/set --do-sample", "/set temperature=0.5")
    assert main(["chat", gpt2, "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: the answer was cut after 3 tokens (fix: /set max_new_tokens=6)",
        "warning: the answer was cut after 5 tokens (fix: /set max_new_tokens=10)",
    ]


def test_message_may_begin_with_a_slash_and_have_several_lines(gpt2, tmp_path, monkeypatch):
    path = tmp_path / "chat.jsonl"
    type_in(monkeypatch, " /reset now", '"""', "/a", "  b", '"""', '"""c"""', "你好 😀", f"/save {path}")
    assert main(["chat", gpt2, "--max-new-tokens", "1"]) == 0
    messages = json.loads(path.read_text())["messages"]
    assert [message["content"] for message in messages[::2]] == ["/reset now", "/a\n  b", "c", "你好 😀"]


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        (["/rest"], 2, "unknown command '/rest' (fix: did you mean '/reset'?)"),
        (["/xyzzy"], 2, "unknown command '/xyzzy' (fix: /help)"),
        (["/save"], 2, "/save alone says too little (fix: /save FILE)"),
        (["/set top_k=x"], 2, "top_k: must be a whole number, not 'x' (fix: e.g. 8)"),
        (["/load nowhere.jsonl"], 3, "nowhere.jsonl: No such file or directory (fix: give a file that was saved)"),
        (['"""a', "b"], 3, 'the input ended within """ (fix: end the message with """)'),
    ],
)
def test_mistake_in_what_is_piped_in_ends_the_command(gpt2, lines, code, message, monkeypatch, capsys):
    type_in(monkeypatch, *lines)
    assert main(["chat", gpt2]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {message}\n")


def test_help_names_every_command(gpt2, monkeypatch, capsys):
    type_in(monkeypatch, "/help")
    assert main(["chat", gpt2]) == 0
    said = capsys.readouterr().err
    names = ("reset", "system", "set", "save", "load", "help", "quit")
    assert [line.split()[0] for line in said.splitlines() if line.startswith("/")] == [f"/{name}" for name in names]


def test_model_without_chat_template_is_refused_unless_one_is_given(tmp_path, monkeypatch, capsys):
    directory = make_gpt2(tmp_path / "base")
    type_in(monkeypatch, "hello")
    assert main(["chat", str(directory)]) == 5
    message = f"{directory} has no chat template to put messages into"
    fix = "--chat-template chatml or FILE.jinja, or hfkit generate, which continues a text"
    assert capsys.readouterr().err == f"error: {message} (fix: {fix})\n"
    (tmp_path / "plain.jinja").write_text("{{ messages[-1].content }}")
    more = ["--chat-template", str(tmp_path / "plain.jinja"), "--max-new-tokens", "5"]
    assert main(["chat", str(directory), *more]) == 0
    (text,) = hfkit.generate(str(directory), ["hello"], **{"generation.max_new_tokens": 5})
    assert capsys.readouterr().out == text + "\n"


def test_chat_without_a_model_is_a_usage_error(capsys):
    assert main(["chat"]) == 2
    assert capsys.readouterr().err == "error: no model is named (fix: hfkit chat MODEL ...)\n"


def test_template_that_refuses_the_messages_says_why(gpt2, tmp_path, monkeypatch, capsys):
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% if messages | length > 1 %}{{ raise_exception('one message alone') }}{% endif %}{{ messages[-1].content }}"
    )
    type_in(monkeypatch, "hello", "again")
    assert main(["chat", gpt2, "--chat-template", str(template), "--max-new-tokens", "2"]) == 3
    assert "error: the chat template refuses the messages: one message alone" in capsys.readouterr().err


def test_template_without_system_role_gets_it_in_the_first_question(gpt2, tmp_path, monkeypatch, capsys):
    template = tmp_path / "gemma.jinja"
    template.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
        "{% for message in messages %}{{ message.role }}: {{ message.content }}|{% endfor %}"
    )
    flags = ["--chat-template", str(template), "--max-new-tokens", "5"]
    type_in(monkeypatch, "hello")
    assert main(["chat", gpt2, *flags, "--system", "be brief"]) == 0
    said = capsys.readouterr()
    assert "the chat template has no system role: system messages go to the beginning of the first user" in said.err
    type_in(monkeypatch, '"""be brief', "", 'hello"""')
    assert main(["chat", gpt2, *flags]) == 0
    assert capsys.readouterr().out == said.out
