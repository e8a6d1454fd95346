"""`static`: the conditional encoder sees the condition alone, h_eta(c), and so runs once per image, not per step."""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from codi_hub.adapters.control import ControlAdapter, Prepared
from codi_hub.base import Features, FrozenBase, descend


class StaticAdapter(ControlAdapter):
    """A conditional encoder of the condition at t = 0, without text. A gain that depends on t weighs each level.

    Args and errors: see `ControlAdapter`.
    """

    kind = "static"

    def __init__(self, base: FrozenBase, **config: Any):
        super().__init__(base, **config)
        del self.encoder.conv_in  # there is no z_t to see
        without_text(self.encoder)
        levels = 1 + sum(len(block.resnets) + bool(block.downsamplers) for block in self.encoder.down_blocks) + 1
        self.gain = nn.Linear(base.unet.time_embedding.linear_2.out_features, levels, device=base.device)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)

    def prepare(self, condition: Tensor) -> Prepared:
        """What is added at every step: of every level (B, ...)."""
        (hidden,) = super().prepare(condition)
        net = self.encoder
        t = torch.zeros(len(condition), dtype=torch.int64, device=condition.device)
        features = descend(net, net.time_embedding(net.time_proj(t).to(hidden.dtype)), hidden, None)
        if self.fusion == "gate":
            return features
        convolutions = [*net.controlnet_down_blocks, net.controlnet_mid_block]
        return [conv(h_eta) for conv, h_eta in zip(convolutions, features, strict=True)]

    def conditioned(
        self, emb: Tensor, features: Features, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: Prepared
    ) -> Features:
        """h' = h + g(t) r, or (1 - g(t) mu) h + g(t) mu h_eta."""
        gains = self.gain(nn.functional.silu(emb)).T[:, :, None, None, None].unbind()
        if self.fusion == "gate":
            return [h + mu * g * (r - h) for mu, g, h, r in zip(self.mu, gains, features, prepared, strict=True)]
        return [h + g * r for g, h, r in zip(gains, features, prepared, strict=True)]


class _Nothing(nn.Module):
    """An attention that adds nothing."""

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return torch.zeros_like(hidden)


def without_text(encoder: nn.Module) -> None:
    """Takes out what attends to the prompt."""
    for block in encoder.modules():
        if isinstance(block, BasicTransformerBlock):
            block.attn2 = block.norm2 = None
            if block.only_cross_attention:
                block.attn1, block.norm1 = _Nothing(), nn.Identity()
