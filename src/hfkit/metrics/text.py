"""Metrics of text: BLEU, chrF, TER, ROUGE, exact match, repetition."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from hfkit.data.scripts import HAN, SPACELESS, words, written_in
from hfkit.errors import DataError
from hfkit.metrics.inputs import mean_sample
from hfkit.metrics.sample import Sample, additive, ratio_sample
from hfkit.system import console
from hfkit.system.compat import corpus_statistics

if TYPE_CHECKING:
    from hfkit.metrics.inputs import Inputs
    from hfkit.metrics.sample import Array

ROWS_AT_ONCE = 1_000  # sacreBLEU holds every n-gram of the references it is given, rouge_score_rs every score

# `\w` lacks the vowel signs of Hebrew, Arabic and the scripts of India, which would cut their words.
WORD = re.compile(
    f"{SPACELESS.pattern}|(?:(?!{SPACELESS.pattern})"
    "[^\\W_\u0300-\u036f]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff])+"
)

NON_ASCII_LETTER = re.compile(r"[^\W\d_a-zA-Z]")

ARTICLES = re.compile(r"\b(a|an|the)\b")

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

ROUGE_STEM_KEYS = tuple(f"{key}_stem" for key in ROUGE_KEYS)

ROUGE_EN_KEYS = tuple(f"{key}_en" for key in ROUGE_KEYS)


def bleu_for(references: Sequence[str]) -> str:
    """The BLEU that counts what the script of most references divides: words, Chinese signs, or characters."""
    most = len(references) / 2
    if sum(written_in(SPACELESS, text) for text in references) <= most:
        return "bleu"
    return "bleu_zh" if sum(written_in(HAN, text) for text in references) > most else "bleu_char"


def sacrebleu_sample(data: Inputs, kind: str, **options: Any) -> Sample:
    from sacrebleu import metrics

    metric = getattr(metrics, kind)(**options)
    predictions, references = zip(*data.texts, strict=True)
    num_references = {len(given) for given in references}
    if kind != "CHRF":
        warn_about_text(predictions, references, kind, metric.tokenizer_signature)
    streams = [[given[i] if i < len(given) else None for given in references] for i in range(max(num_references))]
    # Private, because chrF and TER show their statistics nowhere else; sacreBLEU's own significance tests go this way.
    rows: list[list[float]] = []
    for start in range(0, data.n, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        rows += corpus_statistics(metric, predictions[part], [stream[part] for stream in streams])
    metric.num_refs = max(num_references) if len(num_references) == 1 else -1  # else the last part's

    def aggregate(sums: Array) -> Array:
        return np.array([[metric._compute_score_from_stats(row).score] for row in sums.tolist()])

    return additive(data.rows, np.array(rows, float), aggregate, f"sacreBLEU {kind} {metric.get_signature()}")


def warn_about_text(predictions: Sequence[str], references: Sequence[Sequence[str]], kind: str, tokenizer: str) -> None:
    """Says in one line what sacreBLEU logs in three (`force=True` there), and what it does not say."""
    if tokenizer not in ("zh", "char") and any(written_in(SPACELESS, text) for given in references for text in given):
        console.warn(f"{kind} counts words here, and the references have no spaces between them", "bleu_zh, chrf")
    if kind == "BLEU" and tokenizer != "none" and sum(text.endswith(" .") for text in predictions) >= 100:
        console.warn("predictions look tokenized (' .'), BLEU is for plain text", "detokenize both sides, or bleu_none")


def rouge_sample(data: Inputs, *, english: bool = False, stem: bool = False) -> Sample:
    """ROUGE of each row by rouge_score, whose own tokenizer keeps a-z and 0-9 only.

    If a reference is in another script, the words of all rows are those of `WORD`, which is printed; in `english` they
    stay rouge_score's, and such a row is 0. `stem`: words of more than three letters without their English endings
    (Porter). Both have keys of their own.
    """
    others = [row for row, (_, given) in enumerate(data.texts, 1) if any(map(_is_other_script, given))]
    tokenizer = WordTokenizer() if others and not (english or stem) else None
    if (english or stem) and len(others) > data.n / 2:
        name = "rouge_stem" if stem else "rouge_en"
        raise DataError(f"{name} is for English, and most references are in other scripts", "rouge")
    if 0 < len(others) < data.n:
        found = f"{console.counted(len(others), 'reference')} of {data.n:,} (first row {others[0]})"
        if tokenizer is None:
            console.warn(f"{found} in other letters than a-z: ROUGE is about 0 there", "rouge counts their words")
        else:
            fix = "rouge_en counts a-z and 0-9 alone, as rouge_score does"
            console.warn(f"{found} in other letters than a-z: ROUGE counts the words of all scripts in all rows", fix)
    rows, implementation = _rouge_scores(data.texts, tokenizer, stem=stem)
    tokens = "a-z0-9" if tokenizer is None else "words, and characters of scripts without spaces"
    definition = (
        f"rouge_score F1 0-100, mean over rows|best reference|tok:{tokens}|stem:{'yes' if stem else 'no'}|"
        f"version:{implementation}"
    )
    keys = ROUGE_STEM_KEYS if stem else ROUGE_EN_KEYS if english else ROUGE_KEYS
    return additive(data.rows, rows, lambda sums: sums / data.n, definition, keys)


def _rouge_scores(
    texts: Sequence[tuple[str, Sequence[str]]], tokenizer: WordTokenizer | None, *, stem: bool
) -> tuple[Array, str]:
    """F1 of ROUGE_KEYS, 0 to 100, of each prediction with the reference that suits it best, shape (rows, 4), and the
    version of what counted them: rouge_score_rs, whose numbers are the same, where it is installed."""
    options: dict[str, Any] = {"use_stemmer": stem, "tokenizer": tokenizer}
    try:
        from rouge_score_rs.rouge_scorer import RougeScorer

        score = RougeScorer(ROUGE_KEYS, **options).score_batch
        implementation = f"{version('rouge_score_rs')} of rouge_score_rs"
    except ImportError:
        from rouge_score.rouge_scorer import RougeScorer as ReferenceScorer

        scorer = ReferenceScorer(ROUGE_KEYS, **options)
        # of a single line, rougeLsum is rougeL
        line_scorer = ReferenceScorer(ROUGE_KEYS[:3], **options)

        def score(*sides: Sequence[str]) -> list[dict[str, Any]]:
            pairs = zip(*sides, strict=True)
            return [(scorer if "\n" in "".join(pair) else line_scorer).score(*pair) for pair in pairs]

        implementation = version("rouge_score")
    rows = []
    for start in range(0, len(texts), ROWS_AT_ONCE):
        part = texts[start : start + ROWS_AT_ONCE]
        references = [reference for _, given in part for reference in given]
        found = score(references, [prediction for prediction, given in part for _ in given])
        values = np.array([[one[key if key in one else "rougeL"].fmeasure for key in ROUGE_KEYS] for one in found])
        rows.append(np.maximum.reduceat(values, np.cumsum([0, *(len(given) for _, given in part)])[:-1]))
    return 100 * np.concatenate(rows), implementation


def _is_other_script(text: str) -> bool:
    return written_in(NON_ASCII_LETTER, text)


class WordTokenizer:
    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


def of_best_reference(rows: Iterable[tuple[str, Sequence[str]]], score: Callable[[str, str], float]) -> Array:
    """The score of each row's prediction with the reference that suits it best."""
    return np.array([max(score(text, other) for other in given) for text, given in rows], float)


