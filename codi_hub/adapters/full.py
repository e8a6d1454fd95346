"""`full`: CoDi as published, everything trained. The adapter has a copy of the base's network too."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from codi_hub.adapters.adapter import AdapterConfig, Prepared
from codi_hub.adapters.controlnet import ControlAdapter, ControlConfig
from codi_hub.adapters.sharing import SharedTensors
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt
from codi_hub.errors import UsageError


class FullAdapter(ControlAdapter):
    """A conditional encoder, its fusion, and a trained copy of the base's network.

    Of the base, the text encoder, the autoencoder and the schedule are used. `init` is about the conditional encoder
    alone; the network is always a copy of the base's.
    """

    kind: ClassVar[str] = "full"
    Config: ClassVar[type[AdapterConfig]] = ControlConfig
    scalable: ClassVar[bool] = False
    trains_base: ClassVar[bool] = True
    adds_residuals: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, config: ControlConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config, device)
        meta = (device or backbone.device).type == "meta"
        shapes = {id(v): nn.Parameter(_shape_of(v)) for v in backbone.network.parameters()} if meta else None
        constants = SharedTensors(backbone.network.buffers())
        network = constants.copy(backbone.network, shapes)
        constants.release(network)
        self.network_name = backbone.network_name
        self.add_module(self.network_name, network.requires_grad_(True).train())
        for name in backbone.dead_ends(network):
            network.get_parameter(name).requires_grad_(False)
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(
        self,
        backbone: Backbone,
        z_t: Tensor,
        t: Tensor,
        prompt: Prompt,
        prepared: Prepared,
        strength: Tensor | None = None,
    ) -> Tensor:
        """Return what the adapter's own network predicts; see `Adapter.predict`.

        Raises:
            UsageError: a strength: what is added to a network that was trained with it cannot be scaled.
        """
        if strength is not None:
            raise UsageError("an adapter of kind full has no strength: it replaces the base's network")
        network = getattr(self, self.network_name)
        state = backbone.state(z_t, t, prompt, network=network)
        residuals = self.residuals(backbone, state, z_t, t, prompt, prepared)
        return backbone.predict(z_t, t, prompt, residuals=residuals, state=state, network=network)


def _shape_of(weight: Tensor) -> Tensor:
    """Return a tensor on `meta`; by its numbers, since one that is like a fake tensor would be another."""
    return torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="meta")
