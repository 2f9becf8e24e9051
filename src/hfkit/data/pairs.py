"""Sources and their targets: columns of tables, nested translations, and parallel files with a line for a line."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfkit.data.columns import FLAGS, of_language, place_of, source_columns
from hfkit.data.lines import format_of
from hfkit.data.loading import load_data, load_source
from hfkit.data.readers import TEXT, Layout, has_effect, layout_of
from hfkit.data.scripts import words
from hfkit.data.sources import SPLITS, are_files, local_files, type_name
from hfkit.errors import DataError, UsageError
from hfkit.system.console import counted, say, short, warn

if TYPE_CHECKING:
    from datasets import Dataset

    from hfkit.settings import Data

NESTED = "translation"  # a column of {"de": "...", "en": "..."}, as translation data on the Hub has it

COMMON_WORDS = 100  # of each side, which tell two languages apart

TEXTS = ("string", "large_string", "null")  # kinds of columns that hold texts, or nothing

SAMPLED_ROWS = 10_000  # from which they are counted

Place = Callable[[int], str]  # where a row is, for messages


class Sides(NamedTuple):
    """The common words of sources and of targets; a text is of the side of which it has more."""

    sources: frozenset[str]
    targets: frozenset[str]

    @classmethod
    def of(cls, dataset: Dataset) -> Sides:
        """The words that are common on one side and not on the other; none if both are in one language."""
        rows = dataset[:SAMPLED_ROWS]
        sources, targets = (_common(rows[name]) for name in ("text", "target"))
        return cls(frozenset(sources - targets), frozenset(targets - sources))

    def are_apart(self) -> bool:
        """Whether the sides are in two languages: most common words are of one of them alone."""
        return min(len(self.sources), len(self.targets)) > COMMON_WORDS / 2

    def are_swapped(self, source: str, target: str) -> bool:
        """Whether the source looks like a target, and the target like a source."""
        return self._leaning(source) < 0 < self._leaning(target)

    def _leaning(self, text: str) -> int:
        """Above 0: it has more common words of sources."""
        found = _words(text)
        return sum(word in self.sources for word in found) - sum(word in self.targets for word in found)


class Opened(NamedTuple):
    """Splits with all their columns, the names of those with source and target, and where a row of each split is."""

    splits: dict[str, Dataset]
    names: tuple[str, str]
    places: dict[str, Place]

    def pairs(self) -> dict[str, Dataset]:
        """As `load_pairs` gives them."""
        found = {
            split: _pairs(dataset, self.names, split, self.places[split]) for split, dataset in self.splits.items()
        }
        _check_sides(found)
        return found


def load_pairs(data: Data) -> dict[str, Dataset]:
    """The splits with the columns `text`, `target` and, where targets are lists, `references` (`target`: the first).

    Pairs with an empty side are left out, which is counted in a warning. DataError for parallel files of unequal
    length, and for a split whose sides are swapped.
    """
    return open_pairs(data).pairs()


def open_pairs(data: Data) -> Opened:
    """The splits as they are read, keys of the column NESTED as columns; a guess of the columns is printed."""
    loaded, places = _load(data)
    splits = {split: _flattened(dataset) for split, dataset in loaded.items()}
    names = ("text", "target")
    if all(are_parallel(getattr(data, split)) for split in splits):
        for role, flag in (("text", FLAGS["text"]), ("target", FLAGS["target"])):
            if getattr(data.columns, role) is not None:
                raise UsageError(f"{flag} has no effect: the data is in text files", "leave it out")
    else:
        _require_languages(loaded, splits, data)
        names = source_columns(splits, data)
    return Opened(splits, names, places)


def _require_languages(loaded: Mapping[str, Dataset], splits: Mapping[str, Dataset], data: Data) -> None:
    """DataError if a language is named that is no key of the column NESTED, and no column either."""
    sides = (("--source-lang", data.source_lang, "text"), ("--target-lang", data.target_lang, "target"))
    for split, dataset in loaded.items():
        keys = [name for name in splits[split].column_names if name not in dataset.column_names]
        for flag, language, role in sides if keys else ():
            if language and getattr(data.columns, role) is None and of_language(keys, language) is None:
                fix = " ".join(f"{FLAGS[one]} {keys[0]}" for one in ("text", "target"))
                problem = f"{flag} {language}: no key of '{NESTED}' is called so: {', '.join(keys)}"
                raise DataError(problem, f"name both sides as the data does: {fix}")


def are_parallel(sources: Sequence[str]) -> bool:
    """Whether all sources are text files, which hold one side of the pairs each."""
    return are_files(sources) and all(has_effect("documents", file) for one in sources for file in local_files(one))


def look_parallel(sources: Sequence[str]) -> bool:
    """Whether these are two text files whose names differ in the language at their end: train.de, train.en."""
    paths = [Path(source).expanduser() for source in sources]
    if len(paths) != 2 or not all(path.is_file() for path in paths) or not are_parallel(sources):
        return False
    first, second = (Path(str(path).removesuffix(format_of(path)[1])) for path in paths)
    return first.with_suffix("") == second.with_suffix("") and first.suffix != second.suffix


def _load(data: Data) -> tuple[dict[str, Dataset], dict[str, Place]]:
    named = {split: getattr(data, split) for split in SPLITS if getattr(data, split)}
    texts = {split: sources for split, sources in named.items() if are_parallel(sources)}
    without: dict[str, Any] = {split: [] for split in texts}
    loaded = dict(load_data(replace(data, **without))) if len(texts) < len(named) or not named else {}
    places: dict[str, Place] = {split: partial(place_of, data, split) for split in loaded}
    for split, sources in texts.items():
        files = list(itertools.chain.from_iterable(map(local_files, sources)))
        loaded[split], places[split] = _parallel(files, layout_of(data), split)
    return {split: loaded[split] for split in SPLITS if split in loaded}, places


def _parallel(files: Sequence[Path], layout: Layout, split: str) -> tuple[Dataset, Place]:
    """The pairs of two files, or of several such pairs of files; of one file alone its first two fields."""
    from datasets import concatenate_datasets

    def lines(file: Path) -> Dataset:
        return load_source([str(file)], "line", split, layout=layout)

    if len(files) == 1:
        return _of_one_file(files[0], lines(files[0]), split), lambda row: f"{files[0]}: line {row + 1}"
    if len(files) % 2:
        fix = "give a file of sources and a file of targets: train.de train.en"
        raise DataError(f"{split}: {len(files)} text files, and parallel files come in pairs", fix)
    parts, starts = [], [0]
    pairs = list(zip(files[::2], files[1::2], strict=True))
    _require_order(pairs)
    for source, target in pairs:
        sources, targets = lines(source), lines(target)
        if len(sources) != len(targets):
            problem = f"{source} has {counted(len(sources), 'line')} and {target} has {len(targets):,}"
            raise DataError(problem, "give files in which the same line belongs together")
        say(f"{split}: {counted(len(sources), 'line')} of {source} (sources) and {target} (targets)")
        parts.append(concatenate_datasets([sources, targets.rename_column("text", "target")], axis=1))
        starts.append(starts[-1] + len(sources))

    def place(row: int) -> str:
        part = next(number for number, start in enumerate(starts[1:]) if row < start)
        return f"{files[2 * part]}: line {row - starts[part] + 1}"

    return concatenate_datasets(parts, split=parts[0].split) if len(parts) > 1 else parts[0], place


def _require_order(pairs: Sequence[tuple[Path, Path]]) -> None:
    """DataError for files that can't belong together in their order, by the ends of their names."""
    ends = [tuple(str(path).removesuffix(format_of(path)[1]).rpartition(".")[2] for path in pair) for pair in pairs]
    for pair, (source, target) in zip(pairs, ends, strict=True):
        is_same = source == target and f".{source}" != TEXT
        if pair[0] == pair[1] or is_same or (source != target and (target, source) == ends[0]):
            problem = f"{pair[0]} and {pair[1]} are given as sources and their targets"
            raise DataError(problem, "give each file of sources and then its targets: a.de a.en b.de b.en")


