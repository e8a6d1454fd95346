"""An adapter kind: two convolutions of the condition, added to the base's prediction."""

import torch
from pydantic import Field
from torch import Tensor, nn

from codi_hub.adapters.adapter import Adapter, AdapterConfig, Prepared
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt, Residuals


class ShortcutConfig(AdapterConfig):
    """Settings of kind shortcut."""

    width: int = Field(16, ge=1)
    """Hidden channels."""


class ShortcutAdapter(Adapter):
    """Works on every family whose `predict` adds the residual `output`."""

    kind = "shortcut"
    Config = ShortcutConfig

    def __init__(self, backbone: Backbone, config: ShortcutConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config, device)
        cell = backbone.latents.factor  # pixels per latent along a side
        first = nn.Conv2d(config.condition_channels, config.width, cell, stride=cell)
        last = nn.Conv2d(config.width, backbone.latents.channels, 3, padding=1)
        nn.init.zeros_(last.weight)  # at initialisation the adapter reproduces the base
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(first, nn.SiLU(), last).to(device or backbone.device)

    def prepare(self, backbone: Backbone, condition: Tensor, prompt: Prompt) -> Prepared:
        """Run the layers, once per image: (B, K, H, W) -> [(B, C, h, w)]."""
        return [self.layers(condition)]

    def residuals(
        self, backbone: Backbone, state: object, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: Prepared
    ) -> Residuals:
        """Add the prepared tensor to the prediction at every step."""
        return Residuals({"output": prepared[0]})
