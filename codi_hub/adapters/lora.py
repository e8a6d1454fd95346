"""`lora`: the conditional encoder shares the base's weights; its LoRA deltas, stem and fusion are the adapter.

LoRA: Hu et al., 2022. PEFT makes the deltas.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field
from torch import Tensor, nn

from codi_hub.adapters.adapter import AdapterConfig
from codi_hub.adapters.controlnet import ControlAdapter, ControlConfig
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

    def __init__(self, backbone: UNetBackbone, config: LoraAdapterConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config.model_copy(update={"init": "random"}), device)
        self.settings = config  # the random weights are replaced next; copying the base's would be in vain
        own = {id(value): value for value in backbone.unet.parameters()}
        shared = [name for name in SHARED if hasattr(backbone.unet, name)]
        for name in shared:
            setattr(self.encoder, name, copy.deepcopy(getattr(backbone.unet, name), dict(own)))
        layers = [
            f"{part}.{name}".rstrip(".")
            for part in shared
            for name, layer in getattr(self.encoder, part).named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        # PEFT takes names by their ends, and the stem has a conv_in too
        deltas = LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=layers, exclude_modules=f"{STEM}.*")
        inject_adapter_in_model(deltas, self.encoder)
        for module, name, value in list(_parameters(self.encoder)):
            if id(value) in own:  # no longer a parameter of ours, so nobody trains, moves, counts or writes it
                del module._parameters[name]
                module.__dict__[name] = value
        self.requires_grad_(True).float()  # PEFT has frozen everything but the deltas

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the adapter; the copy shares the base's tensors as well."""
        memo |= {id(value): value for module in self.modules() for value in _shared(module)}
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin


def _parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            yield part, name, value


def _shared(module: nn.Module) -> list[Tensor]:
    return [value for value in module.__dict__.values() if isinstance(value, Tensor)]
