"""An adapter as plain diffusers loads it: a ControlNet, or of kind concat the network with a wider input layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from codi_hub.adapters.concat import ConcatAdapter
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.adapters.format import CARD, RECORD, AdapterRecord
from codi_hub.adapters.sharing import Tensors, merged
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.foreign import CHANNEL_ORDER
from codi_hub.errors import Mismatch, one_line
from codi_hub.interop.folders import CONFIG, WEIGHTS, Contents, write_files

FILES = (CONFIG, WEIGHTS, RECORD, CARD)
STEM = "controlnet_cond_embedding.conv_in.weight"  # of a U-Net's ControlNet: where it sees its condition


def check_exportable(record: AdapterRecord, ref: str) -> None:
    """Check that a ControlNet can be equal to an adapter.

    Raises:
        Mismatch: it cannot; the message says how to distil one that can be exported.
    """
    config, reason = record.config, ""
    if record.kind not in (*CONTROLNETS, ConcatAdapter.kind):
        reason = f"is of kind {one_line(record.kind, 40)}, which is not a ControlNet beside the base: use kind control"
    elif config.get("start", 1) != 1:
        reason = "starts from its condition, which a ControlNet's pipeline does not: use start 1"
    elif config.get("top_down"):
        reason = "has a top-down path beside its encoder, which a ControlNet does not have: train it anew"
    elif config.get("fusion") == "gate":
        reason = "is fused by gates, which a ControlNet does not have: use fusion zero_conv"
    elif record.kind == "static" and config.get("gain", True):
        reason = "weights its condition by the time, which a ControlNet does not: use kind static with gain false"
    if reason:
        raise Mismatch(f"{ref} {reason} to distil an adapter that can be exported")


def encoder(adapter: ControlAdapter) -> Tensors:
    """Return the encoder's tensors: it is a ControlNet. Those of the base are among them, deltas are added."""
    return merged(adapter.encoder)


def static(adapter: Any) -> Tensors:
    """Return a ControlNet that does not depend on z_t, the time or the text.

    Its first layer is zero, its time embedding is that of t = 0, and its cross-attention adds zero.
    """
    net = adapter.encoder
    with torch.device("meta"):
        whole = ControlNetModel.from_config(net.config).state_dict()
    tensors = {name: torch.zeros(value.shape) for name, value in whole.items()} | net.state_dict()
    first = net.time_embedding.linear_1
    tensors["time_embedding.linear_1.weight"] = torch.zeros_like(first.weight)
    tensors["time_embedding.linear_1.bias"] = first(net.time_proj(torch.zeros(1)).to(first.weight))[0]
    return tensors


CONTROLNETS: dict[str, Callable[[Any], Tensors]] = {"control": encoder, "lora": encoder, "static": static}
"""Kind of adapter -> the tensors of the ControlNet that it is on its base."""


def wider_network(adapter: ConcatAdapter, base: Backbone) -> Any:
    """Return a network of the base's class whose input layer takes the further channels too; shapes only.

    Raises:
        Mismatch: see `Backbone.wider_config`.
    """
    further = base.condition_latents_channels(adapter.settings.condition_channels)
    with torch.device("meta"):
        return type(base.network).from_config(base.wider_config(further))


def controlnet(adapter: Any) -> tuple[Any, Tensors]:
    """Return the ControlNet that an adapter is on its base: a model for its config, and its tensors.

    Every pipeline passes images of three channels: a stem of one channel is spread over three, a third of its weight
    each, which is exact for gray images.
    """
    tensors, model = CONTROLNETS[adapter.kind](adapter), copy.copy(adapter.encoder)
    if STEM in tensors and tensors[STEM].shape[1] == 1:
        tensors[STEM] = tensors[STEM].float().expand(-1, 3, -1, -1) / 3
        model.register_to_config(conditioning_channels=3)
    return model, tensors


def in_rgb(model: Any, tensors: Tensors) -> tuple[Any, Tensors]:
    """Return a ControlNet that takes its condition as RGB, for readers that know no other order of its channels.

    One that was imported as BGR has the input channels of its first layer in the opposite order then.
    """
    if model.config.get(CHANNEL_ORDER) == "bgr":
        tensors = tensors | {STEM: tensors[STEM].flip(1)}
        model.register_to_config(**{CHANNEL_ORDER: "rgb"})
    return model, tensors


def contents(adapter: Any, base: Backbone) -> Contents:
    """Return a model's configuration and weights, in the base's dtype.

    Raises:
        Mismatch: see `wider_network`.
    """
    if isinstance(adapter, ConcatAdapter):
        model, tensors = wider_network(adapter, base), adapter.merged()
    else:
        model, tensors = controlnet(adapter)
    return {CONFIG: model.to_json_string(), WEIGHTS: tensors}


def write(out: Path, adapter: Any, base: Backbone, record: Path, readme: str, *, overwrite: bool = False) -> None:
    """Write the folder: `contents`, the adapter's record, and a README.

    Raises:
        Conflict: see `folders.check_free`. CodiError: it could not be written. Mismatch: see `wider_network`.
    """
    files = contents(adapter, base) | {RECORD: record.read_text(encoding="utf-8"), CARD: readme}
    write_files(out, files, base.dtype, overwrite=overwrite)
