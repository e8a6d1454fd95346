"""Tiny ControlNets as other tools have them: diffusers' own classes, with an effect, for a base of any family."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, FluxControlNetModel, SD3ControlNetModel
from safetensors.torch import load_file, save_file
from tiny import stir

from codi_hub.backbones.backbone import Backbone
from codi_hub.interop import ldm_keys

WEIGHTS = "diffusion_pytorch_model.safetensors"
STEM = (16, 32)  # tiny autoencoders halve the sides


def unet_controlnet(base: Any, **changes: Any) -> ControlNetModel:
    """A ControlNet of SD or SDXL, as diffusers makes it from a U-Net."""
    torch.manual_seed(4)
    return ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=STEM, **changes)


def sd3_controlnet(base: Any, num_layers: int = 3) -> SD3ControlNetModel:
    """A ControlNet of SD3 of any number of blocks, which sees no pooled text."""
    torch.manual_seed(4)
    twin = copy.deepcopy(base.transformer)  # `from_transformer` writes into its config
    return SD3ControlNetModel.from_transformer(twin, num_layers=num_layers, num_extra_conditioning_channels=0)


def flux_controlnet(base: Any, num_layers: int = 2, num_single_layers: int = 1) -> FluxControlNetModel:
    """A ControlNet of FLUX.1 with single-stream blocks, as InstantX's."""
    torch.manual_seed(4)
    config = base.transformer.config
    return FluxControlNetModel.from_transformer(
        base.transformer,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
    )


CONTROLNETS: dict[str, Callable[..., Any]] = {
    "sd": unet_controlnet,
    "sdxl": unet_controlnet,
    "sd3": sd3_controlnet,
    "flux": flux_controlnet,
}


def changed(net: Any, **changes: Any) -> Any:
    """A ControlNet of the same class with other entries in its configuration."""
    entries = inspect.signature(type(net).__init__).parameters.keys() & net.config.keys()
    return type(net)(**({name: net.config[name] for name in entries} | changes))


def lively(net: Any, scale: float = 0.05) -> Any:
    """Give a ControlNet an effect that depends on its condition: its layers are zero at first."""
    stir(net, scale)
    if hasattr(net, "controlnet_cond_embedding"):
        stir(net.controlnet_cond_embedding, 0.3)
    return net.eval()


def save(net: Any, folder: Path) -> Path:
    """Write a lively ControlNet's folder as diffusers does, and return it."""
    lively(net).save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ControlNet's folder."""
    return load_file(folder / WEIGHTS)


def write(path: Path, named: dict[str, torch.Tensor]) -> Path:
    """Write a safetensors file."""
    save_file(named, path)
    return path


def original(folder: Path, path: Path, prefix: str = ldm_keys.PREFIX) -> Path:
    """Write a folder's ControlNet as one file in original keys."""
    return write(path, {f"{prefix}{name}": value for name, value in ldm_keys.to_original(tensors(folder)).items()})


def control_lora(net: Any, base: Backbone, path: Path, rank: int = 3) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write a Control-LoRA in Stability AI's form; return it, and the ControlNet that it is, by diffusers' names."""
    generator = torch.Generator().manual_seed(8)
    whole, factors = dict(net.state_dict()), dict[str, torch.Tensor]()
    own = base.network.state_dict()
    for name, value in whole.items():
        if name not in own:
            factors[name] = value
        elif value.ndim > 1:
            up, down = (torch.randn(n, rank, generator=generator) / 9 for n in (len(value), value[0].numel()))
            module = name.removesuffix(".weight")
            factors[f"{module}.up"] = up.reshape(len(value), rank, *([1] * (value.ndim - 2)))
            factors[f"{module}.down"] = down.mT.reshape(rank, *value.shape[1:]).contiguous()
            whole[name] = own[name] + (up @ down.mT).reshape(value.shape)
        elif name.endswith("bias"):  # and norms' weights are the base's
            factors[name] = whole[name] = own[name] + 0.01
        else:
            whole[name] = own[name]
    names = ldm_keys.to_original(factors)
    return write(path, names | {"lora_controlnet": torch.tensor([])}), whole
