"""An adapter as plain diffusers loads it: a ControlNet, or of kind concat the network with a wider input layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from codi_hub.adapters.concat import ConcatAdapter
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.adapters.format import CARD, RECORD, AdapterRecord, read_record
from codi_hub.adapters.sharing import Tensors, merged
from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import CodiError, Mismatch, one_line
from codi_hub.interop.folders import new_folder

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # diffusers' names
FILES = (CONFIG, WEIGHTS, RECORD, CARD)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export and nothing else: any ControlNet has files of most of these names."""
    try:
        read_record(folder / RECORD)
        return all(path.name in FILES and path.is_file() for path in folder.iterdir())
    except (CodiError, OSError):
        return False


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


def write(out: Path, adapter: Any, base: Backbone, record: Path, readme: str, *, overwrite: bool = False) -> None:
    """Write the folder: a model's configuration and weights in the base's dtype, the adapter's record, and a README.

    Raises:
        Conflict: see `folders.check_free`. CodiError: it could not be written. Mismatch: see `wider_network`.
    """
    wider = isinstance(adapter, ConcatAdapter)
    model = wider_network(adapter, base) if wider else adapter.encoder
    with torch.no_grad():
        weights = adapter.merged() if wider else CONTROLNETS[adapter.kind](adapter)
        tensors = {name: value.to("cpu", base.dtype).contiguous() for name, value in weights.items()}
    try:
        with new_folder(out, is_export, overwrite) as folder:
            model.save_config(folder)
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
            (folder / WEIGHTS).chmod(
                (folder / CONFIG).stat().st_mode
            )  # safetensors makes it readable by the owner only
            (folder / RECORD).write_bytes(record.read_bytes())
            (folder / CARD).write_text(readme, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error, 160)
        raise CodiError(f"the export could not be written to {out}: {reason}") from error
