"""Files of prompts: every format the same, answers in order, and work that was stopped goes on to the same bytes."""

import csv
import fcntl
import gzip
import io
import json
import os
import resource
import signal
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import hfkit
from chat_models import CHATML, make_chat_model
from hfkit.cli.main import main
from tiny_models import make_bert, make_gpt2, spread

WORDS = ["hello", "world", "fox", "dog", "你好", "jumps over", "😀"]
PROMPTS = [" ".join(WORDS[(place + more) % 7] for more in range(1 + place * 5 % 7)) for place in range(20)]
GREEDY = ["--max-new-tokens", "6", "--batch-tokens", "90"]
SAMPLED = [*GREEDY, "--do-sample", "--temperature", "0.9", "--seed", "3"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    directory = make_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")
    spread(AutoModelForCausalLM.from_pretrained(directory)).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def other(gpt2, tmp_path_factory):
    """The same architecture and tokenizer with other weights."""
    directory = tmp_path_factory.mktemp("models") / "other-gpt2"
    spread(AutoModelForCausalLM.from_pretrained(gpt2), seed=1).save_pretrained(directory)
    AutoTokenizer.from_pretrained(gpt2).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def chat(gpt2, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "tiny-chat"
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl("p.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    return tmp_path


@pytest.fixture
def said(capsys):
    """Runs a command; its exit code, stdout and stderr."""

    def run(*arguments):
        code = main(["generate", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def bytes_of(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.portable
def test_rows_are_the_answers_to_the_prompts_in_their_order(gpt2, said, sequences):
    more = ["--num-return-sequences", str(sequences)]
    code, out, err = said(gpt2, "--input", "p.jsonl", "--output", "o.jsonl", *SAMPLED, *more)
    assert (code, out) == (0, "")
    assert "prompt column" not in err  # there is no other
    assert "20 rows in o.jsonl" in err
    settings = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.9, "seed": 3}
    settings["num_return_sequences"] = sequences
    texts = hfkit.generate(gpt2, PROMPTS, **{f"generation.{name}": value for name, value in settings.items()})
    rows = read_jsonl("o.jsonl")
    sequence = ["sequence"] if sequences > 1 else []
    assert [list(row) for row in rows] == [["id", *sequence, "prompt", "text", "tokens", "finish_reason"]] * (
        20 * sequences
    )
    assert [row["id"] for row in rows] == [number for number in range(20) for _ in range(sequences)]
    assert [row["text"] for row in rows] == texts
    assert [row["prompt"] for row in rows] == [PROMPTS[row["id"]] for row in rows]
    assert [row.get("sequence", 0) for row in rows] == list(range(sequences)) * 20
    assert len(set(texts)) > 15
    for row in rows:
        assert row["finish_reason"] in ("eos", "length")
        assert row["tokens"] == 6 or (row["finish_reason"] == "eos" and row["tokens"] < 6)
    assert sorted(os.listdir()) == ["o.jsonl", "p.jsonl"]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_formats_agree(gpt2, said, settings):
    with open("p.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{prompt}\n\n" for prompt in PROMPTS)
    for name, dialect in [("p.csv", csv.excel), ("p.tsv", csv.excel_tab)]:
        with open(name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, dialect, lineterminator="\n").writerows([["n", "prompt"], *enumerate(PROMPTS)])
    with open("p.json", "w", encoding="utf-8") as file:
        json.dump([{"Prompt": prompt, "label": 1} for prompt in PROMPTS], file)
    with gzip.open("p.jsonl.gz", "wb") as file:
        file.write(bytes_of("p.jsonl"))
    pyarrow.parquet.write_table(pa.table({"question": PROMPTS, "answer": PROMPTS}), "p.parquet")
    made = set()
    for name in ["p.jsonl", "p.txt", "p.csv", "p.tsv", "p.json", "p.jsonl.gz", "p.parquet"]:
        assert said(gpt2, "--input", name, "--output", f"{name}.out.jsonl", *settings)[0] == 0
        made.add(bytes_of(f"{name}.out.jsonl"))
    assert len(made) == 1


def test_without_output_rows_go_to_stdout(gpt2, said, monkeypatch):
    assert said(gpt2, "--input", "p.jsonl", "--output", "o.jsonl", *SAMPLED)[0] == 0
    rows = read_jsonl("o.jsonl")
    code, out, _ = said(gpt2, "--input", "p.jsonl", *SAMPLED, "--json")
    assert (code, out.encode()) == (0, bytes_of("o.jsonl"))
    texts = "".join(row["text"] + "\n" for row in rows)
    assert said(gpt2, "--input", "p.jsonl", *SAMPLED)[1] == texts
    for lines in ["\n\n".join(PROMPTS), "\n".join(json.dumps({"n": 1, "text": prompt}) for prompt in PROMPTS)]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert said(gpt2, "--input", "-", *SAMPLED)[:2] == (0, texts)


@pytest.mark.parametrize(
    ("row", "options", "column"),
    [
        ({"text": "hello", "prompt": "fox"}, [], "prompt"),
        ({"id": "hello", "story": "fox"}, [], "story"),
        ({"question": "hello", "text": "fox"}, [], "text"),
        ({"question": "fox", "text": "hello"}, ["--text-column", "question"], None),
        ({"input": "fox", "target": "hello"}, [], "input"),
    ],
)
def test_the_column_is_named_or_guessed_aloud(gpt2, said, row, options, column):
    write_jsonl("a.jsonl", [row])
    code, out, err = said(gpt2, "--input", "a.jsonl", "--json", "--max-new-tokens", "2", *options)
    assert (code, json.loads(out)["prompt"]) == (0, "fox")
    assert ("prompt column" in err) == (column is not None)
    if column is not None:
        assert f"prompt column: {column} (change with --text-column)" in err


@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_messages_go_through_the_chat_template(chat, said, column):
    conversations = [
        [{"role": "user", "content": "hello"}],
        [{"role": "system", "content": "fox"}, {"role": "user", "content": "dog"}],
        [
            {"role": "user", "content": "a", "name": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
    ]
    write_jsonl("a.jsonl", [{"n": 1, column: messages} for messages in conversations])
    assert said(chat, "--input", "a.jsonl", "--output", "o.jsonl", "--max-new-tokens", "5")[0] == 0
    rows = read_jsonl("o.jsonl")
    assert [row["messages"] for row in rows] == conversations
    assert [row["text"] for row in rows] == hfkit.generate(chat, conversations, **{"generation.max_new_tokens": 5})
    raw = {"generation.max_new_tokens": 5, "generation.raw": True}
    assert rows[0]["text"] == hfkit.generate(chat, ["user: hello|a: "], **raw)[0]
    code, _, err = said(chat, "--input", "a.jsonl", "--raw")
    assert (code, f"--raw: column '{column}' holds messages" in err) == (2, True)


def test_messages_need_a_chat_template(gpt2, said):
    write_jsonl("a.jsonl", [{"messages": [{"role": "user", "content": "hello"}]}])
    code, _, err = said(gpt2, "--input", "a.jsonl")
    assert code == 5
    assert "the model has no chat template to put messages into (fix: --chat-template chatml, or" in err


SEVEN = [{"prompt": "hello"}] * 6
NO_MESSAGES = "is no list of messages (fix: write "


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "a.jsonl: no rows"),
        ('{"prompt": "hello"}\n' * 6 + '{"prompt": "g"\n', [], "a.jsonl: line 7, column 15: not JSON"),
        (SEVEN, ["--text-column", "promt"], "a.jsonl has no column 'promt', found: prompt (fix: --text-column prompt)"),
        ([*SEVEN, {"prompt": " "}], [], "a.jsonl: line 7: column 'prompt': the prompt is empty (fix: fill it in"),
        ([*SEVEN, {"prompt": None}], [], "a.jsonl: line 7: column 'prompt': the prompt is empty (fix: fill it in"),
        (
            [*SEVEN, {"prompt": "!" * 70}, {"prompt": ""}, {"prompt": "!" * 64}],
            ["--max-new-tokens", "5"],
            "a.jsonl: line 7: column 'prompt': prompt 70 + new 5 > 64 positions of the model "
            "(and 2 other rows can't be answered) (fix: a prompt of at most 63 tokens)",
        ),
        ([{"n": 3, "m": 4}], ["--text-column", "n"], "a.jsonl: line 1: column 'n': 3 is neither text nor messages"),
        ([{"messages": ["hello"]}], [], f"a.jsonl: line 1: column 'messages': {NO_MESSAGES}"),
        ([{"messages": [{"role": "user"}]}], [], "a.jsonl: line 1: column 'messages': message 1 (user) has no content"),
        ([{"messages": []}], [], "a.jsonl: line 1: column 'messages': has no messages (fix: fill it in"),
        (
            [{"messages": [{"role": "assistant", "content": "x"}]}],
            [],
            "a.jsonl: line 1: column 'messages': the last message is the assistant's: nothing to answer",
        ),
        (SEVEN, ["--references", "x", "--output", "o"], "a.jsonl has no column 'x', found: prompt (fix: --references"),
        (
            [*SEVEN[:2], {"prompt": "x", "target": "y"}],
            ["--references", "target", "--output", "o"],
            "a.jsonl: line 1: column 'target': is empty",
        ),
        ([{"a": 1, "b": 2}], [], "a.jsonl: no column is clearly the text, found: a, b (fix: give data with a column"),
    ],
)  # fmt: skip
def test_bad_input_is_one_error_with_line_and_column(gpt2, chat, said, content, options, message):
    if isinstance(content, str):
        with open("a.jsonl", "w") as file:
            file.write(content)
    else:
        write_jsonl("a.jsonl", content)
    before = sorted(os.listdir())
    code, out, err = said(chat if "messages" in message else gpt2, "--input", "a.jsonl", *options)
    assert (code, out) == (3, "")
    assert message in err
    assert err.count("error: ") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("\n\n", "stdin: no rows"),
        ('{"prompt": "a"}\n\n{"prompt"\n', "stdin: line 3: not a JSON object"),
        ('{"prompt": "a"}\n3\n', "stdin: line 2: not a JSON object"),
        ('{"prompt": "a"}\n\n{"prompt": ""}\n', "stdin: line 3: column 'prompt': the prompt is empty"),
        ('{"prompt": "a"}\n{"prompt": 3}\n', "stdin: "),
        ('{"a": "b", "c": "d"}\n', "stdin: no column is clearly the text, found: a, c"),
    ],
)
def test_stdin_that_cannot_be_read_names_the_line(gpt2, said, lines, message, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, _, err = said(gpt2, "--input", "-")
    assert (code, message in err) == (3, True)


def test_a_model_without_a_head_for_text_is_refused(said, tmp_path):
    make_bert(tmp_path / "bert")
    code, _, err = said("bert", "--input", "p.jsonl", "--output", "o.jsonl")
    assert code == 5
    assert "bert makes no text, it is a BertForMaskedLM" in err
    assert not os.path.exists("o.jsonl")


class Stop:
    """A signal at the n-th time that finished batches are about to be written. Audit hooks stay, so there is one."""

    number = left = 0

    @classmethod
    def hook(cls, event, arguments):
        if cls.left and event == "open" and str(arguments[0]).endswith(".partial-0.jsonl") and arguments[1] == "a":
            cls.left -= 1
            if not cls.left:
                os.kill(os.getpid(), cls.number)


sys.addaudithook(Stop.hook)


@pytest.fixture
def stopped(gpt2, said):
    """A command stopped by a signal at its fourth batch, and the bytes that it would have made."""

    def run(settings=GREEDY, number=signal.SIGTERM):
        assert said(gpt2, "--input", "p.jsonl", "--output", "whole.jsonl", *settings)[0] == 0
        command = [gpt2, "--input", "p.jsonl", "--output", "o.jsonl", *settings]
        Stop.number, Stop.left = number, 4
        code, out, err = said(*command)
        assert (code, out, Stop.left) == (128 + number, "", 0)
        assert not os.path.exists("o.jsonl")
        return command, bytes_of("whole.jsonl"), err

    return run


def kept():
    """The numbers of the rows that are kept, and those of the first three batches."""
    with open("o.jsonl.partial-0.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line)["id"] for line in file if line.strip()]
    with open("o.jsonl.partial.json", encoding="utf-8") as file:
        batches = json.load(file)["batches"]
    return rows, [row for batch in batches[:3] for row in batch]


@pytest.mark.parametrize(
    ("settings", "number", "name"),
    [(GREEDY, signal.SIGINT, "Ctrl-C"), (SAMPLED, signal.SIGTERM, "SIGTERM")],
    ids=["greedy", "sampled"],
)
def test_stopped_work_goes_on_with_the_same_command(stopped, said, settings, number, name):
    command, whole, err = stopped(settings, number)
    rows, expected = kept()
    assert rows == expected
    assert 3 <= len(rows) < 20
    assert f"error: stopped by {name}; {len(rows)} of 20 rows are kept (fix: the same command goes on)" in err
    code, _, err = said(*command)
    assert code == 0
    assert f"o.jsonl: going on, {len(rows)} of 20 rows are there" in err
    assert bytes_of("o.jsonl") == whole
    assert sorted(os.listdir()) == ["o.jsonl", "p.jsonl", "whole.jsonl"]


@pytest.mark.parametrize("torn", [b'\n{"id": 3, "answers": [{"te', b"\n\0\0\0", b""])
def test_a_batch_that_was_not_written_whole_is_made_again_whole(stopped, said, torn):
    command, whole, _ = stopped()
    (_, rows), lines = kept(), bytes_of("o.jsonl.partial-0.jsonl").split(b"\n")
    with open("o.jsonl.partial.json", encoding="utf-8") as file:
        last_batch = json.load(file)["batches"][2]
    with open("o.jsonl.partial-0.jsonl", "wb") as file:
        file.write(
            b"\n".join(lines[: None if torn else -1]) + torn
        )  # without `torn`: a row of the last batch is missing
    code, _, err = said(*command, "--resume")
    assert code == 0
    assert f"going on, {len(rows) - (0 if torn else len(last_batch))} of 20 rows are there" in err
    assert bytes_of("o.jsonl") == whole


def test_unfinished_work_of_another_make_is_not_gone_on_with(stopped, said, gpt2, other, chat):
    stopped()
    before = bytes_of("o.jsonl.partial-0.jsonl"), bytes_of("o.jsonl.partial.json")
    write_jsonl("q.jsonl", [{"prompt": prompt} for prompt in PROMPTS[:-1]])

    def problem(model, file, *settings):
        code, _, err = said(model, "--input", file, "--output", "o.jsonl", *settings)
        assert code == 2
        assert "(fix: --overwrite, or go on with what it was)" in err
        assert (bytes_of("o.jsonl.partial-0.jsonl"), bytes_of("o.jsonl.partial.json")) == before
        return err.partition("of something else: ")[2].partition(" (fix: ")[0]

    assert problem(other, "p.jsonl", *GREEDY) == f"the model was {gpt2}, is {other}"
    assert problem(gpt2, "q.jsonl", *GREEDY) == "the input was p.jsonl (20 rows), is q.jsonl (19 rows)"
    assert problem(chat, "p.jsonl", *GREEDY) == "the tokens of the prompts are others"
    half = [*GREEDY, "--dtype", "bfloat16"]  # as another machine chooses by itself
    assert problem(gpt2, "p.jsonl", *half) == "the number type was float32 (--dtype float32), is bfloat16"
    changed = ["--max-new-tokens", "7", "--batch-tokens", "90", "--repetition-penalty", "1.5"]
    assert problem(gpt2, "p.jsonl", *changed) == "max_new_tokens was 6, is 7; repetition_penalty was null, is 1.5"
    write_jsonl("p.jsonl", [{"prompt": prompt} for prompt in reversed(PROMPTS)])
    assert problem(gpt2, "p.jsonl", *GREEDY) == "the prompts in p.jsonl are others"
    command = [gpt2, "--input", "q.jsonl", *changed]
    assert said(*command, "--output", "o.jsonl", "--overwrite")[0] == 0
    assert said(*command, "--output", "new.jsonl")[0] == 0
    assert bytes_of("o.jsonl") == bytes_of("new.jsonl")
    assert not [name for name in os.listdir() if "partial" in name]


def test_a_copy_of_the_model_goes_on(stopped, said, gpt2, tmp_path):
    command, whole, _ = stopped()
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(tmp_path / "copy")
    AutoTokenizer.from_pretrained(gpt2).save_pretrained(tmp_path / "copy")
    code, _, err = said("copy", *command[1:])
    assert (code, "going on" in err) == (0, True)
    assert bytes_of("o.jsonl") == whole


def test_a_finished_output_is_kept_or_written_anew_as_asked(gpt2, other, said):
    command = [gpt2, "--input", "p.jsonl", "--output", "o.jsonl", *GREEDY]
    assert said(*command)[0] == 0
    made = bytes_of("o.jsonl")
    code, _, err = said(*command)
    assert (code, "o.jsonl: is there already" in err) == (2, True)
    code, _, err = said(*command, "--resume")
    assert (code, "all 20 rows are there already, nothing to do" in err) == (0, True)
    for rows in (PROMPTS[:-1], [*PROMPTS, "more"], [*PROMPTS[:-1], "else"]):
        write_jsonl("q.jsonl", [{"prompt": prompt} for prompt in rows])
        code, _, err = said(gpt2, "--input", "q.jsonl", "--output", "o.jsonl", *GREEDY, "--resume")
        assert (code, "(fix: --overwrite)" in err) == (3, True)
    assert bytes_of("o.jsonl") == made
    write_jsonl("x.jsonl", [{"id": 0}])
    code, _, err = said(gpt2, "--input", "p.jsonl", "--output", "x.jsonl", "--resume")
    assert (code, "x.jsonl: line 1 is no answer of hfkit generate (fix: --overwrite)" in err) == (3, True)
    assert said(other, *command[1:], "--overwrite")[0] == 0
    assert [row["prompt"] for row in read_jsonl("o.jsonl")] == PROMPTS
    assert bytes_of("o.jsonl") != made


def test_an_output_that_is_being_made_is_left_to_who_makes_it(gpt2, said):
    with open("o.jsonl.partial.json", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = said(gpt2, "--input", "p.jsonl", "--output", "o.jsonl", *GREEDY)
    assert code == 75
    assert "o.jsonl.partial.json: another process works at it" in err


def test_a_full_disk_keeps_what_is_there(gpt2, said):
    assert said(gpt2, "--input", "p.jsonl", "--output", "whole.jsonl", *GREEDY)[0] == 0
    command = [gpt2, "--input", "p.jsonl", "--output", "o.jsonl", *GREEDY]
    size = len(bytes_of("whole.jsonl")) * 2 // 3
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        code, _, err = said(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 6
    assert "error: o.jsonl: File too large (fix: make room, then the same command goes on)" in err
    assert said(*command)[0] == 0
    assert bytes_of("o.jsonl") == bytes_of("whole.jsonl")


def test_texts_are_scored_against_a_column(gpt2, said, capsys):
    texts = hfkit.generate(gpt2, PROMPTS, **{"generation.max_new_tokens": 6})
    references = [text if place < 5 else "no" for place, text in enumerate(texts)]
    rows = [{"prompt": prompt, "gold": gold} for prompt, gold in zip(PROMPTS, references, strict=True)]
    write_jsonl("r.jsonl", rows)
    command = [gpt2, "--input", "r.jsonl", "--output", "o.jsonl", *GREEDY, "--references", "gold"]
    code, out, _ = said(*command, "--metrics", "exact_match,chrf", "--json")
    assert code == 0
    scores = json.loads(out)["metrics"]
    assert scores["exact_match"]["value"] == 25
    assert scores["exact_match"]["n"] == 20
    made = read_jsonl("o.jsonl")
    assert [row["reference"] for row in made] == references
    assert list(made[0]) == ["id", "prompt", "reference", "text", "tokens", "finish_reason"]
    assert main(["evaluate", "--predictions", "o.jsonl", "--metrics", "exact_match,chrf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == scores
    code, out, err = said(*command, "--resume")
    assert (code, "nothing to do" in err) == (0, True)
    assert [line.split()[0] for line in out.splitlines()[:5]] == ["bleu", "rouge1", "rouge2", "rougeL", "rougeLsum"]


def test_several_references_a_row_are_a_list(gpt2, said):
    write_jsonl("r.jsonl", [{"prompt": "hello", "gold": ["a", "b"]}, {"prompt": "fox", "gold": ["c"]}])
    command = [gpt2, "--input", "r.jsonl", "--output", "o.jsonl", *GREEDY]
    code, out, _ = said(*command, "--references", "gold", "--metrics", "bleu", "--json")
    assert code == 0
    assert [row["references"] for row in read_jsonl("o.jsonl")] == [["a", "b"], ["c"]]
    assert json.loads(out)["metrics"]["bleu"]["n"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "x", "--input", "p.jsonl"], "exclude each other"),
        (["--echo", "--input", "p.jsonl"], "exclude each other"),
        (["--prompt", "x", "--output", "o.jsonl"], "--output goes with --input (fix: --input FILE)"),
        (["--prompt", "x", "--metrics", "bleu"], "--metrics goes with --input"),
        (["--input", "p.jsonl", "--references", "x"], "--references has no effect without --output"),
        (["--input", "p.jsonl", "--resume"], "--resume has no effect without --output"),
        (["--input", "p.jsonl", "--output", "o", "--resume", "x"], "--resume x: takes no value"),
        (["--input", "p.jsonl", "--output", "o", "--resume", "--overwrite"], "exclude each other"),
        (["--input", "p.jsonl", "--output", "p.jsonl", "--overwrite"], "p.jsonl is the input"),
        (["--input", "p.jsonl", "--output", "o", "--metrics", "bleu"], "--metrics bleu needs references"),
        (["--input", "p.jsonl", "--output", "o", "--metrics", "blue"], "unknown metric 'blue' (fix: did you mean"),
        (["--input", "p.jsonl", "--no-header"], "data.header has no effect: no source is a .csv or .tsv file"),
        (["--input", "-", "--output", "o", "--num-processes", "2"], "stdin can't be read by several processes"),
        (["--prompt", "x", "--num-processes", "2"], "--num-processes goes with --input"),
        (["--input", "p.jsonl", "--num-processes", "2"], "--num-processes has no effect without --output"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(gpt2, said, options, message):
    code, _, err = said(gpt2, *options)
    assert (code, message in err) == (2, True), err


def test_several_texts_of_a_prompt_are_not_scored(gpt2, said):
    write_jsonl("r.jsonl", [{"prompt": "hello", "gold": "x"}])
    more = ["--do-sample", "--num-return-sequences", "2", "--references", "gold"]
    code, _, err = said(gpt2, "--input", "r.jsonl", "--output", "o.jsonl", *more)
    assert (code, "several texts of one prompt can't be scored as one" in err) == (2, True)


def test_an_output_that_cannot_be_written_is_said_before_the_model_is_loaded(said):
    for output, message in [("none/o.jsonl", "none: no such folder"), (".", ".: is a folder")]:
        code, _, err = said("./no-model", "--input", "p.jsonl", "--output", output)
        assert (code, message in err) == (6, True)


def test_what_a_run_was_trained_on_has_no_part_in_its_prompts(gpt2, said, tmp_path):
    run = tmp_path / "run"
    AutoModelForCausalLM.from_pretrained(gpt2).save_pretrained(run)
    AutoTokenizer.from_pretrained(gpt2).save_pretrained(run)
    (run / "run.json").write_text("{}")
    (run / "recipe.yaml").write_text("task: clm\ndata:\n  train: [x.txt]\n  columns:\n    text: story\n")
    command = ["--input", "p.jsonl", "--metrics", "distinct_1", *GREEDY, "--output"]
    assert said(str(run), *command, "of-run.jsonl")[0] == 0
    assert said(gpt2, *command, "of-model.jsonl")[0] == 0
    assert bytes_of("of-run.jsonl") == bytes_of("of-model.jsonl")


def test_a_terminal_shows_how_far_it_is(gpt2, said, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert said(gpt2, "--input", "p.jsonl", "--output", "o.jsonl", *GREEDY)[0] == 0
    shown = terminal.getvalue().split("\r\x1b[K")
    assert all(" of 20 rows, " in line and " tokens/s, " in line and line.endswith(" left") for line in shown[1:-1])
    assert shown[-2].startswith("20 of 20 rows, ")
    assert shown[-1].endswith("20 rows in o.jsonl\n")


def test_what_stands_beside_a_question_is_read_as_in_training(tmp_path, capsys):
    model = make_chat_model(tmp_path / "model", CHATML)
    rows = [
        {"instruction": "the", "input": "fox, the world", "output": "a"},
        {"instruction": "and?", "history": [["hello", "a fox"]], "system": "be brief", "output": "b"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["generate", str(model), "--input", str(tmp_path / "rows.jsonl"), "--greedy", "--max-new-tokens", "2"]
    assert main([*command, "--output", str(tmp_path / "out.jsonl")]) == 0
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["prompt"] == "the\nfox, the world"
    assert [message["content"] for message in second["messages"]] == ["be brief", "hello", "a fox", "and?"]
