"""Every private API of a library that hfkit uses: what for, in which version it was read, and until when.

An upgrade of a library begins here. Nothing else in hfkit touches a name of a library that begins with an underscore.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer


def classes_with_head(auto_model: str) -> Mapping[str, str | Sequence[str]]:
    """The model classes of an Auto class, by model type. transformers 5.23: its public mapping imports every model.

    Until the Auto classes say which types they know without importing them.
    """
    import transformers

    mapping: Mapping[str, Any] = getattr(transformers, auto_model)._model_mapping._model_mapping
    return mapping


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether peft layers are in the model. transformers 5.23: `active_adapters` raises for a model without any."""
    return bool(model._hf_peft_config_loaded)


def forget_adapters(model: PreTrainedModel) -> None:
    """Makes a model plain whose adapters are merged. transformers 5.23: `unload` exists for a PeftModel alone."""
    model._hf_peft_config_loaded = False
    del model.peft_config


def pre_hooks(model: PreTrainedModel) -> Collection[Any]:
    """The hooks that run before a module. torch 2.13: they can be added and removed, not listed."""
    hooks: Collection[Any] = model._forward_pre_hooks.values()
    return hooks


def read_checkpoints_with(trainer: Trainer, read: Callable[[Path], None]) -> None:
    """Has `trainer` read the weights of a checkpoint by `read`.

    transformers 5.23: the Trainer reads no checkpoint of a model that has adapters and is no PeftModel.
    """
    from pathlib import Path

    trainer._load_from_checkpoint = lambda path, model=None: read(Path(path))


def corpus_statistics(
    metric: Any, predictions: Sequence[str], references: Sequence[Sequence[Any]]
) -> list[list[float]]:
    """The counts of each sentence that sacreBLEU adds up. sacrebleu 2.6: its own bootstrap keeps them to itself."""
    rows: list[list[float]] = metric._extract_corpus_statistics(predictions, references)
    return rows


def code_hash(module: Any) -> str:
    """Which code a metric of the Hub runs. evaluate 0.4.6: only the cache path shows it."""
    return str(module._hash)


def require_compiler() -> str | None:
    """What torch.compile lacks on this machine, None if nothing. torch 2.13: it is told only in the first forward."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        return str(error)
    return None


def fingerprint(dataset: Dataset) -> str:
    """What identifies the content of a data set and the steps that made it. datasets 5.2: it has no public name."""
    found: str = dataset._fingerprint
    return found


def set_store(handler: Any, store: Any) -> None:
    """Gives torch's rendezvous handler a store of our own. torch 2.13: its own listens on all interfaces."""
    handler._store = store


def end_ranks_within(seconds: int) -> None:
    """Has torch's launcher wait at most `seconds` for the other ranks when one has failed. torch 2.13: always 30."""
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    close = SubprocessContext._close

    def hurried(self: Any, death_sig: Any, timeout: int = seconds) -> None:
        close(self, death_sig, min(timeout, seconds))

    SubprocessContext._close = hurried  # type: ignore[method-assign]
