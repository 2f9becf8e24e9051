"""New tokenizers of every kind for every kind of model, and the numbers that `tokenizer inspect` prints."""

import json
import subprocess
import sys

import pytest
from datasets import Dataset
from transformers import CONFIG_MAPPING, AutoTokenizer

from hfkit import settings
from hfkit.cli.main import main
from hfkit.models.new_tokenizer import ALGORITHMS, train_tokenizer
from hfkit.training.prepare import tokenizer_of
from tiny_models import make_bert

CORPUS = [
    "The quick brown fox\n\tjumps over the lazy dog, again and again.\n" * 20,
    "你好，世界！ Two\r\n  lines 😀 é" * 20,
]
TEXTS = ["The lazy dog,\n\n  again", "你好 😀\té", " two  spaces "]
SENTINELS = [f"<extra_id_{number}>" for number in range(100)]
# Type of model -> its special tokens by id, and what it makes of the pair "dog", "fox" with X for what "dog" becomes.
SPECIAL = {
    "gpt2": (["<|endoftext|>", "<|pad|>"], "X Y"),
    "llama": (["<|endoftext|>", "<|pad|>"], "X Y"),
    "bert": (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS] X [SEP] Y [SEP]"),
    "roberta": (["<pad>", "<unk>", "<s>", "</s>", "<mask>"], "<s> X </s> </s> Y </s>"),
    "modernbert": (["<pad>", "<unk>", "<s>", "</s>", "<mask>"], "<s> X </s> </s> Y </s>"),
    "t5": (["<pad>", "</s>", "<unk>", *reversed(SENTINELS)], "X </s> Y </s>"),
}
ROLES = {
    "gpt2": {"bos": 0, "eos": 0, "unk": 0, "pad": 1},
    "llama": {"bos": 0, "eos": 0, "unk": 0, "pad": 1},
    "bert": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    "roberta": {"pad": 0, "unk": 1, "bos": 2, "cls": 2, "eos": 3, "sep": 3, "mask": 4},
    "modernbert": {"pad": 0, "unk": 1, "bos": 2, "cls": 2, "eos": 3, "sep": 3, "mask": 4},
    "t5": {"pad": 0, "eos": 1, "unk": 2},
}


def write(path, text):
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("model_type", SPECIAL)
def test_every_algorithm_serves_every_model_type(model_type, algorithm, tmp_path):
    trained = train_tokenizer(CORPUS, model_type, 450, algorithm)
    trained.save_pretrained(tmp_path)
    alone = AutoTokenizer.from_pretrained(tmp_path)
    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path)  # AutoTokenizer asks it for another class
    special, pair = SPECIAL[model_type]
    roles = ROLES[model_type]
    if model_type in ("gpt2", "llama") and algorithm != "bpe":  # bytes are never unknown
        special, roles = ["<|endoftext|>", "<|unk|>", "<|pad|>"], {"bos": 0, "eos": 0, "unk": 1, "pad": 2}
    for tokenizer in (trained, alone, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.is_fast
        assert len(tokenizer) <= 450
        assert tokenizer.get_vocab() == trained.get_vocab()
        assert tokenizer.convert_ids_to_tokens(range(len(special))) == special
        assert set(tokenizer.all_special_tokens) == set(special)
        for role in ("bos", "eos", "unk", "pad", "cls", "sep", "mask"):
            assert getattr(tokenizer, f"{role}_token_id") == roles.get(role)
        assert dict(tokenizer(TEXTS)) == dict(trained(TEXTS))
        assert set(tokenizer("dog")) == {"input_ids", "attention_mask"} | (
            {"token_type_ids"} if model_type == "bert" else set()
        )
        dog, fox = (" ".join(tokenizer.tokenize(word)) for word in ("dog", "fox"))
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("dog", "fox")["input_ids"])
        assert " ".join(tokens) == pair.replace("X", dog).replace("Y", fox)
        back = [tokenizer.decode(ids, skip_special_tokens=True) for ids in tokenizer(TEXTS)["input_ids"]]
        if algorithm == "wordpiece":
            dog = "the lazy dog, again" if model_type == "bert" else "The lazy dog, again"
            assert back == [dog, "你 好 😀 e" if model_type == "bert" else "你 好 😀 é", "two spaces"]
        elif (model_type, algorithm) == ("t5", "unigram"):
            assert back == ["The lazy dog, again", "你好 😀 é", "two spaces"]
        else:
            assert back == TEXTS


