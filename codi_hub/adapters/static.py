"""`static`: the conditional encoder sees the condition alone, h_eta(c), and so runs once per image, not per step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from codi_hub.adapters.adapter import AdapterConfig, Prepared
from codi_hub.adapters.controlnet import ControlAdapter, ControlConfig
from codi_hub.backbones.unet import UNetBackbone, UNetState, descend
from codi_hub.backbones.values import Prompt, Residuals


class StaticConfig(ControlConfig):
    """Settings of kind static."""

    gain: bool = True
    """Weigh the features by the time, a learnt factor g(t) per channel; without it the adapter can be exported as a
    ControlNet."""

    first_edition_forms: ClassVar[bool] = False


class StaticAdapter(ControlAdapter):
    """A conditional encoder of the condition at timestep 0, without text; its features are weighed by the time."""

    kind: ClassVar[str] = "static"
    Config: ClassVar[type[AdapterConfig]] = StaticConfig
    needs_unet: ClassVar[bool] = True

    def __init__(self, backbone: UNetBackbone, config: StaticConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config, device)
        self.widths = _widths(self.encoder)
        del self.encoder.conv_in  # there is no z_t to see
        without_text(self.encoder)
        if config.gain:
            embedding = backbone.unet.time_embedding.linear_2.out_features
            self.gain = nn.Linear(embedding, sum(self.widths), device=device or backbone.device)
            nn.init.zeros_(self.gain.weight)
            nn.init.ones_(self.gain.bias)

    def prepare(self, backbone: Any, condition: Tensor, prompt: Prompt) -> Prepared:
        """Return what is added at every step, feature by feature: [(B, width, h, w)]."""
        (hidden,) = super().prepare(backbone, condition, prompt)
        net = self.encoder
        timestep = torch.zeros(len(condition), dtype=torch.int64, device=condition.device)
        features = descend(net, net.time_embedding(net.time_proj(timestep).to(hidden.dtype)), hidden, None)
        if self.settings.fusion == "gate":
            return features
        convolutions = [*net.controlnet_down_blocks, net.controlnet_mid_block]
        return [conv(h_eta) for conv, h_eta in zip(convolutions, features, strict=True)]

    def residuals(
        self, backbone: Any, state: UNetState, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: Prepared
    ) -> Residuals:
        """Return g(t) r, or with gates g(t) mu (h_eta - h)."""
        added = prepared
        if self.settings.fusion == "gate":
            added = [mu * (h_eta - h) for mu, h, h_eta in zip(self.mu, state.features, prepared, strict=True)]
        if self.settings.gain:
            gains = self.gain(nn.functional.silu(state.emb))[:, :, None, None].split(self.widths, dim=1)
            added = [g * r for g, r in zip(gains, added, strict=True)]
        return Residuals({str(k): value for k, value in enumerate(added)})


def _widths(encoder: Any) -> list[int]:
    """Return the channels of the features: of the first layer, of every layer on the way down, of the middle."""
    widths = [encoder.conv_in.out_channels]
    for block in encoder.down_blocks:
        width = block.resnets[-1].out_channels
        widths += [width] * (len(block.resnets) + len(block.downsamplers or ()))
    return [*widths, widths[-1]]


class _Zero(nn.Module):
    """An attention that adds nothing."""

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return torch.zeros_like(hidden)


def without_text(encoder: nn.Module) -> None:
    """Remove what attends to the prompt."""
    if hasattr(encoder, "add_embedding"):
        del encoder.add_embedding
    for block in encoder.modules():
        if isinstance(block, BasicTransformerBlock):
            block.attn2 = block.norm2 = None
            if block.only_cross_attention:
                block.attn1, block.norm1 = _Zero(), nn.Identity()
