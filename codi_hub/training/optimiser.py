"""The optimisers of a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from codi_hub.errors import UsageError

Groups = list[dict[str, Any]]
SETTINGS: dict[str, Any] = {"weight_decay": 0.01, "betas": (0.9, 0.99)}


def new_optimiser(name: str, groups: Groups) -> torch.optim.Optimizer:
    """Return an optimiser of `training.optimizer`.

    Args:
        name: in `OPTIMISERS`.
        groups: as `Adapter.parameter_groups` returns them.

    Raises:
        UsageError: it needs a package that is absent, or cannot run on this device.
    """
    return OPTIMISERS[name](groups)


def _adamw(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True, **SETTINGS)


def _adamw8bit(groups: Groups) -> torch.optim.Optimizer:
    """AdamW with moments of 8 bits in blocks (Dettmers et al., ICLR 2022); small tensors keep 32 bits."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UsageError(
            "training.optimizer adamw8bit: bitsandbytes is not installed; pip install 'codi-hub[8bit]', or use adamw"
        ) from error
    like = groups[0]["params"][0]
    probe = nn.Parameter(torch.zeros(1 << 13, device=like.device))
    probe.grad = torch.zeros_like(probe)
    try:
        AdamW8bit([probe], **SETTINGS).step()
    except Exception as error:  # it has a kernel per device, and errors of a dozen kinds where there is none
        raise UsageError(
            f"training.optimizer adamw8bit: bitsandbytes cannot run on {like.device.type} here; use adamw"
        ) from error
    return AdamW8bit(groups, **SETTINGS)


OPTIMISERS: dict[str, Callable[[Groups], torch.optim.Optimizer]] = {"adamw": _adamw, "adamw8bit": _adamw8bit}
