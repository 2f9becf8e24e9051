"""Tagged sentences: CoNLL files, lists of words and tags, spans of characters; an error names the line."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hfkit.cli.main import main
from hfkit.data.loading import load_data
from hfkit.data.tagged import load_tagged
from hfkit.data.tags import Entity, Scheme, Words, entities, iob2, tags_of_spans
from hfkit.errors import DataError
from hfkit.settings import Columns, Data

EU = {"tokens": ["EU", "rejects", "German", "call"], "tags": ["B-ORG", "O", "B-MISC", "O"]}


def rows_of(path, **data):
    loaded = Data(train=[str(path)], **data)
    return load_tagged(load_data(loaded), loaded)["train"].to_list()


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("two.conll", "EU\tB-ORG\nrejects\tO\nGerman\tB-MISC\ncall\tO\n"),
        ("blanks.bio", "\n\nEU B-ORG\nrejects O\nGerman B-MISC\ncall O\n\n\n"),
        (
            "four.iob",
            "-DOCSTART- -X- -X- O\n\nEU N B-NP B-ORG\nrejects V B-VP O\nGerman J B-NP B-MISC\ncall N I-NP O",
        ),
        ("tags-first.conll", "B-ORG\tEU\nO\trejects\nB-MISC\tGerman\nO\tcall\n"),
        ("numbered.conll", "1\tEU\tB-ORG\n2\trejects\tO\n3\tGerman\tB-MISC\n4\tcall\tO\n"),
        ("comments.conll", "# id = 1\n# text = EU rejects\nEU\tB-ORG\nrejects\tO\nGerman\tB-MISC\ncall\tO\n"),
        ("iob1.conll", "EU I-ORG\nrejects O\nGerman I-MISC\ncall O\n"),
        ("bioes.conll", "EU S-ORG\nrejects O\nGerman S-MISC\ncall O\n"),
        ("text.txt", "EU\tB-ORG\nrejects\tO\nGerman\tB-MISC\ncall\tO\n"),
        ("windows.conll", "EU\tB-ORG\r\nrejects\tO\r\nGerman\tB-MISC\r\ncall\tO\r\n\t\r\n"),
    ],
)
def test_conll_files_of_every_layout_are_the_same_sentence(name, text, tmp_path):
    assert rows_of(write(tmp_path / name, text)) == [EU]


def test_a_hash_that_is_a_word_is_kept(tmp_path):
    path = write(tmp_path / "tweets.conll", "#\tO\n#nlp\tB-group\n\n# a comment\nfine\tO\n")
    assert rows_of(path) == [
        {"tokens": ["#", "#nlp"], "tags": ["O", "B-group"]},
        {"tokens": ["fine"], "tags": ["O"]},
    ]


def test_every_word_that_begins_with_a_hash_or_is_an_odd_blank_is_kept(tmp_path):
    path = write(tmp_path / "pos.conll", "#fun XX\n# XX\na\u00a0b NN\n\u00a0 NN\n")
    assert rows_of(path) == [{"tokens": ["#fun", "#", "a\u00a0b", "\u00a0"], "tags": ["XX", "XX", "NN", "NN"]}]


def test_plain_text_is_not_taken_for_conll(tmp_path):
    path = write(tmp_path / "road.txt", "I drive on I-95\n")
    assert load_data(Data(train=[str(path)]))["train"].to_list() == [{"text": "I drive on I-95"}]
    path = write(tmp_path / "poem.txt", "two words\nand two\nto be\n")
    loaded = load_data(Data(train=[str(path)]))["train"]
    assert loaded.to_list() == [{"text": "two words"}, {"text": "and two"}, {"text": "to be"}]


def test_other_columns_are_named_by_number(tmp_path):
    path = write(tmp_path / "pos.conll", "EU NNP B-ORG\nrejects VBZ O\n")
    assert rows_of(path, columns=Columns(label="1")) == [{"tokens": ["EU", "rejects"], "tags": ["NNP", "VBZ"]}]


def test_class_ids_are_names_and_text_is_divided(tmp_path):
    names = ClassLabel(names=["O", "B-ORG", "B-MISC"])
    features = Features({"words": List(Value("string")), "ner_tags": List(names)})
    path = tmp_path / "ids.parquet"
    Dataset.from_dict({"words": [EU["tokens"]], "ner_tags": [[1, 0, 2, 0]]}, features).to_parquet(path)
    assert rows_of(path) == [EU]
    path = write(tmp_path / "text.csv", "tokens,tags\nEU rejects German call,B-ORG O B-MISC O\n")
    assert rows_of(path) == [EU]


def test_spans_of_characters_become_tags_of_words(tmp_path, capsys):
    text = "Angela Merkel visits 北京市 😀."
    spans = [
        {"start": 0, "end": 13, "label": "PER"},
        {"start": 21, "end": 23, "label": "LOC"},
        {"start": 0, "end": 6, "label": "NAME"},  # within the first: the longer one is learned
        {"start": 14, "end": 19, "label": "ACT"},  # ends within a word
    ]
    path = write(tmp_path / "spans.jsonl", json.dumps({"text": text, "entities": spans}) + "\n")
    (row,) = rows_of(path)
    assert row["text"] == text
    assert row["entities"] == spans
    assert row["tags"] == ["B-PER", "I-PER", "B-ACT", "B-LOC", "I-LOC", "O", "O", "O"]
    said = capsys.readouterr().err
    assert "1 of 4 entities share a word with a longer one and can't be learned" in said
    assert "1 of 4 entities begin or end within a word and can't be found exactly" in said


def test_a_file_without_any_entity_is_read_as_the_others(tmp_path):
    some, none = tmp_path / "some.jsonl", tmp_path / "none.jsonl"
    some.write_text('{"text": "in Bonn", "entities": [{"start": 3, "end": 7, "label": "LOC"}]}\n')
    none.write_text('{"text": "nothing", "entities": []}\n')
    data = Data(train=[str(some)], validation=[str(none)])
    assert load_tagged(load_data(data), data)["validation"]["tags"][:] == [["O"]]
    both = Data(train=[str(none), str(some)])
    assert load_tagged(load_data(both), both)["train"]["tags"][:] == [["O"], ["O", "B-LOC"]]


def test_words_of_a_text():
    words = Words.of_text("don't naïve हिन्दी 北京 👩‍👩‍👧!")
    found = [words.text[start:end] for start, end in zip(words.starts, words.ends, strict=True)]
    assert found == ["don", "'", "t", "naïve", "हिन्दी", "北", "京", "👩‍👩‍👧", "!"]
    assert Words.of_tokens(["New York", "is"]) == Words("New York is", [0, 9], [8, 11])
    mail = Words.of_text("mail a.b@c.de now")
    tags = ["O", *["B-MAIL", "I-MAIL", "B-MAIL", "B-MAIL", "B-MAIL", "B-MAIL", "I-MAIL"], "B-MAIL"]
    assert mail.spans(tags) == [Entity("MAIL", 5, 13), Entity("MAIL", 14, 17)]
    assert Words.of_text("北京上海").spans(["B-LOC", "I-LOC"] * 2) == [Entity("LOC", 0, 2), Entity("LOC", 2, 4)]
    assert words.spans(["O", "O", "O", "O", "O", "B-LOC", "I-LOC", "O", "O"]) == [Entity("LOC", 19, 21)]


def test_entities_and_schemes():
    assert entities(["I-PER", "I-PER", "B-PER", "I-LOC", "O"]) == {("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4)}
    assert entities(["B-A", "E-A", "I-A", "S-A", "S-A"]) == {("A", 0, 2), ("A", 2, 3), ("A", 3, 4), ("A", 4, 5)}
    assert iob2(4, [Entity("A", 0, 1), Entity("A", 1, 3)]) == ["B-A", "B-A", "I-A", "O"]
    assert Scheme.of([["B-A", "I-A"], ["O", "I-B"]]) == ("IOB2", 1)
    assert Scheme.of([["I-A", "B-A"], ["O", "I-B"]]).name == "IOB1"
    assert Scheme.of([["O", "S-A"]]).name == "BIOES"
    assert Scheme.of([["NOUN", "VERB"]]).name is None
    words = Words.of_text("a bc d")
    assert tags_of_spans(words, [Entity("X", 2, 6), Entity("Y", 5, 6), Entity("Z", 1, 2)]) == (["O", "B-X", "I-X"], 2)


def test_invalid_tags_begin_an_entity_and_are_counted(tmp_path, capsys):
    path = write(tmp_path / "bad.conll", "a\tO\nb\tI-X\nc\tB-X\n\nd\tB-Y\ne\tI-X\n")
    assert [row["tags"] for row in rows_of(path)] == [["O", "B-X", "B-X"], ["B-Y", "B-X"]]
    said = capsys.readouterr().err
    assert "warning: tags: 2 I- tags without an entity to continue; each begins one, as conlleval and seqeval" in said


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.conll", "EU\tB-ORG\nrejects\nGerman\tO\n", "a.conll: line 2: 1 field, but 2 in line 1: 'rejects'"),
        ("a.conll", "EU B-ORG\n\nGerman O x\n", "a.conll: line 3: 3 fields, but 2 in line 1: 'German O x'"),
        ("a.conll", "EU\nBonn\n", "a.conll: there are words and no tags"),
        ("a.conll", "\n# only\n", "a.conll: no rows, no line holds a word"),
        ("a.conll", "EU\tB-ORG\nin\tO\nBonn\tB_LOC\n" + "x\tO\n" * 20, "a.conll: line 1: 'B_LOC' is not a BIO tag"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n', "a.jsonl: line 1: 2 words but 1 tags"),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["b"]}\n',
            "a.jsonl: line 2: column 'tags' is empty",
        ),
        ("a.jsonl", '{"tokens": ["a"], "tags": [1]}\n', "a.jsonl: line 1: column 'tags' holds 1, not a tag"),
        (
            "a.jsonl",
            '{"text": "ab", "entities": [{"start": 1, "end": 5, "label": "X"}]}\n',
            "a.jsonl: line 1: an entity from 1 to 5 in a text of 2 characters",
        ),
        (
            "a.jsonl",
            '{"text": "ab", "entities": [{"start": 1, "end": 2}]}\n',
            "a.jsonl: line 1: an entity without label: {'start': 1, 'end': 2}",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a", "b"], "tags": ["B-X", "LOC"]}\n',
            "a.jsonl: line 1: 'LOC' is not a BIO tag",
        ),
        (
            "a.jsonl",
            '{"text": "ab", "entities": [{"start": 0, "end": "x", "label": "X"}]}\n',
            "a.jsonl: line 1: an entity with a label that is no text, or a place that is no number",
        ),
        ("a.jsonl", '{"text": "ab", "n": 1}\n', "no column is clearly the label, found: text, n"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(name, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, text)
    with pytest.raises(DataError) as error:
        rows_of(name)
    assert message in error.value.problems[0][0]
    assert error.value.problems[0][1]


def test_inspect_counts_entities_by_type(tmp_path, capsys):
    train = write(tmp_path / "train.conll", "EU B-ORG\nin O\nBonn B-LOC\n\nBonn B-LOC\n")
    dev = write(tmp_path / "dev.conll", "May B-PER\nin O\nBonn B-LOC\n")
    assert main(["data", "inspect", str(train), "--validation", str(dev), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["task"] == "token-classification"
    assert facts["columns"]["tokens"]["role"] == "text"
    assert (facts["splits"]["train"]["rows"], facts["splits"]["train"]["words"]) == (2, 4)
    assert facts["splits"]["train"]["entities"] == {"LOC": 2, "ORG": 1}
    assert {"problem": "validation: types that are not in train: PER", "fix": "correct them, or add training rows"} in (
        facts["findings"]
    )


def test_a_guess_is_printed_once(tmp_path, capsys):
    path = write(tmp_path / "four.conll", "EU N B-NP B-ORG\nrejects V B-VP O\n")
    assert main(["data", "inspect", str(path)]) == 0
    assert capsys.readouterr().err.count("words: column tokens, tags: column tags") == 1


def test_files_of_tags_are_scored_without_a_model(tmp_path, capsys):
    gold = write(tmp_path / "gold.conll", "EU B-ORG\nin O\nBonn B-LOC\n\nBonn B-LOC\n")
    made = write(tmp_path / "made.conll", "EU B-ORG\nin I-ORG\nBonn B-LOC\n\nBonn O\n")
    command = ["evaluate", "--predictions", str(made), "--references", str(gold), "--metrics", "entity_f1", "--json"]
    assert main(command) == 0
    scores = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: score["value"] for name, score in scores.items()} == {
        "entity_precision": 1 / 2, "entity_recall": 1 / 3, "entity_f1": 2 / 5,
    }  # fmt: skip
