"""`lora`: the conditional encoder shares the base's weights; its LoRA deltas, stem and fusion are the adapter."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from codi_hub.adapters.adapter import AdapterConfig
from codi_hub.adapters.controlnet import ControlAdapter, ControlConfig
from codi_hub.adapters.sharing import SharedTensors, add_deltas
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import UsageError

STEM = "controlnet_cond_embedding"  # the condition's, trained as it is
SHARED = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")


class LoraAdapterConfig(ControlConfig):
    """Settings of kind lora."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the deltas of every convolution and linear layer."""

    first_edition_forms: ClassVar[bool] = False

    def check_trainable(self) -> None:
        """Raise UsageError for `init` random: the encoder is the base's."""
        super().check_trainable()
        if self.init == "random":
            raise UsageError("adapter.init random: kind lora shares the base's weights; use kind control")


class LoraAdapter(ControlAdapter):
    """A conditional encoder that shares the frozen base's tensors, in separate modules; the base is unchanged."""

    kind: ClassVar[str] = "lora"
    Config: ClassVar[type[AdapterConfig]] = LoraAdapterConfig
    needs_unet: ClassVar[bool] = True

    def __init__(self, backbone: UNetBackbone, config: LoraAdapterConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config.model_copy(update={"init": "random"}), device)
        self.settings = config  # the random weights are replaced next; copying the base's would be in vain
        tensors = SharedTensors(backbone.unet.parameters())
        shared = [name for name in SHARED if hasattr(backbone.unet, name)]
        for name in shared:
            setattr(self.encoder, name, tensors.copy(getattr(backbone.unet, name)))
        layers = [
            f"{part}.{name}".rstrip(".")
            for part in shared
            for name, layer in getattr(self.encoder, part).named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        add_deltas(self.encoder, layers, config.rank, exclude=f"{STEM}.*")  # the stem has a conv_in too
        tensors.release(self.encoder)
        self.requires_grad_(True).float()  # PEFT has frozen everything but the deltas
