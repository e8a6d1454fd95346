"""Alternatives to PyTorch kernels that are slow for training on small crops in 16 bit on a CPU, for recipes alone."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from codi_hub.inference.devices import computes_bfloat16

FEW = 256  # latent cells, up to which plain attention is no slower forward and backward, and 5 times faster on 16
SMALL = 1024  # cells of a feature map, below which PyTorch's channels-last kernel computes group by group
NARROW = 16  # channels per group, below which that leaves most of a vector register empty


class GroupNorm(nn.GroupNorm):
    """PyTorch's group normalisation, in the other memory layout where its channels-last CPU kernel is slow.

    16 maps of 64 channels and 16x16 cells in 16 groups, bfloat16, forward and backward: 0.6 ms instead of 4.0 ms.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, (B, C, ...)."""
        width = self.num_channels // self.num_groups
        slow = input.device.type == "cpu" and input.dtype != torch.float32 and width < NARROW
        if not slow or input.ndim != 4 or input.shape[2] * input.shape[3] >= SMALL:
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


def replace_group_norms(net: nn.Module) -> None:
    """Turn the group normalisations of a network into `GroupNorm`; weights and their names stay."""
    for module in net.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm


def attention(latents: Tensor, mixed_precision: str) -> AbstractContextManager[None]:
    """Return the context in which attention on latents (B, C, h, w) is fastest, forward and backward."""
    slow = latents.device.type == "cpu" and mixed_precision != "no" and latents[0, 0].numel() <= FEW
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def precision(device: str) -> torch.dtype:
    """Return bfloat16, or float32 on a CPU without instructions for it, where bfloat16 takes 10 times as long."""
    return torch.bfloat16 if device != "cpu" or computes_bfloat16() else torch.float32


def training_precision(device: str) -> AbstractContextManager[Any]:
    """Return the autocast of `precision`."""
    return torch.autocast(device, torch.bfloat16, enabled=precision(device) == torch.bfloat16)
