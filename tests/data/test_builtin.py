"""The built-in texts: complete, free of leaks between splits, and the same on every run."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from hfkit.data import builtin
from hfkit.errors import DataError, UsageError

SPLITS = ["train", "validation", "test"]


@pytest.fixture(scope="module")
def docs():
    return builtin.load("python-docs")


@pytest.fixture(scope="module")
def names():
    return builtin.load("python-names")


@pytest.fixture(scope="module")
def docstrings():
    return builtin.load("python-docstrings")


def test_names_have_a_tag_for_each_word_and_every_type_in_every_split(names):
    assert list(names) == SPLITS
    for table in names.values():
        rows = list(zip(*(map(str.split, table[column]) for column in ("tokens", "tags")), strict=True))
        assert all(len(tokens) == len(tags) for tokens, tags in rows)
        assert {tag for _, tags in rows for tag in tags} == {
            "O", "B-parameter", "B-exception", "B-class", "B-function", "B-constant",
        }  # fmt: skip
        words = [pair for tokens, tags in rows for pair in zip(tokens, tags, strict=True)]
        assert {tag for token, tag in words if token == "True"} == {"B-constant"}
    table = dict(zip(*names["train"].values(), strict=True))
    assert len(table) > 1500
    assert table["Return the popped value . Raise KeyError if empty ."] == "O O O O O O B-exception O O O"


def digest(dataset):
    return hashlib.sha256(json.dumps(dataset).encode()).hexdigest()


def word_runs(text, length=5):
    words = re.sub(r"[\W\d_]+", " ", text.casefold()).split()
    return {" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def worst_overlap(dataset):
    """Largest share of the five-word runs of one text that one text in another split has too."""
    texts = [(split, word_runs(text)) for split in SPLITS for text in dataset[split]["text"]]
    holders = defaultdict(list)
    for index, (_, runs) in enumerate(texts):
        for run in runs:
            holders[run].append(index)
    worst = 0.0
    for split, runs in texts:
        shared = Counter(other for run in runs for other in holders[run] if texts[other][0] != split)
        worst = max(worst, max(shared.values(), default=0) / len(runs))
    return worst


def test_splits_and_columns(docs, docstrings):
    for dataset, columns in ((docs, ["text"]), (docstrings, ["text", "label"])):
        assert list(dataset) == SPLITS
        for table in dataset.values():
            assert list(table) == columns
            assert len({len(values) for values in table.values()}) == 1
            assert all(isinstance(value, str) and value.strip() == value != "" for value in table["text"])


def test_docs_are_about_two_megabytes_with_five_percent_held_out(docs):
    chars = {split: sum(map(len, docs[split]["text"])) for split in SPLITS}
    total = sum(chars.values())
    assert 1_500_000 < total < 4_000_000
    for split in ("validation", "test"):
        assert 0.02 < chars[split] / total < 0.1


def test_docs_hold_topics_and_modules_as_documents(docs):
    texts = [text for split in SPLITS for text in docs[split]["text"]]
    assert any(text.startswith("Compound statements\n*****") for text in texts)
    (heapq,) = [text for text in texts if text.startswith("heapq\n\nHeap queue algorithm")]
    assert "\n\n\nmerge\n\nMerge multiple sorted inputs into a single sorted output." in heapq
    assert "import heapq" not in heapq  # docstrings only, no code


def test_docstrings_are_enough_rows_with_every_label_in_every_split(docstrings):
    sizes = {split: len(docstrings[split]["text"]) for split in SPLITS}
    total = sum(sizes.values())
    assert total >= 4000
    for split in ("validation", "test"):
        assert 0.08 < sizes[split] / total < 0.12
    for split in SPLITS:
        counts = Counter(docstrings[split]["label"])
        assert counts.keys() == builtin.AREAS.keys()
        assert min(counts.values()) >= 10


def test_text_is_the_docstring_alone_and_label_its_area(docstrings):
    label_of = {
        t: label for table in docstrings.values() for t, label in zip(table["text"], table["label"], strict=True)
    }
    (merge,) = [text for text in label_of if text.startswith("Merge multiple sorted inputs into a single sorted")]
    assert label_of[merge] == "data types"  # heapq.merge
    (popen,) = [text for text in label_of if text.startswith("Execute a child program in a new process.")]
    assert label_of[popen] == "concurrency and networking"  # subprocess.Popen
    assert min(map(len, label_of)) >= 30


def test_no_near_duplicates_across_splits(docs, docstrings):
    assert worst_overlap(docstrings) < 0.5
    assert worst_overlap(docs) < 0.5
    # Parts of documents too: no paragraph of some length is in two splits (shorter ones can be set phrases).
    long_paragraphs = {
        split: {
            tuple(sorted(runs))
            for text in docs[split]["text"]
            for p in text.split("\n\n")
            if len(runs := word_runs(p)) > 60
        }
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert long_paragraphs[one]
        assert not long_paragraphs[one] & long_paragraphs[other]


def test_same_data_in_another_process_with_another_hash_seed(docs, docstrings, names):
    code = (
        "import hashlib, json; from hfkit.data import builtin\n"
        "for name in builtin.BUILTINS: print(hashlib.sha256(json.dumps(builtin.load(name)).encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [digest(docs), digest(docstrings), digest(names)]


def test_documents_come_from_the_library_without_tests_or_installed_packages(docs):
    titles = {text.split("\n")[0] for split in SPLITS for text in docs[split]["text"]}
    assert {"heapq", "asyncio.tasks", "unittest.case", "email.message"} <= titles
    parts = {part for title in titles for part in title.split(".")}
    assert not parts & {"test", "tests", "idle_test", "idlelib", "pip", "pytest", "site-packages", "turtledemo"}


def test_document_is_titled_with_its_module(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text('"""A package that has much to say about itself."""\n')
    (tmp_path / "package" / "untitled.py").write_text(
        "class Thing:\n    def use(self):\n"
        '        """Use the thing:\n\n        gently,\n          with the right tool.\n        """\n'
    )
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    texts = [text for table in builtin.load("python-docs").values() for text in table["text"]]
    assert sorted(text for text in texts if text.startswith("package")) == [
        "package\n\nA package that has much to say about itself.",
        "package.untitled\n\n\nThing.use\n\nUse the thing:\n\ngently,\n  with the right tool.",
    ]


def test_sources_are_read_without_importing_them(tmp_path, monkeypatch):
    (tmp_path / "loud.py").write_text('"""Thirty characters and some more of text."""\nraise SystemExit("imported")\n')
    (tmp_path / "escape.py").write_text('"""An invalid escape must not warn, here \\d it is."""\n')
    for skipped in ("test", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "inner.py").write_text('"""This text is long enough to be found."""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert [passage.source for passage in builtin.read_docstrings()] == ["escape", "loud"]


def test_fold_keeps_the_longest_of_near_duplicates():
    texts = [
        "Return the 1st item of the queue, waiting if it is empty.",
        "return  the 2nd item of the queue; waiting if it is empty",
        "Return the 3rd item of the queue, waiting if it is empty, or raise after the timeout.",
        "Send all bytes to the socket.",
    ]
    kept = builtin.fold([builtin.Passage("queue", "", text) for text in texts])
    assert [passage.text for passage in kept] == texts[2:]


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        builtin.load("python-doc")
    assert str(caught.value) == (
        f"builtin:python-doc: no such data, found: {', '.join(builtin.BUILTINS)} "
        "(fix: did you mean 'builtin:python-docs'?)"
    )
    assert caught.value.exit_code == 2


def test_python_without_sources_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"has no Python sources \(fix: use a Python that has its standard library"):
        builtin.load("python-docstrings")
