"""Base models: one file per family, behind the `Backbone` protocol; found by name in `FAMILIES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codi_hub.errors import InvalidInput
from codi_hub.plugins import Plugins

if TYPE_CHECKING:
    import torch

    from codi_hub.backbones.backbone import Backbone

FAMILIES = Plugins(
    "base family",
    "codi_hub.backbones",
    {"sd": "codi_hub.backbones.unet:UNetBackbone", "sdxl": "codi_hub.backbones.sdxl:SDXLBackbone"},
)


def load(source: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Backbone:
    """Load a base of whichever family it is, in evaluation mode.

    Args:
        source: a diffusers folder or hub id.
        device: where to compute.
        dtype: precision of the networks (default: float32).

    Raises:
        NotFound, InvalidInput, Mismatch: it is not there, is damaged, or no family supports it.
    """
    import torch

    from codi_hub.backbones.sources import local_folder

    folder = local_folder(source)
    family = next((family for _, family in FAMILIES.loadable() if family.matches(folder)), None)
    if family is None:
        if not (folder / "unet" / "config.json").is_file():
            known = ", ".join(FAMILIES.names())
            raise InvalidInput(f"{source} is not a model folder of a known family ({known}): no unet/config.json")
        family = FAMILIES.load("sd")  # says what it does not support
    return family.load(str(folder), device=device, dtype=dtype or torch.float32)
