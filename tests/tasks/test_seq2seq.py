"""Text to text: pairs stay together, ids and generated texts are those of the library, scores those of sacreBLEU."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sacrebleu.metrics import BLEU, CHRF
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

import hfkit
from hfkit.cli.main import main
from hfkit.data.pairs import load_pairs, one_target_a_row
from hfkit.errors import DataError, UsageError
from hfkit.models.new_tokenizer import train_tokenizer
from hfkit.runs.results import read_log, read_scores
from hfkit.settings import Data, Recipe
from hfkit.tasks import TASKS
from hfkit.tasks.base import LossOptions
from hfkit.tasks.encoded_pairs import EncodedPairs
from hfkit.tasks.seq2seq import baselines, usual_metrics_of

TASK = TASKS["seq2seq"]

COLORS = ["rot", "blau", "grün", "gelb", "weiß", "schwarz", "grau", "braun"]
NAMES = ["red", "blue", "green", "yellow", "white", "black", "gray", "brown"]
RANDOM = random.Random(3)
CHOSEN = [RANDOM.sample(range(8), 1 + number % 4) for number in range(60)]
SOURCES = [" ".join(COLORS[color] for color in colors) for colors in CHOSEN]
TARGETS = [" ".join(NAMES[color] for color in colors) for colors in CHOSEN]

# Emoji of several code points, Chinese, a combining mark, a word that no vocabulary has.
STRANGE = ["👩‍👩‍👧 rot", "红色 und blau", "gru\u0308n", "xyzzy\u200b plugh", "a"]


def write(path, lines):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        file.writelines(f"{line}\n" for line in lines)
    return str(path)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.de", SOURCES)
    write(tmp_path / "train.en", TARGETS)
    return tmp_path


SIZES = {"d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8}
LAYERS = {
    "d_model": 16,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 40,
}


def of_kind(kind):
    """Model and tokenizer of an architecture: T5 (Unigram), BART (byte-level BPE), NLLB and mBART with languages."""
    torch.manual_seed(0)
    if kind == "t5":
        tokenizer = train_tokenizer(SOURCES + TARGETS, "t5", 300)
        return T5ForConditionalGeneration(T5Config(vocab_size=320, decoder_start_token_id=0, **SIZES)), tokenizer
    if kind == "bart":
        tokenizer = train_tokenizer(SOURCES + TARGETS, "roberta", 400)
        roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        config = BartConfig(vocab_size=400, decoder_start_token_id=tokenizer.eos_token_id, **roles, **LAYERS)
        return BartForConditionalGeneration(config), tokenizer
    characters = sorted(set("".join(SOURCES + TARGETS + STRANGE)) - {" "})
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *characters]
    tokenizer = NllbTokenizer(
        vocab={name: index for index, name in enumerate(vocabulary)},
        merges=[],
        src_lang="deu_Latn",
        tgt_lang=None,
        extra_special_tokens=["deu_Latn", "eng_Latn", "zho_Hans"],
        legacy_behaviour=kind == "mbart",  # languages behind the text, as in mBART's first models
    )
    size, special = len(tokenizer), {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    if kind == "mbart":
        return MBartForConditionalGeneration(MBartConfig(vocab_size=size, **special, **LAYERS)), tokenizer
    config = M2M100Config(vocab_size=size, decoder_start_token_id=2, **special, **LAYERS)
    return M2M100ForConditionalGeneration(config), tokenizer


KINDS = ("t5", "bart", "nllb", "mbart")


def encoded(model, tokenizer, sources, targets, **data):
    dataset = Dataset.from_dict({"text": sources, "target": targets})
    return EncodedPairs(dataset, tokenizer, model, Recipe(data=Data(**data)))


def languages(kind):
    return {} if kind in ("t5", "bart") else {"source_lang": "zho_Hans", "target_lang": "eng_Latn"}


# The ids.


@pytest.mark.parametrize("prefix", [None, "translate: "])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_library(kind, prefix):
    model, tokenizer = of_kind(kind)
    sources, targets = [*SOURCES[:9], *STRANGE], [*TARGETS[:9], *reversed(STRANGE)]
    rows = encoded(model, tokenizer, sources, targets, source_prefix=prefix, **languages(kind))
    for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
        given = tokenizer((prefix or "") + source, text_target=target)
        example = rows.example(index)
        assert example["input_ids"].tolist() == given["input_ids"]
        assert example["labels"].tolist() == given["labels"]
        labels = torch.tensor([given["labels"]])
        if kind == "nllb":  # the library's model shifts its labels inside forward
            read = torch.tensor([[2, *given["labels"][:-1]]])
        elif kind == "mbart":
            read = torch.tensor([[tokenizer.convert_tokens_to_ids("eng_Latn"), *given["labels"][:-1]]])
        else:
            read = model.prepare_decoder_input_ids_from_labels(labels=labels)
        assert example["decoder_input_ids"].tolist() == read[0].tolist()
        assert rows.lengths[index] == len(given["input_ids"]) + len(given["labels"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_model_and_padding_has_none(kind):
    """A pad token inside a target counts; the ids of the padding do not."""
    model, tokenizer = of_kind(kind)
    model.eval()
    rows = encoded(model, tokenizer, SOURCES[:6], TARGETS[:6], **languages(kind))
    batch = TASK.collate([rows.example(index) for index in range(6)], tokenizer)
    assert batch["labels"].ne(-100).sum().item() == sum(len(rows.targets[index]) for index in range(6))
    labels = batch.pop("labels")
    with torch.no_grad():
        ours = TASK.loss(model(**batch), labels)
        alone = [
            model(input_ids=torch.tensor(rows.sources[index])[None], labels=torch.tensor(rows.targets[index])[None])
            for index in range(6)
        ]
    sizes = torch.tensor([len(rows.targets[index]) for index in range(6)])
    expected = (torch.stack([one.loss for one in alone]) * sizes).sum() / sizes.sum()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_does_not_depend_on_how_a_step_is_divided():
    model, tokenizer = of_kind("t5")
    model.eval()
    rows = encoded(model, tokenizer, SOURCES[:8], TARGETS[:8])
    examples = [rows.example(index) for index in range(8)]

    def loss(part, total):
        batch = TASK.collate(part, tokenizer)
        labels = batch.pop("labels")
        with torch.no_grad():
            return TASK.loss(model(**batch), labels, total, LossOptions(smoothing=0.1)).item()

    total = sum(len(one["labels"]) for one in examples)
    parts = loss(examples[:3], total) + loss(examples[3:], total)
    assert parts == pytest.approx(loss(examples, total), rel=1e-5)


def test_what_is_too_long_is_cut_on_its_side(capsys):
    model, tokenizer = of_kind("t5")
    data = {"max_length": 6, "max_target_length": 4, "allow_truncation": True}
    dataset = Dataset.from_dict({"text": SOURCES[:12], "target": TARGETS[:12]})
    rows = TASK.encode(dataset, tokenizer, model, Recipe(data=Data(**data)))
    for index in range(12):
        given = tokenizer(SOURCES[index], truncation=True, max_length=6)["input_ids"]
        wanted = tokenizer(text_target=TARGETS[index], truncation=True, max_length=4)["input_ids"]
        assert rows.sources[index].tolist() == given
        assert rows.targets[index].tolist() == wanted
    said = capsys.readouterr().err
    sizes = [len(tokenizer(source)["input_ids"]) for source in SOURCES[:12]]
    cut = f"{sum(size > 6 for size in sizes)} of 12 sources"
    assert f"are longer than 6 tokens and were truncated (fix: --max-length {max(sizes)})" in said
    with pytest.raises(DataError, match=rf"{cut} .* would be truncated"):
        TASK.encode(dataset, tokenizer, model, Recipe(data=Data(max_length=6)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source_lang": "deu_Latn"}, "they are not all named"),
        ({"source_lang": "deu_Latn", "target_lang": "eng_Latin"}, "--target-lang eng_Latin: the tokenizer has no such"),
    ],
)
def test_languages_are_named_as_the_tokenizer_has_them(data, message):
    model, tokenizer = of_kind("nllb")
    with pytest.raises(UsageError, match=message):
        encoded(model, tokenizer, SOURCES, TARGETS, **data)


def test_texts_begin_with_the_token_of_their_language():
    model, tokenizer = of_kind("nllb")
    encoded(model, tokenizer, SOURCES, TARGETS, source_lang="deu_Latn", target_lang="zho_Hans")
    assert model.generation_config.forced_bos_token_id == tokenizer.convert_tokens_to_ids("zho_Hans")
    model, tokenizer = of_kind("mbart")
    encoded(model, tokenizer, SOURCES, TARGETS, source_lang="deu_Latn", target_lang="zho_Hans")
    assert model.generation_config.decoder_start_token_id == tokenizer.convert_tokens_to_ids("zho_Hans")


# The data.

PAIRS = list(zip(SOURCES[:4], TARGETS[:4], strict=True))


def rows_as(content, folder):
    """Two columns of four rows as files of `content`; the arguments of Data."""
    sources, targets = zip(*PAIRS, strict=True)
    if content == "parallel":
        return {"train": [write(folder / "a.de", sources), write(folder / "a.en", targets)]}
    if content == "gzip":
        return {"train": [write(folder / "a.de.gz", sources), write(folder / "a.en.gz", targets)]}
    if content == "two pairs of files":
        parts = [(half, side) for half in (slice(0, 2), slice(2, 4)) for side in (sources, targets)]
        return {"train": [write(folder / f"{n}.txt", side[half]) for n, (half, side) in enumerate(parts)]}
    if content == "tabs":
        return {"train": [write(folder / "a.txt", [f"{one}\t{two}\tCC-BY" for one, two in PAIRS])]}
    if content == "tsv":
        return {"train": [write(folder / "a.tsv", ["source\ttarget", *(f"{one}\t{two}" for one, two in PAIRS)])]}
    if content == "translation":
        lines = [json.dumps({"id": n, "translation": {"de": one, "en": two}}) for n, (one, two) in enumerate(PAIRS)]
        return {"train": [write(folder / "a.jsonl", lines)]}
    if content == "named languages":
        lines = [json.dumps({"translation": {"en": two, "de": one, "fr": "x"}}) for one, two in PAIRS]
        return {"train": [write(folder / "a.jsonl", lines)], "source_lang": "de_DE", "target_lang": "en"}
    keys = {"summary": ("document", "summary"), "reversed": ("highlights", "article"), "named": ("x", "y")}[content]
    if content == "reversed":
        lines = [json.dumps({keys[0]: two, keys[1]: one}) for one, two in PAIRS]
    else:
        lines = [json.dumps({"id": 5, keys[0]: one, keys[1]: two, "z": 3}) for one, two in PAIRS]
    columns = hfkit.settings.Columns(text="x", target="y") if content == "named" else hfkit.settings.Columns()
    return {"train": [write(folder / "a.jsonl", lines)], "columns": columns}


LAYOUTS = (
    "parallel", "gzip", "two pairs of files", "tabs", "tsv", "translation", "named languages", "summary", "reversed",
    "named",
)  # fmt: skip


@pytest.mark.parametrize("content", LAYOUTS)
def test_every_layout_is_the_same_pairs(content, tmp_path):
    found = load_pairs(Data(**rows_as(content, tmp_path)))["train"]
    assert list(zip(found["text"], found["target"], strict=True)) == PAIRS


def test_several_targets_are_rows_in_training_and_references_in_a_test(tmp_path):
    """Those of a source are held out together."""
    rows = [{"source": "a b", "target": ["x", "y"]}, {"source": "c", "target": ["z", " "]}]
    path = write(tmp_path / "a.jsonl", map(json.dumps, rows))
    found = load_pairs(Data(train=[path]))["train"]
    assert one_target_a_row(found).to_dict() == {"text": ["a b", "a b", "c"], "target": ["x", "y", "z"]}
    loaded = TASK.load(Recipe(data=Data(train=[path], validation_split=0.5)))
    parts = [set(loaded[split]["text"]) for split in ("train", "validation")]
    assert sorted(map(list, parts)) == [["a b"], ["c"]]
    assert "references" in loaded["validation"].column_names
    assert found.to_dict() == {
        "text": ["a b", "c"],
        "target": ["x", "z"],
        "references": [["x", "y"], ["z"]],
    }


def test_blank_lines_stay_beside_each_other_and_empty_sides_are_left_out(tmp_path, capsys):
    source = write(tmp_path / "a.de", ["eins", "", "drei", "vier", ""])
    target = write(tmp_path / "a.en", ["one", "two", "", "four", ""])
    found = load_pairs(Data(train=[source, target]))["train"]
    assert found.to_dict() == {"text": ["eins", "vier"], "target": ["one", "four"]}
    assert (
        f"train: 3 of 5 pairs have an empty side and are left out, first {source}: line 2 (the source)"
        in capsys.readouterr().err
    )


BAD = {
    "unequal": ({"a.de": ["x", "y"], "a.en": ["x"]}, "a.de a.en", "a.de has 2 lines and a.en has 1"),
    "one": ({"a.de": ["x", "y"]}, "a.de", "a.de: line 1: one text file, and no tab between a source and"),
    "three": ({"a.de": ["x"], "b.de": ["x"], "c.de": ["x"]}, "a.de b.de c.de", "3 text files, and parallel files come"),
    "empty": ({"a.de": [" ", ""], "a.en": ["x", "y"]}, "a.de a.en", "no pair has a source and a target"),
    "unclear": ({"a.jsonl": ['{"a": "x", "b": "y", "c": "z"}']}, "a.jsonl", "no column is clearly the source, found"),
    "numbers": ({"a.jsonl": ['{"source": "x", "target": 3}']}, "a.jsonl", "column 'target' holds int64, not text"),
    "order": (
        {name: ["x"] for name in ("a.de", "b.de", "a.en", "b.en")},
        "a.de b.de a.en b.en",
        "a.de and b.de are given as sources and their targets (fix: give each file of sources and then its targets",
    ),
    "twice": ({"a.txt": ["x"]}, "a.txt --data a.txt", "a.txt and a.txt are given as sources and their targets"),
    "binary": ({"a.de": ["x\0\1\2"], "a.en": ["x"]}, "a.de a.en", "a.de: unknown kind of file '.de'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    contents, sources, message = BAD[name]
    for file, lines in contents.items():
        write(tmp_path / file, lines)
    command = ["finetune", "--task", "seq2seq", "--model-type", "t5", "--max-steps", "1", "--data", *sources.split()]
    assert main(command) == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not Path("runs").exists()


def parallel_files(folder, pairs):
    sides = zip(("de", "en"), zip(*pairs, strict=True), strict=True)
    return [write(folder / f"a.{name}", side) for name, side in sides]


def of_two_languages():
    """Pairs whose sides have many words of their own."""
    german, english = ([f"{letter}{number}" for number in range(120)] for letter in "ge")
    draw = random.Random(1)
    return [
        tuple(" ".join(side[one] for one in some) for side in (german, english))
        for some in ([draw.randrange(120) for _ in range(9)] for _ in range(200))
    ]


def test_sides_that_are_swapped_are_told(tmp_path, capsys):
    pairs = of_two_languages()
    german, english = parallel_files(tmp_path, pairs)
    with pytest.raises(DataError, match="validation: its sources are in the language of the targets in train"):
        load_pairs(Data(train=[german, english], validation=[english, german]))
    mixed = [pair[::-1] if number in (3, 7) else pair for number, pair in enumerate(pairs)]
    load_pairs(Data(train=parallel_files(tmp_path, mixed)))
    assert "train: 2 of 200 pairs look swapped, e.g. 'e" in capsys.readouterr().err


def test_inspect_tells_what_does_not_belong_together(files, capsys):
    write(files / "train.de", [*SOURCES[:38], "ein recht langer Satz mit vielen Wörtern darin", TARGETS[0]])
    write(files / "train.en", [*TARGETS[:38], "x", TARGETS[0]])
    assert main(["data", "inspect", "train.de", "train.en", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["task"] == "seq2seq"
    part = facts["splits"]["train"]
    assert (part["rows"], part["pairs"]["equal"]["rows"], part["pairs"]["odd"]["rows"]) == (40, 1, 1)
    assert part["characters"]["sum"] == sum(map(len, [*SOURCES[:38], TARGETS[0]])) + 46
    assert any("have the source as target, e.g." in one["problem"] for one in facts["findings"])


def test_two_files_of_one_name_stay_documents_in_pretraining(files):
    """No task of `hfkit pretrain` reads pairs."""
    command = ["pretrain", "--model-type", "gpt2", "--size", "tiny", "--vocab-size", "400", "--block-size", "16"]
    assert main([*command, "--data", "train.de", "train.en", "--max-steps", "1", "-o", "run"]) == 0


# Learning, generation and scores.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small T5, from scratch, that knows 60 pairs by heart."""
    folder = tmp_path_factory.mktemp("seq2seq")
    data = [write(folder / "train.de", SOURCES), write(folder / "train.en", TARGETS)]
    command = ["finetune", "--task", "seq2seq", "--model-type", "t5", "--size", "tiny", "--vocab-size", "450"]
    command += ["--tokenizer-algorithm", "bpe", "--epochs", "120", "--batch-size", "20", "--dropout", "0"]
    command += ["--data", *data, "--validation", *data]
    command += ["--lr", "3e-3", "--eval-steps", "180", "--source-prefix", "colors: ", "-o", str(folder / "run")]
    assert main(command) == 0
    return folder / "run"


