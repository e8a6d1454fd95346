"""`lora`: the conditional encoder is made of the base's own weights; its LoRA deltas, stem and fusion are the adapter.

LoRA: Hu et al., 2022. PEFT makes the deltas.
"""

import copy
from collections.abc import Iterator
from typing import Any, Self

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import UsageError

RANK = 16
MAX_RANK = 1024
STEM = "controlnet_cond_embedding"  # the condition's, trained as it is
SHARED = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")


class LoraAdapter(ControlAdapter):
    """A conditional encoder that shares the frozen base's weights, in modules of its own: the base never carries it.

    Args:
        rank: of the deltas of every convolution and linear layer.
        others: see `ControlAdapter`; `pretrained` has no meaning here.

    Raises:
        UsageError: see `ControlAdapter`; a rank that cannot be.
    """

    kind = "lora"

    def __init__(self, base: FrozenBase, *, rank: int = RANK, **config: Any):
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise UsageError(f"rank {rank!r:.40}: a number from 1 to {MAX_RANK}")
        super().__init__(base, **config | {"pretrained": False})
        self.config["rank"] = rank
        own = {id(value): value for value in base.unet.parameters()}
        shared = [name for name in SHARED if hasattr(base.unet, name)]
        for name in shared:
            setattr(self.encoder, name, copy.deepcopy(getattr(base.unet, name), dict(own)))
        layers = [
            f"{part}.{name}".rstrip(".")
            for part in shared
            for name, layer in getattr(self.encoder, part).named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        # PEFT takes names by their ends, and the stem has a conv_in too
        deltas = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, exclude_modules=f"{STEM}.*")
        inject_adapter_in_model(deltas, self.encoder)
        for module, name, value in list(_held(self.encoder)):
            if id(value) in own:  # no longer a parameter of ours, so nobody trains, moves, counts or writes it
                del module._parameters[name]
                module.__dict__[name] = value
        self.requires_grad_(True).float()  # PEFT has frozen what is no delta

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy shares the base's weights as well."""
        memo |= {id(value): value for module in self.modules() for value in _shared(module)}
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin


def _held(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            yield part, name, value


def _shared(module: nn.Module) -> list[Tensor]:
    return [value for value in module.__dict__.values() if isinstance(value, Tensor)]
