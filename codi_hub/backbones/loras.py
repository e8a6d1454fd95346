"""LoRA files merged into a base: PEFT's and diffusers' form, kohya's, and those of LCM, Lightning and Hyper.

diffusers brings the names of a file into its own form. The merging is done here: with transformers 5, diffusers' own
loading leaves out the attention layers of kohya's text encoders without an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codi_hub.backbones.parts import Parts, read_json
from codi_hub.backbones.weights import read_header
from codi_hub.errors import InvalidInput, one_line

NAMED = 3  # tensors in a message
DOWN = re.compile(r"(?P<layer>.+?)(?:\.lora_linear_layer\.down|[._]lora\.down|\.lora_A(?:\.default(?:_\d+)?)?)\.weight")
NETWORK_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.")  # PEFT's, ComfyUI's, one too many
TEXT_LAYERS = {"self_attn.to_q": "self_attn.q_proj", "self_attn.to_k": "self_attn.k_proj"}
TEXT_LAYERS |= {"self_attn.to_v": "self_attn.v_proj", "self_attn.to_out": "self_attn.out_proj"}

Layers = Mapping[str, Mapping[str, Any]]
"""Every module of every component, by the component's name and its own."""
Merge = tuple[Any, Callable[[], Tensor]]
"""A layer, and what returns the change of its weight."""


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
    layers = {
        name: dict(module.named_modules())
        for name, module in parts.components.items()
        if isinstance(module, torch.nn.Module)
    }
    for path, scale in loras:
        try:
            merges = _read(path, layers, pipeline_name, network_name)
            for layer, change in merges:
                _add(layer, scale * change())
        except InvalidInput as error:
            raise InvalidInput(f"LoRA {path}: {error}") from None
        except Exception as error:  # conversions fail on foreign files in a dozen ways
            raise InvalidInput(f"LoRA {path} does not fit this base: {one_line(error, 160)}") from error
    return parts


def _read(path: Path, layers: Layers, pipeline_name: str, network_name: str) -> list[Merge]:
    """Return what a file changes: as it is where its names are the base's own, else under diffusers' names."""
    import diffusers
    from safetensors.torch import load_file

    state, alphas = load_file(path), _stated_alphas(path)
    merges, unmatched = _matched(state, {}, alphas, layers, network_name)
    if unmatched:
        unet = layers.get("unet", {}).get("")
        converted = getattr(diffusers, pipeline_name).lora_state_dict(
            dict(state), unet_config=unet and unet.config, return_alphas=True
        )
        state, own = converted if isinstance(converted, tuple) else (converted, None)
        merges, unmatched = _matched(state, own or {}, alphas, layers, network_name)
    if unmatched:
        some = ", ".join(unmatched[:NAMED]) + (", ..." if len(unmatched) > NAMED else "")
        raise InvalidInput(f"{len(unmatched)} of {len(state)} tensors belong to no layer of this base ({some})")
    if not merges:
        raise InvalidInput("it has no LoRA tensors")
    return merges


def _stated_alphas(path: Path) -> dict[str, float]:
    """Return the alpha of each component, "" for all, that PEFT's settings state beside or in the file.

    Raises:
        InvalidInput: settings that change more than one alpha for all layers.
    """
    beside = path.with_name("adapter_config.json")
    told = read_header(path).metadata.get("lora_adapter_metadata")
    settings = json.loads(told) if told else read_json(beside) if beside.is_file() else {}
    for name, value in settings.items():
        if value and name.rpartition(".")[2] in ("alpha_pattern", "use_rslora", "use_dora"):
            raise InvalidInput(f"its setting {name} is not supported")
    return {
        name.rpartition(".")[0]: float(value)
        for name, value in settings.items()
        if name.rpartition(".")[2] == "lora_alpha"
    }


def _matched(
    state: Mapping[str, Tensor],
    own_alphas: Mapping[str, Any],
    alphas: Mapping[str, float],
    layers: Layers,
    network_name: str,
) -> tuple[list[Merge], list[str]]:
    """Return the changes of the layers that the base has, and the tensors that belong to none."""
    merges, used = list[Merge](), set()
    for key, down in state.items():
        if not (match := DOWN.fullmatch(key)):
            continue
        up_key = key.replace(".lora_A", ".lora_B").replace(".down.", ".up.").replace("lora_down", "lora_up")
        component, layer = _layer(match["layer"], layers, network_name)
        if layer is None or up_key not in state:
            continue
        stated = (f"{match['layer']}.alpha", f"{key}.alpha")
        default = alphas.get(component, alphas.get("", len(down)))
        alpha = next((float(one[name]) for name in stated for one in (own_alphas, state) if name in one), default)
        merges.append((layer, partial(_change, down, state[up_key], alpha / len(down))))
        used |= {key, up_key, *stated}
    return merges, sorted(set(state) - used)


def _change(down: Tensor, up: Tensor, factor: float) -> Tensor:
    return factor * (up.flatten(1).float() @ down.flatten(1).float())


@torch.no_grad()
def _add(layer: Any, change: Tensor) -> None:
    layer.weight.copy_(layer.weight.float() + change.view_as(layer.weight).to(layer.weight.device))


def _layer(name: str, layers: Layers, network_name: str) -> tuple[str, Any]:
    """Return the component and the layer that a LoRA's name means; None where there is no such layer."""
    component, _, inside = name.partition(".")
    if component not in layers:
        component, inside = network_name, name
    known = layers[component]
    return component, next((known[one] for one in _spellings(inside) if hasattr(known.get(one), "weight")), None)


def _spellings(name: str) -> Iterator[str]:
    """Yield the names that a layer may have in the network, the given one first."""
    name = name.replace(".processor.", ".")
    for prefix in ("", *NETWORK_PREFIXES):
        bare = name.removeprefix(prefix)
        for old, new in TEXT_LAYERS.items():
            bare = re.sub(rf"{re.escape(old)}$", new, bare)
        yield from (bare, f"{bare}.0", bare.removeprefix("text_model."), f"text_model.{bare}")
