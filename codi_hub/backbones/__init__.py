"""Base models: one file per family, behind the `Backbone` protocol; found by name in `FAMILIES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codi_hub.errors import InvalidInput, one_line
from codi_hub.plugins import Plugins

if TYPE_CHECKING:
    import torch

    from codi_hub.backbones.backbone import Backbone
    from codi_hub.backbones.parts import ModelFiles

FAMILIES = Plugins(
    "base family",
    "codi_hub.backbones",
    {
        "sd": "codi_hub.backbones.unet:UNetBackbone",
        "sdxl": "codi_hub.backbones.sdxl:SDXLBackbone",
        "sd3": "codi_hub.backbones.sd3:SD3Backbone",
        "flux": "codi_hub.backbones.flux:FluxBackbone",
        "z-image": "codi_hub.backbones.z_image:ZImageBackbone",
    },
)


def recognise(source: str) -> tuple[type[Backbone], ModelFiles]:
    """Return the family of a base and what is known of its files; no weights are read.

    Args:
        source: a diffusers folder or hub id.

    Raises:
        NotFound, InvalidInput: it is not there, is damaged, or no family supports it.
    """
    from codi_hub.backbones.parts import describe
    from codi_hub.backbones.sources import local_folder

    folder = local_folder(source)
    try:
        files = describe(folder)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error
    family = next((family for _, family in FAMILIES.loadable() if family.matches(files)), None)
    if family is None:
        known = ", ".join(FAMILIES.names())
        raise InvalidInput(f"{source} is not a model folder of a known family ({known}): {_seen(files)}")
    return family, files


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
    from safetensors import SafetensorError

    from codi_hub.backbones.sources import quiet_libraries

    family, files = recognise(source)
    try:
        with quiet_libraries():
            base = family.load(files, dtype or torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise _unreadable(source, error) from error
    return base.to(torch.device(device)).to(memory_format=torch.channels_last)


def _unreadable(source: str, error: Exception) -> InvalidInput:
    return InvalidInput(f"base {source}: cannot be loaded: {one_line(error, 200)}")


def _seen(files: ModelFiles) -> str:
    if not files.classes:
        return "no model_index.json, no unet/config.json"
    return files.pipeline or ", ".join(sorted(set(files.classes.values())))
