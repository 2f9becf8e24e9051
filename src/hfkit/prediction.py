"""Labels and probabilities for texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hfkit import hub
from hfkit.errors import DataError, ModelError

if TYPE_CHECKING:
    from hfkit.recipe import Recipe


def predict(recipe: Recipe, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One {"text", "label", "score", "probabilities": {label: p}} per text, in order, by recipe.model.name.

    `pairs`: the second texts of a model for pairs. Raises ModelError where the model is no classifier.
    """
    import datasets
    import numpy as np

    from hfkit.inference import predict_rows
    from hfkit.models import load_config, load_tokenizer, new_or_pretrained, quiet_libraries
    from hfkit.tasks import TASKS

    hub.stay_local(recipe)
    quiet_libraries()
    task = TASKS["text-classification"]
    config = load_config(recipe)
    if "SequenceClassification" not in " ".join(config.architectures or []):
        raise ModelError(
            f"{recipe.model.name} is no classifier but {config.architectures}", "train one: hfkit finetune"
        )
    if not texts:
        raise DataError("there is no text to classify", "--text 'some text' or --input FILE")
    tokenizer = load_tokenizer(recipe, config)
    model = new_or_pretrained(task.auto_model, recipe, config, tokenizer)
    columns = {"text": list(texts)} | ({} if pairs is None else {"text_pair": list(pairs)})
    rows = task.encode(datasets.Dataset.from_dict(columns), tokenizer, model, recipe)
    logits, _ = predict_rows(task, model, tokenizer, rows, batch_size=recipe.evaluation.batch_size)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return list(_answers(texts, shifted / shifted.sum(1, keepdims=True), config.id2label))


def read_texts(recipe: Recipe, file: str) -> tuple[list[str], list[str] | None]:
    """The texts in a file, and the second texts where the model was trained on pairs; columns as in training."""
    from hfkit.data import load_source, text_column

    dataset = load_source([file])
    pair = recipe.data.columns.text_pair
    return dataset[text_column(dataset, recipe)][:], None if pair is None else dataset[pair][:]


def _answers(texts: Sequence[str], probabilities: Any, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    for text, row in zip(texts, probabilities.tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        yield {
            "text": text,
            "label": names[best],
            "score": row[best],
            "probabilities": {names[index]: p for index, p in enumerate(row)},
        }
