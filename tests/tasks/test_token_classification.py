"""Token classification: every word has its tag at one token, windows lose none, scores and answers are of words."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

import hfkit
from hfkit.cli.main import main
from hfkit.data.labels import IGNORED
from hfkit.errors import UsageError
from hfkit.evaluation.inference import predict_rows
from hfkit.models.new_tokenizer import train_tokenizer
from hfkit.runs.results import read_scores
from hfkit.settings import Data, Evaluation, Recipe
from hfkit.tasks import TASKS
from hfkit.tasks.words import EncodedWords
from tiny_models import TEXT, make_bert, tokenizer_of

TASK = TASKS["token-classification"]
NAMES = ["O", "B-X", "I-X"]
KINDS = ("bert", "roberta", "deberta-v2", "xlnet", "gpt2")
WORDS = [*{word for text in TEXT for word in text.split()}, "数据", "🦊🦊", "e\u0301te\u0301", "\u200d", "New York"]


def model_of(names=NAMES, vocabulary=300):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    return BertForTokenClassification(config)


MODEL = model_of()


def encoded(tokenizer, rows, tags=None, model=MODEL, **data):
    column = "text" if isinstance(rows[0], str) else "tokens"
    columns = {column: rows} | ({} if tags is None else {"tags": tags})
    return EncodedWords(Dataset.from_dict(columns), tokenizer, model, Recipe(data=Data(**data)))


def with_specials(backend, **tokens):
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", **tokens)


def word_pieces():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ber", "##lin", "is", "cafe", "##s", "北", "京", "##\u0301"]
    backend = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return with_specials(backend)


def bytes_alone():
    """Byte-level BPE without merges: the id of a token is the place of its byte in the alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)} | {"[PAD]": 256}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return with_specials(backend)


def unigram():
    pieces = ["[PAD]", "[UNK]", "▁", "▁ber", "lin", "▁is", "北京", "大学", "😀", "café", "s"]
    backend = Tokenizer(models.Unigram([(piece, -float(index)) for index, piece in enumerate(pieces)], unk_id=1))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return with_specials(backend)


def labelled(tokenizer, tokens, tags, **data):
    """(token ids, labels) of one sentence."""
    (example,) = [encoded(tokenizer, [tokens], [tags], **data).example(0)]
    return example["input_ids"], example["labels"].tolist()


def test_word_pieces_have_the_tag_at_the_first_piece():
    ids, labels = labelled(word_pieces(), ["Berlin", "is", "北京", "cafe\u0301s"], ["B-X", "O", "I-X", "O"])
    # the accent is stripped, and each Chinese character is a piece of the word
    assert ids == [4, 5, 6, 9, 10, 7, 8]
    assert labels == [1, IGNORED, 0, 2, IGNORED, 0, IGNORED]
    _, every = labelled(word_pieces(), ["Berlin", "is", "北京"], ["B-X", "O", "B-X"], subword_labels="all")
    assert every == [1, 2, 0, 1, 2]


def test_bytes_have_the_tag_at_the_first_byte_that_is_no_blank():
    tokenizer = bytes_alone()
    ids, labels = labelled(tokenizer, ["a", "😀", "e\u0301"], ["O", "B-X", "I-X"])
    assert tokenizer.convert_ids_to_tokens(ids) == list("aĠðŁĺĢĠeÌģ")
    assert labels == [0, IGNORED, 1, *[IGNORED] * 4, 2, *[IGNORED] * 2]


def test_merged_bytes_have_the_tag_though_they_begin_with_a_blank():
    tokenizer = train_tokenizer(["the fox the fox"] * 3, "gpt2", 300)
    tokenizer.pad_token = tokenizer.eos_token
    ids, labels = labelled(tokenizer, ["fox", "the", "fox"], ["O", "B-X", "I-X"])
    assert tokenizer.convert_ids_to_tokens(ids)[-2:] == ["Ġthe", "Ġfox"]
    assert labels[-2:] == [1, 2]