def best_squad_f1(prediction: str, references: Sequence[str]) -> float:
    """SQuAD's F1 of an answer, 0 to 1; without references the right one is empty."""
    return float(max(squad_f1(prediction, reference) for reference in references or [""]))


def exact(prediction: str, reference: str) -> float:
    return prediction.strip() == reference.strip()


def squad_exact(prediction: str, reference: str) -> float:
    return squad_words(prediction) == squad_words(reference)


def squad_f1(prediction: str, reference: str) -> float:
    """Shared words over all words; two answers without any ("The", "A") agree, as in the script of SQuAD 2.0."""
    predicted, actual = squad_words(prediction), squad_words(reference)
    if not predicted or not actual:
        return predicted == actual
    return 2 * (Counter(predicted) & Counter(actual)).total() / (len(predicted) + len(actual))


def squad_words(text: str) -> list[str]:
    """The words SQuAD compares: https://rajpurkar.github.io/SQuAD-explorer (evaluate-v2.0.py, normalize_answer)."""
    return words(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)))


def ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    tokens = words(text)
    return list(zip(*(tokens[start:] for start in range(size)), strict=False))


def length_ratio(data: Inputs) -> Sample:
    rows = np.empty((data.n, 2))
    for row, (prediction, given) in enumerate(data.texts):
        length = len(words(prediction))
        rows[row] = length, min((len(words(text)) for text in given), key=lambda other: (abs(other - length), other))
    definition = "words of all predictions over words of all references, the closest in length of several"
    return ratio_sample(data.rows, rows, definition)


def distinct(data: Inputs, size: int) -> Sample:
    """Li et al. 2016, https://aclanthology.org/N16-1014. Drawing a row twice adds no new n-gram: no bootstrap."""
    found = [ngram for text in data.generated for ngram in ngrams(text, size)]
    value = len(set(found)) / len(found) if found else np.nan
    definition = f"different {size}-grams of words over all, falls with the number of rows; no interval by resampling"
    return Sample(data.rows, lambda weights: np.full((len(weights), 1), value), definition, interval=False)


def repetition(data: Inputs) -> Sample:
    """seq-rep-4 of Welleck et al. 2020, https://arxiv.org/abs/1908.04319."""
    grams = (ngrams(text, 4) for text in data.generated)
    shares = [1 - len(set(row)) / len(row) if row else 0.0 for row in grams]
    return mean_sample(data, shares, "share of a row's 4-grams of words that it had before, mean over rows (seq-rep-4)")
