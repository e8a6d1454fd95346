"""`static`: the conditional encoder sees the condition alone, h_eta(c), and so runs once per image, not per step."""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from codi_hub.adapters.adapter import Prepared
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.backbones.unet import Features, FrozenBase, descend


class StaticAdapter(ControlAdapter):
    """A conditional encoder of the condition at t = 0, without text; at every step its features are weighed by t.

    Args:
        gain: learn g(t), a factor for every channel; without it the adapter is a ControlNet that ignores z_t, t and
            the text, and can be exported as one.
        others and errors: see `ControlAdapter`.
    """

    kind = "static"

    def __init__(self, base: FrozenBase, *, gain: bool = True, **config: Any):
        super().__init__(base, **config)
        self.config["gain"] = gain
        self.widths = _widths(self.encoder)
        del self.encoder.conv_in  # there is no z_t to see
        without_text(self.encoder)
        if gain:
            self.gain = nn.Linear(base.unet.time_embedding.linear_2.out_features, sum(self.widths), device=base.device)
            nn.init.zeros_(self.gain.weight)
            nn.init.ones_(self.gain.bias)

    def prepare(self, condition: Tensor, prompt: Tensor | None = None) -> Prepared:
        """What is added at every step, level by level: [(B, width, h, w)]."""
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
        """h' = h + g(t) r, or with gates (1 - g(t) mu) h + g(t) mu h_eta."""
        if self.fusion == "gate":
            prepared = [mu * (h_eta - h) for mu, h, h_eta in zip(self.mu, features, prepared, strict=True)]
        if not self.config["gain"]:
            return [h + r for h, r in zip(features, prepared, strict=True)]
        gains = self.gain(nn.functional.silu(emb))[:, :, None, None].split(self.widths, dim=1)
        return [torch.addcmul(h, g, r) for h, g, r in zip(features, gains, prepared, strict=True)]


def _widths(encoder: Any) -> list[int]:
    """Channels of what is fused: of the first layer, of every layer on the way down, of the middle."""
    widths = [encoder.conv_in.out_channels]
    for block in encoder.down_blocks:
        width = block.resnets[-1].out_channels
        widths += [width] * (len(block.resnets) + len(block.downsamplers or ()))
    return [*widths, widths[-1]]


class _Nothing(nn.Module):
    """An attention that adds nothing."""

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return torch.zeros_like(hidden)


def without_text(encoder: nn.Module) -> None:
    """Takes out what attends to the prompt."""
    if hasattr(encoder, "add_embedding"):
        del encoder.add_embedding
    for block in encoder.modules():
        if isinstance(block, BasicTransformerBlock):
            block.attn2 = block.norm2 = None
            if block.only_cross_attention:
                block.attn1, block.norm1 = _Nothing(), nn.Identity()
