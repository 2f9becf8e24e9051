"""How fast entities, answers and texts are learned, beside the stock Trainer: `python benchmarks/tasks.py --help`.

Three programs train the same weights on the same data with the same batch size: the stock Trainer with the data of
transformers' run_ner.py, run_qa.py or run_translation.py as they are by default, the same with the other kind of
padding, and hfkit. By default run_ner.py and run_translation.py pad each batch to its longest text, and run_qa.py every
window to 384 tokens. Speed is measured as in finetune.py: one step of each in turn, over a whole shuffled bucket of
hfkit's; a ratio is one of total seconds, in parentheses its lowest and highest value over five parts of the run.

Without --model a new BERT of MiniLM's size is trained, without --pairs-model a new T5 of 7 million parameters; without
--tags, --questions and --pairs the data is made up, with lengths that are spread as those of SST-2 and of SQuAD are.
About thirty minutes on two cores, a third of it for each task (--only).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from finetune import PADDED, Hfkit, Side, new_minilm, ratio, read_rows, rows_like_sst2
from pretrain import Row, interleaved, new_trainer, use_cache

IGNORED = -100

WINDOW, STRIDE = 384, 128  # run_qa.py's --max_seq_length and --doc_stride


def main() -> None:
    from hfkit.models.config import quiet_libraries

    quiet_libraries()
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", help="a model directory (default: a new BERT of MiniLM's size)")
    parser.add_argument("--tags", help="a .conll file of words and tags, a tab between (default: made up)")
    parser.add_argument("--questions", help="a .jsonl file of questions, contexts and answers (default: made up)")
    parser.add_argument("--pairs-model", help="the directory of a T5 (default: a new one)")
    parser.add_argument("--pairs", help="a .jsonl file of sources and targets (default: made up)")
    parser.add_argument("--only", help="tags, questions or pairs, separated by commas (default: all)")
    parser.add_argument("--rows", type=int, default=20_000, help="made-up sentences, ten times as many as questions")
    parser.add_argument("--batch-size", type=int, default=32, help="sentences in a batch; a quarter as many windows")
    parser.add_argument(
        "--steps", type=int, default=50, help="measured steps of each with sentences, half with windows"
    )
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hfkit-tasks-") as name:
        folder = Path(name)
        use_cache(folder / "cache")
        plain = rows_like_sst2(folder / "train.tsv", options.rows)
        model = options.model or str(new_minilm(folder / "model", str(plain)))
        tags = options.tags or str(tagged(folder / "train.conll", str(plain)))
        questions = options.questions or str(asked(folder / "train.jsonl", options.rows // 10))
        shared = {"model": model, "folder": str(folder)}
        of_tags = argparse.Namespace(**shared, data=tags, batch_size=options.batch_size, steps=options.steps)
        size, steps = max(1, options.batch_size // 4), max(1, options.steps // 2)
        of_questions = argparse.Namespace(**shared, data=questions, batch_size=size, steps=steps)
        pairs = options.pairs or str(paired(folder / "pairs.jsonl", str(plain)))
        t5 = options.pairs_model or str(new_t5(folder / "t5", pairs))
        of_pairs = argparse.Namespace(
            model=t5, folder=str(folder), data=pairs, batch_size=options.batch_size, steps=options.steps
        )
        only = options.only.split(",") if options.only else ["tags", "questions", "pairs"]
        if "tags" in only:
            rows += speed(of_tags, OF_TAGS, "sentences", "run_ner.py", PADDED)
        if "questions" in only:
            rows += speed(of_questions, OF_QUESTIONS, "windows", "run_qa.py", WINDOW)
        if "pairs" in only:
            rows += speed(of_pairs, OF_PAIRS, "pairs", "run_translation.py", PADDED)
    print("\n".join(f"| {' | '.join(row)} |" for row in [("figure", "target", "measured"), ("---",) * 3, *rows]))


def speed(options: argparse.Namespace, sides: dict[str, Any], unit: str, script: str, length: int) -> list[Row]:
    seconds, _ = interleaved({name: side(options) for name, side in sides.items()}, options.steps)
    rates = {name: options.batch_size * options.steps / sum(wall for wall, _ in seconds[name]) for name in sides}
    return [
        (
            f"{unit}/s relative to {script}, padded to {what}",
            "1.5" if name == "padded" else "-",
            f"{ratio(seconds, name, 'hfkit')}; {rates['hfkit']:,.1f} and {rates[name]:,.1f} {unit}/s",
        )
        for name, what in (("padded", f"{length} tokens"), ("dynamic", "the longest in a batch"))
    ]


class StockTags(Side):
    """The stock Trainer on words that are tokenized and labelled as run_ner.py does it."""

    def __init__(self, options: argparse.Namespace, *, pad_to_max_length: bool) -> None:
        from datasets import Dataset
        from transformers import (
            AutoModelForTokenClassification,
            AutoTokenizer,
            DataCollatorForTokenClassification,
            TrainingArguments,
            set_seed,
        )

        words, tags = read_conll(options.data)
        names = sorted({tag for row in tags for tag in row})
        set_seed(42)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.model = AutoModelForTokenClassification.from_pretrained(options.model, num_labels=len(names))
        padding = "max_length" if pad_to_max_length else False

        def encode(rows: dict[str, Any]) -> Any:
            encoded = tokenizer(
                rows["tokens"], padding=padding, truncation=True, max_length=PADDED, is_split_into_words=True
            )
            labels = []
            for row, given in enumerate(rows["tags"]):
                places = encoded.word_ids(row)
                before = [None, *places[:-1]]
                labels.append(
                    [
                        IGNORED if place is None or place == last else names.index(given[place])
                        for place, last in zip(places, before, strict=True)
                    ]
                )
            return {**encoded, "labels": labels}

        dataset = Dataset.from_dict({"tokens": words, "tags": tags}).map(
            encode, batched=True, remove_columns=["tokens", "tags"]
        )
        args = TrainingArguments(
            output_dir=options.folder, per_device_train_batch_size=options.batch_size, dataloader_pin_memory=False
        )
        collator = DataCollatorForTokenClassification(tokenizer)
        self.trainer = new_trainer(self.model, args, train_dataset=dataset, data_collator=collator)


class StockQuestions(Side):
    """The stock Trainer on questions and contexts that are tokenized and labelled as run_qa.py does it."""

    def __init__(self, options: argparse.Namespace, *, pad_to_max_length: bool) -> None:
        from datasets import load_dataset
        from transformers import (
            AutoModelForQuestionAnswering,
            AutoTokenizer,
            DataCollatorWithPadding,
            TrainingArguments,
            default_data_collator,
            set_seed,
        )

        set_seed(42)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.model = AutoModelForQuestionAnswering.from_pretrained(options.model)

        def encode(rows: dict[str, Any]) -> Any:
            encoded = tokenizer(
                rows["question"], rows["context"], truncation="only_second", max_length=WINDOW, stride=STRIDE,
                padding="max_length" if pad_to_max_length else False,
                return_overflowing_tokens=True, return_offsets_mapping=True,
            )  # fmt: skip
            ends: dict[str, list[int]] = {"start_positions": [], "end_positions": []}
            owners = encoded.pop("overflow_to_sample_mapping")
            for window, offsets in enumerate(encoded.pop("offset_mapping")):
                answers = rows["answers"][owners[window]]
                start = answers["answer_start"][0]
                stop = start + len(answers["text"][0])
                inside = [place for place, side in enumerate(encoded.sequence_ids(window)) if side == 1]
                first = [place for place in inside if offsets[place][0] <= start < offsets[place][1]]
                last = [place for place in inside if offsets[place][0] < stop <= offsets[place][1]]
                ends["start_positions"].append(first[0] if first and last else 0)
                ends["end_positions"].append(last[0] if first and last else 0)
            return {**encoded, **ends}

        raw = load_dataset("json", data_files=options.data, split="train")
        dataset = raw.map(encode, batched=True, remove_columns=raw.column_names)
        args = TrainingArguments(
            output_dir=options.folder, per_device_train_batch_size=options.batch_size, dataloader_pin_memory=False
        )
        collator = default_data_collator if pad_to_max_length else DataCollatorWithPadding(tokenizer)
        self.trainer = new_trainer(self.model, args, train_dataset=dataset, data_collator=collator)


class StockPairs(Side):
    """The stock Trainer on sources and targets that are tokenized and padded as run_translation.py does it."""

    def __init__(self, options: argparse.Namespace, *, pad_to_max_length: bool) -> None:
        from datasets import load_dataset
        from transformers import (
            AutoModelForSeq2SeqLM,
            AutoTokenizer,
            DataCollatorForSeq2Seq,
            Seq2SeqTrainingArguments,
            set_seed,
        )

        set_seed(42)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(options.model)
        padding = "max_length" if pad_to_max_length else False

        def encode(rows: dict[str, Any]) -> Any:
            encoded = tokenizer(rows["source"], max_length=PADDED, padding=padding, truncation=True)
            targets = tokenizer(text_target=rows["target"], max_length=PADDED, padding=padding, truncation=True)
            pad = tokenizer.pad_token_id
            labels = [[IGNORED if token == pad else token for token in row] for row in targets["input_ids"]]
            return {**encoded, "labels": labels}

        raw = load_dataset("json", data_files=options.data, split="train")
        dataset = raw.map(encode, batched=True, remove_columns=raw.column_names)
        args = Seq2SeqTrainingArguments(
            output_dir=options.folder, per_device_train_batch_size=options.batch_size, dataloader_pin_memory=False
        )
        collator = DataCollatorForSeq2Seq(tokenizer, model=self.model)
        self.trainer = new_trainer(self.model, args, train_dataset=dataset, data_collator=collator)


OF_TAGS: dict[str, Any] = {
    "padded": partial(StockTags, pad_to_max_length=True),
    "dynamic": partial(StockTags, pad_to_max_length=False),
    "hfkit": partial(Hfkit, settings={"task": "token-classification"}),
}

OF_QUESTIONS: dict[str, Any] = {
    "padded": partial(StockQuestions, pad_to_max_length=True),
    "dynamic": partial(StockQuestions, pad_to_max_length=False),
    "hfkit": partial(Hfkit, settings={"task": "question-answering"}),
}


OF_PAIRS: dict[str, Any] = {
    "padded": partial(StockPairs, pad_to_max_length=True),
    "dynamic": partial(StockPairs, pad_to_max_length=False),
    "hfkit": partial(Hfkit, settings={"task": "seq2seq"}),
}


def read_conll(path: str) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags of each sentence."""
    rows: list[list[list[str]]] = [[]]
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.strip():
            rows[-1].append(line.split("\t"))
        elif rows[-1]:
            rows.append([])
    return [[word for word, _ in row] for row in rows if row], [[tag for _, tag in row] for row in rows if row]


