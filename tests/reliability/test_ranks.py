"""Several ranks compute what one process does: the same weights, the same numbers, every row once, in its order."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import STREAMING, Material, SignalAt, contents, hfkit, small_disk, state_hash, status
from test_save import FillsDisk

from hfkit.errors import LostProcessError

Unbroken = Callable[..., str]


@pytest.mark.parametrize(
    ("task", "more"),
    [
        pytest.param("clm", (), id="clm"),
        pytest.param("mlm", (), id="mlm"),
        pytest.param("classification", (), id="classification"),
        pytest.param("tags", (), id="tags"),
        pytest.param("questions", (), id="questions"),
        pytest.param("completion", (), id="completion"),
        pytest.param("chat", (), id="chat"),
        pytest.param("clm", STREAMING, id="clm-streaming"),
        pytest.param("mlm", STREAMING, id="mlm-streaming"),
    ],
)
@pytest.mark.portable
def test_ranks_equal_accumulated_passes(task: str, more: tuple[str, ...], unbroken: Unbroken) -> None:
    one = unbroken(task, "--dropout", "0", *more, "--gradient-accumulation-steps", "2")
    assert one == unbroken(task, "--dropout", "0", *more, ranks=2)


@pytest.fixture(scope="module")
def classifier(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    ended = hfkit(material.command("classification", folder / "run"), folder / "said")
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.portable
def test_predictions_of_few_rows(rows: int, ranks: int, classifier: Path, material: Material, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(material.text.read_text().split("\n\n")[row] + "\n" for row in range(rows)))
    command = ["predict", str(classifier), "--input", str(texts), "--set", "evaluation.batch_size=2"]
    answers = []
    for count in (1, ranks):
        output = tmp_path / f"{count}.jsonl"
        ended = hfkit([*command, "--output", str(output)], tmp_path / "said", ranks=count)
        assert ended.codes == [0] * count, ended.err
        answers.append(output.read_text(encoding="utf-8"))
    assert answers[0] == answers[1]
    assert [json.loads(line)["text"] for line in answers[1].splitlines()] == texts.read_text().splitlines()


@pytest.mark.portable
def test_predictions_of_ranks_go_on_where_they_were_stopped(
    classifier: Path, material: Material, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    command = ["predict", str(classifier), "--input", str(material.table), "--output", str(output), "--text-column"]
    command += ["text", "--set", "evaluation.batch_size=8"]
    assert hfkit(command, tmp_path / "said").code == 0
    whole = output.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    output.write_text("".join(lines[:5]) + lines[5][:9], encoding="utf-8")
    assert hfkit(command, tmp_path / "said", ranks=2).codes == [2, 2]
    ended = hfkit([*command, "--resume"], tmp_path / "said", ranks=2)
    assert ended.codes == [0, 0], ended.err
    assert "5 rows are there already" in ended.err
    again = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for before, after in zip(map(json.loads, lines), again, strict=True):
        assert before["text"] == after["text"]
        assert after["score"] == pytest.approx(before["score"], abs=1e-6)


@pytest.mark.parametrize(
    "task",
    ["clm", "mlm", "classification", "pseudo-perplexity"],
)
@pytest.mark.portable
def test_an_evaluation_has_the_numbers_of_one_process(
    task: str, classifier: Path, material: Material, tmp_path: Path
) -> None:
    model, data, more = {
        "clm": (material.gpt2, material.text, ["--stride", "5", "--context", "16"]),
        "mlm": (material.bert, material.text, []),
        "pseudo-perplexity": (material.bert, material.text, ["--pseudo-perplexity"]),
        "classification": (classifier, material.table, []),
    }[task]
    command = ["evaluate", str(model), "--data", str(data), "--json", "--set", "evaluation.batch_size=7", *more]
    ended = [
        hfkit([*command, "-o", str(tmp_path / f"of-{ranks}")], tmp_path / f"said-{ranks}", ranks=ranks)
        for ranks in (1, 2)
    ]
    assert ended[1].codes == [0, 0], ended[1].err
    assert ended[0].out == ended[1].out
    assert json.loads(ended[1].out)["metrics"]
    kept = [{name: value[:64] for name, value in contents(tmp_path / f"of-{ranks}").items()} for ranks in (1, 2)]
    assert kept[0] == kept[1] != {}


@pytest.mark.portable
def test_metrics_while_training_are_those_of_one_process(material: Material, tmp_path: Path) -> None:
    """Six validation examples in batches of four: an odd share for each of two ranks."""
    logged = []
    for ranks, more in ((1, ["--gradient-accumulation-steps", "2"]), (2, [])):
        run = tmp_path / f"run-{ranks}"
        command = material.command("classification", run, "--dropout", "0", "--validation-split", "0.117", *more)
        ended = hfkit([*command, "--set", "train.per_device_eval_batch_size=4"], tmp_path / "said", ranks=ranks)
        assert ended.codes == [0] * ranks, ended.err
        lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        logged.append(
            [(line["step"], line["eval_accuracy"], line["eval_loss"]) for line in lines if "eval_loss" in line]
        )
        results = json.loads((run / "eval_results.json").read_text(encoding="utf-8"))
        assert results["metrics"]["validation"]["accuracy"]["n"] == 7
        logged[-1].append(results)
    assert logged[0] == logged[1]


@dataclasses.dataclass(frozen=True)
class OtherVersion:
    """This process has another release of a package installed, as far as its metadata say."""

    folder: Path
    package: str

    def __call__(self) -> None:
        info = self.folder / f"{self.package}-99.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {self.package}\nVersion: 99.0\n")
        sys.path.insert(0, str(self.folder))


def test_ranks_of_other_versions(material: Material, tmp_path: Path) -> None:
    fault = OtherVersion(tmp_path / "site", "safetensors")
    command = material.command("clm", tmp_path / "run")
    ended = hfkit(command, tmp_path / "said", ranks=2, faults=[fault], faulty_rank=1)
    assert ended.codes == [2, 2]
    assert "error: the processes of this run differ in safetensors: " in ended.err
    assert "99.0 on rank 1 (fix: give all machines the same)" in ended.err
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_rank_that_loses_another_says_so(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = SignalAt(signal.SIGKILL, "checkpoint-10", event="os.mkdir")
    ended = hfkit(material.command("mlm", run), tmp_path / "said", ranks=2, faults=[fault], faulty_rank=1)
    assert ended.codes == [LostProcessError.exit_code, -signal.SIGKILL], ended.err
    assert "error: rank 0 has lost another of the 2 processes: " in ended.err
    assert "step 5 is saved (fix: see why that one ended, then --resume auto)" in ended.err
    assert "Traceback" not in ended.err
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 8)


def test_a_disk_that_is_full_for_one_rank_ends_all(material: Material, unbroken: Unbroken, tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", "size=2000k") as disk:
            command = material.command("clm", disk / "run")
            fault = FillsDisk(disk, 60_000, "checkpoint-15")
            ended = hfkit(command, tmp_path / "said", ranks=2, faults=[fault])
            assert ended.code == 6, ended.err
            assert all(ended.codes)
            assert "disk full" in ended.err.splitlines()[-1]
            assert "step 10 is saved" in ended.err
            (disk / "ballast").unlink()
            again = hfkit([*command, "--resume", "auto"], tmp_path / "again", ranks=2)
            assert again.codes == [0, 0], again.err
            assert state_hash(disk / "run") == unbroken("clm", ranks=2)
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_prediction_that_loses_a_rank(classifier: Path, material: Material, tmp_path: Path) -> None:
    command = ["predict", str(classifier), "--input", str(material.table), "--text-column", "text"]
    fault = SignalAt(signal.SIGKILL, "config.json", reading=True)
    ended = hfkit(command, tmp_path / "said", ranks=2, faults=[fault], faulty_rank=1)
    assert ended.codes == [LostProcessError.exit_code, -signal.SIGKILL], ended.err
    assert "Traceback" not in ended.err
