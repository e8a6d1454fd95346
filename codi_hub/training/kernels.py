"""Ways around PyTorch's kernels where training on small crops, in 16 bit on the CPU, meets them at their slowest."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

FEW = 256  # cells of a latent, up to which plain attention is no slower there and back, and five times faster on 16
SMALL = 1024  # cells of a map, below which PyTorch's channels-last kernel goes over every group by itself
NARROW = 16  # channels a group, below which that leaves most of a vector register empty


class GroupNorm(nn.GroupNorm):
    """PyTorch's; on the CPU, maps on which its channels-last kernel is slow take the way through the other layout.

    16 maps of 64 channels and 16x16 cells in 16 groups, bfloat16, there and back: 0.6 ms in place of 4.0.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        width = self.num_channels // self.num_groups
        slow = input.device.type == "cpu" and input.dtype != torch.float32 and width < NARROW
        if not slow or input.ndim != 4 or input.shape[2] * input.shape[3] >= SMALL:
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


def quicken(net: nn.Module) -> None:
    """Makes the group normalisations of a network the ones above; its weights and their names stay."""
    for module in net.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm


def attention(latents: Tensor, mixed_precision: str) -> AbstractContextManager[None]:
    """The context in which a forward pass on such latents, (B, C, h, w), is quickest there and back."""
    slow = latents.device.type == "cpu" and mixed_precision != "no" and latents[0, 0].numel() <= FEW
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()
