"""Text to text: summarization, translation and whatever else has a source and a target, by an encoder-decoder."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hfkit.data.batches import by_length
from hfkit.data.scripts import sentences
from hfkit.errors import UsageError
from hfkit.models.config import DEFAULT_NEW_TOKENS, own_new_tokens
from hfkit.models.stored_generation import drop_idle
from hfkit.system.console import short, warn
from hfkit.tasks.base import Batch, Examples, LossOptions, Task, batch_defaults, finetuning_defaults
from hfkit.tasks.encoded_pairs import EncodedPairs, prefix_of, set_languages, with_prefix
from hfkit.tasks.language_modeling import (
    OF_LANGUAGE_MODELS,
    nll_scores,
    pad_blocks,
    pad_pairs,
    token_loss,
    token_statistics,
    without_cache,
)
from hfkit.tasks.windows import say_truncation

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hfkit.metrics.sample import Measured, Row, Score
    from hfkit.settings import Evaluation, Recipe

OF_TEXTS = (
    "bleu", "bleu_zh", "bleu_char", "bleu_intl", "bleu_none", "bleu_lc", "chrf", "chrf++", "ter", "rouge", "rouge_en",
    "rouge_stem", "exact_match", "token_f1", "length_ratio",
)  # fmt: skip

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# What train.best can be: numbers that are better when they are larger, or known to be better when they are smaller.
WATCHED = (*(name for name in OF_TEXTS if not name.startswith(("rouge", "length"))), *ROUGE_KEYS)

OF_LIKELIHOODS = ("perplexity", "nll", "bits_per_byte", "bits_per_character", "word_perplexity")

USUAL = ("bleu", "chrf", "rouge", "perplexity")

BATCH = 64  # sources whose targets are generated together

SAMPLES = 2  # texts that are shown at each evaluation


class Seq2Seq(Task):
    summary = "texts from texts: summaries, translations"
    aliases: tuple[str, ...] = ("summarization", "translation", "text2text-generation")
    command = "finetune"
    auto_model = "AutoModelForSeq2SeqLM"
    roles: tuple[str, ...] = ("text", "target")
    pairs: type[EncodedPairs] = EncodedPairs  # how a source and its target become token ids
    new_model: Mapping[str, str] = MappingProxyType({"model.type": "bart", "model.size": "mini"})  # if none is named
    watched = ("nll", "perplexity", *WATCHED)
    metrics: tuple[str, ...] = (*OF_TEXTS, *OF_LIKELIHOODS)
    settings = OF_LANGUAGE_MODELS | {
        "data.columns.target", "data.source_prefix", "data.source_lang", "data.target_lang", "data.max_length",
        "data.max_target_length", "data.allow_truncation", "evaluation.num_beams",
    }  # fmt: skip

    def next_step(self, run: str, is_adapter: bool) -> str:
        return f'hfkit generate {run} --prompt "..." or --input FILE'

    def usual_metrics(self, config: Any) -> Sequence[str]:
        """The first is cheap at each evaluation; what is measured in the end depends on the texts, too."""
        return ("nll", *USUAL, *ROUGE_KEYS)

    def defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Pretrained: twice BERT's learning rate, for T5 (huggingface.co/docs/transformers/model_doc/t5: 1e-4 and 3e-4
        work well). New: as for small translation models, with the model's own dropout."""
        new = bool(given.get("model.from_scratch") or given.get("model.type") or not given.get("model.name"))
        usual = finetuning_defaults(given)
        if not new:
            return usual | {"train.learning_rate": 5e-4 if given.get("lora.enabled") else 1e-4}
        named = {} if given.get("model.name") else dict(self.new_model)
        return (
            usual
            | batch_defaults(given, 64)
            | named
            | {
                "model.from_scratch": True,
                "train.num_train_epochs": 10.0,
                "train.learning_rate": 1e-3,
            }
        )

    def claims(self, sources: Sequence[str]) -> str:
        from hfkit.data.pairs import look_parallel

        return f"{' and '.join(sources)} are parallel files" if look_parallel(sources) else ""

    def load(self, recipe: Recipe) -> dict[str, Dataset]:
        from hfkit.data.columns import FLAGS
        from hfkit.data.pairs import load_pairs, one_target_a_row
        from hfkit.data.splits import hold_out_groups

        for role in ("text_pair", "label"):
            if getattr(recipe.data.columns, role) is not None:
                raise UsageError(
                    f"{FLAGS[role]} has no effect for sources and targets", f"leave it out, or {FLAGS['target']}"
                )
        splits = load_pairs(recipe.data)
        if "train" in splits and "validation" not in splits and recipe.data.validation_split > 0:
            splits |= hold_out_groups(splits["train"], "text", recipe.data.validation_split, recipe.train.seed)
        if "train" in splits:
            splits["train"] = one_target_a_row(splits["train"])
        return splits

    def encode(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, recipe: Recipe
    ) -> Examples:
        rows = self.pairs(dataset, tokenizer, model, recipe)
        _say_long("sources", rows.sources, "max-length", rows.most, recipe)
        _say_long("targets", rows.targets, "max-target-length", rows.most, recipe)
        return rows

    def collate(self, examples: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        return pad_pairs(examples, tokenizer)

    def adapt(self, model: PreTrainedModel, batch: Batch, rows: Examples | None = None) -> None:
        """With training data: what the model needs to know when it generates is kept in its configs."""
        without_cache(model)
        if not isinstance(rows, EncodedPairs):
            return
        model.config.source_prefix, model.config.max_source_length = rows.prefix, rows.sources.limit
        longest = int(rows.targets.lengths.max())
        model.generation_config.max_new_tokens = min(2 * longest, rows.most)
        if rows.num_beams is not None:
            model.generation_config.num_beams = rows.num_beams

    def loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        options: LossOptions = LossOptions(),  # noqa: B008
    ) -> torch.Tensor:
        """Cross-entropy of the target's tokens, EOS included, over those of the whole step; padding is told by its
        place, so a pad token inside a target counts."""
        return token_loss(*self.align(outputs["logits"], labels), num_items_in_batch, options)

    def reduce(
        self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase
    ) -> torch.Tensor:
        return token_statistics(*self.align(outputs[0], labels), tokenizer.all_special_ids)

    def scores(
        self, reduced: np.ndarray, labels: np.ndarray, rows: Examples, evaluation: Evaluation
    ) -> dict[str, Score]:
        """As seen while training, each token after the right ones; the final scores, of `measure`, are of texts."""
        from hfkit.metrics.sample import Score

        scores = nll_scores(reduced[:, :3], evaluation, "targets given their sources, special tokens not counted")
        nll, count = reduced[:, 3:5].sum(axis=0).tolist()
        scores["eos_nll"] = Score(nll / count, None, None, int(count), "nats per special token of the targets")
        return scores

    def samples(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Examples, seed: int
    ) -> list[str]:
        """The first texts, greedily."""
        assert isinstance(rows, EncodedPairs)
        sources = [rows.sources[index] for index in range(min(SAMPLES, len(rows)))]
        settings = generation_settings(model, 1)
        made = generate_texts(model, tokenizer, sources, settings, batch_size=SAMPLES, alone=True)
        given = [tokenizer.decode(ids, skip_special_tokens=True) for ids in sources]
        return [
            " -> ".join(json.dumps(short(text), ensure_ascii=False) for text in pair)
            for pair in zip(given, made, strict=True)
        ]

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, recipe: Recipe
    ) -> Measured | None:
        """The scores of the generated texts, beside those of copying the source, and the likelihood of the targets."""
        from hfkit.metrics.sample import Measured
        from hfkit.metrics.table import metric_of

        wanted = recipe.evaluation
        names = [*dict.fromkeys(map(metric_of, wanted.metrics))] or usual_metrics_of(dataset["target"][:])
        scores: dict[str, Score] = {}
        rows: list[Row] = []
        if of_texts := [name for name in names if name in OF_TEXTS]:
            scores, rows = self._measure_texts(of_texts, model, tokenizer, dataset, recipe)
        if of_likelihoods := [name for name in names if name in OF_LIKELIHOODS]:
            found, nats = self.measure_likelihoods(model, tokenizer, dataset, recipe)
            scores |= found if of_likelihoods == names else {name: found[name] for name in of_likelihoods}
            rows = rows or nats
        return Measured(scores, rows)

    def _measure_texts(
        self,
        names: Sequence[str],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        recipe: Recipe,
    ) -> tuple[dict[str, Score], list[Row]]:
        from hfkit.metrics.table import compute
        from hfkit.metrics.text import best_squad_f1

        wanted = recipe.evaluation
        pairs = self.pairs(dataset, tokenizer, model, recipe)  # whose targets are references here, in full
        _say_long("sources", pairs.sources, "max-length", pairs.most, recipe)
        settings = generation_settings(model, wanted.num_beams, recipe.data.max_target_length)
        settings.max_new_tokens = min(settings.max_new_tokens, pairs.most)
        if model.generation_config.do_sample:
            fix = "hfkit generate --greedy makes the texts that are scored"
            warn("texts are generated without sampling, which the model's own settings ask for", fix, once=True)
        sources = [pairs.sources[index] for index in range(len(pairs))]
        texts = generate_texts(model, tokenizer, sources, settings, batch_size=wanted.batch_size or BATCH)
        given, targets = dataset["text"][:], dataset["target"][:]
        references = dataset["references"][:] if "references" in dataset.column_names else targets
        beams = settings.num_beams or 1
        how = f"{f'{beams} beams' if beams > 1 else 'greedy'}, at most {settings.max_new_tokens} new tokens"
        score = partial(compute, names, references=references, interval=wanted.interval, seed=wanted.seed)
        scores = {
            key: dataclasses.replace(one, definition=f"{one.definition}; {how}") for key, one in score(texts).items()
        }
        several = [one if isinstance(one, list) else [one] for one in references]
        for baseline, (said, made) in baselines(given, several).items():
            for key, one in score(made).items():
                scores[f"{key}.{baseline}"] = dataclasses.replace(one, definition=f"{said}; {one.definition}")
        side = "references" if references is not targets else "reference"
        rows = [
            {"text": source, side: right, "prediction": text, "f1": best_squad_f1(text, options)}
            for source, right, options, text in zip(given, references, several, texts, strict=True)
        ]
        return scores, rows

    def measure_likelihoods(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, recipe: Recipe
    ) -> tuple[dict[str, Score], list[Row]]:
        """Perplexity of the targets given their sources in all its units, and the nats of each."""
        from hfkit.metrics.perplexity import measure_targets

        set_languages(tokenizer, model, recipe.data)
        sources = with_prefix(dataset, prefix_of(model, recipe.data))["text"][:]
        length, size = recipe.data.max_length, recipe.evaluation.batch_size
        found = measure_targets(model, tokenizer, sources, dataset["target"][:], max_length=length, batch_size=size)
        return found.scores(interval=recipe.evaluation.interval, seed=recipe.evaluation.seed), list(found.rows())


