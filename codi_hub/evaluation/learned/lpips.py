"""LPIPS (Zhang et al., CVPR 2018) and ST-LPIPS (Ghildyal and Liu, ECCV 2022): distances trained on human judgements.

Both compare the feature maps of AlexNet or VGG16, weighted per channel. ST-LPIPS changes the network: every subsampling
follows a blur, padded by two pixels, and the first convolution of AlexNet has stride 1.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from codi_hub.evaluation.learned.weights import load_into, read_state

EPS = 1e-10  # of the normalisation, as in the reference code of both
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
BINOMIAL = (1.0, 2.0, 1.0)


class Blur(nn.Module):
    """Halve the resolution of (B, C, H, W) after a binomial blur of 3 x 3, at borders of two reflected pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor(BINOMIAL) / sum(BINOMIAL)
        self.register_buffer("filt", torch.outer(row, row).repeat(channels, 1, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, C, H // 2 + 1, W // 2 + 1), rounded up."""
        padded = functional.pad(maps, (2, 2, 2, 2), "reflect")
        return functional.conv2d(padded, self.filt, stride=2, groups=maps.shape[1])  # type: ignore[arg-type]


class Trunk(nn.Module):
    """Five slices of layers; the maps behind each are compared. Layers keep the numbers of the published networks."""

    def __init__(self, slices: list[list[nn.Module]]) -> None:
        super().__init__()
        number = 0
        for k, layers in enumerate(slices, 1):
            named = OrderedDict((str(number + i), layer) for i, layer in enumerate(layers))
            self.add_module(f"slice{k}", nn.Sequential(named))
            number += len(layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of each slice, (B, C, H, W)."""
        maps = [images]
        for layers in self.children():
            maps.append(layers(maps[-1]))
        return maps[1:]


def alexnet(shift_tolerant: bool) -> Trunk:
    """Build the convolutions of AlexNet."""

    def halve(channels: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, 1), Blur(channels)] if shift_tolerant else [nn.MaxPool2d(3, 2)]

    first = [nn.Conv2d(3, 64, 11, 1, 2), Blur(64)] if shift_tolerant else [nn.Conv2d(3, 64, 11, 4, 2)]
    return Trunk(
        [
            [*first, nn.ReLU()],
            [*halve(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
            [*halve(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
        ]
    )


def vgg16(shift_tolerant: bool) -> Trunk:
    """Build the convolutions of VGG16."""
    slices: list[list[nn.Module]] = []
    before = 3
    for widths in VGG16:
        layers: list[nn.Module] = []
        if slices:
            layers += [nn.MaxPool2d(2, 1), Blur(before)] if shift_tolerant else [nn.MaxPool2d(2, 2)]
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        slices.append(layers)
    return Trunk(slices)


class Lpips:
    """The distance by the state dict of a published model: `net.slice1.0.weight` and so on, `lin0.model.1.weight`.

    Args:
        file: tells AlexNet from VGG16, and the shift-tolerant network from the plain one, by its tensors.

    Raises:
        NotFound, InvalidInput: no such file, or other weights.
    """

    def __init__(self, file: Path, device: torch.device | str = "cpu") -> None:
        state = {name: value for name, value in read_state(file).items() if not name.startswith("lins.")}
        self.shift_tolerant = any(name.endswith(".filt") for name in state)
        first = state.get("net.slice1.0.weight")
        build = alexnet if first is not None and first.shape[-1] == 11 else vgg16
        model = nn.Module()
        model.net = build(self.shift_tolerant)
        model.scaling_layer = nn.Module()
        for name, value in (("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))):
            model.scaling_layer.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1))
        channels = [next(m for m in reversed(part) if isinstance(m, nn.Conv2d)) for part in model.net.children()]  # type: ignore[call-overload]
        for k, convolution in enumerate(channels):
            linear = nn.Sequential(nn.Identity(), nn.Conv2d(convolution.out_channels, 1, 1, bias=False))
            model.add_module(f"lin{k}", nn.ModuleDict({"model": linear}))
        self.model, self.device = load_into(model, state, file, device), device

    @torch.inference_mode()
    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Return the distance (B,) of images in [0, 1], (B, 3, H, W): eq. 1 of Zhang et al., 0 for equal images."""
        own, other = self._maps(images), self._maps(references)
        total = torch.zeros(len(images), device=self.device)
        for k, (a, b) in enumerate(zip(own, other, strict=True)):
            weights = self.model.get_submodule(f"lin{k}.model.1")
            total = total + weights((a - b).square()).mean((1, 2, 3))
        return total

    def _maps(self, images: Tensor) -> list[Tensor]:
        layer = self.model.scaling_layer
        maps = self.model.net((2 * images.to(self.device) - 1 - layer.shift) / layer.scale)  # type: ignore[operator,union-attr]
        return [m / (m.norm(dim=1, keepdim=True) + EPS) for m in maps]
