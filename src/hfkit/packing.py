"""Documents as one stream of tokens, cut into blocks: nothing is dropped, the last block is the short one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_BLOCK = 256  # tokens, where nobody says and the model has as many positions
BATCH_CHARACTERS = 1_000_000


class Blocks:
    """Token ids (tokens,) seen as blocks of `size`, each between `prefix` and `suffix`."""

    def __init__(self, tokens: np.ndarray, size: int, prefix: Sequence[int], suffix: Sequence[int]) -> None:
        import numpy as np

        self.tokens, self.size = tokens, size - len(prefix) - len(suffix)
        self.prefix, self.suffix = np.asarray(prefix, dtype=np.int64), np.asarray(suffix, dtype=np.int64)
        count = -(-len(tokens) // self.size)
        self.lengths = np.full(count, size)
        self.lengths[-1] = len(tokens) - (count - 1) * self.size + size - self.size

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np

        inner = self.tokens[index * self.size : (index + 1) * self.size].astype(np.int64)
        return {"input_ids": np.concatenate([self.prefix, inner, self.suffix])}


def pack(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    block_size: int | None,
    prefix: Sequence[int],
    suffix: Sequence[int],
    end: int | None,
) -> Blocks:
    """The column `text` as blocks of `block_size` tokens; `end` closes each document.

    Raises UsageError where the model has fewer positions, DataError where there is too little text.
    """
    import numpy as np

    from hfkit.errors import DataError, UsageError
    from hfkit.models import max_tokens

    limit = max_tokens(model)
    size = block_size or min(DEFAULT_BLOCK, limit or DEFAULT_BLOCK)
    if limit is not None and size > limit:
        raise UsageError(
            f"data.block_size {size} is longer than the model's {limit} positions", f"--block-size {limit}"
        )
    if size <= len(prefix) + len(suffix):
        raise UsageError(f"data.block_size {size} has no room for text", "--block-size 128")
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    parts: list[np.ndarray] = []
    for texts in _batches(dataset):
        for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]:
            parts.append(np.asarray(ids if end is None else [*ids, end], dtype=dtype))
    tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
    if len(tokens) < 2:
        raise DataError("the text holds fewer than two tokens", "give more text with --data")
    return Blocks(tokens, size, prefix, suffix)


def _batches(dataset: Dataset) -> Any:
    """Texts in lists of about BATCH_CHARACTERS, so that one tokenizer call stays small."""
    texts: list[str] = []
    characters = 0
    for text in dataset["text"]:
        texts.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts
