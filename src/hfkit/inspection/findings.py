"""What needs a decision in a data set, and what to type."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from hfkit.data.labels import SINGLE
from hfkit.system.console import short

Facts = dict[str, Any]

Findings = list[tuple[str, str]]  # a problem and its fix

LABELS_SHOWN = 10

LOPSIDED = 0.8  # share of one label from which accuracy says little

ODD_RATIO = 4  # from the usual ratio of lengths, from which two texts hardly belong together

ODD_LENGTH = 40  # characters of both texts, below which lengths say little

MANY_UNKNOWN = 0.01  # share of unknown tokens from which a tokenizer doesn't fit the text


def split_findings(split: str, facts: Facts, longest: int | None) -> Findings:
    """What needs a decision in one split; `longest`: the number of tokens that the model takes, if it is limited."""
    findings = [*_text_findings(split, facts), *_token_findings(split, facts, longest)]
    part, train = facts["splits"][split], facts["splits"].get("train", {})
    findings += _pair_findings(split, part) if "pairs" in part else []
    if new := [kind for kind in part.get("entities", ()) if kind not in train.get("entities", part["entities"])]:
        findings.append((f"{split}: types that are not in train: {_some(new)}", "correct them, or add training rows"))
    if part.get("labels"):
        if split == "train":
            findings += _label_findings(part)
        elif new := [label for label in part["labels"] if label not in train.get("labels", part["labels"])]:
            fix = "correct them, or add training rows"
            findings.append((f"{split}: labels that are not in train: {_some(new)}", fix))
    return findings


def _text_findings(split: str, facts: Facts) -> Findings:
    """Empty and repeated texts, texts with different labels, and texts that are also in train."""
    part: Facts = facts["splits"][split]
    rows, repeated = part["rows"], part["repeated"]
    has_labels = bool({"problem_type", "entities", "contexts", "pairs", "turns"} & part.keys())
    findings: Findings = []
    if part["empty"]:
        fix = "delete them" if has_labels else "hfkit pretrain ... --set data.clean.white_space=true"
        findings.append((f"{split}: {of_rows(part['empty'], rows)} have an empty text", fix))
    if repeated["rows"] and split == "train":
        most = repeated["examples"][0]
        problem = f"train: {of_rows(repeated['rows'], rows)} repeat an earlier text"
        fix = "hfkit pretrain ... --set data.clean.deduplicate=true"
        if has_labels and "validation" in facts["splits"]:
            fix = "delete them, unless they are intended"
        elif has_labels:
            problem += ", so held-out rows may be known from training"
            fix = "delete them, or give --validation FILE"
        findings.append((f"{problem}; most often {_quoted(most['text'])}, {most['rows']:,} times", fix))
    if several := repeated.get("several_labels", {}).get("texts"):
        texts = f"{several:,} {'text has' if several == 1 else 'texts have'} rows with different labels"
        example = _quoted(repeated["several_labels"]["examples"][0])
        findings.append((f"{split}: {texts}, e.g. {example}", "decide on one label for each"))
    if overlap := part.get("also_in_train", {}).get("rows"):
        problem = f"{split}: {of_rows(overlap, rows)} have a text that is also in train, so scores will be too good"
        example = _quoted(part["also_in_train"]["examples"][0])
        findings.append((f"{problem}, e.g. {example}", "delete them from one of the two"))
    return findings


def pair_facts(sources: Sequence[str], targets: Sequence[str]) -> Facts:
    """Of pairs: characters of the target over those of the source, and what looks wrong, with the first example."""
    ratios = [len(target) / len(source) for source, target in zip(sources, targets, strict=True)]
    usual = statistics.median(ratios)
    odd = [
        row
        for row, ratio in enumerate(ratios)
        if len(sources[row]) + len(targets[row]) > ODD_LENGTH and not usual / ODD_RATIO <= ratio <= usual * ODD_RATIO
    ]
    equal = [row for row, (source, target) in enumerate(zip(sources, targets, strict=True)) if source == target]
    return {
        "ratio": {"min": min(ratios), "median": usual, "max": max(ratios)},
        "odd": {"rows": len(odd), "examples": [[sources[row], targets[row]] for row in odd[:1]]},
        "equal": {"rows": len(equal), "examples": [[sources[row], targets[row]] for row in equal[:1]]},
    }


def _pair_findings(split: str, part: Facts) -> Findings:
    """Targets that are their sources, and lengths that do not belong together."""
    findings: Findings = []
    for name, problem in (
        ("equal", "have the source as target"),
        ("odd", f"have a target {ODD_RATIO} times as long or as short as usual beside its source"),
    ):
        if rows := part["pairs"][name]["rows"]:
            source, target = part["pairs"][name]["examples"][0]
            example = f"e.g. {_quoted(source)} with {_quoted(target)}"
            fix = "delete or correct them, unless they are intended"
            findings.append((f"{split}: {of_rows(rows, part['rows'])} {problem}, {example}", fix))
    return findings


def _token_findings(split: str, facts: Facts, longest: int | None) -> Findings:
    """Truncated rows and unknown tokens."""
    part: Facts = facts["splits"][split]
    tokens = part.get("tokens")
    if not tokens:
        return []
    findings: Findings = []
    if tokens.get("cut"):
        limit = tokens["limit"]
        problem = f"{split}: {of_rows(tokens['cut'], part['rows'])} are longer than {limit:,} tokens and truncated"
        needed = max(other["tokens"]["max"] for other in facts["splits"].values() if "tokens" in other)
        possible = min(needed, longest or needed)
        fix = (
            f"--max-length {possible}"
            if possible > limit
            else "a --model for longer texts, or hfkit finetune ... --allow-truncation"
        )
        findings.append((problem, fix))
    if tokens["unknown"] > MANY_UNKNOWN * tokens["sum"]:
        problem = f"{split}: the tokenizer does not know {tokens['unknown'] / tokens['sum']:.1%} of the tokens"
        findings.append((problem, "a --model for this language or alphabet"))
    return findings


def _label_findings(train: Facts) -> Findings:
    """One label for all or nearly all rows, nearly as many labels as rows, and labels of a single row."""
    rows, labels, is_single = train["rows"], train["labels"], train["problem_type"] == SINGLE
    label, count = next(iter(labels.items()))
    if len(labels) == 1:
        return [(f"train: all labels are '{short(label)}'", "--label-column NAME, or add other rows")]
    findings: Findings = []
    if is_single and count >= LOPSIDED * rows:
        problem = f"train: {count / rows:.1%} of the rows have the label '{short(label)}', so accuracy says little"
        findings.append((problem, "hfkit finetune ... --metrics mcc,f1_macro --best f1_macro"))
    elif is_single and len(labels) > rows / 2:
        findings.append((f"train: {len(labels):,} different labels in {rows:,} rows", "--label-column NAME"))
    if once := [label for label, count in labels.items() if count == 1]:
        findings.append((f"train: seen only once: {_some(once)}", "add rows, or join rare labels"))
    return findings


def of_rows(count: int, rows: int) -> str:
    return f"{count:,} of {rows:,} rows ({count / rows:.1%})"


def _quoted(text: str) -> str:
    return f"'{short(' '.join(text.split()))}'"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - LABELS_SHOWN:,} more" if len(names) > LABELS_SHOWN else ""
    return ", ".join(map(short, names[:LABELS_SHOWN])) + more
