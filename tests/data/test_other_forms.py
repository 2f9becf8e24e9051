"""Files in the forms in which other programs write them are read for what they hold, and hfkit says how."""

import json

import pytest

from hfkit.data.loading import load_source
from hfkit.errors import DataError
from hfkit.metrics.table import compute

ROWS = [{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}, {"text": "d", "label": "x"}]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("text", "label")}

FORMS = {
    "records under data": ({"version": "1", "data": ROWS}, ""),
    "records under another key": ({"count": 3, "examples": ROWS}, "the rows are those under 'examples'"),
    "a list for each column": (COLUMNS, "a list for each column, read as rows"),
    "pandas": (
        {name: {str(row): value for row, value in enumerate(values)} for name, values in COLUMNS.items()},
        "an object for each column, as pandas writes it, read as rows",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("indent", [None, 1])
def test_wrapped_json_is_rows(form, indent, tmp_path, capsys):
    value, said = FORMS[form]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=indent))
    assert load_source([str(path)]).to_list() == ROWS
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": ["a", "b"], "tags": ["O", "B-x"]},
        {"text": "a", "meta": {"0": 1}},
        {"text": "a", "labels": ["x", "y"]},
        {"text": "a b", "entities": [{"start": 0, "end": 1}, {"start": 2, "end": 3}]},
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_one_row_stays_one_row(row, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_text(json.dumps(row))
    assert load_source([str(path)]).to_list() == [row]


@pytest.mark.parametrize("begin", ["sep=;\n", "\ufeffsep=;\r\n", '"sep=;"\n'])
def test_a_first_line_can_name_the_separator(begin, tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text(f"{begin}text;label\na b;x\nc;y\nd;x\n", encoding="utf-8")
    assert load_source([str(path)]).to_list() == ROWS
    assert "a.csv: separator ';', as its first line says" in capsys.readouterr().err
    path.write_text(f"{begin}text;label\na b;x;1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv: line 3: expected 2 fields, saw 3"):
        load_source([str(path)])


def test_the_encoding_that_an_error_names_reads_the_file(tmp_path):
    """In Latin-1 the quotes of Windows-1252 would be control characters."""
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\n\u201ccaf\u00e9\u201d,x\n".encode("cp1252"))
    with pytest.raises(DataError) as caught:
        load_source([str(path)])
    assert "--encoding cp1252 if it is that, or iconv -f cp1252 -t utf-8" in caught.value.problems[0][1]
    path.write_bytes("text,label\ncaf\u00e9,x\n".encode("latin-1"))
    with pytest.raises(DataError) as caught:
        load_source([str(path)])
    assert "--encoding latin-1 if it is that, or iconv -f latin1 -t utf-8" in caught.value.problems[0][1]


def test_one_blank_reference_among_others_is_scored_as_sacrebleu_does():
    from sacrebleu.metrics import CHRF

    predictions, references = ["the cat sat", "a dog ran"], [["the cat sat down", ""], ["a dog ran off", "the dog ran"]]
    found = compute(["chrf"], predictions, references, interval=False)["chrf"].value
    sides = [list(side) for side in zip(*references, strict=True)]
    assert found == pytest.approx(CHRF().corpus_score(predictions, sides).score)
    with pytest.raises(DataError, match="references, row 1: empty"):
        compute(["chrf"], predictions, [["", " "], ["a"]], interval=False)
