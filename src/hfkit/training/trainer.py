"""The stock Trainer, composed from a task's functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.data import get_worker_info
from transformers import Trainer

from hfkit.errors import DataError
from hfkit.evaluation.inference import EvaluationRows
from hfkit.metrics.sample import loss_of
from hfkit.models import adapters
from hfkit.system import compat
from hfkit.system.console import warn
from hfkit.system.signals import leave_to_parent
from hfkit.tasks.base import LossOptions
from hfkit.training.arguments import optimizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from hfkit.tasks.base import Batch, Task
    from hfkit.training.callbacks import RunCallback
    from hfkit.training.prepared import Prepared
    from hfkit.training.stream import StreamedExamples, TrainingStream


def build_trainer(
    ready: Prepared,
    args: TrainingArguments,
    stream: TrainingStream | StreamedExamples,
    callback: RunCallback,
) -> Trainer:
    """The stock Trainer, composed from the task's functions."""
    task, recipe = ready.task, ready.recipe
    weights = None if ready.rows is None else ready.rows.class_weights
    options = LossOptions(recipe.train.label_smoothing, stream.global_batch_size, weights)
    evaluation = replace(ready.scoring.evaluation, interval=False)
    examples = callback.evaluations.examples
    held_out = None if examples is None else EvaluationRows(examples, recipe.evaluation.seed)

    def metrics_of(output: Any) -> dict[str, float | None]:
        assert held_out is not None
        found = (held_out.in_row_order(output.predictions), held_out.in_row_order(output.label_ids))
        try:
            scores = task.scores(*found, held_out.rows, evaluation)
        except DataError as error:
            if held_out.rows is ready.held_out or not evaluation.metrics:
                raise
            problem = f"not measured while training, on a sample: {error.problems[0][0]}"  # of all data it can be right
            warn(problem, "--eval-steps N evaluates on all validation data", once=True)
            scores = task.scores(*found, held_out.rows, replace(evaluation, metrics=[]))
        # The Trainer's own loss is a mean over batches, of which several processes fill the last one with rows again.
        return {name: score.value for name, score in scores.items()} | {"loss": loss_of(scores)}

    trainer = Trainer(
        model=ready.model,
        args=args,
        data_collator=partial(collate, task, ready.tokenizer),
        train_dataset=stream,
        eval_dataset=held_out,
        compute_loss_func=callback.watched(partial(task.loss, options=options), task.loss),
        preprocess_logits_for_metrics=lambda outputs, labels: task.reduce(
            outputs if isinstance(outputs, tuple) else (outputs,), labels, ready.tokenizer
        ),
        compute_metrics=metrics_of,
        callbacks=[callback],
        optimizer_cls_and_kwargs=optimizer(recipe.train),
    )
    if recipe.lora.enabled:
        compat.read_checkpoints_with(trainer, lambda path: adapters.read(trainer.model, path))
    return trainer


def collate(task: Task, tokenizer: PreTrainedTokenizerBase, examples: Sequence[dict[str, Any]]) -> Batch:
    """Examples as one padded batch, in a loader's worker process too."""
    if get_worker_info() is not None:
        leave_to_parent()
    return task.collate(examples, tokenizer)
