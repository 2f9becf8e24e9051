"""The facts about a data set, printed in tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfkit.data.columns import FLAGS
from hfkit.inspection.findings import LABELS_SHOWN, Facts
from hfkit.system.console import result, short, table, warn

QUANTILE_NAMES = {
    "p50": "half have at most",
    "p90": "90% have at most",
    "p99": "99% have at most",
    "max": "the longest has",
}

DOCUMENTS = {"file": "a file", "blank-line": "a paragraph, up to a blank line", "row": "a line"}

BAR = 40  # characters of the longest bar of a histogram


def show(facts: Facts) -> None:
    """Prints the facts on stdout and the findings as warnings."""
    result(as_text(facts))
    for finding in facts["findings"]:
        warn(finding["problem"], finding["fix"])


def as_text(facts: Facts) -> str:
    """The facts without the findings, in tables."""
    splits: Facts = facts["splits"]
    first, part = next(iter(splits.items()))
    flags = ", ".join(dict.fromkeys(FLAGS[fact["role"]] for fact in facts["columns"].values() if fact["role"]))
    columns = [["columns" + (f" (change with {flags})" if flags else "")]]
    for name, fact in facts["columns"].items():
        role = f"the {fact['role'].replace('_', ' ')}" if fact["role"] else ""
        columns.append([f"  {short(name)}", fact["type"], role, _sample(fact["example"])])
    if facts["documents"]:
        columns.append([f"a row is {DOCUMENTS[facts['documents']]} (change with --documents)"])
    blocks = [table(columns), table([["", *splits], *_numbers(splits)], "<>")]
    if "characters" in part and part["rows"] > 1:
        unit = "tokens" if "tokens" in part else "characters"
        blocks.append(table([[f"{unit} in a row, {first}"], *_bars(part[unit]["histogram"])], "<><"))
    if "turns" in part:
        blocks.append(table([[f"answers in a conversation, {first}"], *_bars(part["turns"]["histogram"])], "<><"))
    if "conversation" in facts:
        blocks.append(_marked(facts["conversation"]["text"], facts["conversation"]["learned"]))
    for name in ("labels", "entities", "roles"):
        if part.get(name):
            blocks.append(table(_label_counts(splits, name), "<>"))
    if "values" in part:
        ends = [
            [f"  {key}", *(f"{other['values'][key]:.4g}" for other in splits.values())]
            for key in ("min", "mean", "max")
        ]
        blocks.append(table([["label", *splits], *ends], "<>"))
    return "\n\n".join(blocks)


def _marked(text: str, spans: Sequence[Sequence[int]]) -> str:
    """A conversation with what is learned of it in green in a terminal, elsewhere between double brackets."""
    (begin, end), how = (("\x1b[32m", "\x1b[0m"), "in green") if sys.stdout.isatty() else (("[[", "]]"), "in [[ ]]")
    parts, last = [], 0
    for first, stop in spans:
        parts += [text[last:first], begin, text[first:stop], end]
        last = stop
    marked = "".join([*parts, text[last:]]).rstrip("\n")
    return f"the first conversation, what is learned of it {how}\n{marked}"


def _label_counts(splits: Facts, name: str) -> list[list[str]]:
    """For the most frequent labels, types of "entities" or "roles" of the first split, the count in every split."""
    labels = next(iter(splits.values()))[name]
    rows = [[name, *(f"{len(part[name]):,} in {split}" for split, part in splits.items())]]
    for label in list(labels)[:LABELS_SHOWN]:
        shares = [_share(part[name].get(label, 0), part["rows"] if name == "labels" else 0) for part in splits.values()]
        rows.append([f"  {short(label)}", *shares])
    more = len(labels) - LABELS_SHOWN
    return rows + ([[f"  and {more:,} more"]] if more > 0 else [])


def _numbers(splits: Facts) -> list[list[str]]:
    """The counts of each split, one line per number."""
    lines: list[list[str]] = []

    def add(name: str, *path: str, share: bool = False) -> None:
        cells = []
        for part in splits.values():
            value: Any = part
            for key in path:
                value = value.get(key) if value else None
            cells.append("" if value is None else _share(value, part["rows"]) if share else f"{value:,}")
        if any(cells):
            lines.append([name, *cells])

    add("rows", "rows")
    add("contexts", "contexts")
    add("without an answer", "open", share=True)
    add("words", "words")
    add("bytes of text", "bytes")
    add("empty texts", "empty", share=True)
    add("repeated texts", "repeated", "rows", share=True)
    add("texts with several labels", "repeated", "several_labels", "texts")
    add("texts also in train", "also_in_train", "rows", share=True)
    for unit in ("characters", "tokens"):
        add(unit, unit, "sum")
        several = any(part["rows"] > 1 for part in splits.values())
        for key, name in QUANTILE_NAMES.items() if several else ():
            add(f"  {name}", unit, key)
    first = next(iter(splits.values()))
    cut = f"  truncated at {first.get('tokens', {}).get('limit')}"
    add("  unknown", "tokens", "unknown")
    add(cut, "tokens", "cut", share=True)
    for name, unit in (("characters of targets", "characters"), ("tokens of targets", "tokens")):
        add(name, "target", unit, "sum")
        for key in ("p50", "max"):
            add(f"  {QUANTILE_NAMES[key]}", "target", unit, key)
    add(cut, "target", "tokens", "cut")
    if "pairs" in first:
        ratios = [f"{part['pairs']['ratio']['median']:.2f}" for part in splits.values()]
        lines.append(["target / source in characters, median", *ratios])
    if "characters" in first and "tokens" not in first:
        lines.append(["(--model NAME also counts tokens)"])
    return lines


def _bars(histogram: Mapping[str, int]) -> Iterator[list[str]]:
    most = max(histogram.values())
    for low, count in histogram.items():
        name = f"{int(low):,} to {2 * int(low) - 1:,}" if int(low) > 1 else low
        yield [f"  {name}", f"{count:,}", "#" * -(-BAR * count // most)]


def _share(count: int, rows: int) -> str:
    return f"{count:,}" + (f" ({count / rows:.1%})" if count and rows else "")


def _sample(text: str) -> str:
    return f"e.g. {short(' '.join(text.split()), 60)}"