def _of_one_file(file: Path, lines: Dataset, split: str) -> Dataset:
    """The first two fields of each line, separated by tabs; a blank line is a pair without either."""
    from datasets import Dataset

    rows = [line.split("\t") if line.strip() else ["", ""] for line in lines["text"]]
    without = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if without is not None:
        fix = "give the file of the targets, too: train.de train.en"
        raise DataError(f"{file}: line {without}: one text file, and no tab between a source and its target", fix)
    say(f"{split}: {file}: a line holds a source, a tab and its target")
    columns = {"text": [row[0] for row in rows], "target": [row[1] for row in rows]}
    return Dataset.from_dict(columns, split=split)


def _flattened(dataset: Dataset) -> Dataset:
    """The data set with the keys of the column NESTED as columns of their own."""
    feature = dataset.features.get(NESTED)
    if not isinstance(feature, dict) and not hasattr(feature, "languages"):  # datasets.Translation has those
        return dataset
    flat, prefix = dataset.flatten(), f"{NESTED}."
    inner = {name: name.removeprefix(prefix) for name in flat.column_names if name.startswith(prefix)}
    return flat.rename_columns({name: key for name, key in inner.items() if key not in dataset.column_names})


def _pairs(dataset: Dataset, names: tuple[str, str], split: str, place: Place) -> Dataset:
    """The columns `text`, `target` and, of several targets, `references`, without pairs that have an empty side."""
    from datasets import Dataset

    for name, kinds in zip(names, (TEXTS, (*TEXTS, "list of string", "list of null")), strict=True):
        if (kind := type_name(dataset, name)) not in kinds:
            raise DataError(f"{place(0)}: column '{name}' holds {kind}, not text", "name another column")
    sources, targets = (dataset[name][:] for name in names)
    given = [_texts(target) for target in targets]
    kept = [row for row, source in enumerate(sources) if _texts(source) and given[row]]
    if num_empty := len(sources) - len(kept):
        kept_rows = set(kept)
        first = next(row for row in range(len(sources)) if row not in kept_rows)
        empty = "target" if _texts(sources[first]) else "source"
        what = f"{split}: {num_empty:,} of {len(sources):,} pairs have an empty side and are left out"
        warn(f"{what}, first {place(first)} (the {empty})", "fill them in, or delete them on both sides")
    if not kept:
        raise DataError(f"{split}: no pair has a source and a target", "give --text-column and --target-column")
    if not any(isinstance(target, list) for target in targets):
        renamed = {name: role for name, role in zip(names, ("text", "target"), strict=True) if name != role}
        whole = dataset.select_columns([*names]).rename_columns(renamed)
        return whole if not num_empty else whole.select(kept)
    columns = {
        "text": [sources[row] for row in kept],
        "target": [given[row][0] for row in kept],
        "references": [given[row] for row in kept],
    }
    return Dataset.from_dict(columns, split=split)


