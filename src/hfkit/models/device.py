"""The device that a model runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """The model, ready to answer, on the accelerator of this machine where it has one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return model.to(accelerator or "cpu").eval()


def gpu_has_bfloat16() -> bool:
    """Whether there is a GPU here that computes in bfloat16, as those from 2020 on do; older ones emulate it."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