@pytest.mark.parametrize(("model_type", "own"), [("gpt2", "bpe"), ("bert", "wordpiece"), ("t5", "unigram")])
def test_the_model_types_own_algorithm_is_the_default(model_type, own):
    default, named = (train_tokenizer(CORPUS, model_type, 450, algorithm) for algorithm in (None, own))
    assert default.backend_tokenizer.to_str() == named.backend_tokenizer.to_str()
    assert type(default) is type(named)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("model_type", ["gpt2", "bert", "t5"])
def test_the_same_text_gives_the_same_tokenizer(model_type, algorithm):
    # the trainers' hash tables have another order each time; v to z are too rare for a score of their own in Unigram
    corpus = ["the fox they then there these fog for four " * 9, *"vwxyzVWXYZ"]
    first, *others = (
        train_tokenizer(texts, model_type, 370, algorithm).backend_tokenizer.to_str()
        for texts in (corpus, corpus, iter(corpus), corpus)
    )
    assert others == [first] * 3


def test_characters_have_the_ids_of_their_order_and_come_back(tmp_path):
    tokenizer = train_tokenizer(["abba\n", "a b\tc"], "gpt2", 300, "char")
    entries = ["<|endoftext|>", "<|unk|>", "<|pad|>", "\t", "\n", " ", "a", "b", "c"]
    assert tokenizer.get_vocab() == {entry: number for number, entry in enumerate(entries)}
    text = "  cab\n\n\t a"
    assert tokenizer(text)["input_ids"] == [5, 5, 8, 6, 7, 4, 4, 3, 5, 6]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("aézb")["input_ids"] == [6, 1, 1, 7]
    assert tokenizer("a<|endoftext|>b")["input_ids"] == [6, 0, 7]
    assert tokenizer("ab  ca").word_ids() == [0, 0, 1, 1, 2, 2]  # words are whole, for masks


def test_rarest_characters_fall_out_and_are_counted(capsys):
    tokenizer = train_tokenizer(["aaaa bbb", "ccdde"], "gpt2", 6, "char")
    assert tokenizer.convert_ids_to_tokens(range(6)) == [
        "<|endoftext|>",
        "<|unk|>",
        "<|pad|>",
        "a",
        "b",
        "c",
    ]  # as frequent as d, but before
    assert capsys.readouterr().err == (
        "warning: 3 of 6 different characters get no entry; they are 4 of 13 in the text (30.77%) "
        "(fix: --vocab-size 9)\n"
        "tokenizer: new character tokenizer, 6 entries, from the training text\n"
    )


def test_the_recipe_chooses_the_algorithm():
    recipe = settings.Recipe(tokenizer=settings.Tokenizer(algorithm="char"))
    dataset = Dataset.from_dict({"text": ["abc"]})
    tokenizer = tokenizer_of(recipe, CONFIG_MAPPING["gpt2"](), dataset, None, shared=False)
    assert len(tokenizer) == 6