def tagged(path: Path, rows: str) -> Path:
    """The sentences of `rows` with a tag for each word, which says nothing."""
    chance = random.Random(0)
    lines = (
        "".join(f"{word}\t{chance.choice(('O', 'O', 'O', 'B-X', 'B-Y'))}\n" for word in text.split())
        for text in read_rows(rows)[0]
    )
    path.write_text("\n".join(filter(None, lines)), encoding="utf-8")
    return path


def paired(path: Path, rows: str) -> Path:
    """The sentences of `rows`, each with its words in the reverse order as target."""
    texts = read_rows(rows)[0]
    pairs = ({"source": text, "target": " ".join(reversed(text.split()))} for text in texts if text.strip())
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


def new_t5(folder: Path, pairs: str) -> Path:
    """A T5 with random weights, of the size that recipes/finetune-multi30k.yaml trains."""
    from transformers import T5Config, T5ForConditionalGeneration, set_seed

    from hfkit.models.new_tokenizer import train_tokenizer

    texts = [
        text for line in Path(pairs).read_text(encoding="utf-8").splitlines() for text in json.loads(line).values()
    ]
    tokenizer = train_tokenizer(texts, "t5", 6000)
    set_seed(0)
    sizes = {"d_model": 256, "d_ff": 1024, "d_kv": 64, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3}
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def asked(path: Path, num_rows: int) -> Path:
    """Questions of about ten words about contexts of about 120 words of the built-in text, as in SQuAD."""
    from hfkit.data.sources import load_builtin

    chance = random.Random(0)
    words = " ".join(load_builtin("builtin:python-docs")["train"]["text"]).split()
    lines = []
    for _ in range(num_rows):
        start, size = chance.randrange(len(words) - 700), min(650, max(20, round(120 * chance.lognormvariate(0, 0.4))))
        context = " ".join(words[start : start + size])
        place = chance.randrange(size - 2)
        before = " ".join(words[start : start + place])
        answer = " ".join(words[start + place : start + place + 2])
        answers = {"text": [answer], "answer_start": [len(before) + (place > 0)]}
        question = " ".join(words[start + 1 : start + 1 + chance.randint(5, 15)])
        lines.append(json.dumps({"question": question, "context": context, "answers": answers}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
