"""d_x, the conditional guidance term: the four distances the paper compares, one for edits, and none."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import InvalidInput
from codi_hub.losses.codi import Distance, latent_l2

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
LEAST_CHANGE = 0.01  # of the latents' variance, about what an autoencoder changes: less is nothing to be learnt
TAPS = (3, 8, 15, 22, 29)  # the ReLU layers that LPIPS compares


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
            reason = " ".join(str(error).split())[:160]
            raise InvalidInput(f"--lpips {weights}: not LPIPS weights for VGG-16: {reason}") from error
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    mean: Tensor
    deviation: Tensor

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images in [0, 1], (B, 3, H, W) -> mean distance, a scalar."""
        a, b = ((image - self.mean) / self.deviation for image in (a, b))
        total = a.new_zeros(())
        for k, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if k in TAPS:
                unit_a, unit_b = (f / (f.square().sum(1, keepdim=True) + 1e-10).sqrt() for f in (a, b))
                total = total + self.get_submodule(f"lin{TAPS.index(k)}")((unit_a - unit_b).square()).mean()
        return total


def relative_l2(x: Tensor, x_hat: Tensor, source: Tensor) -> Tensor:
    """`latent_l2` of each pair relative to that of leaving the source as it is.

    Else a thing painted over, a hundredth of the picture, is not learnt at all beside night that falls on all of it.
    """
    apart = (1, 2, 3)
    return ((x_hat - x).square().mean(apart) / ((x - source).square().mean(apart) + LEAST_CHANGE)).mean()


def distance(
    name: str, base: FrozenBase, targets: Tensor | None, lpips: Lpips | None = None, source: Tensor | None = None
) -> Distance | None:
    """The guidance term of a name, for one batch.

    Args:
        name: `latent`, `relative` (to the change that is wanted), `roundtrip` (E(D(x_hat)) against x), `pixel`
            (D(x_hat) against the target), `lpips` or `off`.
        targets: pictures in [0, 1], (B, 3, H, W); needed by `pixel` and `lpips`.
        source: latents of the condition, (B, C, h, w); needed by `relative`.
    """
    if name == "roundtrip":
        return lambda x, x_hat: latent_l2(x, base.encode(base.decode(x_hat)))
    if name == "pixel":
        return lambda x, x_hat: (base.decode(x_hat) - targets).square().mean()  # type: ignore[operator]
    if name == "lpips":
        return lambda x, x_hat: lpips(base.decode(x_hat), targets)  # type: ignore[misc]
    if name == "relative":
        return lambda x, x_hat: relative_l2(x, x_hat, source)  # type: ignore[arg-type]
    return latent_l2 if name == "latent" else None