def test_pairs_are_learned_by_heart(run):
    scores = read_scores(run)["validation"]
    assert scores["bleu"]["value"] > 90
    assert scores["rougeL"]["value"] > 95
    assert scores["perplexity"]["value"] < 1.3
    assert scores["bleu.copy"]["value"] < 10
    assert "lead" not in " ".join(scores)
    config = json.loads((run / "config.json").read_text())
    assert config["source_prefix"] == "colors: "
    assert config["tie_word_embeddings"] is True
    rows = [json.loads(line) for line in (run / "validation_predictions.jsonl").read_text().splitlines()]
    assert [(row["text"], row["reference"]) for row in rows] == list(zip(SOURCES, TARGETS, strict=True))
    assert sum(row["prediction"] == row["reference"] for row in rows) > 54
    assert list(rows[0]) == ["text", "reference", "prediction", "f1"]


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_the_model_called_directly(run, beams, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.de", [*SOURCES[:5], "", *STRANGE])
    command = ["generate", str(run), "--input", "in.de", "--output", "out.en", "--num-beams", str(beams)]
    assert main(command) == 0
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(run).eval(), AutoTokenizer.from_pretrained(run)
    expected = []
    for text in [*SOURCES[:5], *STRANGE]:
        ids = model.generate(**tokenizer(f"colors: {text}", return_tensors="pt"), num_beams=beams)
        expected.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    lines = (tmp_path / "out.en").read_text().split("\n")
    assert lines == [*expected[:5], "", *expected[5:], ""]


def test_evaluate_and_generate_give_the_scores_of_sacrebleu(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sources, references = [*SOURCES[:20], *STRANGE], [*reversed(TARGETS[:20]), *STRANGE]
    write(tmp_path / "test.de", sources)
    write(tmp_path / "test.en", references)
    command = ["generate", str(run), "--input", "test.de", "--output", "out.en", "--references", "test.en"]
    assert main([*command, "--metrics", "bleu,chrf", "--json"]) == 0
    generated = json.loads(capsys.readouterr().out)["metrics"]
    texts = (tmp_path / "out.en").read_text().splitlines()
    assert generated["bleu"]["value"] == pytest.approx(BLEU().corpus_score(texts, [references]).score)
    assert generated["chrf"]["value"] == pytest.approx(CHRF().corpus_score(texts, [references]).score)
    command = ["evaluate", str(run), "--data", "test.de", "test.en", "--metrics", "bleu,chrf,rouge,perplexity"]
    assert main([*command, "--json", "-o", "out"]) == 0
    measured = json.loads(capsys.readouterr().out)["metrics"]
    for name in ("bleu", "chrf"):
        assert {key: measured[name][key] for key in ("value", "low", "high")} == {
            key: generated[name][key] for key in ("value", "low", "high")
        }
    copied = BLEU().corpus_score(sources, [references]).score
    assert measured["bleu.copy"]["value"] == pytest.approx(copied)
    assert {"rouge1", "rougeLsum", "rouge1.copy", "perplexity"} <= measured.keys()
    rows = [json.loads(line) for line in (tmp_path / "out" / "test_predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == texts


def test_several_references_count_the_best(run, tmp_path, capsys):
    rows = [{"source": source, "target": ["wrong", target]} for source, target in PAIRS]
    path = write(tmp_path / "test.jsonl", map(json.dumps, rows))
    assert main(["evaluate", str(run), "--data", path, "--metrics", "exact_match,rouge", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["metrics"]
    assert measured["exact_match"]["value"] >= 75
    assert measured["rouge1"]["value"] > 75
    assert measured["exact_match.copy"]["value"] == 0


def test_the_number_of_texts_in_a_batch_changes_nothing(run, tmp_path, capsys):
    write(tmp_path / "test.de", [*SOURCES[:20], *STRANGE])
    write(tmp_path / "test.en", [*TARGETS[:20], *STRANGE])
    found = []
    for size in ("1", "7", "64"):
        command = ["evaluate", str(run), "--data", str(tmp_path / "test.de"), str(tmp_path / "test.en")]
        assert main([*command, "--batch-size", size, "--metrics", "chrf", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"]["chrf"]["value"])
    assert len(set(found)) == 1


def test_the_best_model_by_its_texts_is_kept(files, capsys):
    command = ["finetune", "--task", "seq2seq", "--model-type", "t5", "--size", "tiny", "--vocab-size", "400"]
    command += ["--data", "train.de", "train.en", "--validation", "train.de", "train.en", "--max-steps", "6"]
    command += ["--eval-steps", "2", "--best", "chrf", "-o", "run", "--lr", "1e-3"]
    assert main(command) == 0
    found = {line["step"]: line["eval_chrf"] for line in read_log(files / "run") if "eval_chrf" in line}
    assert list(found) == [2, 4, 6]
    best = json.loads((files / "run" / "run.json").read_text())["best"]
    assert best["chrf"] == max(found.values())
    scores = read_scores(files / "run")["validation"]
    assert scores["chrf"]["value"] == pytest.approx(best["chrf"])
    assert {"bleu", "rouge1", "perplexity"} <= scores.keys()


def test_adapters_are_trained_and_merged(run, files, capsys):
    command = ["finetune", "--task", "seq2seq", "--model", str(run), "--lora", "--data", "train.de", "train.en"]
    command += ["--validation-split", "0", "--max-steps", "3", "-o", "adapter", "--test", "train.de", "train.en"]
    assert main(command) == 0
    assert main(["export", "adapter", "--merge", "--output-dir", "merged"]) == 0
    capsys.readouterr()
    texts = []
    for name in ("adapter", "merged"):
        assert main(["generate", name, "--prompt", SOURCES[0]]) == 0
        captured = capsys.readouterr()
        texts.append(captured.out)
        assert "before each prompt stands 'colors: '" in captured.err
    assert texts[0] == texts[1]
    assert set(texts[0].split()) <= set(NAMES)


def test_predict_says_what_to_type(run, capsys):
    assert main(["predict", str(run), "--text", "rot"]) == 5
    assert f"it is a T5ForConditionalGeneration (fix: hfkit generate {run})" in capsys.readouterr().err


def test_python_api(run, tmp_path):
    data = [write(tmp_path / "test.de", SOURCES), write(tmp_path / "test.en", TARGETS)]
    rows = [json.loads(line) for line in (run / "validation_predictions.jsonl").read_text().splitlines()]
    scores, kept = hfkit.evaluate(str(run), **{"data.test": data}), read_scores(run)["validation"]
    assert {name: score.value for name, score in scores.items()} == pytest.approx(
        {name: score["value"] for name, score in kept.items()}
    )
    assert hfkit.generate(str(run), SOURCES[:5]) == [row["prediction"] for row in rows[:5]]


# Baselines and the usual metrics.


def test_baselines():
    sources = ["First one. Second one! Third?", "Only (one.) Two. Three.", "One line\nand another\nend"]
    assert baselines(sources, [["A. B."], ["A."], ["A. B. C."]]) == {
        "copy": ("the source itself", sources),
        "lead": (
            "the first 2 sentences of the source",
            ["First one. Second one!", "Only (one.) Two.", "One line and another"],
        ),
    }
    assert list(baselines(["ein Satz", "noch einer"], [["a"], ["b"]])) == ["copy"]


@pytest.mark.parametrize(
    ("targets", "first"),
    [(["你好。", "嗨。"], "bleu_zh"), (["こんにちは", "さようなら"], "bleu_char"), (["hi", "你好"], "bleu")],
)
def test_bleu_counts_what_the_script_divides(targets, first):
    assert usual_metrics_of(targets) == [first, "chrf", "rouge", "perplexity"]


# What a reading of the task found.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label-column", "x"], "--label-column has no effect for sources and targets"),
        (["--text-column", "x"], "--text-column has no effect: the data is in text files"),
        (["--target-column", "x"], "--target-column has no effect: the data is in text files"),
        (["--best", "length_ratio"], "no evaluation during training has 'length_ratio'"),
        (["--task", "translation"], "(fix: --task seq2seq)"),
    ],
)
def test_settings_without_effect_are_refused(arguments, message, files, capsys):
    command = ["finetune", "--task", "seq2seq", "--model-type", "t5", "--max-steps", "1", "--data", "train.de"]
    assert main([*command, "train.en", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_new_model_is_planned(files, capsys):
    command = ["finetune", "--task", "seq2seq", "--model-type", "t5", "--size", "tiny", "--vocab-size", "400", "--plan"]
    assert main([*command, "--data", "train.de", "train.en", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["memory"]["sum"] > 0


@pytest.mark.parametrize("model_type", ["bart", "marian", "pegasus"])
def test_a_new_model_has_the_ids_of_its_tokenizer(model_type, files):
    command = ["finetune", "--task", "seq2seq", "--model-type", model_type, "--size", "tiny", "--vocab-size", "400"]
    assert main([*command, "--data", "train.de", "train.en", "--max-steps", "1", "-o", "run"]) == 0
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("run"), AutoTokenizer.from_pretrained("run")
    config = model.config
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    start = tokenizer.eos_token_id if model_type == "bart" else tokenizer.pad_token_id
    assert config.decoder_start_token_id == model.generation_config.decoder_start_token_id == start
    assert getattr(config, "forced_eos_token_id", None) in (None, tokenizer.eos_token_id)
    assert (config.decoder_layers, config.decoder_ffn_dim) == (2, 512)
    assert config.init_std == pytest.approx(128**-0.5)
    assert config.vocab_size == len(tokenizer) + -len(tokenizer) % 64


def test_adapters_of_a_model_with_languages_are_saved(files):
    model, tokenizer = of_kind("nllb")
    model.save_pretrained("nllb")
    tokenizer.save_pretrained("nllb")
    command = ["finetune", "--task", "seq2seq", "--model", "./nllb", "--lora", "--max-steps", "1", "-o", "run"]
    command += ["--source-lang", "deu_Latn", "--target-lang", "eng_Latn", "--data", "train.de", "train.en"]
    assert main(command) == 0
    assert (files / "run" / "adapter_model.safetensors").exists()


def test_a_language_that_the_data_does_not_have_is_an_error(tmp_path, capsys):
    """With two keys their order would decide, and the model would learn the reverse."""
    path = write(tmp_path / "a.jsonl", [json.dumps({"translation": {"de": one, "en": two}}) for one, two in PAIRS])
    with pytest.raises(DataError, match="--source-lang eng_Latn: no key of 'translation' is called so: de, en"):
        load_pairs(Data(train=[path], source_lang="eng_Latn", target_lang="deu_Latn"))
    columns = hfkit.settings.Columns(text="en", target="de")
    found = load_pairs(Data(train=[path], source_lang="eng_Latn", target_lang="deu_Latn", columns=columns))["train"]
    assert list(zip(found["target"], found["text"], strict=True)) == PAIRS


def test_a_line_of_names_that_may_be_a_pair_is_said(tmp_path, capsys):
    load_pairs(Data(train=[write(tmp_path / "a.tsv", ["der Mann\tthe man", "die Frau\tthe woman"])]))
    assert "a.tsv is taken for names (fix: --no-header, if it is a pair" in capsys.readouterr().err


def test_lines_of_one_file_keep_their_numbers(tmp_path, capsys):
    load_pairs(Data(train=[write(tmp_path / "a.txt", ["a\tb", "", "c\td", "e\t "])]))
    assert "2 of 4 pairs have an empty side and are left out, first" in capsys.readouterr().err


def test_inspect_takes_several_files_for_a_split(files, capsys):
    command = ["data", "inspect", "train.de", "train.en", "--validation", "train.de", "train.en", "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {split: part["rows"] for split, part in facts["splits"].items()} == {"train": 60, "validation": 60}
    assert main(["data", "inspect", "--validation", "train.de", "train.en", "--task", "clm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["rows"] == 1


@pytest.mark.parametrize("name", ["out.en.gz", "out.csv", "out.parquet"])
def test_an_output_of_another_kind_is_refused_before_the_model_is_loaded(name, files, capsys):
    assert main(["generate", "./nothing", "--input", "train.de", "--output", name]) == 2
    assert f"error: {name}: " in capsys.readouterr().err


def test_blank_lines_of_stdin_stay(run, files, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{SOURCES[0]}\n\n{SOURCES[1]}\n".encode()), "utf-8"))
    assert main(["generate", str(run), "--input", "-", "--output", "out.en"]) == 0
    lines = (files / "out.en").read_text().split("\n")
    assert [bool(line) for line in lines] == [True, False, True, False]
    (files / "blank.de").write_text("\n \n")
    assert main(["generate", str(run), "--input", "blank.de", "--output", "blank.en", "--references", "blank.de"]) == 3
    assert "error: blank.de: every line is blank" in capsys.readouterr().err


def test_sources_are_truncated_as_in_training(files, capsys):
    long = [f"{source} {' '.join(COLORS)}" for source in SOURCES]
    write(files / "long.de", long)
    command = ["finetune", "--task", "seq2seq", "--model-type", "bart", "--size", "tiny", "--vocab-size", "400"]
    command += ["--set", "model.config.max_position_embeddings=12", "--max-length", "8", "--allow-truncation"]
    command += ["--data", "long.de", "train.en", "--test", "long.de", "train.en", "--max-target-length", "12"]
    assert main([*command, "--max-steps", "2", "--metrics", "chrf", "-o", "run"]) == 0
    said = capsys.readouterr().err
    assert said.count("of 60 sources (100.0%) are longer than 8 tokens and were truncated") == 1
    assert main(["generate", "run", "--input", "long.de", "--output", "out.en"]) == 0
    assert "60 prompts were truncated to 8 tokens, as in training" in capsys.readouterr().err
    kept = [json.loads(line) for line in (files / "run" / "test_predictions.jsonl").read_text().splitlines()]
    assert (files / "out.en").read_text().splitlines() == [" ".join(row["prediction"].splitlines()) for row in kept]


def saved(folder, **settings):
    """The T5 of `of_kind` with generation settings of its own."""
    model, tokenizer = of_kind("t5")
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder / "t5")
    tokenizer.save_pretrained(folder / "t5")
    return str(folder / "t5")


def test_the_limit_of_new_tokens_is_the_models_own(files, capsys):
    command = ["--data", "train.de", "train.en", "--task", "seq2seq", "--metrics", "exact_match", "--json"]
    assert main(["evaluate", saved(files, max_length=8), *command]) == 0
    captured = capsys.readouterr()
    assert "greedy, at most 7 new tokens" in json.loads(captured.out)["metrics"]["exact_match"]["definition"]
    assert "of 60 texts were cut after 7 tokens" in captured.err
    assert main(["generate", "t5", "--prompt", "rot", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "length"
    assert main(["evaluate", "t5", *command, "--max-target-length", "5"]) == 0
    assert "at most 5 new tokens" in capsys.readouterr().out


def test_a_model_that_samples_several_texts_is_scored_by_one(files, capsys):
    model = saved(files, do_sample=True, num_return_sequences=3, max_new_tokens=4)
    command = ["--data", "train.de", "train.en", "--task", "seq2seq", "--metrics", "exact_match"]
    assert main(["evaluate", model, *command]) == 0
    assert "texts are generated without sampling, which the model's own settings ask for" in capsys.readouterr().err


def test_the_best_by_a_part_of_rouge(files):
    command = ["finetune", "--task", "seq2seq", "--model-type", "t5", "--size", "tiny", "--vocab-size", "400"]
    command += ["--data", "train.de", "train.en", "--validation", "train.de", "train.en", "--max-steps", "2"]
    assert main([*command, "--eval-steps", "1", "--best", "rougeL", "--metrics", "chrf", "-o", "run"]) == 0
    assert "rougeL" in json.loads((files / "run" / "run.json").read_text())["best"]
    assert {"chrf", "rougeL"} <= read_scores(files / "run")["validation"].keys()


def test_chinese_texts_are_scored_by_their_signs(run, files, capsys):
    write(files / "zh.txt", ["你好。"] * 60)
    command = ["generate", str(run), "--input", "train.de", "--output", "out.en", "--references", "zh.txt", "--json"]
    assert main(command) == 0
    assert next(iter(json.loads(capsys.readouterr().out)["metrics"])) == "bleu_zh"
