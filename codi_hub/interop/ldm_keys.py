"""Names of a ControlNet's tensors: diffusers' and the original ones (LDM, as A1111 and ComfyUI read them).

The two name the same tensors of the same shapes; one table serves both directions. Original files put `control_model.`
before every name; the functions here are without it. Source of the original layout: `cldm.py` of Zhang et al., 2023.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from codi_hub.errors import InvalidInput, one_line

PREFIX = "control_model."

# Modules outside the encoder's blocks, diffusers' name -> the original's.
FIXED = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_mid_block": "middle_block_out.0",
    "mid_block.attentions.0": "middle_block.1",
}
RESNET = {  # modules of one residual block
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
HINT = "input_hint_block"  # convolutions at even places, activations between them
NUMBER = r"(\d{1,2})"  # of a block or layer; a file can state any


def modules(layers: int, blocks: int, stem: int) -> dict[str, str]:
    """Return the modules of a ControlNet, diffusers' name -> the original's.

    Args:
        layers: residual blocks per level.
        blocks: levels of the encoder.
        stem: convolutions between the first and the last of the condition's stem.
    """
    table = dict(FIXED)
    for k in range(stem):
        table[f"controlnet_cond_embedding.blocks.{k}"] = f"{HINT}.{2 * (k + 1)}"
    table["controlnet_cond_embedding.conv_out"] = f"{HINT}.{2 * (stem + 1)}"
    for k in range(blocks * (layers + 1)):
        table[f"controlnet_down_blocks.{k}"] = f"zero_convs.{k}.0"
    for block in range(blocks):
        first = 1 + block * (layers + 1)
        for layer in range(layers):
            place, within = f"input_blocks.{first + layer}", f"down_blocks.{block}"
            table |= _resnet(f"{within}.resnets.{layer}", f"{place}.0")
            table[f"{within}.attentions.{layer}"] = f"{place}.1"
        table[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
    return table | _resnet("mid_block.resnets.0", "middle_block.0") | _resnet("mid_block.resnets.1", "middle_block.2")


def to_original(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ControlNet's tensors under the original names.

    Raises:
        InvalidInput: a name that the original layout does not have.
    """
    patterns = (
        rf"down_blocks\.0\.resnets\.{NUMBER}\.",
        rf"down_blocks\.{NUMBER}\.",
        rf"controlnet_cond_embedding\.blocks\.{NUMBER}\.",
    )
    return _renamed(tensors, modules(*(1 + _largest(pattern, tensors) for pattern in patterns)))


def to_diffusers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ControlNet's tensors, given under the original names, under diffusers'.

    Raises:
        InvalidInput: a name that diffusers' ControlNet does not have.
    """
    last = max(0, _largest(rf"input_blocks\.{NUMBER}\.", tensors))
    downs = [k for k in range(1, last + 1) if any(name.startswith(f"input_blocks.{k}.0.op.") for name in tensors)]
    layers = (downs[0] if downs else last + 1) - 1
    stem = _largest(rf"{HINT}\.{NUMBER}\.", tensors) // 2 - 1
    table = modules(layers, 1 + last // (layers + 1), max(stem, 0))
    return _renamed(tensors, {original: name for name, original in table.items()})


def _resnet(name: str, original: str) -> dict[str, str]:
    return {f"{name}.{key}": f"{original}.{value}" for key, value in RESNET.items()}


def _largest(pattern: str, names: Iterable[str]) -> int:
    """Return the largest number that a pattern's group matches at the start of a name; -1 without a match."""
    return max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def _renamed(tensors: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    renamed = {}
    for name, value in tensors.items():
        module = name
        while module and module not in table:
            module = module.rpartition(".")[0]
        if not module:
            raise InvalidInput(f"tensor {one_line(name, 80)} is not one of a ControlNet for SD or SDXL")
        renamed[table[module] + name.removeprefix(module)] = value
    return renamed