def test_train_writes_a_directory_that_opens(tmp_path, capsys):
    text = write(tmp_path / "text.txt", "ab\n\nba\n")
    target = tmp_path / "new" / "characters"
    assert main(["tokenizer", "train", text, "--algorithm", "char", "--model_type", "bert", "-o", str(target)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{target}\n"
    fix = f"next: hfkit pretrain --model-type bert --objective mlm --tokenizer {target} --data {text}\n"
    assert captured.err.endswith(fix)
    assert "8 entries in " in captured.err
    assert sorted(file.name for file in target.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert [file.name for file in target.parent.iterdir()] == ["characters"]
    assert AutoTokenizer.from_pretrained(target)("a\n\nb")["input_ids"] == [2, 6, 5, 5, 7, 3]


def test_train_reads_columns_and_several_files(tmp_path):
    first = write(tmp_path / "a.csv", "id,words\n1,ab\n")
    second = write(tmp_path / "b.csv", "id,words\n2,cd\n")
    (tmp_path / "empty").mkdir()
    command = ["tokenizer", "train", first, second, "--text-column", "words", "--algorithm", "char"]
    assert main([*command, "--output-dir", str(tmp_path / "empty")]) == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "empty")) == 7


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--vocab-size", "257"],
            2,
            "257 entries can't hold the 256 bytes and 2 special tokens (fix: --vocab-size 258",
        ),
        (
            ["--vocab-size", "9", "--algorithm", "wordpiece"],
            2,
            "9 entries can't hold every character of the text and 3 special tokens (fix: --vocab-size ",
        ),
        (
            ["--vocab-size", "9", "--algorithm", "unigram"],
            2,
            "9 entries can't hold every character of the text (fix: a larger --vocab-size, or the algorithm bpe)",
        ),
        (
            ["--vocab-size", "2", "--algorithm", "char"],
            2,
            "2 entries can't hold more than the 3 special tokens (fix: --vocab-size 13)",
        ),
        (["--vocab-size", "100", "--model-type", "t5"], 2, "100 entries can't hold every character of the text"),
        (["--algorithm", "words"], 2, "'words' is not one of 'bpe', 'wordpiece', 'unigram', 'char'"),
        (["--model-type", "lama"], 2, "--model-type 'lama' is unknown (fix: did you mean 'llama'?)"),
        (["--text-column", "words"], 3, "text.txt has no column 'words', found: text (fix: --text-column text)"),
    ],
)
def test_what_can_not_be_trained_is_said_and_leaves_nothing(tmp_path, capsys, options, code, message):
    text = write(tmp_path / "text.txt", "abcdefghij")
    assert main(["tokenizer", "train", text, "-o", str(tmp_path / "new"), *options]) == code
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


def test_data_without_text_is_an_error(tmp_path, capsys):
    blank = write(tmp_path / "blank.csv", 'text,id\n" ",1\n')
    assert main(["tokenizer", "train", blank, "-o", str(tmp_path / "new")]) == 3
    assert "error: there is no text to train a tokenizer on (fix: " in capsys.readouterr().err


def test_a_directory_in_use_is_refused(tmp_path, capsys):
    text = write(tmp_path / "text.txt", "abc")
    for target, message, code in [(tmp_path, "not empty", 2), (tmp_path / "text.txt", "is a file", 6)]:
        assert main(["tokenizer", "train", text, "-o", str(target)]) == code
        assert f"{message} (fix: --output-dir NEW)" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Directories of a character tokenizer that knows `abc`, blank and line end, and of one of bytes without merges."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(["abc \n"], "gpt2", 300, "char").save_pretrained(folder / "characters")
    train_tokenizer(["a"], "t5", 400, "bpe").save_pretrained(folder / "bytes")
    return folder


def test_inspect_prints_what_can_be_counted_by_hand(tokenizers, tmp_path, capsys):
    text = write(tmp_path / "text.txt", "ab ba\nc\n\nzé\n")
    names = [str(tokenizers / "characters"), str(tokenizers / "bytes")]
    assert main(["tokenizer", "inspect", *names, "--data", text, "--json"]) == 0
    characters, octets = json.loads(capsys.readouterr().out)["tokenizers"]
    assert characters == {
        "tokenizer": names[0],
        "entries": 8,
        "documents": 2,
        "tokens": 9,
        "bytes_per_token": 10 / 9,
        "characters_per_token": 1.0,
        "unknown": 2,
        "unknown_share": 2 / 9,
        "words": 4,
        "words_split": 3 / 4,  # all but c
        "round_trip_failures": 1,
        "round_trip_failure_share": 0.5,
        "first_difference": "document 2, character 1: 'zé' became '<|unk|><|unk'",
        "longest": 7,
        "special_tokens": {
            "bos": "<|endoftext|>",
            "eos": "<|endoftext|>",
            "unk": "<|unk|>",
            "pad": "<|pad|>",
        },
        "other_special_tokens": 0,
    }
    assert octets["entries"] == 256 + 3 + 100
    assert (octets["tokens"], octets["bytes_per_token"], octets["longest"]) == (10, 1.0, 7)
    assert (octets["unknown"], octets["round_trip_failures"], octets["first_difference"]) == (0, 0, None)
    assert (octets["special_tokens"], octets["other_special_tokens"]) == (
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        100,
    )


