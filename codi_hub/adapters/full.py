"""`full`: CoDi as published, everything trained. The adapter carries a U-Net beside its conditional encoder."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codi_hub.adapters.adapter import Prepared
from codi_hub.adapters.controlnet import ControlAdapter, ControlConfig
from codi_hub.backbones.backbone import Prompt
from codi_hub.backbones.unet import UNetBackbone, UNetState, decode_fused, encode_features
from codi_hub.errors import UsageError


class FullAdapter(ControlAdapter):
    """A conditional encoder, its fusion, and a trained copy of the base's U-Net.

    Of the base, the text encoder, the autoencoder and the schedule are used. `init` is about the conditional encoder
    alone; the U-Net is always a copy of the base's.
    """

    kind: ClassVar[str] = "full"
    scalable: ClassVar[bool] = False
    trains_base: ClassVar[bool] = True

    def __init__(self, backbone: UNetBackbone, config: ControlConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config, device)
        meta = (device or backbone.device).type == "meta"
        shapes = {id(v): nn.Parameter(torch.empty_like(v, device="meta")) for v in backbone.unet.parameters()}
        unet = copy.deepcopy(backbone.unet, shapes if meta else {})
        self.unet = unet.requires_grad_(True).train()
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(
        self,
        backbone: Any,
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
        prompt = backbone.sized(prompt, z_t)
        state = UNetState(*encode_features(self.unet, z_t, backbone.schedule.model_time(t), prompt), prompt)
        residuals = self.residuals(backbone, state, z_t, t, prompt, prepared)
        return decode_fused(self.unet, state, residuals)
