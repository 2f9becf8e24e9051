"""Conversations by a decoder: the answers are learned, everything else is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hfkit.data.conversations import LIST_NAMES, are_plain, first_row, form_of, has_labels
from hfkit.models.chat_template import set_template
from hfkit.system.console import short
from hfkit.tasks.base import Batch, Examples, batch_defaults, finetuning_defaults
from hfkit.tasks.clm import check_document_masking
from hfkit.tasks.completion import Completion
from hfkit.tasks.encoded_conversations import EncodedConversations
from hfkit.tasks.language_modeling import nll_scores, pad_blocks, pad_packed, token_statistics, without_cache
from hfkit.tasks.seq2seq import OF_LIKELIHOODS, SAMPLES, generate_texts, generation_settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Measured, Score
    from hfkit.settings import Evaluation, Recipe

SAMPLE_TOKENS = 48  # of an answer that `samples` shows


class Chat(Completion):
    summary = "conversations: answers to messages"
    aliases = ("conversation", "conversational", "chatml", "alpaca", "sharegpt", "instruct")
    roles = ("text",)
    questions = ("messages",)
    scores_before = True
    watched = ("nll", "perplexity")
    metrics = OF_LIKELIHOODS
    settings = frozenset(
        {
            "train.samples", "data.chat_template", "data.train_on", "data.packing", "data.max_length",
            "data.allow_truncation",
        }
    )  # fmt: skip

    def next_step(self, run: str, is_adapter: bool) -> str:
        return f"hfkit chat {run}"

    def usual_metrics(self, config: Any) -> Sequence[str]:
        return ("nll", "perplexity")

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The learning rate of Alpaca (github.com/tatsu-lab/stanford_alpaca: 2e-5), and the usual one of LoRA. Batches
        are small, since logits are large: 8 conversations of 500 tokens have 0.8 GB of them at 49,152 tokens."""
        return (
            finetuning_defaults(given)
            | batch_defaults(given, 8)
            | {
                "train.per_device_eval_batch_size": 8,
                "train.learning_rate": 5e-4 if given.get("lora.enabled") else 2e-5,
                "train.lr_scheduler_type": "cosine",
                "data.packing": False,
            }
        )

    def claims(self, sources: Sequence[str]) -> str:
        row = first_row(sources)
        form = form_of(row)
        if not form or are_plain(row) or has_labels(row):
            return ""
        return f"the data has {f'the column {form}' if form in LIST_NAMES else 'columns of prompts and answers'}"

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        from hfkit.data.conversations import load_conversations
        from hfkit.data.loading import load_data
        from hfkit.data.splits import hold_out_groups

        splits = load_conversations(load_data(recipe.data), recipe.data)
        if "train" in splits and "validation" not in splits and recipe.data.validation_split > 0:
            splits |= hold_out_groups(splits["train"], "text", recipe.data.validation_split, recipe.train.seed)
        return splits

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        return _encoded(dataset, tokenizer, model, recipe)

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return (pad_packed if "position_ids" in examples[0] else pad_blocks)(examples, tokenizer)

    def adapt(self, model: PreTrainedModel, batch: Batch, rows: Examples | None = None) -> None:
        """With training data: every token that ends an answer ends generation, too."""
        without_cache(model)
        if "position_ids" in batch:
            check_document_masking(model, batch, "--no-packing")
        if not isinstance(rows, EncodedConversations):
            return
        for key in ("source_prefix", "source_suffix", "max_source_length"):  # of a task that the model learned before
            if hasattr(model.config, key):
                setattr(model.config, key, None)
        known = model.generation_config.eos_token_id
        ends = rows.ends | set(known if isinstance(known, list) else [known])
        model.generation_config.eos_token_id = sorted(end for end in ends if end is not None)

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        return token_statistics(*self.align(outputs[0], labels))

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        return nll_scores(reduced, evaluation, "learned tokens of conversations, ends of answers included")

    def samples(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Examples, seed: int
    ) -> list[str]:
        """Greedy answers to the last questions of the first conversations."""
        assert isinstance(rows, EncodedConversations)
        found: list[tuple[list[int], str]] = []
        for row in dict.fromkeys(one.row for one in rows.conversations):
            shown = rows.dataset[row]
            ids = rows.encoder.prompt_ids(json.loads(shown["messages"]), json.loads(shown["tools"]))
            if len(ids) + SAMPLE_TOKENS <= rows.most:
                found.append((ids, shown["text"]))
            if len(found) == SAMPLES:
                break
        prompts, asked = [ids for ids, _ in found], [text for _, text in found]
        settings = generation_settings(model, 1, SAMPLE_TOKENS)
        answers = generate_texts(model, tokenizer, prompts, settings, batch_size=SAMPLES, alone=True)
        return [
            " -> ".join(json.dumps(short(" ".join(text.split())), ensure_ascii=False) for text in pair)
            for pair in zip(asked, answers, strict=True)
        ]

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, recipe: Recipe
    ) -> Measured | None:
        """The likelihood of what is learned of each conversation, ends of answers included."""
        import numpy as np

        from hfkit.metrics.likelihood import Passage, token_nats
        from hfkit.metrics.perplexity import Likelihood
        from hfkit.metrics.sample import Measured

        rows = _encoded(dataset, tokenizer, model, recipe)
        firsts = [max(int(one.learned.argmax()), 1) for one in rows.conversations]
        passages = [
            Passage(one.ids[:first], one.ids[first:], None, one.learned[first:])
            for one, first in zip(rows.conversations, firsts, strict=True)
        ]
        found = token_nats(model, passages, recipe.evaluation.batch_size)
        owners = [one.row for one in rows.conversations]
        counts = [int(passage.scored.sum()) for passage in passages if passage.scored is not None]
        nats, scored = (np.bincount(owners, of, minlength=len(dataset)) for of in (found, counts))
        texts = [""] * len(dataset)
        for one in rows.conversations:
            texts[one.row] += one.text
        how = (
            f"of {recipe.data.train_on} turns given what stands before them, ends of answers scored, "
            f"{str(model.dtype).removeprefix('torch.')}, {int(scored.sum()):,} tokens scored, "
            f"{rows.num_cut:,} conversations cut, {rows.num_dropped:,} left out"
        )
        likelihood = Likelihood(texts, np.arange(len(dataset)), nats, scored.astype(int), how, dataset["text"][:])
        wanted = recipe.evaluation
        return Measured(likelihood.scores(interval=wanted.interval, seed=wanted.seed), likelihood.rows())


def _encoded(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
) -> EncodedConversations:
    """The conversations, rendered with the template of the recipe, which the tokenizer keeps."""
    if recipe.data.chat_template is not None:
        set_template(tokenizer, recipe.data.chat_template)
    return EncodedConversations(dataset, tokenizer, model, recipe)
