"""A masked model whose vocabulary head runs at the masked positions alone: the same loss for about half the time.

Stock models compute a row of logits as long as the vocabulary for every token, though only 15% of them have a label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfkit.data.labels import IGNORED
from hfkit.system import compat
from hfkit.system.console import warn
from hfkit.system.state import kept_random_state
from hfkit.tasks.base import Batch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POSITIONS = "masked_positions"  # key of a batch: bool, shape (rows, tokens)


def narrow_head(model: PreTrainedModel, batch: Batch) -> None:
    """Makes `model` answer a batch that has POSITIONS with logits of these alone, shape (masked, vocabulary).

    Whatever stands behind the body works position by position, so its inputs can be narrowed. `batch` is a first one,
    to check that the logits are the same; where they are not, all are computed and only then narrowed.
    """
    import torch

    if any(isinstance(hook, _Narrowing) for hook in compat.pre_hooks(model)):
        return
    narrowing = _Narrowing()
    model.register_forward_pre_hook(narrowing, with_kwargs=True)  # takes POSITIONS, which no model knows
    head = [part for part in model.children() if part is not model.base_model]
    hooks = [part.register_forward_pre_hook(narrowing.narrow) for part in head]
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    positions = inputs[POSITIONS]
    was_training = model.training
    model.eval()
    with torch.no_grad(), kept_random_state():
        narrow = model(**inputs)[0]
        every = model(**{name: tensor for name, tensor in inputs.items() if name != POSITIONS})[0][positions]
    model.train(was_training)
    if narrow.shape != every.shape or not torch.allclose(narrow, every, rtol=1e-3, atol=1e-3):
        for hook in hooks:
            hook.remove()
        model.register_forward_hook(narrowing.narrow_output)
        warn(f"{type(model).__name__} computes its vocabulary head at every token, which is slower")


class _Narrowing:
    """The positions of the forward pass in progress, and the hooks that narrow tensors to them."""

    def __init__(self) -> None:
        self.positions: torch.Tensor | None = None

    def __call__(self, module: Any, values: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self.positions = options.pop(POSITIONS, None)
        return values, options

    def narrow(self, module: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._narrowed(value) for value in values)

    def narrow_output(self, module: Any, values: tuple[Any, ...], outputs: Any) -> Any:
        name = next(iter(outputs))  # "logits", or "prediction_logits" of a model with two heads
        outputs[name] = self._narrowed(outputs[name])
        return outputs

    def _narrowed(self, value: Any) -> Any:
        import torch

        per_token = torch.is_tensor(value) and value.dim() == 3 and self.positions is not None
        if per_token and value.shape[:2] == self.positions.shape:  # type: ignore[union-attr]
            return value[self.positions]
        return value


def add_positions(batch: Batch) -> Batch:
    """`batch` with POSITIONS: where its labels are."""
    return {**batch, POSITIONS: batch["labels"] != IGNORED}


def flat_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The labels of `logits`: of the masked positions alone where these are, shape (masked,), else all."""
    return labels[labels != IGNORED] if logits.dim() == 2 else labels


def filled_masks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Batch) -> list[str]:
    """What the model puts in the first hidden places of the one row in `batch`, each with the words around it."""
    import torch

    inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        guesses = model(**inputs)[0].argmax(-1)
    model.train(was_training)
    places = batch[POSITIONS][0].nonzero()[:, 0].tolist()
    text = torch.where(batch[POSITIONS], batch["labels"], batch["input_ids"])[0]

    def shown(ids: torch.Tensor) -> str:
        return " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())

    return [
        f"{shown(text[max(place - 8, 0) : place])} [{shown(guess)}] {shown(text[place + 1 : place + 9])}"
        f"   (hidden: {shown(text[place])})"
        for place, guess in list(zip(places, guesses, strict=True))[:3]
    ]
