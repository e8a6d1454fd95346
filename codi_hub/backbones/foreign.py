"""ControlNets that come from elsewhere: whether their configuration fits a base, and what it is where none came."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from codi_hub.backbones.sources import quiet_libraries
from codi_hub.errors import InvalidInput, Mismatch, describe, one_line

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of a ControlNet, by its name in diffusers."""

CHANNEL_ORDER = "controlnet_conditioning_channel_order"  # entry of a configuration: rgb, or bgr as OpenCV reads images
LARGEST = 1 << 16  # any number of a configuration; one from a stranger decides what is allocated
LONGEST = 64  # any list of one
TEXT_WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}
DOWN, ATTENDING_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
MIDDLE, ATTENDING_MIDDLE = "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"
STEM_WIDEST = 4096  # channels of a condition stem
BRANCH_DEEPEST = 16  # attentions of a transformer in a U-Net
MOST_POSITIONS = 512  # along a side of a table of positions


def known_entries(network_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a configuration that a class has, with lists for tuples, as JSON spells them."""
    names = inspect.signature(network_class.__init__).parameters.keys() - {"self"}
    return {name: _plain(value) for name, value in config.items() if name in names}


def complete(network_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with every entry of its class, those that it leaves out at their defaults."""
    parameters = inspect.signature(network_class.__init__).parameters.values()
    defaults = {one.name: _plain(one.default) for one in parameters if one.name != "self"}
    return defaults | known_entries(network_class, config)


def built(network_class: Any, config: Mapping[str, Any], device: torch.device) -> Any:
    """Return a ControlNet of a configuration, its weights random.

    Raises:
        InvalidInput: a configuration that the class cannot have.
    """
    _check_sizes(config)
    try:
        with torch.device(device), quiet_libraries():
            return network_class.from_config(dict(config))
    except Exception as error:  # the class computes with whatever it is given
        raise InvalidInput(f"the ControlNet's configuration cannot be used: {describe(error)[:160]}") from error


def check_same(config: Mapping[str, Any], base: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise Mismatch where entries differ from the base's."""
    for name in names:
        found, expected = _plain(config.get(name)), _plain(base.get(name))
        if found != expected:
            kinds = {TEXT_WIDTHS.get(value) for value in (found, expected) if isinstance(value, int)} - {None}
            hint = f" (text of {TEXT_WIDTHS[found]})" if name == "cross_attention_dim" and len(kinds) == 2 else ""
            raise Mismatch(
                f"this ControlNet is for another base: its {name} is {one_line(found, 60)}{hint}, and this base's is "
                f"{one_line(expected, 60)}: name the base that it was trained on"
            )


def check_absent(config: Mapping[str, Any], meanings: Mapping[str, str]) -> None:
    """Raise Mismatch where an entry asks for what is not supported."""
    for name, meaning in meanings.items():
        if config.get(name):
            raise Mismatch(f"this ControlNet has {name} {one_line(config[name], 40)}, {meaning}: it cannot be imported")


def check_at_most(config: Mapping[str, Any], limits: Mapping[str, int]) -> None:
    """Raise Mismatch where a number of a configuration, such as that of its blocks, is above a limit."""
    for name, limit in limits.items():
        value = config.get(name)
        if not isinstance(value, int) or not 0 <= value <= limit:
            raise Mismatch(f"this ControlNet has {name} {one_line(value, 40)}: at most {limit} on this base")


def check_unet_config(config: Mapping[str, Any], unet: Mapping[str, Any], factor: int) -> None:
    """Check that a ControlNet of SD or SDXL fits a base.

    Args:
        config: the ControlNet's, every entry there.
        unet: the U-Net's.
        factor: pixels per latent cell along a side.

    Raises:
        Mismatch: naming the entry.
    """
    sized = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    named = ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")
    check_same(config, unet, [*named, *(sized if unet.get("addition_embed_type") == "text_time" else ())])
    check_absent(
        config,
        {
            "class_embed_type": "a class embedding",
            "num_class_embeds": "class labels",
            "encoder_hid_dim": "a projection of its text",
            "encoder_hid_dim_type": "a projection of its text",
            "global_pool_conditions": "which averages what it adds over the image, as shuffle models do",
        },
    )
    check_at_most(config, {"conditioning_channels": LONGEST})
    stem = config.get("conditioning_embedding_out_channels") or ()
    if len(stem) != factor.bit_length() or any(not 0 < width <= STEM_WIDEST for width in stem):
        raise Mismatch(
            f"this ControlNet's stem has {len(stem)} resolutions, and a base with latents of 1/{factor} of the side "
            f"needs {factor.bit_length()}: name the base that it was trained on"
        )
    depths = config.get("transformer_layers_per_block")
    for depth in depths if isinstance(depths, list) else [depths]:
        check_at_most({"transformer_layers_per_block": depth}, {"transformer_layers_per_block": BRANCH_DEEPEST})
    if config.get(CHANNEL_ORDER) not in ("rgb", "bgr"):
        raise Mismatch(f"this ControlNet's {CHANNEL_ORDER} is neither rgb nor bgr: name one of them in its config.json")


def unet_config(network_class: Any, unet: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return the configuration of a ControlNet of SD or SDXL from its tensors; what they do not show is the U-Net's.

    Small variants leave attentions out of the levels of the U-Net, which the names show.
    """
    config = known_entries(network_class, unet)
    if config["addition_embed_type"] != "text":
        del config["addition_embed_type_num_heads"]  # which nothing has then
    levels = len(config["block_out_channels"])
    depth = config["transformer_layers_per_block"]
    before = depth if isinstance(depth, list) else [depth] * levels
    places = [f"down_blocks.{level}.attentions.0" for level in range(levels)]
    counts = [_count(shapes, f"{place}.transformer_blocks") or own for place, own in zip(places, before, strict=True)]
    stem = "controlnet_cond_embedding"
    widths = [shapes.get(f"{stem}.conv_in.weight", (0, 3))[0]]
    blocks = _count(shapes, f"{stem}.blocks")
    widths += [shapes[name][0] for k in range(1, blocks, 2) if (name := f"{stem}.blocks.{k}.weight") in shapes]
    attends = any(name.startswith("mid_block.attentions.") for name in shapes)
    return config | {
        "down_block_types": [
            ATTENDING_DOWN if any(name.startswith(f"{place}.") for name in shapes) else DOWN for place in places
        ],
        "mid_block_type": ATTENDING_MIDDLE if attends else MIDDLE,
        "transformer_layers_per_block": depth if counts == before else counts,
        "conditioning_embedding_out_channels": widths,
        "conditioning_channels": shapes.get(f"{stem}.conv_in.weight", (0, 3))[1],
    }


def transformer_config(network_class: Any, base: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return what a transformer's ControlNet has in common with its base, and its number of blocks."""
    return known_entries(network_class, base) | {"num_layers": _count(shapes, "transformer_blocks")}


def count_singles(shapes: Shapes) -> int:
    """Return the number of FLUX's single-stream blocks."""
    return _count(shapes, "single_transformer_blocks")


def _count(shapes: Shapes, prefix: str) -> int:
    """Return the number of modules in a list, by the largest place in the tensors' names."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d{{1,3}})\.")
    return max((1 + int(match[1]) for name in shapes if (match := pattern.match(name))), default=0)


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Raise InvalidInput for numbers and lists that no ControlNet has."""
    for name, value in config.items():
        parts = value if isinstance(value, list | tuple) else [value]
        wrong = len(parts) > LONGEST or any(isinstance(part, list | tuple | dict) for part in parts)
        if wrong or any(isinstance(part, int | float) and not abs(part) <= LARGEST for part in parts):
            raise InvalidInput(f"the ControlNet's configuration cannot be used: {name} {one_line(value, 60)}")
