"""Feature networks for the Frechet and perceptual distances: the bundled one, or one of the user's."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from codi_hub.errors import InvalidInput, NotFound

BUNDLED = Path(__file__).parents[1] / "nano" / "features"
WEIGHTS, CONFIG = "features.safetensors", "config.json"
FORMAT_VERSION = 1
WIDTHS = (16, 32, 64, 128, 192)
POOLED = 128
PROBE = 64  # px; side of the image on which a network is checked

FeatureOutput = tuple[Sequence[Tensor], Tensor]
"""Feature maps (B, C, H, W), from fine to coarse, and one vector per image, (B, D)."""


class FeatureNet(nn.Module):
    """A convolutional network: five levels of two 3x3 convolutions, each level at half the resolution of the last.

    Without normalisation and attention, so that a feature depends on its receptive field alone, at any image size.

    Args:
        widths: channels of each level.
        pooled: channels of the last map, whose spatial mean is the image's vector.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, pooled: int = POOLED):
        super().__init__()
        self.config = {"widths": list(widths), "pooled": pooled}
        self.levels = nn.ModuleList()
        before = 3
        for number, width in enumerate(widths):
            after = pooled if number == len(widths) - 1 else width
            first = nn.Conv2d(before, width, 3, stride=1 if number == 0 else 2, padding=1)
            self.levels.append(nn.Sequential(first, _active(), nn.Conv2d(width, after, 3, padding=1), _active()))
            before = after
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0.1)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> FeatureOutput:
        """Map images in [0, 1], (B, 3, H, W) of any size, to one map per level and the pooled vector."""
        hidden, maps = (images - 0.5) / 0.25, []  # about zero mean and unit standard deviation
        for level in self.levels:
            hidden = level(hidden)
            maps.append(hidden)
        return maps, hidden.mean((2, 3))


def _active() -> nn.Module:
    return nn.LeakyReLU(0.1)


@dataclass(frozen=True)
class Features:
    """A loaded network. `name` identifies it in reports: distances of two networks cannot be compared."""

    name: str
    network: Callable[[Tensor], FeatureOutput]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map float32 images in [0, 1], (B, 3, H, W), to maps and vectors."""
        maps, pooled = self.network(images.to(self.device))
        return list(maps), pooled


def load_features(path: Path | None = None, device: torch.device | str = "cpu") -> Features | None:
    """Load the feature network at `path`; by default the bundled one, or None if none is bundled.

    Args:
        path: a folder written by `save_features`, or a TorchScript file: a module that takes float32 images in [0, 1],
            (B, 3, H, W) with sides of at least 64 px, normalises them itself, and returns (maps, vectors): a list of
            tensors (B, C, H', W') and a tensor (B, D). The code in the file is executed: use trusted files only.
        device: the network runs there in float32.

    Raises:
        NotFound: no such file or folder.
        InvalidInput: not a feature network.
    """
    if path is None and not (BUNDLED / CONFIG).is_file():
        return None
    target = torch.device(device)
    source = path or BUNDLED
    if not source.exists():
        raise NotFound(f"features {source}: no such file or folder; give a folder or a TorchScript file")
    network, weights = _from_folder(source) if source.is_dir() else (_from_script(source), source)
    network.to(target, torch.float32).eval()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    features = Features(f"{'bundled' if path is None else source.name}, sha256 {digest[:12]}", network, target)
    _check(features, source)
    return features


def _from_folder(folder: Path) -> tuple[nn.Module, Path]:
    """Load a network and return it with its weights file. Raises InvalidInput."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        if config["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {config['format_version']}, supported: {FORMAT_VERSION}")
        network = FeatureNet(config["widths"], config["pooled"])
        network.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        why = str(error).splitlines()[0]
        raise InvalidInput(f"features {folder}: not a feature network ({CONFIG} and {WEIGHTS}): {why}") from error
    return network, folder / WEIGHTS


def _from_script(file: Path) -> nn.Module:
    """Load a TorchScript module. Raises InvalidInput."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated in torch, but in use
            return torch.jit.load(file, map_location="cpu")
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise InvalidInput(f"features {file}: not a TorchScript file: {why}") from error


def _check(features: Features, source: Path) -> None:
    """Run the network on random images. Raises InvalidInput unless it returns maps and vectors."""
    try:
        maps, pooled = features(torch.rand(2, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0)))
        good = pooled.shape[:1] == (2,) and pooled.ndim == 2 and all(m.shape[0] == 2 and m.ndim == 4 for m in maps)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"features {source}: fails on {PROBE} px images: {str(error).splitlines()[0]}") from error
    if not good or not maps:
        raise InvalidInput(
            f"features {source}: must return (maps, vectors), a list of (B, C, H, W) and a (B, D) tensor"
        )


def save_features(folder: Path, network: FeatureNet, card: str) -> None:
    """Write a network for `load_features`, weights in float16, with its card."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"format_version": FORMAT_VERSION, **network.config}, indent=1) + "\n")
    (folder / "README.md").write_text(card)
