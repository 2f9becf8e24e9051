"""How fast entities are learned, hfkit beside the stock Trainer: `python benchmarks/tags.py [--help]`.

Three programs train the same weights on the same sentences with the same batch size: the stock Trainer as transformers'
run_ner.py has it (sentences in random order, each batch padded to its longest), the same with --pad_to_max_length and
128 tokens, and hfkit. Speed is measured as in finetune.py: one step of each in turn, over a whole shuffled bucket of
hfkit's; a ratio is one of total seconds, in brackets its lowest and highest value over five parts of the run.

Without --model a new BERT of MiniLM's size is trained, without --data sentences whose lengths are spread as those of
SST-2 are. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from finetune import PADDED, Hfkit, Side, new_minilm, ratio, read_rows, rows_like_sst2
from pretrain import Row, interleaved, new_trainer, use_cache

IGNORED = -100


def main() -> None:
    from hfkit.models.config import quiet_libraries

    quiet_libraries()
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", help="a model directory (default: a new BERT of MiniLM's size)")
    parser.add_argument("--data", help="a .conll file of words and tags, a tab between (default: made up)")
    parser.add_argument("--rows", type=int, default=20_000, help="made-up sentences")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50, help="measured steps of each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hfkit-tags-") as name:
        folder = Path(name)
        use_cache(folder / "cache")
        options.folder = str(folder)
        plain = rows_like_sst2(folder / "train.tsv", options.rows)
        options.model = options.model or str(new_minilm(folder / "model", str(plain)))
        options.data = options.data or str(tagged(folder / "train.conll", str(plain)))
        rows = speed(options)
    print("\n".join(f"| {' | '.join(row)} |" for row in [("figure", "target", "measured"), ("---",) * 3, *rows]))


def speed(options: argparse.Namespace) -> list[Row]:
    seconds, _ = interleaved({name: side(options) for name, side in SIDES.items()}, options.steps)
    rates = {name: options.batch_size * options.steps / sum(wall for wall, _ in seconds[name]) for name in SIDES}
    return [
        (
            f"sentences/s relative to {what}",
            "1.5",
            f"{ratio(seconds, name, 'hfkit')}; {rates['hfkit']:,.1f} and {rates[name]:,.1f} sentences/s",
        )
        for name, what in (("padded", f"run_ner.py, padded to {PADDED} tokens"), ("dynamic", "run_ner.py's defaults"))
    ]


class Stock(Side):
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


SIDES: dict[str, Any] = {
    "padded": partial(Stock, pad_to_max_length=True),
    "dynamic": partial(Stock, pad_to_max_length=False),
    "hfkit": partial(Hfkit, settings={"task": "token-classification"}),
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


if __name__ == "__main__":
    main()