def test_unigram_pieces_have_the_tag_at_the_first_piece_that_is_no_blank():
    tokenizer = unigram()
    ids, labels = labelled(tokenizer, ["berlin", "is", "北京大学", "😀", "cafe\u0301"], ["B-X", "O", "I-X", "O", "B-X"])
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "▁ber", "lin", "▁is", "▁", "北京", "大学", "▁", "😀", "▁", "café",
    ]  # fmt: skip
    assert labels == [1, IGNORED, 0, IGNORED, 2, IGNORED, IGNORED, 0, IGNORED, 1]


def test_words_that_share_a_token_continue_the_first_one():
    rows = encoded(unigram(), ["北京大学"], [["B-X", "I-X", "B-X", "O"]])
    assert rows.example(0)["labels"].tolist() == [IGNORED, 1, 1]
    ids, shares = rows.by_word(np.array([[[0, 0.1, 0], [1, 0.9, 0], [1, 0.8, 0]]]))
    assert [NAMES[index] for index in ids] == ["B-X", "I-X", "B-X", "I-X"]
    assert shares.tolist() == [0.9, 0.9, 0.8, 0.8]


sentences = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(NAMES)), min_size=1, max_size=25)


@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(sentences, min_size=1, max_size=4), st.integers(12, 40), st.integers(0, 5))
def test_windows_hold_every_token_and_give_every_word_its_tag_back(kind, rows, limit, overlap):
    tokenizer = tokenizer_of(kind)
    tokens = [[token for token, _ in row] for row in rows]
    tags = [[tag for _, tag in row] for row in rows]
    made = encoded(tokenizer, tokens, tags, max_length=limit, window_overlap=overlap)
    examples = [made.example(index) for index in range(len(made))]
    options = {"truncation": True, "max_length": limit, "stride": overlap, "return_overflowing_tokens": True}
    own = tokenizer([" ".join(row) for row in tokens], **options)
    assert [one["input_ids"] for one in examples] == own["input_ids"]
    assert made.lengths.tolist() == list(map(len, own["input_ids"]))
    # what the labels say comes back by word, wherever the window is in which a token counts
    reduced = np.zeros((len(made), limit, 3))
    for window, one in enumerate(examples):
        reduced[window, : len(one["labels"]), 0] = np.where(one["labels"] == IGNORED, 0, one["labels"])
    ids, _ = made.by_word(reduced)
    shown = made.token_of_word >= 0
    assert ids[shown].tolist() == made.tags[shown].tolist()
    assert sum(int((one["labels"] != IGNORED).sum()) for one in examples) == int(shown.sum())


def test_a_window_without_room_is_refused():
    with pytest.raises(UsageError, match=r"data\.window_overlap 20: a window has room for 8 tokens"):
        encoded(tokenizer_of("bert"), [["the"]], max_length=10, window_overlap=20)


def test_the_loss_does_not_depend_on_how_a_step_is_divided():
    tokenizer = tokenizer_of("bert")
    rows = encoded(tokenizer, [["the", "fox"], ["dog"] * 9, ["a"]], [["O", "B-X"], ["I-X"] * 9, ["O"]])
    examples = [rows.example(index) for index in range(3)]
    count = sum(int((one["labels"] != IGNORED).sum()) for one in examples)

    def loss(part):
        batch = TASK.collate(part, tokenizer)
        labels = batch.pop("labels")
        return TASK.loss(MODEL(**batch), labels, count)

    whole, parts = loss(examples), sum(loss([one]) for one in examples)
    assert count == 12
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]]])
    by_hand = TASK.loss({"logits": logits}, torch.tensor([[IGNORED, 0]]))
    assert by_hand.item() == pytest.approx(np.log(2 + np.exp(3)), rel=1e-6)


