"""Causal language modelling: the next token, over packed blocks."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.errors import ModelError
from hfkit.tasks.base import Batch, Examples
from hfkit.tasks.language_modeling import (
    OF_LANGUAGE_MODELS,
    LanguageModel,
    next_tokens,
    nll_scores,
    pad_packed,
    token_statistics,
)
from hfkit.tasks.packing import Blocks, pack

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Measured, Score
    from hfkit.settings import Evaluation, Recipe

SAMPLE_TOKENS = 24  # of the prompt and of the continuation that `samples` shows


class CausalLM(LanguageModel):
    summary = "next token"
    new_type = "gpt2"
    documents = "file"
    auto_model = "AutoModelForCausalLM"
    watched = ("nll", "perplexity", "bits_per_byte", "token_accuracy")
    metrics = ("perplexity", "bits_per_byte", "bits_per_character", "word_perplexity", "nll")
    settings = OF_LANGUAGE_MODELS | {
        "data.document_masking", "evaluation.context", "evaluation.stride", "evaluation.bos", "evaluation.compat",
    }  # fmt: skip

    def next_step(self, run: str, is_adapter: bool) -> str:
        return f'hfkit generate --model {run} --prompt "..."'

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        if tokenizer.eos_token_id is None and len(dataset) > 1:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-text token to put between documents",
                "give one document, or a tokenizer that has an eos_token",
            )
        blocks = pack(dataset, tokenizer, model, block_size=recipe.data.block_size, end=tokenizer.eos_token_id)
        # All batches of a run must have the same keys: ranks divide them among themselves.
        several = recipe.data.streaming or len(blocks.store.starts) > 1
        blocks.apart = recipe.data.document_masking and several
        return PackedText(blocks)

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return pad_packed(examples, tokenizer)

    def adapt(self, model: PreTrainedModel, batch: Batch, rows: Examples | None = None) -> None:
        model.config.use_cache = False  # training needs none, and with one the library makes no mask between documents
        if "position_ids" in batch:
            check_document_masking(model, batch, "--no-document-masking")

    def align(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits, next_tokens(labels)

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        return token_statistics(*self.align(outputs[0], labels), [_end(tokenizer)])

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        """As seen while training, block by block; the final number, of `measure`, gives every token its context."""
        from hfkit.metrics.sample import Score

        assert isinstance(rows, PackedText)
        how = "blocks of the training length, no overlap"
        text, ends = reduced[:, :3], reduced[:, 3:]
        scores = nll_scores(text, evaluation, f"{how}, without the EOS that closes each document")
        nll, scored, closing = float(text[:, 0].sum()), float(text[:, 1].sum()), float(ends[:, 1].sum())
        share = scored / max(len(rows.blocks.store.tokens) - closing, 1)  # the first token of a block has no score
        bits = nll / math.log(2) / (rows.blocks.num_bytes * share)
        scores["bits_per_byte"] = Score(bits, None, None, int(scored), f"bits per UTF-8 byte of the text; {how}")
        if closing:
            scores["eos_nll"] = Score(
                float(ends[:, 0].sum()) / closing, None, None, int(closing), f"nats per EOS; {how}"
            )
        return scores

    def samples(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Examples, seed: int
    ) -> list[str]:
        """How the model goes on, greedily, from the beginning of the first document."""
        import torch

        assert isinstance(rows, PackedText)
        first = rows.blocks[0]
        block, starts = first["input_ids"], first.get("starts", [])
        half = min(len(block), 2 * SAMPLE_TOKENS) // 2
        half = int(min([half, *starts]))  # up to the next document
        prompt = torch.from_numpy(block[:half])[None].to(model.device)
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max(half, 1),
                do_sample=False,
                num_beams=1,
                num_return_sequences=1,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                tokenizer=tokenizer,  # for stop strings of the model's own
            )[0]
        model.train(was_training)
        shown = (json.dumps(tokenizer.decode(part), ensure_ascii=False) for part in (ids[:half], ids[half:]))
        return [" -> ".join(shown)]

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, recipe: Recipe
    ) -> Measured | None:
        from hfkit.metrics.perplexity import compatible, measure
        from hfkit.metrics.sample import Measured

        wanted = recipe.evaluation
        context, texts = wanted.context or recipe.data.block_size, dataset["text"][:]
        if wanted.compat is not None:
            scores = compatible(wanted.compat, model, tokenizer, texts, context=context, batch_size=wanted.batch_size)
            return Measured(scores, ())
        found = measure(
            model,
            tokenizer,
            texts,
            context=context,
            stride=wanted.stride,
            bos=wanted.bos,
            batch_size=wanted.batch_size,
        )
        return Measured(found.scores(interval=wanted.interval, seed=wanted.seed), found.rows())


class PackedText(Examples):
    """Blocks of text whose tokens are the labels."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.lengths = blocks, blocks.lengths

    def example(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        """A block whose documents begin at position 0 each, with nothing to say about their first token."""
        import numpy as np

        row = self.blocks[index]
        ids, starts = row["input_ids"], row.get("starts", [])
        labels = ids.copy()
        labels[[0, *starts]] = IGNORED
        example = {"input_ids": ids, "labels": labels}
        if "starts" in row:
            begins = np.zeros(len(ids), dtype=np.int64)
            begins[starts] = starts
            example["position_ids"] = np.arange(len(ids)) - np.maximum.accumulate(begins)
        return example


def check_document_masking(model: PreTrainedModel, batch: Batch, fix: str) -> None:
    """ModelError, with `fix`, if a document's logits in a block of `batch` are not those that it has alone."""
    import torch

    seen = f"{model.config.model_type} lets the documents in one block see each other"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelError(f"{seen}: it takes no position_ids", fix)
    block = int((batch["position_ids"][:, 1:] == 0).sum(1).argmax())  # the one with the most documents
    positions = batch["position_ids"][block]
    if positions[1:].ne(0).all():  # one alone: it is taken for two
        positions = torch.arange(len(positions)) % max(len(positions) // 2, 1)
    starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ids = batch["input_ids"][block : block + 1].to(model.device)
        packed = model(input_ids=ids, position_ids=positions[None].to(model.device)).logits[0]
        alone = [model(input_ids=ids[:, a:b]).logits[0] for a, b in itertools.pairwise(starts)]
    model.train(was_training)
    difference = (packed - torch.cat(alone)).abs().max().item()
    if difference > (1e-3 if packed.dtype == torch.float32 else 0.3):
        raise ModelError(f"{seen}: packed and alone, their logits differ by {difference:.2g}", fix)


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of EOS; one that no token has where there is none."""
    return -1 if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
