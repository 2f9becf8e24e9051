"""Labels and probabilities for texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hfkit.errors import DataError, ModelError
from hfkit.sources import stay_local

if TYPE_CHECKING:
    from hfkit.recipe import Recipe


def predict(recipe: Recipe, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One {"text", "label", "score", "probabilities": {label: p}} per text, in order, by recipe.model.name.

    `pairs`: the second texts of a model for pairs. Raises ModelError where the model is no classifier.
    """
    import datasets

    from hfkit.inference import predict_rows, probabilities, to_device
    from hfkit.models import load_config, load_tokenizer, new_or_pretrained, quiet_libraries, was_saved_with
    from hfkit.tasks import TASKS

    stay_local(recipe)
    quiet_libraries()
    task = TASKS["text-classification"]
    config = load_config(recipe)
    if not was_saved_with(task.auto_model, config):
        kind = ", ".join(config.architectures or [config.model_type])
        raise ModelError(f"{recipe.model.name} is no classifier, it is a {kind}", "train one: hfkit finetune")
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        kind = config.problem_type or "model with one output"
        raise ModelError(f"{recipe.model.name} does not choose one of several labels, it is a {kind}")
    if not texts:
        raise DataError("there is no text to classify", "--text 'some text' or --input FILE")
    tokenizer = load_tokenizer(recipe, config)
    model = to_device(new_or_pretrained(task.auto_model, recipe, config, tokenizer, new_head=False))
    columns = {"text": list(texts)} | ({} if pairs is None else {"text_pair": list(pairs)})
    rows = task.encode(datasets.Dataset.from_dict(columns), tokenizer, model, recipe)
    logits, _ = predict_rows(task, model, tokenizer, rows, batch_size=recipe.evaluation.batch_size)
    return list(_answers(texts, probabilities(logits), config.id2label))


def read_texts(recipe: Recipe, file: str) -> tuple[list[str], list[str] | None]:
    """The texts in a file, and the second texts where the model was trained on pairs; columns as in training."""
    from hfkit.data import load_source, text_column

    dataset = load_source([file])
    columns = recipe.data.columns
    if dataset.column_names == ["text"] and columns.text_pair is None:
        return dataset["text"][:], None  # a .txt file has no column of any other name
    own = dataclasses.replace(recipe.data, train=[file], test=[])  # for messages
    texts = dataset[text_column(dataset, dataclasses.replace(recipe, data=own))][:]
    if columns.text_pair is None:
        return texts, None
    second = dataclasses.replace(own, columns=dataclasses.replace(columns, text=columns.text_pair))
    return texts, dataset[text_column(dataset, dataclasses.replace(recipe, data=second))][:]


def _answers(texts: Sequence[str], probabilities: Any, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    for text, row in zip(texts, probabilities.tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        yield {
            "text": text,
            "label": names[best],
            "score": row[best],
            "probabilities": {names[index]: p for index, p in enumerate(row)},
        }