def test_a_character_of_several_tokens_splits_its_word(tokenizers, tmp_path, capsys):
    text = write(tmp_path / "text.jsonl", '{"text": "a é b"}\n')
    assert main(["tokenizer", "inspect", str(tokenizers / "bytes"), "--data", text, "--json"]) == 0
    (octets,) = json.loads(capsys.readouterr().out)["tokenizers"]
    assert (octets["tokens"], octets["words"], octets["words_split"]) == (6, 3, 1 / 3)


def test_inspect_puts_tokenizers_side_by_side(tokenizers, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tokenizers)
    text = write(tmp_path / "text.txt", "ab ba\nc\n\nzé\n")
    assert main(["tokenizer", "inspect", "./characters", "./bytes", "--data", text]) == 0
    assert capsys.readouterr().out == (
        "                      ./characters   ./bytes\n"
        "entries               8              359\n"
        "documents             2              2\n"
        "tokens                9              10\n"
        "bytes per token       1.111          1.000\n"
        "characters per token  1.000          0.900\n"
        "unknown tokens        2 (22.22%)     0 (0.00%)\n"
        "words split           75.00%         75.00%\n"
        "round trips failed    1 (50.00%)     0 (0.00%)\n"
        "longest document      7              7\n"
        "bos token             <|endoftext|>  -\n"
        "eos token             <|endoftext|>  </s>\n"
        "unk token             <|unk|>        <unk>\n"
        "pad token             <|pad|>        <pad>\n"
        "other special tokens  -              100\n"
        "./characters: document 2, character 1: 'zé' became '<|unk|><|unk'\n"
    )


def test_batches_change_no_number(tokenizers, tmp_path, capsys):
    rows = ["ab ba", "c z", "abc " * 30_000] * 3  # three batches
    text = write(tmp_path / "text.jsonl", "".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert main(["tokenizer", "inspect", str(tokenizers / "characters"), "--data", text, "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)["tokenizers"]
    assert (seen["documents"], seen["tokens"], seen["longest"]) == (9, 3 * 120_008, 120_000)
    assert (seen["unknown"], seen["round_trip_failures"]) == (3, 3)
    assert seen["words_split"] == 3 * 30_002 / (3 * 30_004)
    assert seen["first_difference"] == "document 2, character 3: 'z' became '<|unk|>'"


def test_what_is_no_tokenizer_is_said(tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nfox\n")
    assert main(["tokenizer", "inspect", str(tmp_path)]) == 5
    config = tmp_path / "tokenizer_config.json"
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: vocab.txt alone does not say what tokenizer it is of "
        f"""(fix: echo '{{"tokenizer_class": "BertTokenizer"}}' > {config})\n"""
    )
    config.write_text('{"tokenizer_class": "BertTokenizer"}\n')  # what the fix says
    text = write(tmp_path / "text.txt", "the red fox")
    assert main(["tokenizer", "inspect", str(tmp_path), "--data", text, "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)["tokenizers"]
    assert (seen["entries"], seen["tokens"], seen["unknown"], seen["words_split"]) == (7, 3, 1, 0.0)
    assert main(["tokenizer", "inspect", str(tmp_path / "nothing")]) == 5
    assert main(["tokenizer", "inspect", str(tmp_path), "--data", str(tmp_path / "none.txt")]) == 3


def test_help_and_usage_errors_load_no_library():
    script = """
import contextlib, io, sys
from hfkit.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    codes = [main(["tokenizer", *words]) for words in (["train", "--help"], ["inspect", "--help"], ["train", "x"])]
print(codes, {"torch", "transformers", "datasets", "tokenizers", "numpy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[0, 0, 2] set()\n"


def test_a_tokenizer_that_misses_its_unknown_token_is_refused(tmp_path, capsys):
    make_bert(tmp_path / "bert")
    file = tmp_path / "bert" / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["model"]["vocab"]["other"] = saved["model"]["vocab"].pop("[UNK]")
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] != "[UNK]"]
    file.write_text(json.dumps(saved))
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,0\n")
    assert main(["finetune", "--model", str(tmp_path / "bert"), "--data", str(tmp_path / "a.csv")]) == 5
    assert "its tokenizer has no token [UNK] for words that it can't read" in capsys.readouterr().err
