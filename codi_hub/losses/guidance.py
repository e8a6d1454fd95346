"""d_x, the conditional guidance term: the four distances the paper compares, and one for edits.

Each is a function of a `GuidanceInput`, registered in `codi_hub.losses.GUIDANCE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import InvalidInput, one_line

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
TAPS = (3, 8, 15, 22, 29)  # the ReLU layers that LPIPS compares
LEAST_CHANGE = 0.01  # of the latents' variance, about what an autoencoder changes: less does not count as an edit


@dataclass(frozen=True)
class GuidanceInput:
    """One prediction and its ground truth.

    Attributes:
        x, x_hat: clean and predicted latents, (B, C, h, w).
        backbone: encodes and decodes.
        condition: images in [0, 1], (B, K, H, W).
        targets: ground truth in [0, 1], (B, 3, H, W), for terms with `needs_targets`.
        lpips: the perceptual network, for `lpips`.
    """

    x: Tensor
    x_hat: Tensor
    backbone: Backbone
    condition: Tensor
    targets: Tensor | None = None
    lpips: Lpips | None = None


def on_images(term: Any) -> Any:
    """Mark a term that compares images, so that ground truth is kept beside the latents."""
    term.needs_targets = True
    return term


def relative_to_condition(term: Any) -> Any:
    """Mark a term that compares with the condition, which must be an image of three channels."""
    term.needs_image_condition = True
    return term


def latent(g: GuidanceInput) -> Tensor:
    """Mean squared error in latent space, the paper's default."""
    return (g.x_hat - g.x).square().mean()


@relative_to_condition
def relative(g: GuidanceInput) -> Tensor:
    """Mean over pairs of the latent error divided by the change from the condition to the target.

    With an absolute error, an object that is recoloured, a hundredth of the image, has next to no weight beside a
    change of the light on all of it.
    """
    with torch.no_grad():
        source = g.backbone.encode_condition(g.condition)
    each = (1, 2, 3)
    change = (g.x - source).square().mean(each) + LEAST_CHANGE
    return ((g.x_hat - g.x).square().mean(each) / change).mean()


def roundtrip(g: GuidanceInput) -> Tensor:
    """Mean squared error of E(D(x_hat)) against x."""
    return (g.backbone.encode(g.backbone.decode(g.x_hat)) - g.x).square().mean()


@on_images
def pixel(g: GuidanceInput) -> Tensor:
    """Mean squared error of the decoded image."""
    assert g.targets is not None  # `needs_targets`
    return (g.backbone.decode(g.x_hat) - g.targets).square().mean()


@on_images
def lpips(g: GuidanceInput) -> Tensor:
    """LPIPS of the decoded image (over-saturates at few steps, as the paper reports)."""
    assert g.targets is not None  # `needs_targets`
    assert g.lpips is not None  # the method loads it
    return g.lpips(g.backbone.decode(g.x_hat), g.targets)


class Lpips(nn.Module):
    """Learned perceptual distance on VGG-16 (Zhang et al., CVPR 2018), its weights given by the user.

    Args:
        weights: a safetensors file with torchvision's names for VGG-16's convolutions (`features.0.weight`, ...) and
            LPIPS's linear layers as `lin0.weight` ... `lin4.weight`, each (1, channels, 1, 1).

    Raises:
        InvalidInput: unreadable, or tensors missing.
    """

    def __init__(self, weights: Path):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in VGG16:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU()]
                channels = entry
        self.features = nn.Sequential(*layers)
        for k, width in enumerate((64, 128, 256, 512, 512)):
            self.add_module(f"lin{k}", nn.Conv2d(width, 1, 1, bias=False))
        try:
            self.load_state_dict(load_file(weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InvalidInput(f"{weights}: not LPIPS weights for VGG-16: {one_line(error, 160)}") from error
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    mean: Tensor
    deviation: Tensor

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the mean distance of images in [0, 1], (B, 3, H, W), a scalar."""
        a, b = ((image - self.mean) / self.deviation for image in (a, b))
        total = a.new_zeros(())
        for k, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if k in TAPS:
                unit_a, unit_b = (f / (f.square().sum(1, keepdim=True) + 1e-10).sqrt() for f in (a, b))
                total = total + self.get_submodule(f"lin{TAPS.index(k)}")((unit_a - unit_b).square()).mean()
        return total
