"""A file of prompts whose answers are killed again and again ends, started again, as the file of an unbroken run."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from harness import Ended, Launched, SignalAt, hfkit, launch

import tiny_models

APPENDED = ".partial-{}.jsonl"  # what a process opens to put a finished batch on the disk
SAMPLED = ["--do-sample", "--temperature", "0.9"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose answers differ from prompt to prompt."""
    from transformers import AutoModelForCausalLM

    directory = tiny_models.make_gpt2(tmp_path_factory.mktemp("models") / "gpt2-tiny")
    tiny_models.spread(AutoModelForCausalLM.from_pretrained(directory)).save_pretrained(directory)
    return str(directory)


def command(gpt2: str, folder: Path, num_prompts: int, *more: str) -> list[str]:
    """The command that answers so many prompts of one to twelve words in `folder`."""
    draw = random.Random(0)
    words = [word for text in tiny_models.TEXT for word in text.split()]
    prompts = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(num_prompts)]
    folder.mkdir(exist_ok=True)
    with (folder / "p.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    size = ["--max-new-tokens", "8", "--batch-tokens", "400"]
    return ["generate", gpt2, "--input", "p.jsonl", "--output", "o.jsonl", *size, *more]


def unbroken(gpt2: str, folder: Path, num_prompts: int, *more: str) -> bytes:
    ended = hfkit(command(gpt2, folder, num_prompts, *more), folder / "said")
    assert ended.code == 0, ended.err
    return (folder / "o.jsonl").read_bytes()


def require_whole(folder: Path, expected: bytes, num_prompts: int) -> None:
    """Every row once and in order, as the unbroken run has it, and nothing else left."""
    made = (folder / "o.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in made.splitlines()] == list(range(num_prompts))
    assert made == expected
    assert not [path.name for path in folder.iterdir() if "partial" in path.name]


def kept(folder: Path) -> int:
    """The lines that are on the disk."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("o.jsonl.partial-*.jsonl"))


@pytest.mark.parametrize("settings", [[], SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.portable
def test_killed_work_goes_on_with_the_same_command(gpt2: str, settings: list[str], tmp_path: Path) -> None:
    expected = unbroken(gpt2, tmp_path / "whole", 60, *settings)
    line = command(gpt2, tmp_path / "a", 60, *settings)
    ended = hfkit(line, tmp_path / "a" / "said", faults=[SignalAt(signal.SIGKILL, APPENDED.format(0), nth=3)])
    assert ended.code == -signal.SIGKILL
    num_kept = kept(tmp_path / "a")
    assert 0 < num_kept < 60
    again = hfkit(line, tmp_path / "a" / "said")
    assert again.code == 0, again.err
    assert f"o.jsonl: going on, {num_kept} of 60 rows are there" in again.err
    require_whole(tmp_path / "a", expected, 60)


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_killed_while_the_output_is_made_and_the_rest_removed(gpt2: str, nth: int, tmp_path: Path) -> None:
    """Killed where the output is replaced, and as each of the files that were kept is removed."""
    expected = unbroken(gpt2, tmp_path / "whole", 60)
    line = command(gpt2, tmp_path / "a", 60)
    fault = [
        SignalAt(signal.SIGKILL, ".o.jsonl", event="os.rename"),
        SignalAt(signal.SIGKILL, "o.jsonl.partial.json", event="os.truncate"),
        SignalAt(signal.SIGKILL, APPENDED.format(0), event="os.remove"),
        SignalAt(signal.SIGKILL, "o.jsonl.partial.json", event="os.remove"),
    ][nth - 1]
    ended = hfkit(line, tmp_path / "a" / "said", faults=[fault])
    assert ended.code == -signal.SIGKILL
    again = hfkit([*line, "--resume"], tmp_path / "a" / "said")
    assert again.code == 0, again.err
    assert ("nothing to do" in again.err) == (nth > 2)
    assert (tmp_path / "a" / "o.jsonl").read_bytes() == expected


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.portable
def test_processes_share_the_batches_and_any_number_goes_on(gpt2: str, ranks: int, tmp_path: Path) -> None:
    expected = unbroken(gpt2, tmp_path / "whole", 60, *SAMPLED)
    line = command(gpt2, tmp_path / "a", 60, *SAMPLED)
    ended = hfkit(
        line,
        tmp_path / "a" / "said",
        ranks=2,
        faults=[SignalAt(signal.SIGKILL, APPENDED.format(1), nth=2)],
        faulty_rank=1,
    )
    assert ended.codes[1] == -signal.SIGKILL
    assert ended.codes[0] not in (0, -signal.SIGKILL)
    assert (tmp_path / "a" / "o.jsonl.partial-0.jsonl").exists()
    assert (tmp_path / "a" / "o.jsonl.partial-1.jsonl").exists()
    again = hfkit(line, tmp_path / "a" / "said", ranks=ranks)
    assert again.codes == [0] * ranks, again.err
    assert "going on" in again.err
    require_whole(tmp_path / "a", expected, 60)


def test_processes_give_one_error_and_leave_nothing(gpt2: str, tmp_path: Path) -> None:
    line = command(gpt2, tmp_path / "a", 3)
    (tmp_path / "a" / "p.jsonl").write_text('{"prompt": "hello"}\n{"prompt": ""}\n')
    ended = hfkit(line, tmp_path / "a" / "said", ranks=2)
    assert ended.codes == [3, 3]
    assert ended.err.count("error: p.jsonl: line 2: column 'prompt': the prompt is empty") == 1
    assert [path.name for path in (tmp_path / "a").iterdir() if path.name.startswith("o.jsonl")] == []


@pytest.mark.soak
@pytest.mark.parametrize("settings", [[], SAMPLED], ids=["greedy", "sampled"])
def test_two_thousand_prompts_killed_ten_times(gpt2: str, settings: list[str], tmp_path: Path) -> None:
    """Killed a random moment after a random number of rows is kept; between kills it only ever goes on."""
    settings = ["--batch-tokens", "1000", *settings]  # some fifty batches
    expected = unbroken(gpt2, tmp_path / "whole", 2000, *settings)
    folder = tmp_path / "a"
    line = command(gpt2, folder, 2000, *settings)
    draw = random.Random(len(settings))
    for reached in sorted(draw.randrange(1800) for _ in range(10)):
        launched: Launched = launch(line, folder / "said")
        launched.wait_until(lambda reached=reached: kept(folder) >= reached)
        time.sleep(draw.uniform(0, 0.05))
        launched.signal(signal.SIGKILL)
        ended: Ended = launched.wait()
        assert ended.code == -signal.SIGKILL
        assert not (folder / "o.jsonl").exists()
    again = hfkit(line, folder / "said")
    assert again.code == 0, again.err
    assert "going on" in again.err
    require_whole(folder, expected, 2000)