def one_target_a_row(dataset: Dataset) -> Dataset:
    """A source with several targets as a row for each of them, which is printed."""
    from datasets import Dataset

    if "references" not in dataset.column_names:
        return dataset
    pairs = [(row["text"], target) for row in dataset for target in row["references"]]
    if len(pairs) > len(dataset):
        say(f"train: {len(dataset):,} sources with {len(pairs):,} targets, an example for each target")
    columns = {"text": [source for source, _ in pairs], "target": [target for _, target in pairs]}
    return Dataset.from_dict(columns, split=dataset.split)


def _texts(value: Any) -> list[str]:
    """The texts of a cell that are not blank."""
    return [one for one in (value if isinstance(value, list) else [value]) if one is not None and one.strip()]


def _check_sides(splits: dict[str, Dataset]) -> None:
    """DataError if the sides of a split are those of the first one, swapped; a warning if those of some rows are."""
    first, *others = splits
    sides = Sides.of(splits[first])
    if not sides.are_apart():
        return
    for split in (first, *others):
        rows = splits[split][:SAMPLED_ROWS]
        swapped = [
            row for row, pair in enumerate(zip(rows["text"], rows["target"], strict=True)) if sides.are_swapped(*pair)
        ]
        if split != first and 2 * len(swapped) > len(rows["text"]):
            problem = f"{split}: its sources are in the language of the targets in {first}, and its targets the reverse"
            raise DataError(problem, f"give the two sides in the same order, for {split} as for {first}")
        if swapped:
            number = swapped[0]
            source, target = (short(" ".join(rows[side][number].split())) for side in ("text", "target"))
            example = f"'{source}' with '{target}'"
            warn(
                f"{split}: {len(swapped):,} of {len(rows['text']):,} pairs look swapped, e.g. {example}",
                "correct them, or delete them",
            )


def _common(texts: Iterable[str]) -> set[str]:
    """The COMMON_WORDS words that most texts have."""
    counts = Counter(word for text in texts for word in _words(text))
    return {word for word, _ in counts.most_common(COMMON_WORDS)}


def _words(text: str) -> set[str]:
    """The words of a text in lower case; of scripts without blanks its characters."""
    return set(words(text.lower()))