def usual_metrics_of(targets: Sequence[str]) -> list[str]:
    """The metrics of texts like these: BLEU by characters where words have no blanks between them."""
    from hfkit.metrics.text import bleu_for

    return [bleu_for(targets), *USUAL[1:]]


def baselines(sources: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, tuple[str, list[str]]]:
    """What any model has to beat, by name: its definition and its texts.

    "copy": the source. "lead", of sources of several sentences: as many first sentences as the references have.
    """
    found = {"copy": ("the source itself", list(sources))}
    split = list(map(sentences, sources))
    counts = sorted(len(sentences(given[0])) for given in references)
    wanted = max(counts[len(counts) // 2], 1)
    longer = sum(len(one) > wanted for one in split)
    if longer > len(split) / 2:
        said = f"the first {wanted} sentences of the source" if wanted > 1 else "the first sentence of the source"
        found["lead"] = (said, [" ".join(one[:wanted]) for one in split])
    return found


def generation_settings(model: PreTrainedModel, num_beams: int | None, most: int | None = None) -> GenerationConfig:
    """The model's own generation settings without sampling, with these on top; `most`: new tokens at most."""
    settings = copy.deepcopy(model.generation_config)
    own = own_new_tokens(model) or most or DEFAULT_NEW_TOKENS
    settings.do_sample, settings.max_length, settings.num_return_sequences = False, None, 1
    if num_beams is not None:
        settings.num_beams = num_beams
    drop_idle(settings)
    settings.max_new_tokens = min(own, most or own)
    return settings


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int] | np.ndarray],
    settings: GenerationConfig,
    *,
    batch_size: int,
    alone: bool = False,
) -> list[str]:
    """The text that the model makes of each source (token ids), in order.

    Batches hold sources of like length, padded before their beginning for a decoder, which goes on at their end.
    Several processes share them, unless each works `alone`.
    """
    import torch

    from hfkit.system.processes import all_gather, shard

    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    eos = settings.eos_token_id if settings.eos_token_id is not None else tokenizer.eos_token_id
    ends = eos if isinstance(eos, list) else [eos]
    batches = [places.tolist() for places in by_length([len(ids) for ids in sources], batch_size)]
    made: list[tuple[int, str, bool]] = []  # place, text, and whether it was cut
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for places in batches if alone else shard(batches):
            rows = [{"input_ids": sources[place]} for place in places]
            batch = pad_blocks(rows, tokenizer, left=not model.config.is_encoder_decoder)
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            ids = model.generate(**inputs, generation_config=settings, use_cache=True)
            ids = ids[:, 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1] :]
            are_cut = (~torch.isin(ids, torch.tensor(ends, device=ids.device))).all(dim=1).tolist()
            made += zip(places, tokenizer.batch_decode(ids, skip_special_tokens=True), are_cut, strict=True)
    model.train(was_training)
    if not alone:
        made = all_gather(made)
        if num_cut := sum(is_cut for *_, is_cut in made):
            what = f"{num_cut:,} of {len(sources):,} texts were cut after {settings.max_new_tokens} tokens"
            warn(what, "train longer, or with longer targets", once=True)
    return [text for _, text, _ in sorted(made)]


def _say_long(name: str, side: Any, flag: str, most: int, recipe: Recipe) -> None:
    """Says how many texts of a side were cut; DataError if so many are that somebody has to decide."""
    num_cut, num_texts = int(side.was_cut.sum()), len(side.was_cut)
    if num_cut == 0:
        return
    found = f"{num_cut:,} of {num_texts:,} {name} ({num_cut / num_texts:.1%}) are longer than {side.limit} tokens"
    longer = f"--{flag} {side.longest}" if side.longest <= most else ""
    say_truncation(found, num_cut / num_texts, [longer], decided=recipe.data.allow_truncation)
