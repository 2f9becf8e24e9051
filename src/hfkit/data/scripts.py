"""Scripts that write no blanks between words, and the words and sentences of a text in any script."""

from __future__ import annotations

import re

# Burmese, Chinese, Japanese, Khmer, Lao, Thai and Tibetan: no spaces between words. Korean has them.
SPACELESS = re.compile(
    "[\u0e01-\u0e4e\u0e81-\u0ece\u0f40-\u0fbc\u1000-\u103f\u1780-\u17d3\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")  # Chinese signs

# Behind a sentence, and the quotes and brackets that close with it.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+|(?<=[。！？])(?![」』”])|(?<=[。！？][」』”])|\n+")

LETTER = re.compile(r"[^\W\d_]")


def written_in(script: re.Pattern[str], text: str) -> bool:
    """True if most letters of the text are of the script."""
    return not text.isascii() and 2 * len(script.findall(text)) > len(LETTER.findall(text))


def sentences(text: str) -> list[str]:
    """The sentences of a text, by their final signs and line ends."""
    return [sentence for sentence in SENTENCE_END.split(text) if sentence and sentence.strip()]


def words(text: str) -> list[str]:
    """Words between blanks, and characters one by one in scripts without blanks."""
    return (text if text.isascii() else SPACELESS.sub(r" \g<0> ", text)).split()
