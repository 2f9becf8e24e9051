"""Question answering: answers are found where they are, windows keep each whole, spans and thresholds are the best."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering

from hfkit.cli.main import main
from hfkit.data.labels import IGNORED
from hfkit.data.loading import load_data
from hfkit.data.questions import load_questions
from hfkit.errors import DataError, UsageError
from hfkit.evaluation.inference import predict_rows
from hfkit.metrics.table import compute
from hfkit.runs.results import read_scores
from hfkit.settings import Data, Evaluation, Recipe
from hfkit.tasks import TASKS
from hfkit.tasks.base import LossOptions
from hfkit.tasks.question_windows import EncodedQuestions
from tiny_models import TEXT, make_bert, tokenizer_of

TASK = TASKS["question-answering"]
KINDS = ("bert", "roberta", "deberta-v2", "xlnet")
WORDS = [*{word for text in TEXT for word in text.split()}, "数据", "🦊🦊", "e\u0301te\u0301", "xyzzy"]

torch.manual_seed(0)
MODEL = BertForQuestionAnswering(
    BertConfig(
        vocab_size=300,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        initializer_range=1.0,
    )
)  # fmt: skip


def encoded(tokenizer, rows, **data):
    """`rows` of (question, context, answers, starts), or of question and context."""
    names = ("question", "context", "answers", "starts")[: len(rows[0])]
    columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return EncodedQuestions(Dataset.from_dict(columns), tokenizer, MODEL, Recipe(data=Data(**data)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(make_bert(tmp_path_factory.mktemp("models") / "tiny-bert"))


# The data.


def loaded(path, **data):
    source = Data(train=[str(path)], **data)
    return load_questions(load_data(source), source)["train"].to_list()


NAMES = ("question", "context", "answers")

CONTEXT = "The fox lives in the wood. The dog lives in the house."
ROW = {"question": "Where does the dog live?", "context": CONTEXT, "answers": ["the house"], "starts": [44]}
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Animals",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"id": "a", "question": ROW["question"], "answers": [{"text": "the house", "answer_start": 44}]}
                    ],
                }
            ],
        }
    ],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("line.json", json.dumps(SQUAD)),
        ("indented.json", json.dumps(SQUAD, indent=2)),
        ("data.json", json.dumps({"data": [{**ROW, "answers": [{"text": "the house", "answer_start": 44}]}]})),
        ("hub.jsonl", json.dumps({**ROW, "answers": {"text": ["the house"], "answer_start": [44]}}) + "\n"),
        ("starts.jsonl", json.dumps({**ROW, "answers": {"text": ["the house"], "answer_start": []}}) + "\n"),
        ("texts.jsonl", json.dumps({**ROW, "answers": ["the house"]}) + "\n"),
        ("table.csv", f'question,context,answer\n{ROW["question"]},"{CONTEXT}",the house\n'),
    ],
)
def test_every_layout_is_the_same_question(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert loaded(tmp_path / name) == [ROW]


def test_questions_without_an_answer_are_kept_and_wrong_places_corrected(tmp_path, capsys):
    rows = [
        {"question": "a?", "context": CONTEXT, "answers": []},
        {"question": "b?", "context": CONTEXT, "answers": [{"text": "lives in the", "answer_start": 33}]},
        {"question": "c?", "context": CONTEXT, "answers": [{"text": "the cat", "answer_start": 0}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = loaded(path)
    assert [(row["answers"], row["starts"]) for row in found] == [([], []), (["lives in the"], [35])]
    said = capsys.readouterr().err
    assert "train: the answers to 1 of 3 questions are not in their context, first " in said
    assert "rows.jsonl: line 3; they are left out" in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "", "context": "x", "answers": ["x"]}, "line 1: column 'question' is empty"),
        ({"question": "a", "context": "x", "answers": None}, "line 1: the question has no answers"),
        ({"question": "a", "context": "x", "answers": 4}, "line 1: 4 is no answer"),
        ({"question": "a", "context": "x", "answers": {"answer": "x"}}, "line 1: {'answer': 'x'} is no answer"),
        ({"question": "a", "answers": ["x"]}, "no column is clearly the context, found: question, answers"),
    ],
)
def test_what_is_missing_is_named(row, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as error:
        loaded(tmp_path / "a.jsonl")
    assert message in error.value.problems[0][0]


def test_inspect_counts_questions_without_an_answer(tmp_path, capsys):
    rows = [ROW, {**ROW, "question": "Who?", "answers": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({k: r[k] for k in NAMES}) + "\n" for r in rows))
    assert main(["data", "inspect", str(tmp_path / "a.jsonl"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["task"] == "question-answering"
    part = facts["splits"]["train"]
    assert (part["rows"], part["contexts"], part["open"]) == (2, 1, 1)


def test_the_task_to_name_is_said(tmp_path, bert, capsys):
    (tmp_path / "a.json").write_text(json.dumps(SQUAD))
    assert main(["finetune", "--model", bert, "--data", str(tmp_path / "a.json")]) == 3
    assert "(fix: --task question-answering)" in capsys.readouterr().err


def test_questions_about_a_text_are_held_out_together(tmp_path, bert, capsys):
    rows = [{"question": f"{n}?", "context": f"the fox {n % 4}", "answers": ["fox"]} for n in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["finetune", "--task", "question-answering", "--model", bert, "--data", str(tmp_path / "a.jsonl")]
    assert main([*command, "--validation-split", "0.25", "--max-steps", "1", "-o", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "validation: 1 of 4 contexts held out of the training data" in said
    assert "train: 9 questions about 3 texts" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(SQUAD).replace("The fox", "\\ud83d fox"), "a.json: line 1, byte 78: \\ud83d is half a character"),
        ('{"data": [{"paragraphs": null}]}', "a.json: in the form of SQuAD, but paragraphs or qas are no lists"),
        ('{"data": [{"paragraphs": [{"context": "a", "qas": ["x"]}]}]}', "a.json: in the form of SQuAD, but"),
    ],
)
def test_what_is_wrong_in_a_file_of_squad_is_named_with_it(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as error:
        loaded("a.json")
    assert message in error.value.problems[0][0]


# Windows and labels.

DATA = st.data()
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30)


@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings(max_examples=60, deadline=None)
@given(
    texts, st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), st.integers(24, 60), st.integers(0, 3), st.data()
)
def test_windows_are_those_of_the_tokenizer_and_one_has_the_answer_whole(kind, words, asked, limit, overlap, data):
    tokenizer = tokenizer_of(kind)
    question, context = " ".join(asked), " ".join(words)
    first = data.draw(st.integers(0, len(words) - 1))
    answer = " ".join(words[first : first + data.draw(st.integers(1, 3))])
    start = len(" ".join(words[:first])) + (first > 0)
    row = (question, context, [answer], [start])
    made = encoded(tokenizer, [row], max_length=limit, window_overlap=overlap)
    options = {
        "max_length": limit,
        "stride": overlap,
        "return_overflowing_tokens": True,
        "return_offsets_mapping": True,
    }
    if made.cut.any():
        return
    own = tokenizer(question, context, truncation="only_second", **options)
    read = [index for index, window in enumerate(made.windows) if window.counts]
    assert [made.example(index)["input_ids"] for index in read] == own["input_ids"]
    assert made.lengths[read].tolist() == list(map(len, own["input_ids"]))
    whole = 0
    for window, example, (begin, end) in zip(
        made.windows, map(made.example, range(len(made))), made.labels.tolist(), strict=True
    ):
        if begin == end == made.no_answer_column(window):
            ids = example["input_ids"]
            assert begin == (ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0)
            continue
        whole += 1
        places = made.offsets[0][window.begin : window.end][
            [begin - made.first_column(window), end - made.first_column(window)]
        ]
        assert context[places[0][0] : places[1][1]].strip() == answer
    assert whole >= 1 or len(tokenizer(answer)["input_ids"]) > limit - made.frame.size - len(made.questions[0])


def test_a_window_without_room_is_refused():
    with pytest.raises(UsageError, match="a window has room for"):
        encoded(tokenizer_of("bert"), [("the", "fox")], max_length=12, window_overlap=20)


# Spans and scores.


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_best_span_is_that_of_all_spans(seed, most):
    tokenizer, random = tokenizer_of("bert"), np.random.default_rng(seed)
    context = " ".join(random.choice(WORDS[:8], size=15))
    made = encoded(tokenizer, [("the", context)], max_length=20, window_overlap=4)
    logits = random.normal(size=(len(made), 20, 2))
    (spans,), (nothing,) = made.best_spans(logits, most)
    best, nothing_by_hand = -np.inf, np.inf
    for window, ends in zip(made.windows, logits, strict=True):
        first = made.first_column(window)
        nothing_by_hand = min(nothing_by_hand, ends[0].sum())
        for start in range(window.end - window.begin):
            for stop in range(start, min(start + most, window.end - window.begin)):
                best = max(best, ends[first + start, 0] + ends[first + stop, 1])
    assert spans[0].logit == pytest.approx(best)
    assert nothing == pytest.approx(nothing_by_hand)
    assert len({(span.start, span.end) for span in spans}) == len(spans)


def test_the_scores_of_squad():
    predictions = ["The house!", "a dog", "", "wood", "红色的狐狸"]
    references = [["the house", "house"], ["the dog house"], [], [], ["红狐狸"]]
    scores = compute(["squad_exact_match", "token_f1"], predictions, references, interval=False)
    # by the rules of evaluate-v2.0.py; of Chinese each character is a word: 3 shared, of 5 and of 3
    f1 = [1, 2 / 3, 1, 0, 2 * 3 / 8]
    assert scores["squad_exact_match"].value == pytest.approx(40)
    assert scores["token_f1"].value == pytest.approx(100 * np.mean(f1))


def test_scores_do_not_depend_on_batches():
    rows = [(word, " ".join(WORDS), [WORDS[3]], [" ".join(WORDS).index(WORDS[3])]) for word in WORDS[:4]]
    made = encoded(tokenizer_of("bert"), rows, max_length=30, window_overlap=8)
    found = [predict_rows(TASK, MODEL, tokenizer_of("bert"), made, batch_size=size) for size in (1, 5)]
    scores = [TASK.scores(reduced, labels, made, Evaluation(interval=False)) for reduced, labels in found]
    assert scores[0].keys() == {"squad_exact_match", "token_f1", "log_loss"}
    for name, score in scores[0].items():
        assert score.value == pytest.approx(scores[1][name].value, rel=1e-5)
    batch = TASK.collate([made.example(index) for index in range(len(made))], tokenizer_of("bert"))
    with torch.inference_mode():
        loss = TASK.loss(
            MODEL.eval()(**{name: one for name, one in batch.items() if name != "labels"}), batch["labels"]
        )
    assert scores[0]["log_loss"].value == pytest.approx(loss.item(), rel=1e-4)


def test_the_loss_does_not_depend_on_how_a_step_is_divided():
    rows = [("the", "fox", ["fox"], [0]), ("the quick", " ".join(WORDS), [WORDS[0]], [0]), ("a", "dog a", [], [])]
    made = encoded(tokenizer_of("bert"), rows)
    examples = [made.example(index) for index in range(len(made))]

    def loss(part):
        batch = TASK.collate(part, tokenizer_of("bert"))
        labels = batch.pop("labels")
        return TASK.loss(MODEL.eval()(**batch), labels, options=LossOptions(global_batch_size=len(examples)))

    torch.testing.assert_close(sum(loss([one]) for one in examples), loss(examples), rtol=1e-5, atol=1e-6)


def test_an_answer_that_is_not_there_has_no_loss():
    rows = [("the", "fox dog", ["cat"], [-1]), ("the", "fox dog", [], []), ("the", "fox dog", ["dog"], [4])]
    made = encoded(tokenizer_of("bert"), rows)
    assert made.labels[0].tolist() == [IGNORED, IGNORED]
    assert made.labels[1].tolist() == [0, 0]
    assert (made.labels[2] > 0).all()


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_threshold_of_no_answer_has_the_best_f1(seed):
    random = np.random.default_rng(seed)
    words = ["fox", "dog", "cat"]
    rows = [
        ("the", f"{word} is here", [word] if random.random() < 0.5 else [], [0][: random.integers(2)]) for word in words
    ]
    rows = [(asked, context, answers, [0] * len(answers)) for asked, context, answers, _ in rows]
    made = encoded(tokenizer_of("bert"), rows)
    logits = random.normal(size=(len(made), 20, 2)) + random.normal(scale=3)
    MODEL.config.no_answer_threshold = made.config.no_answer_threshold = 0.0
    evaluation = Evaluation(interval=False, metrics=["token_f1"])
    TASK.tune(MODEL, made, evaluation, lambda: (logits, np.zeros(0)))
    tuned = TASK.scores(logits, np.zeros(0), made, evaluation)["token_f1"].value
    others = []
    for threshold in np.linspace(-20, 20, 400):
        MODEL.config.no_answer_threshold = float(threshold)
        others.append(TASK.scores(logits, np.zeros(0), made, evaluation)["token_f1"].value)
    assert tuned >= max(others) - 1e-9


# The commands.


QUESTIONS = [
    {"question": "quick?", "context": "the quick brown fox", "answers": ["brown fox"]},
    {"question": "lazy?", "context": "over the lazy dog", "answers": ["dog"]},
    {"question": "tiny?", "context": "this is a tiny model", "answers": ["this"]},
]


def trained(folder, model, rows, *more):
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["finetune", "--task", "question-answering", "--model", model, "--data", str(path), "--validation"]
    options = ["--max-steps", "150", "--lr", "0.01", "--batch-size", "4", "--dropout", "0", "--eval-steps", "150"]
    assert main([*command, str(path), *options, *more, "-o", str(folder / "run")]) == 0
    return folder / "run"


def test_questions_are_learned_by_heart_and_answered(bert, tmp_path, capsys):
    run = trained(tmp_path, bert, QUESTIONS)
    scores = read_scores(run)["validation"]
    assert (scores["squad_exact_match"]["value"], scores["token_f1"]["value"]) == (100, 100)
    assert AutoModelForQuestionAnswering.from_pretrained(run).config.no_answer_threshold is None
    kept = [json.loads(line) for line in (run / "validation_predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in kept] == ["brown fox", "dog", "this"]
    assert (run / "validation_worst_errors.jsonl").read_text() == ""
    capsys.readouterr()
    asked = ["--question", "quick?", "--context", "the quick brown fox"]
    assert main(["predict", str(run), *asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["answer"], answer["start"], answer["end"]) == ("brown fox", 10, 19)
    assert 0.5 < answer["score"] <= 1
    assert main(["predict", str(run), *asked]) == 0
    assert capsys.readouterr().out.startswith("brown fox\t")
    output = tmp_path / "answers.jsonl"
    command = ["predict", str(run), "--input", str(tmp_path / "rows.jsonl"), "--output", str(output)]
    assert main(command) == 0
    whole = output.read_text()
    output.write_text(whole.splitlines(keepends=True)[0])
    assert main([*command, "--resume"]) == 0
    assert [json.loads(line)["answer"] for line in output.read_text().splitlines()] == ["brown fox", "dog", "this"]
    capsys.readouterr()
    files = ["--predictions", str(output), "--references", str(tmp_path / "rows.jsonl")]
    assert main(["evaluate", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["squad_exact_match"]["value"] == 100
    assert main(["predict", str(run), *asked, "--window-overlap", "2"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(tmp_path / "rows.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["token_f1"]["value"] == 100


def test_no_answer_is_learned_with_a_threshold(bert, tmp_path, capsys):
    rows = [*QUESTIONS, {"question": "quick?", "context": "over the lazy dog", "answers": []}]
    run = trained(tmp_path, bert, rows)
    scores = read_scores(run)["validation"]
    names = ("token_f1", "token_f1.answered", "token_f1.open", "squad_exact_match.open")
    assert [scores[name]["value"] for name in names] == [100, 100, 100, 100]
    assert isinstance(AutoModelForQuestionAnswering.from_pretrained(run).config.no_answer_threshold, float)
    capsys.readouterr()
    assert main(["predict", str(run), "--question", "quick?", "--context", "over the lazy dog", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["answer"], answer["start"], answer["end"]) == ("", None, None)
    asked = ["--question", "quick?", "--context", "the quick brown fox", "--json"]
    for threshold, answered in (("-1000", ""), ("1000", "brown fox")):
        assert main(["predict", str(run), *asked, "--no-answer-threshold", threshold]) == 0
        assert json.loads(capsys.readouterr().out)["answer"] == answered
    other = trained(tmp_path / "other", bert, rows, "--max-steps", "1", "--eval-steps", "1")
    capsys.readouterr()
    assert main(["compare", str(other), str(run), "--json"]) == 0
    assert all(0 < one["gain"] <= 1 for one in json.loads(capsys.readouterr().out)["rows"])


def test_a_question_without_a_text_is_refused(bert, tmp_path, capsys):
    run = trained(tmp_path, bert, QUESTIONS, "--max-steps", "2", "--eval-steps", "2")
    capsys.readouterr()
    assert main(["predict", str(run), "--question", "quick?"]) == 2
    assert "answers questions about texts, and no text is given (fix: --question '...' --context" in (
        capsys.readouterr().err
    )
    (tmp_path / "new.jsonl").write_text('{"question": "quick?", "context": null}\n')
    assert main(["predict", str(run), "--input", str(tmp_path / "new.jsonl")]) == 3
    assert "new.jsonl: line 1: column 'context' is empty" in capsys.readouterr().err


def test_several_questions_about_one_text(bert, tmp_path, capsys):
    run = trained(tmp_path, bert, QUESTIONS, "--max-steps", "2", "--eval-steps", "2")
    capsys.readouterr()
    assert main(["predict", str(run), "--question", "a?", "--question", "b?", "--context", "the dog", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["question"], one["context"]) for one in answers] == [("a?", "the dog"), ("b?", "the dog")]
