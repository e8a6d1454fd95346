"""DISTS (Ding, Ma, Wang and Simoncelli, TPAMI 2020): similarity of texture and structure in features of VGG16."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from codi_hub.evaluation.learned.lpips import VGG16
from codi_hub.evaluation.learned.weights import load_into, read_state

STABILITY = 1e-6  # c1 and c2 of eqs. 5 and 6
SIDE = 256  # px; the shorter side, to which the authors shrink larger images
CHANNELS = 3 + sum(widths[-1] for widths in VGG16)


class L2Pooling(nn.Module):
    """Halve the resolution by a root mean square under a Hann window of 3 x 3 (eq. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        window = torch.outer(torch.tensor([0.5, 1.0, 0.5]), torch.tensor([0.5, 1.0, 0.5]))
        self.register_buffer("filter", (window / window.sum()).repeat(channels, 1, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, C, H / 2, W / 2), rounded up."""
        mean = functional.conv2d(maps.square(), self.filter, stride=2, padding=1, groups=maps.shape[1])  # type: ignore[arg-type]
        return (mean + 1e-12).sqrt()


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        before, number = 3, 0
        for k, widths in enumerate(VGG16, 1):
            layers: list[nn.Module] = [L2Pooling(before)] if k > 1 else []
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            named = OrderedDict((str(number + i), layer) for i, layer in enumerate(layers))
            self.add_module(f"stage{k}", nn.Sequential(named))
            number += len(layers)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.alpha = nn.Parameter(torch.empty(1, CHANNELS, 1, 1))
        self.beta = nn.Parameter(torch.empty(1, CHANNELS, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the images themselves and the maps of five stages."""
        hidden, maps = (images - self.mean) / self.std, [images]  # type: ignore[operator]
        for stage in self.children():
            hidden = stage(hidden)
            maps.append(hidden)
        return maps


class Dists:
    """The distance by the state dict of the authors' model: `stage1.0.weight` and so on, `alpha`, `beta`.

    Raises:
        NotFound, InvalidInput: no such file, or other weights.
    """

    def __init__(self, file: Path, device: torch.device | str = "cpu") -> None:
        self.network, self.device = load_into(_Network(), read_state(file), file, device), device

    @torch.inference_mode()
    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Return the distance (B,) of images in [0, 1], (B, 3, H, W): eq. 7, 0 for equal images."""
        maps = zip(
            self.network(_shrunk(images).to(self.device)),
            self.network(_shrunk(references).to(self.device)),
            strict=True,
        )
        alpha, beta = self.network.alpha.flatten(), self.network.beta.flatten()  # type: ignore[operator]
        texture, structure = [], []
        for a, b in maps:
            mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
            var_a, var_b = a.var((2, 3), correction=0), b.var((2, 3), correction=0)
            covariance = (a * b).mean((2, 3)) - mean_a * mean_b
            texture.append((2 * mean_a * mean_b + STABILITY) / (mean_a.square() + mean_b.square() + STABILITY))
            structure.append((2 * covariance + STABILITY) / (var_a + var_b + STABILITY))
        similarity = torch.cat(texture, 1) @ alpha + torch.cat(structure, 1) @ beta
        return 1 - similarity / (alpha.sum() + beta.sum())


def _shrunk(images: Tensor) -> Tensor:
    short = min(images.shape[-2:])
    if short <= SIDE:
        return images
    return functional.interpolate(images, scale_factor=SIDE / short, mode="bilinear", antialias=True)
