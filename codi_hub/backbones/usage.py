"""How diffusers' own pipelines of a family run an exported adapter: the names that the code of a README consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ComfyUI:
    """How ComfyUI runs the family's ControlNets.

    Attributes:
        latent: its node for empty latents.
        fits: (blocks of the base, blocks of the ControlNet) -> whether it adds each residual where diffusers does.
    """

    latent: str
    fits: Callable[[int, int], bool] = lambda layers, blocks: True


@dataclass(frozen=True)
class Usage:
    """The pipelines of a family, beside the one that `Backbone.pipeline_name` names.

    Attributes:
        controlnet: class of the family's ControlNet.
        control_pipeline: class that runs it.
        condition: name of that pipeline's argument for the condition.
        sees_latents: whether the ControlNet is given the condition's latents, and so takes an image of three channels.
        first: name of the network's first argument.
        packing: line that brings further `latents` into the network's own layout, "" where that is (B, C, h, w).
        arguments: what the pipelines are told beside the prompt, the size and the steps.
        loading: what `from_pretrained` is told beside the ControlNet.
        comfyui: how ComfyUI runs them, None where it does not read them.
    """

    controlnet: str
    control_pipeline: str
    condition: str = "control_image"
    sees_latents: bool = True
    first: str = "hidden_states"
    packing: str = ""
    arguments: str = "guidance_scale=1.0"
    loading: str = ""
    comfyui: ComfyUI | None = None
