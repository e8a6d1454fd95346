"""LoRA files merged into a base: PEFT's and diffusers' form, kohya's, and those of LCM, Lightning and Hyper.

diffusers brings the names of a file into its own form. The merging is done here: with transformers 5, diffusers' own
loading leaves out the attention layers of kohya's text encoders without an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codi_hub.backbones.parts import Parts
from codi_hub.errors import InvalidInput, one_line

NAMED = 3  # tensors in a message
DOWN = re.compile(r"(?P<layer>.+?)(?:\.lora_linear_layer\.down|[._]lora\.down|\.lora_A(?:\.default(?:_\d+)?)?)\.weight")
NETWORK_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.")  # PEFT's, ComfyUI's, one too many
TEXT_LAYERS = {"self_attn.to_q": "self_attn.q_proj", "self_attn.to_k": "self_attn.k_proj"}
TEXT_LAYERS |= {"self_attn.to_v": "self_attn.v_proj", "self_attn.to_out": "self_attn.out_proj"}


def merge_loras(parts: Parts, loras: Sequence[tuple[Path, float]], pipeline_name: str, network_name: str) -> Parts:
    """Add LoRA files to the weights of loaded components, in place: W + scale * alpha / rank * B A (Hu et al., 2021).

    Args:
        parts: the base's components.
        loras: files with their scales.
        pipeline_name: diffusers' pipeline of the family, which knows its LoRA files.
        network_name: the component that tensors without a component's name belong to.

    Raises:
        InvalidInput: a file of which some tensor belongs to no layer of the base.
    """
    for path, scale in loras:
        try:
            state, alphas = _read(path, parts, pipeline_name)
            _merge(parts, network_name, state, alphas, scale)
        except InvalidInput as error:
            raise InvalidInput(f"LoRA {path}: {error}") from None
        except Exception as error:  # conversions fail on foreign files in a dozen ways
            raise InvalidInput(f"LoRA {path} does not fit this base: {one_line(error, 160)}") from error
    return parts


def _read(path: Path, parts: Parts, pipeline_name: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return a file's tensors under diffusers' names, and the alphas that it keeps beside them."""
    import diffusers
    from safetensors.torch import load_file

    unet = parts.components.get("unet")
    converted = getattr(diffusers, pipeline_name).lora_state_dict(
        load_file(path), unet_config=unet and unet.config, return_alphas=True
    )
    state, alphas = converted if isinstance(converted, tuple) else (converted, None)
    return state, alphas or {}


def _merge(
    parts: Parts, network_name: str, state: Mapping[str, Tensor], alphas: Mapping[str, Any], scale: float
) -> None:
    layers = {
        name: dict(module.named_modules())
        for name, module in parts.components.items()
        if isinstance(module, torch.nn.Module)
    }
    merges, used = [], set()
    for key, down in state.items():
        if not (match := DOWN.fullmatch(key)):
            continue
        up_key = key.replace(".lora_A", ".lora_B").replace(".down.", ".up.")
        layer = _layer(match["layer"], layers, network_name)
        if layer is None or up_key not in state:
            continue
        stated = (f"{match['layer']}.alpha", f"{key}.alpha")
        alpha = next((float(found[name]) for name in stated for found in (alphas, state) if name in found), len(down))
        merges.append((layer, down, state[up_key], scale * alpha / len(down)))
        used |= {key, up_key, *stated}
    if unmatched := sorted(set(state) - used):
        some = ", ".join(unmatched[:NAMED]) + (", ..." if len(unmatched) > NAMED else "")
        raise InvalidInput(f"{len(unmatched)} of {len(state)} tensors belong to no layer of this base ({some})")
    if not merges:
        raise InvalidInput("it has no LoRA tensors")
    with torch.no_grad():
        for layer, down, up, factor in merges:
            change = factor * (up.flatten(1).float() @ down.flatten(1).float())
            layer.weight.copy_(layer.weight.float() + change.view_as(layer.weight).to(layer.weight.device))


def _layer(name: str, layers: Mapping[str, Mapping[str, Any]], network_name: str) -> Any:
    """Return the layer that a LoRA's name means, or None."""
    component, _, inside = name.partition(".")
    if component not in layers:
        component, inside = network_name, name
    known = layers[component]
    return next((known[one] for one in _spellings(inside) if hasattr(known.get(one), "weight")), None)


def _spellings(name: str) -> Iterator[str]:
    """Yield the names that a layer may have in the network, the given one first."""
    name = name.replace(".processor.", ".")
    for prefix in ("", *NETWORK_PREFIXES):
        bare = name.removeprefix(prefix)
        for old, new in TEXT_LAYERS.items():
            bare = re.sub(rf"{re.escape(old)}$", new, bare)
        yield from (bare, f"{bare}.0", bare.removeprefix("text_model."), f"text_model.{bare}")
