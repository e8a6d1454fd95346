"""The networks of a training: gradient checkpointing, and the moving average and where it lies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def enable_checkpointing(*modules: nn.Module) -> None:
    """Let all diffusers networks in modules compute their blocks again in the backward pass (Chen et al., 2016)."""
    networks: list[Any] = [network for module in modules for network in module.modules()]
    for network in networks:
        if getattr(network, "_supports_gradient_checkpointing", False):
            network.enable_gradient_checkpointing()


def on_device(network: nn.Module, device: torch.device) -> Any:
    """Return a network, or a copy on the device where it is kept elsewhere."""
    place = next(network.parameters()).device.type
    return network if place == device.type else copy.deepcopy(network).to(device)


@torch.no_grad()
def update_ema(ema: nn.Module, student: nn.Module, gamma: float) -> None:
    """theta_minus <- gamma theta_minus + (1 - gamma) theta."""
    pairs = zip(ema.parameters(), student.parameters(), strict=True)
    kept, trained = zip(*((average, value.to(average)) for average, value in pairs), strict=True)
    torch._foreach_lerp_(kept, trained, 1 - gamma)
