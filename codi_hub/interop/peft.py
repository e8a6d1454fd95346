"""An adapter of kind concat as a LoRA in PEFT's own files, on the base's network with a wider input layer.

FLUX.1-Control's form: the weights of the further input channels are a delta like the others, on columns that are zero
in the base.
"""

from __future__ import annotations

import json

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from codi_hub.adapters.concat import ConcatAdapter, WideInput
from codi_hub.adapters.sharing import Tensors
from codi_hub.errors import Mismatch, one_line
from codi_hub.interop import diffusers, readme
from codi_hub.interop.export import Export
from codi_hub.interop.folders import PEFT_CONFIG, PEFT_WEIGHTS, Contents
from codi_hub.record import AdapterRecord

PREFIX = "base_model.model."  # of PEFT's names


def check(record: AdapterRecord, ref: str) -> None:
    """Raise Mismatch for a kind that is no LoRA on the base's own network."""
    if record.kind != ConcatAdapter.kind:
        raise Mismatch(
            f"{ref} is of kind {one_line(record.kind, 40)}, and PEFT holds deltas of the base's network alone: use "
            "format diffusers, or kind concat to distil an adapter that is a LoRA"
        )
    diffusers.check_exportable(record, ref)


def contents(export: Export) -> Contents:
    """Return PEFT's configuration and weights; every rank is stated, and every delta has scale 1.

    Raises:
        Mismatch: see `Backbone.wider_config`.
    """
    adapter, base = export.adapter, export.base
    diffusers.wider_network(adapter, base)
    deltas = {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        for name, layer in adapter.network.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    deltas[base.input_layer] = input_delta(adapter.network.get_submodule(base.input_layer))
    rank = adapter.settings.rank
    others = {name: len(down) for name, (down, _) in deltas.items() if len(down) != rank}
    config = LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=others, alpha_pattern=others, target_modules=sorted(deltas)
    )
    tensors: Tensors = {}
    for name, (down, up) in deltas.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": down, f"{PREFIX}{name}.lora_B.weight": up}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return {PEFT_CONFIG: json.dumps(plain, indent=1, sort_keys=True) + "\n", PEFT_WEIGHTS: tensors}


def input_delta(wide: WideInput) -> tuple[Tensor, Tensor]:
    """Return A and B of the further channels' weights, B A = [0, extra], of the smaller of two exact ranks."""
    extra = wide.extra.weight.float()  # (out, K) or (out, K, h, w)
    out, inner = len(extra), extra[0].numel()
    nothing = wide.layer.weight.shape[1]
    if inner <= out:
        down, up = torch.eye(inner).view(inner, *extra.shape[1:]), extra.flatten(1)
    else:
        down, up = extra, torch.eye(out)
    zeros = down.new_zeros(len(down), nothing, *down.shape[2:])
    return torch.cat([zeros, down], dim=1), up.view(*up.shape, *[1] * (extra.ndim - 2))


def card(export: Export) -> str:
    """Return the README."""
    return readme.readme(export.record, export.base, ref=export.ref, base_name=export.base_name, lora=True)
