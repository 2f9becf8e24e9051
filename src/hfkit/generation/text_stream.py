"""Text as its tokens are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream
from tokenizers.models import BPE
from transformers.generation import BaseStreamer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

CLEANED = 4  # characters in the longest of the patterns that clean_up_tokenization replaces: a blank and n't


class TextStream(BaseStreamer):  # type: ignore[misc]
    """Hands the text of one sequence to `write`, whole characters only; what may be the beginning of a stop string is
    held back until it is known. `text` is what was written so far."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int],
        stop_strings: Sequence[str],
        write: Callable[[str], None],
    ) -> None:
        self.tokenizer = tokenizer
        self.decoder = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        # As in the library's own `decode`, which takes blanks before punctuation away.
        self.cleans = tokenizer.clean_up_tokenization_spaces and not isinstance(tokenizer.backend_tokenizer.model, BPE)
        self.stop_strings = stop_strings
        self.write = write
        self.decoded = self.text = ""
        self.begun = self.stopped = False

    def put(self, value: torch.Tensor) -> None:
        """Takes the next tokens from `model.generate`, whose first call brings the prompt."""
        if not self.begun:
            self.begun = True
            return
        for token in value.flatten().tolist():
            self.decoded += self.decoder.step(self.tokenizer.backend_tokenizer, token) or ""
        if self.stopped:
            return
        text = self.tokenizer.clean_up_tokenization(self.decoded) if self.cleans else self.decoded
        ends = [place for stop in self.stop_strings if (place := text.find(stop, len(self.text))) >= 0]
        self.stopped = bool(ends)
        held = max(self._may_stop(text), CLEANED if self.cleans else 0)
        self._write_up_to(min(ends) if ends else len(text) - held, text)

    def end(self) -> None:
        """Called by `model.generate` at the end; `finish` follows."""

    def finish(self, text: str) -> None:
        """Writes what the whole `text` has beyond what was written."""
        if text.startswith(self.text):
            self._write_up_to(len(text), text)

    def _may_stop(self, text: str) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        return max((n for stop in self.stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)

    def _write_up_to(self, end: int, text: str) -> None:
        if part := text[len(self.text) : end]:
            self.text += part
            self.write(part)
