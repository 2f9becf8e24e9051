"""Numbers with a definition and an interval: of a run or model on data, or of predictions against references."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfkit.console import is_main_process, say
from hfkit.distributed import together
from hfkit.errors import DataError, StorageError, UsageError
from hfkit.metrics import Score
from hfkit.recipe import SETTINGS, acts
from hfkit.results import PREDICTIONS, Row, read_rows, write_rows
from hfkit.sources import stay_local
from hfkit.tasks.labels import split_labels

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from hfkit.recipe import Recipe

# Columns of prediction files, the first that is there.
PREDICTION_NAMES = ("prediction", "predictions", "predicted", "generated", "output", "text")
REFERENCE_NAMES = ("references", "reference", "target", "label", "labels", "value", "text")
ANSWER_NAMES = ("label", "labels", "value")  # what `hfkit predict` says of a text, which it repeats
AMBIGUOUS = ("output", "text", *ANSWER_NAMES)  # of these, which one was taken is said


@dataclass(frozen=True)
class Evaluated:
    """Scores, the split they are of, and what the model said of each row; no rows where the task keeps none."""

    scores: dict[str, Score]
    split: str
    rows: list[Row]


def evaluate(recipe: Recipe) -> dict[str, Score]:
    """The metrics of recipe.model.name, a run or a model, on recipe.data.test, else on the run's own held-out data.

    Raises UsageError where no data is named, DataError or ModelError where data or model can't be read or don't fit.
    """
    with together():
        return _evaluate(recipe, None).scores


def evaluate_rows(recipe: Recipe, output: Path | None = None) -> Evaluated:
    """As `evaluate`, with the rows; files about them and the scores are left in `output`, where that is given."""
    output = output if is_main_process() else None
    with tempfile.TemporaryDirectory(prefix="hfkit-") as scratch, together():
        if output is not None:
            make_directory(output)
        found = _evaluate(recipe, output or Path(scratch))
    if output is not None:
        keep_scores(output, found.split, found.scores)
    return found


def make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}", "--output DIRECTORY") from error


def keep_scores(directory: Path, split: str, scores: Mapping[str, Score]) -> None:
    """Puts the scores of `split` into eval_results.json, as a run has it, beside those of other splits."""
    from hfkit.checkpoints import write_atomically
    from hfkit.runs import DETAILS, read_scores

    details = {**read_scores(directory), split: {name: dataclasses.asdict(score) for name, score in scores.items()}}
    write_atomically(directory / DETAILS, json.dumps({"metrics": details}, indent=1))


def _evaluate(recipe: Recipe, directory: Path | None) -> Evaluated:
    from hfkit.inference import to_device
    from hfkit.models import load_config, load_tokenizer, new_or_pretrained, quiet_libraries
    from hfkit.tasks import TASKS

    stay_local(recipe)
    quiet_libraries()
    config = load_config(recipe)
    recipe = dataclasses.replace(recipe, task=recipe.task or _task_of(config, recipe.model.name))
    task = TASKS[recipe.task or ""]
    _require_effect(recipe)
    if problems := task.unknown_metrics(recipe.evaluation.metrics):
        raise UsageError.of(problems)
    documents = recipe.data.documents or task.defaults({}).get("data.documents")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, documents=documents))
    splits = task.load(recipe)
    split = next((name for name in ("test", "validation") if name in splits), None)
    if split is None:
        raise UsageError("there is no data to evaluate on", "--data FILE")
    if not recipe.data.test:
        say(f"data: the run's own {split} data, {len(splits[split]):,} rows")
    for key, value in task.model_settings({split: splits[split]}, config).items():
        setattr(config, key, value)
    tokenizer = load_tokenizer(recipe, config)
    model = to_device(new_or_pretrained(task.auto_model, recipe, config, tokenizer, new_head=False))
    beside = None if directory is None else directory / split
    kept = Path(f"{beside}_{PREDICTIONS}")
    kept.unlink(missing_ok=True)  # of an earlier evaluation
    scores = task.evaluate(model, tokenizer, splits[split], recipe, beside=beside)
    rows = read_rows(kept) if beside is not None and kept.exists() else []
    if recipe.evaluation.compat is not None:  # whose names are those of the other program
        return Evaluated(scores, split, rows)
    if missing := [name for name in recipe.evaluation.metrics if name not in scores]:
        raise DataError(f"this data has no {', '.join(missing)}", f"--metrics {','.join(scores)}")
    if "perplexity" not in recipe.evaluation.metrics:  # one name for all its units, as rouge is for four numbers
        scores = {name: scores[name] for name in recipe.evaluation.metrics or scores}
    return Evaluated(scores, split, rows)


def keep_rows(directory: Path, rows: Sequence[Row], scores: Mapping[str, Score]) -> None:
    """Leaves what was measured from files in `directory`, as an evaluation of a model does."""
    make_directory(directory)
    write_rows(directory / "test", rows)
    keep_scores(directory, "test", scores)


def groups_of(recipe: Recipe, column: str, num_rows: int) -> list[str]:
    """What stands in `column` of each row of recipe.data.test."""
    from hfkit.data import load_data

    if not recipe.data.test:
        raise UsageError("--by names a column of the data", "--data FILE")
    alone = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train=[], validation=[]))
    dataset = load_data(alone)["test"]
    if column not in dataset.column_names:
        raise DataError(f"the data has no column '{column}', found: {', '.join(dataset.column_names)}", "--by COLUMN")
    if len(dataset) != num_rows:
        raise DataError(f"{len(dataset):,} rows, but {num_rows:,} were measured: no group of each", "leave out --by")
    return [str(value) for value in dataset[column]]


def rows_of_files(
    predictions: Path,
    references: Sequence[Path] = (),
    *,
    prediction_column: str | None = None,
    reference_column: str | None = None,
    by: str | None = None,
) -> list[Row]:
    """A row for each prediction: "prediction", and "reference" or, where there are several, "references".

    A .txt file holds one a line, an empty one too; other files hold one a row, in the column named or a usual one, in
    which a list stands for several references. Without `references` they are taken from the file of the predictions,
    where it has such a column. Rows that `hfkit predict` or `hfkit evaluate -o` wrote have "probabilities", too.
    `by`: a column of either that goes into the rows as "group".
    """
    table = _Table(predictions)
    answer = table.answer() if prediction_column is None else None
    made = table.column(prediction_column, PREDICTION_NAMES if answer is None else [answer])
    if references:
        usual: Sequence[str] = REFERENCE_NAMES
        others = [_Table(path) for path in references]
    else:  # in a file of answers a label is the answer, and in none a column is the reference of itself
        taken = (prediction_column,) if answer is None else ANSWER_NAMES
        usual = [name for name in REFERENCE_NAMES[:-1] if name not in taken]
        others = [table] if table.has(reference_column, usual) else []
    given = [other.column(reference_column, usual) for other in others]
    for path, lines in zip(references, given, strict=False):
        if len(lines) != len(made):
            raise DataError(
                f"{predictions} has {len(made):,} lines, {path} has {len(lines):,}",
                "give one reference per prediction, in the same order",
            )
    rows: list[Row] = [{"prediction": text} for text in made]
    for row, texts in zip(rows, zip(*given, strict=True), strict=bool(given)):
        if len(texts) == 1 and not isinstance(texts[0], list):
            row["reference"] = texts[0]
        else:
            row["references"] = [one for text in texts for one in (text if isinstance(text, list) else [text])]
    if prediction_column is None and others and "probabilities" in table.names:
        rows = _with_probabilities(rows, table.column("probabilities"), predictions)
    if by is not None:
        holder = next((one for one in (table, *others) if one.has(by)), None)
        if holder is None:
            raise DataError(
                f"no column '{by}' in {' or '.join(str(one.path) for one in (table, *others))}", "--by COLUMN"
            )
        for row, group in zip(rows, holder.column(by), strict=True):
            row["group"] = str(group)
    return rows


def _with_probabilities(rows: list[Row], shares: list[Any], path: Path) -> list[Row]:
    """The rows of a classifier, where `shares` are its probabilities: several references are the labels of one text."""
    if not all(isinstance(one, dict) for one in shares):
        return rows
    names = [*shares[0]]
    several = isinstance(rows[0]["prediction"], list)
    texts = [row["reference"] for row in rows if isinstance(row.get("reference"), str)]
    parts = iter(split_labels(texts, names) if several else [])
    found = []
    for number, (row, one) in enumerate(zip(rows, shares, strict=True), start=1):
        actual = row.pop("references") if "references" in row else row["reference"]
        if several:
            actual = next(parts) if isinstance(actual, str) else actual if isinstance(actual, list) else [actual]
            actual = [str(name) for name in actual]
        strange = [name for name in actual if name not in names] if isinstance(actual, list) else []
        if strange or isinstance(actual, list) > several:
            problem = f"references, row {number}: {strange or actual} is no label of {path}"
            raise DataError(problem, f"its labels: {', '.join(names[:20])}")
        found.append({**row, "reference": actual, "probabilities": one})
    return found


class _Table:
    """A file of predictions or references by column; a .txt file has none but its lines."""

    def __init__(self, path: Path) -> None:
        from hfkit.data import load_source
        from hfkit.readers import format_of, read_lines

        self.path, self.lines, self.names = path, None, []
        if format_of(path)[0] == ".txt":
            self.lines = [line.rstrip("\r\n") for _, line in read_lines(path)]
            if not self.lines:
                raise DataError(f"{path}: no rows", "give one text a line")
        else:
            self.dataset = load_source([str(path)])
            self.names = self.dataset.column_names

    def has(self, name: str | None, usual: Sequence[str] = ()) -> bool:
        return any(one in self.names for one in ([name] if name else usual))

    def answer(self) -> str | None:
        """The column with the answers where `hfkit predict` wrote the file."""
        is_theirs = self.names[:1] == ["text"] and self.has(None, ("probabilities", "value"))
        if not is_theirs or self.has(None, PREDICTION_NAMES[:-1]):
            return None
        return next((name for name in ANSWER_NAMES if name in self.names), None)

    def column(self, name: str | None, usual: Sequence[str] = ()) -> list[Any]:
        """The named column, else the first usual one, else the only one."""
        if self.lines is not None:
            return self.lines
        found = next((one for one in ([name] if name else usual) if one in self.names), None)
        if found is None and name is None and len(self.names) == 1:
            found = self.names[0]
        if found is None:
            wanted = f"column '{name}'" if name else f"column of the usual names ({', '.join(usual)})"
            raise DataError(f"{self.path} has no {wanted}, found: {', '.join(self.names)}", "--column NAME")
        if name is None and len(self.names) > 1 and found in AMBIGUOUS:
            say(f"{self.path}: column '{found}' (change with --prediction-column or --reference-column)")
        return list(self.dataset[found])


def _require_effect(recipe: Recipe) -> None:
    """UsageError naming every setting that means nothing to the model's task."""
    problems = []
    for key, one in SETTINGS.items():
        if acts("evaluate", key) and not acts("evaluate", key, recipe.task) and attrgetter(key)(recipe) != one.default:
            flag, tasks = one.metadata["flags"][0].partition("/")[0], " and ".join(one.metadata["tasks"])
            problems.append((f"{flag} has no effect for {recipe.task}, it is for {tasks}", "leave it out"))
    if problems:
        raise UsageError.of(problems)


def _task_of(config: PreTrainedConfig, name: str | None) -> str:
    """The task of a model that is no run of ours: the one whose head it was saved with."""
    from hfkit.models import was_saved_with
    from hfkit.tasks import TASKS

    fitting = [task for task in TASKS if was_saved_with(TASKS[task].auto_model, config)] if config.architectures else []
    if len(fitting) != 1:
        names = ", ".join(config.architectures or []) or "its config"
        raise UsageError(f"{name}: can't tell its task from {names}", f"--task {' or '.join(fitting or TASKS)}")
    return fitting[0]
