"""Cleaning: exact texts, exact counts, in the order of the settings, and the same for a stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from hfkit.data.cleaning import clean, clean_stream
from hfkit.data.loading import load_source
from hfkit.errors import DataError
from hfkit.settings import Clean


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def at_once(texts: list[str], settings: Clean) -> list[str]:
    return list(clean(load_source([write(texts)]), settings)["text"])


def streamed(texts: list[str], settings: Clean) -> list[str]:
    return [row["text"] for row in clean_stream(load_source([write(texts)]).to_iterable_dataset(), settings)]


def write(texts: list[str], name: str = "a.jsonl") -> str:
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return name


both = pytest.mark.parametrize("run", [at_once, streamed])

STEPS = [
    # e + accent becomes one character (3 bytes to 2); the last one is the rare kind that grows (3 bytes to 6)
    (Clean(unicode_nfc=True), ["Cafe\u0301", "ok", "\u2adc"], ["Caf\u00e9", "ok", "\u2add\u0338"],
     "unicode_nfc changed 2 documents, removed 0 rows and added 1 bytes"),
    (Clean(unicode_nfc=True), ["Cafe\u0301"], ["Caf\u00e9"],
     "unicode_nfc changed 1 documents, removed 0 rows and 1 bytes"),
    # CR LF, CR, form feed and NEL end lines and become line feeds; a zero-width joiner is no control character
    (Clean(control_characters=True), ["a\r\nb\rc\td\n", "\x1b[1mx\x7f\x00", "p\fq\x85r", "z\u200dz", "\x07\x9f"],
     ["a\nb\nc\td\n", "[1mx", "p\nq\nr", "z\u200dz"],
     "control_characters changed 3 documents, removed 1 rows and 8 bytes"),
    (Clean(white_space=True), ["  a \t b\u00a0c  \r\n\r\n \n\n d\n", "x\n\ny", " \n\t", "p\u3000\u2028q"],
     ["a b c\n\n d", "x\n\ny", "p\nq"],
     "white_space changed 2 documents, removed 1 rows and 21 bytes"),
    (Clean(min_characters=2), ["a", "\u00e4\u00e4", "", "abc"], ["\u00e4\u00e4", "abc"],
     "min_characters removed 2 rows and 1 bytes"),
    (Clean(max_characters=2), ["a", "\u00e4\u00e4", "", "abc"], ["a", "\u00e4\u00e4", ""],
     "max_characters removed 1 rows and 3 bytes"),
    (Clean(deduplicate=True), ["b", "a", "b", "a ", "\u00e9", "e\u0301", "\u00e9"],
     ["b", "a", "a ", "\u00e9", "e\u0301"],
     "deduplicate removed 2 rows and 3 bytes"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("settings", "texts", "expected", "said"), STEPS, ids=[said.split()[0] for *_, said in STEPS])
def test_a_step_changes_this_and_says_so(
    run: Callable[[list[str], Clean], list[str]],
    settings: Clean,
    texts: list[str],
    expected: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(texts, settings) == expected
    assert capsys.readouterr().err == f"clean: {said}\n"


@both
def test_all_steps_run_in_the_order_of_the_settings(
    run: Callable[[list[str], Clean], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["e\u0301\x00  x", "\u00e9 x\r\n", "y", "\x00", "too long", "\u00e9   \x01x"]
    everything = Clean(
        unicode_nfc=True,
        control_characters=True,
        white_space=True,
        min_characters=2,
        max_characters=3,
        deduplicate=True,
    )
    assert run(texts, everything) == ["\u00e9 x"]
    assert capsys.readouterr().err == (
        "clean: unicode_nfc changed 1 documents, removed 0 rows and 1 bytes\n"
        "clean: control_characters changed 3 documents, removed 1 rows and 4 bytes\n"
        "clean: white_space changed 3 documents, removed 0 rows and 4 bytes\n"
        "clean: min_characters removed 1 rows and 1 bytes\n"
        "clean: max_characters removed 1 rows and 8 bytes\n"
        "clean: deduplicate removed 2 rows and 8 bytes\n"
    )


@both
def test_nothing_left_is_an_error_that_names_the_step(run: Callable[[list[str], Clean], list[str]]) -> None:
    with pytest.raises(DataError) as caught:
        run(["a", "bb", "a"], Clean(min_characters=3, deduplicate=True))
    expected = (
        "cleaning left no document: min_characters removed 3 (fix: change data.clean.min_characters, or leave it out)"
    )
    assert str(caught.value) == expected


def test_duplicates_are_found_across_batches_and_said_again_in_a_second_run(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"text {number % 1500}" for number in range(3000)]
    first = clean(load_source([write(texts)]), Clean(deduplicate=True))
    said = capsys.readouterr().err
    second = clean(load_source(["a.jsonl"]), Clean(deduplicate=True))
    assert list(first["text"]) == list(second["text"]) == texts[:1500]
    assert capsys.readouterr().err == said == "clean: deduplicate removed 1,500 rows and 12,390 bytes\n"
    assert first._fingerprint == second._fingerprint
    assert clean(load_source(["a.jsonl"]), Clean(white_space=True))._fingerprint != first._fingerprint


def test_a_stream_is_cleaned_anew_in_each_pass_over_all_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    files = [write([f"{name}{number}" for number in range(3)] + ["same"], f"{name}.jsonl") for name in "abc"]
    stream = clean_stream(load_source(files).to_iterable_dataset(), Clean(deduplicate=True)).shuffle(
        seed=1, buffer_size=4
    )
    expected = sorted([f"{name}{number}" for name in "abc" for number in range(3)] + ["same"])
    orders = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        orders.append([row["text"] for row in stream])
        assert sorted(orders[-1]) == expected
    assert orders[0] != orders[1]
    assert capsys.readouterr().err == "clean: deduplicate removed 2 rows and 8 bytes\n" * 2
