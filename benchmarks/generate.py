"""How fast texts are generated: `python benchmarks/generate.py [--model DIR] [--assistant DIR] [--tiny]`.

Many prompts: 64 of mixed lengths, greedy, by hfkit (batches of like length within --batch-tokens), by the library's
`pipeline("text-generation")` as it is by default (one by one), and in batches of 32 in the order of the file; all three
in turn, so that a ratio is one of neighbours in time, and the texts of all have to be the same. One prompt: tokens a
second of plain decoding and of each option that makes it faster, beside what the memory allows: each token reads all
weights once, so the limit is the measured bandwidth divided by their bytes.

Without --model: a new Llama of SmolLM2-135M's size. How much guessing ahead gains depends on the text, and that of
random weights says nothing: --model gives the figures that count for it. The assistant is --assistant, else the first
third of the model's layers. About half an hour on two cores; --tiny checks in a minute that everything still runs.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

LLAMA = {  # SmolLM2-135M's
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TINY_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
ENTRIES = 49_152  # of SmolLM2's vocabulary
WORDS = (4, 256)  # of the shortest and of the longest prompt
SEED = 0
BATCH_ROWS = 32  # of the batches in file order
LOOKUP = 5  # tokens guessed ahead from the prompt

Row = tuple[str, str, str]  # figure, target, reached
Texts = list[list[int]]  # as their new tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--assistant", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()

    from hfkit.models.config import quiet_libraries
    from hfkit.system.console import silence

    quiet_libraries()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="hfkit-generate-") as name, silence():
        folder = Path(name)
        model = options.model or new_llama(folder / "llama", options.tiny)
        assistant = options.assistant or first_layers(model, folder / "assistant")
        for figures in (many_prompts, lambda *values: one_prompt(*values, assistant)):
            for row in figures(model, options.tiny):
                rows.append(row)
                print(" | ".join(row), file=sys.stderr, flush=True)
    print("\n".join(f"| {' | '.join(row)} |" for row in [("figure", "target", "reached"), ("---",) * 3, *rows]))


def new_llama(directory: Path, tiny: bool) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hfkit.data.sources import load_builtin
    from hfkit.models.new_tokenizer import train_tokenizer

    texts = load_builtin("builtin:python-docs")["train"]["text"]
    tokenizer = train_tokenizer(texts, "llama", 1000 if tiny else 8192)
    torch.manual_seed(SEED)
    entries = len(tokenizer) if tiny else ENTRIES
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    config = LlamaConfig(vocab_size=entries, **(TINY_LLAMA if tiny else LLAMA), **ids)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def first_layers(model: Path, directory: Path) -> Path:
    """A model of the first third of the layers, which guesses what the whole one says where that is easy."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    small = AutoModelForCausalLM.from_pretrained(model)
    small.model.layers = small.model.layers[: max(1, len(small.model.layers) // 3)]
    small.config.num_hidden_layers = len(small.model.layers)
    if getattr(small.config, "layer_types", None):
        small.config.layer_types = small.config.layer_types[: len(small.model.layers)]
    small.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model).save_pretrained(directory)
    return directory


def prompts_of(count: int) -> list[str]:
    """Beginnings of documents of the built-in text, as many words each as chance says, short ones more often."""
    from hfkit.data.sources import load_builtin

    draw = random.Random(SEED)
    documents = [text.split() for text in load_builtin("builtin:python-docs")["train"]["text"]]
    long_enough = [words for words in documents if len(words) >= WORDS[1]]
    least, most = WORDS
    return [
        " ".join(words[: round(least * (most / least) ** draw.random())])
        for words in draw.choices(long_enough, k=count)
    ]


def many_prompts(model: Path, tiny: bool) -> list[Row]:
    num_prompts, new_tokens, rounds = (12, 8, 1) if tiny else (64, 64, 3)
    prompts = prompts_of(num_prompts)
    generator = load(model, new_tokens)
    lengths = [len(generator.encode(prompt)) for prompt in prompts]
    sides: dict[str, Callable[[], Texts]] = {
        "pipeline": lambda: one_by_one(generator, prompts, new_tokens),
        "file order": lambda: in_file_order(generator, prompts),
        "hfkit": lambda: by_hfkit(generator, prompts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, Texts] = {}
    for number in range(rounds + 1):  # the first, with few prompts, to warm up
        for name, run in sides.items():
            if number == 0:
                generator.answers([generator.encode(prompts[0])])
                continue
            begun = time.perf_counter()
            texts[name] = run()
            seconds[name].append(time.perf_counter() - begun)
    same = {name: sum(map(list.__eq__, texts["hfkit"], texts[name])) for name in ("pipeline", "file order")}
    rate = sum(map(len, texts["hfkit"])) / statistics.median(seconds["hfkit"])
    facts = f"{num_prompts} prompts of {min(lengths)} to {max(lengths)} tokens, {new_tokens} new ones at most"
    return [
        (f"{facts}: against pipeline() one by one", "4", f"{ratio(seconds, 'pipeline')}; {rate:,.0f} tokens/s"),
        (f"- against batches of {BATCH_ROWS} in file order", "1.4", ratio(seconds, "file order")),
        (
            f"- equal greedy texts, of {num_prompts}: pipeline(), file order",
            f"{num_prompts}, {num_prompts}",
            f"{same['pipeline']}, {same['file order']}",
        ),
    ]


def load(model: Path, new_tokens: int, **settings: Any) -> Any:
    """hfkit's Generator, greedy, which continues its prompts also where the model is for chats."""
    import hfkit
    from hfkit.generation.generator import load_generator

    fixed = {"model.name": str(model), "generation.do_sample": False, "generation.raw": True}
    given = {f"generation.{name}": value for name, value in settings.items()}
    recipe = hfkit.load_recipe("generate", **fixed, **{"generation.max_new_tokens": new_tokens}, **given)
    return load_generator(recipe)


def one_by_one(generator: Any, prompts: Sequence[str], new_tokens: int) -> Texts:
    from transformers import pipeline

    generate = pipeline("text-generation", model=generator.model, tokenizer=generator.tokenizer)
    answers = generate(list(prompts), max_new_tokens=new_tokens, do_sample=False, return_tensors=True)
    lengths = [len(generator.encode(prompt)) for prompt in prompts]
    return [[*answer[0]["generated_token_ids"]][length:] for answer, length in zip(answers, lengths, strict=True)]


def in_file_order(generator: Any, prompts: Sequence[str]) -> Texts:
    ids = [generator.encode(prompt) for prompt in prompts]
    places = [range(start, min(start + BATCH_ROWS, len(ids))) for start in range(0, len(ids), BATCH_ROWS)]
    batches = [generator.batch(batch, [ids[place] for place in batch]) for batch in places]
    return [answers[0].ids for batch in batches for answers in batch]


def by_hfkit(generator: Any, prompts: Sequence[str]) -> Texts:
    return [answers[0].ids for answers in generator.answers([generator.encode(prompt) for prompt in prompts])]


def ratio(seconds: dict[str, list[float]], slow: str) -> str:
    found = [a / b for a, b in zip(seconds[slow], seconds["hfkit"], strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def one_prompt(model: Path, tiny: bool, assistant: Path) -> list[Row]:
    """Each way after the plain one, which is measured beside it again each time."""
    new_tokens, rounds = (16, 1) if tiny else (128, 5)
    prompt = prompts_of(1)[0]
    plain = load(model, new_tokens)
    ids = plain.encode(prompt)
    limit = bandwidth() / sum(weight.numel() * weight.element_size() for weight in plain.model.parameters())
    ways = {
        "--assistant-model": {"assistant_model": str(assistant)},
        f"--prompt-lookup {LOOKUP}": {"prompt_lookup_num_tokens": LOOKUP},
        "--compile": {"compile": True},
    }
    rows: list[Row] = []
    for name, settings in ways.items():
        faster = load(model, new_tokens, **settings)
        begun = time.perf_counter()
        ((text,),) = faster.batch([0], [ids])  # compiles
        compiling = time.perf_counter() - begun
        rates: dict[str, list[float]] = {"plain": [], name: []}
        same = True
        for _ in range(rounds):
            for side, generator in (("plain", plain), (name, faster)):
                begun = time.perf_counter()
                ((answer,),) = generator.batch([0], [ids])
                rates[side].append(len(answer.ids) / (time.perf_counter() - begun))
                same = same and answer.ids == text.ids
        gain = statistics.median(b / a for a, b in zip(rates["plain"], rates[name], strict=True))
        share = {side: statistics.median(values) / limit for side, values in rates.items()}
        if not rows:
            rate = statistics.median(rates["plain"])
            rows.append(
                (f"one prompt, {new_tokens} new tokens, plain: tokens/s", "-", f"{rate:.1f}; {reach(share['plain'])}")
            )
        more = f"; {'the same' if same else 'ANOTHER'} text"
        more += f", the first after {compiling:.0f} s" if name == "--compile" else ""
        rows.append((f"- {name}: against plain", "-", f"{gain:.2f}; {reach(share[name])}{more}"))
    return [*rows, ("- limit of the memory, tokens/s", "-", f"{limit:.1f}")]


def reach(share: float) -> str:
    return f"{share:.0%} of the memory's limit"


def bandwidth() -> float:
    """Bytes a second that are read from memory, far beyond any cache, by the threads that generate."""
    import torch

    numbers = torch.ones(1 << 26)  # 256 MiB
    rates = []
    for _ in range(5):
        begun = time.perf_counter()
        numbers.sum()
        rates.append(numbers.numel() * numbers.element_size() / (time.perf_counter() - begun))
    return max(rates)


if __name__ == "__main__":
    main()
