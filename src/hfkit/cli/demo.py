"""`make demo`: the way from raw text to a model in use, command by command, on text that comes with Python."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from hfkit.cli.main import main

FOLDER = Path("runs/demo")

STEPS = [
    (
        "Pretrain a small GPT-2 on Python's documentation, with a new tokenizer.",
        "pretrain --data builtin:python-docs --model-type gpt2 --size tiny --vocab-size 2048 --block-size 128 "
        "--batch-size 8 --max-steps 900 --lr 3e-3 --output-dir {folder}/gpt2 --overwrite",
    ),
    (
        "Generate text with it.",
        'generate {folder}/gpt2 --prompt "Return the" --max-new-tokens 40 --echo --do-sample --temperature 0.7',
    ),
    (
        "Pretrain a small encoder on the same text, with masked words.",
        "pretrain --data builtin:python-docs --objective mlm --model-type modernbert --size tiny --vocab-size 4096 "
        "--block-size 128 --batch-size 16 --max-steps 300 --lr 1e-3 --mask-probability 0.3 "
        "--set model.config.classifier_pooling=mean --output-dir {folder}/encoder --overwrite",
    ),
    (
        "Fine-tune it to classify docstrings by area of the library.",
        "finetune --model {folder}/encoder --data builtin:python-docstrings --max-length 128 --allow-truncation "
        "--epochs 3 --lr 1e-3 --batch-size 16 --output-dir {folder}/areas --overwrite",
    ),
    (
        "Classify a new sentence.",
        'predict {folder}/areas --text "Open a connection to the server and send the request."',
    ),
]


def demo() -> int:
    """Runs every step; returns 0, or the exit code of the first step that fails."""
    begin = time.monotonic()
    for number, (what, line) in enumerate(STEPS, start=1):
        command = line.format(folder=FOLDER)
        print(f"\n[{number}/{len(STEPS)}] {what}\n$ hfkit {command}", flush=True)
        code = main(shlex.split(command))
        if code:
            return code
    print(
        f"\nAll steps took {time.monotonic() - begin:.0f} seconds. The models are in {FOLDER}: gpt2, encoder and areas,"
    )
    print("plain Hugging Face directories that AutoModel.from_pretrained opens. Next, with your own data:")
    print("  hfkit pretrain --data book.txt --model-type gpt2 --size mini")
    print("  hfkit finetune --model bert-base-uncased --data train.csv --validation dev.csv")
    print("  hfkit --help")
    return 0


if __name__ == "__main__":
    sys.exit(demo())