def test_scores_do_not_depend_on_batches_and_are_those_of_the_words():
    tokenizer = tokenizer_of("bert")
    tokens = [["the", "quick", "fox"], ["dog"] * 30, ["lazy", "\u200d"]]
    tags = [["B-X", "I-X", "O"], ["O"] * 30, ["B-X", "O"]]
    rows = encoded(tokenizer, tokens, tags, max_length=16, window_overlap=4)
    found = [predict_rows(TASK, MODEL, tokenizer, rows, batch_size=size) for size in (1, 4)]
    scores = [TASK.scores(reduced, labels, rows, Evaluation(interval=False)) for reduced, labels in found]
    assert scores[0].keys() == {"entity_precision", "entity_recall", "entity_f1", "tag_accuracy", "log_loss"}
    for name, score in scores[0].items():
        assert score.value == pytest.approx(scores[1][name].value, rel=1e-5)
    ids, _ = rows.by_word(found[0][0])
    assert scores[0]["tag_accuracy"].value == pytest.approx(np.mean(ids == rows.tags))
    # by hand: each sentence alone, its windows cut as the middle of their overlap says
    nll = []
    for index in range(len(rows)):
        one = rows.example(index)
        with torch.inference_mode():
            logits = MODEL(torch.tensor([one["input_ids"]])).logits[0].double().log_softmax(-1)
        nll += [-logits[place, label].item() for place, label in enumerate(one["labels"]) if label != IGNORED]
    assert len(nll) == 34  # the last word has no token
    assert scores[0]["log_loss"].value == pytest.approx(np.mean(nll), rel=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(make_bert(tmp_path_factory.mktemp("models") / "tiny-bert"))


def conll(path, sentences):
    lines = ("".join(f"{token}\t{tag}\n" for token, tag in sentence) for sentence in sentences)
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


FOX = [("the", "O"), ("quick", "B-animal"), ("fox", "I-animal"), ("jumps", "O")]
DOG = [("a", "O"), ("lazy", "O"), ("dog", "B-animal")]
WORLD = [("hello", "O"), ("world", "B-place")]


@pytest.fixture(scope="module")
def run(bert, tmp_path_factory):
    """A model that has learned three sentences by heart."""
    folder = tmp_path_factory.mktemp("run")
    data = conll(folder / "train.conll", [FOX, DOG, WORLD])
    command = ["finetune", "--task", "token-classification", "--model", bert, "--data", data, "--validation", data]
    options = ["--max-steps", "150", "--lr", "0.01", "--batch-size", "3", "--dropout", "0", "--eval-steps", "75"]
    assert main([*command, *options, "-o", str(folder / "run")]) == 0
    return folder / "run"


def scores_of(run):
    return read_scores(run)["validation"]


def test_three_sentences_are_learned_by_heart(run, capsys):
    scores = scores_of(run)
    assert {name: scores[name]["value"] for name in ("entity_f1", "entity_f1.animal", "tag_accuracy")} == {
        "entity_f1": 1, "entity_f1.animal": 1, "tag_accuracy": 1,
    }  # fmt: skip
    assert scores["majority_baseline"]["value"] == pytest.approx(5 / 9)
    model = AutoModelForTokenClassification.from_pretrained(run)
    assert model.config.id2label == dict(enumerate(["O", "B-animal", "I-animal", "B-place", "I-place"]))
    rows = [json.loads(line) for line in (run / "validation_predictions.jsonl").read_text().splitlines()]
    assert rows[0]["tokens"] == ["the", "quick", "fox", "jumps"]
    assert rows[0]["reference"] == rows[0]["prediction"] == ["O", "B-animal", "I-animal", "O"]
    table = (run / "validation_confusion.csv").read_text().splitlines()
    assert table == ["type \\ predicted,animal,place,-", "animal,2,0,0", "place,0,1,0", "-,0,0,0"]


def test_entities_of_a_text_have_their_characters(run, capsys):
    text = "the  quick fox jumps"
    assert main(["predict", str(run), "--text", text, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    places = [(one["text"], one["label"], text[one["start"] : one["end"]]) for one in answer["entities"]]
    assert places == [("quick fox", "animal", "quick fox")]
    assert 0.9 < answer["entities"][0]["score"] <= 1
    assert main(["predict", str(run), "--text", "the quick fox jumps"]) == 0
    assert "quick fox (animal " in capsys.readouterr().out


def test_predictions_of_a_file_are_scored_against_its_tags(run, tmp_path, capsys):
    path, answers = conll(tmp_path / "new.conll", [DOG, WORLD, FOX]), str(tmp_path / "answers.jsonl")
    assert main(["predict", str(run), "--input", path, "--output", answers]) == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert rows[0]["tokens"] == ["a", "lazy", "dog"]
    assert rows[0]["tags"] == ["O", "O", "B-animal"]
    assert [one["text"] for one in rows[0]["entities"]] == ["dog"]
    (tmp_path / "answers.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False) + "\n")
    assert main(["predict", str(run), "--input", path, "--output", answers, "--resume"]) == 0
    again = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["tags"] for row in again] == [row["tags"] for row in rows]
    capsys.readouterr()
    assert main(["evaluate", "--predictions", answers, "--references", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["entity_f1"]["value"] == 1
    assert main(["evaluate", str(run), "--data", path, "--metrics", "entity_f1_strict", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["entity_f1_strict"]["value"] == 1


def test_spans_are_learned_and_scored_by_their_characters(bert, tmp_path, capsys):
    rows = [
        {"text": "the quick fox jumps", "entities": [{"start": 4, "end": 13, "label": "animal"}]},
        {"text": "hello, world", "entities": [{"start": 7, "end": 12, "label": "place"}]},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["finetune", "--task", "token-classification", "--model", bert, "--data", str(path)]
    options = ["--max-steps", "100", "--lr", "0.01", "--batch-size", "2", "--dropout", "0", "--eval-steps", "100"]
    assert main([*command, "--validation", str(path), *options, "-o", str(tmp_path / "run")]) == 0
    kept = [json.loads(line) for line in (tmp_path / "run" / "validation_predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in kept] == [row["entities"] for row in rows]
    assert kept[0]["reference"] == rows[0]["entities"]


def test_tags_without_a_scheme_are_scored_by_word(bert, tmp_path, capsys):
    data = conll(tmp_path / "pos.conll", [[("the", "DET"), ("fox", "NOUN"), ("jumps", "VERB")]] * 2)
    command = ["finetune", "--task", "token-classification", "--model", bert, "--data", data, "--validation", data]
    options = ["--max-steps", "60", "--lr", "0.01", "--batch-size", "2", "--dropout", "0", "--eval-steps", "60"]
    assert main([*command, *options, "-o", str(tmp_path / "run")]) == 0
    scores = scores_of(tmp_path / "run")
    assert set(scores) == {"tag_accuracy", "log_loss", "majority_baseline"}
    assert scores["tag_accuracy"]["value"] == 1
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--text", "the fox jumps"]) == 0
    assert capsys.readouterr().out == "the/DET fox/NOUN jumps/VERB\n"


def test_a_metric_of_entities_needs_some(bert, tmp_path, capsys):
    data = conll(tmp_path / "train.conll", [FOX, WORLD])
    none = conll(tmp_path / "dev.conll", [[("the", "O"), ("fox", "O")]])
    command = ["finetune", "--model", bert, "--data", data, "--validation", none, "-o", str(tmp_path / "run")]
    assert main([*command, "--best", "entity_f1"]) == 3
    assert "the validation data has no entities, so it has no entity_f1 (fix: " in capsys.readouterr().err
    assert main([*command, "--max-steps", "1"]) == 0


def test_texts_and_words_can_be_asked_from_python(run):
    texts = hfkit.predict(str(run), ["the quick fox jumps"])
    words = hfkit.predict(str(run), [["the", "quick", "fox", "jumps"]])
    assert texts[0]["entities"] == words[0]["entities"]
    assert words[0]["tags"] == ["O", "B-animal", "I-animal", "O"]


def test_a_text_classifier_does_not_mind_other_columns(bert, tmp_path, capsys):
    rows = [{"text": f"the fox {n}", "label": "ab"[n % 2], "words": ["x"], "question": "?"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["finetune", "--model", bert, "--data", str(tmp_path / "rows.jsonl"), "--max-steps", "1"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--input", str(tmp_path / "rows.jsonl"), "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == [row["text"] for row in rows]


def test_an_unknown_tag_in_the_validation_data_is_named(bert, tmp_path, capsys):
    data = conll(tmp_path / "train.conll", [FOX, WORLD])
    other = conll(tmp_path / "dev.conll", [FOX, [("hello", "B-plaec")]])
    command = ["finetune", "--task", "token-classification", "--model", bert, "--data", data, "--validation", other]
    assert main([*command, "-o", str(tmp_path / "run")]) == 3
    said = capsys.readouterr().err
    assert "error: validation data, row 2: tag 'B-plaec' is not one of the training data: O, B-animal" in said
    assert "(fix: did you mean 'B-place'?)" in said
    assert not (tmp_path / "run").exists()
