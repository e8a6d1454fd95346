"""`residual`: a feed-forward network on the condition, once per image, added to the frozen base.

Side-tuning (Zhang et al., ECCV 2020): its output is added to the base's prediction, and here to the base's first
features too. Its depth lies where the base has least, at the latents' own resolution, and its form is that of networks
that restore images: residual blocks without normalisation (EDSR, Lim et al., CVPRW 2017). One that attends to the
prompt is normalised, or takes many times as long to recognise anything.

Trained without consistency and without noise at the start, it is a regression network, and its record says so.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from codi_hub.adapters.adapter import Adapter, AdapterConfig, Prepared
from codi_hub.backbones.unet import OUTPUT, UNetBackbone, UNetState
from codi_hub.backbones.values import Prompt, Residuals
from codi_hub.errors import UsageError

GROUP = 16  # channels of a group in the normalisations, about
SCALING = 0.1  # initial scale of a block's last layer, so that many of them stay a small change
TEXT_WIDTH, TEXT_LAYERS, HEADS = 128, 2, 4


class ResidualConfig(AdapterConfig):
    """Settings of kind residual."""

    blocks: int = Field(12, ge=1, le=64)
    """Residual blocks at each level, on the way down and on the way up."""
    levels: int = Field(1, ge=1)
    """Resolutions, each half the one before, with the base's channels. One is enough to restore detail; recognition
    needs more."""
    read: bool = False
    """Cross-attention to the prompt at every level."""


class ResidualAdapter(Adapter):
    """Residual blocks on the condition, whose cells of f x f pixels are the latents'.

    Raises:
        UsageError: more levels than the base has.
    """

    kind: ClassVar[str] = "residual"
    Config: ClassVar[type[AdapterConfig]] = ResidualConfig
    needs_unet: ClassVar[bool] = True

    def __init__(self, backbone: UNetBackbone, config: ResidualConfig, device: torch.device | None = None) -> None:
        super().__init__(backbone, config, device)
        device, unet, factor = device or backbone.device, backbone.unet, backbone.latents.factor
        channels = unet.config.block_out_channels
        if config.levels > len(channels):
            raise UsageError(f"adapter.levels {config.levels}: from 1 to the base's {len(channels)}")
        widths, blocks, read = channels[: config.levels], config.blocks, config.read
        self.added = [unet.conv_in.out_channels, unet.conv_out.out_channels]
        with torch.device("cpu"):  # where tokens are made, also when the adapter is to have shapes only
            empty = backbone.embed([""])["context"][0] if read else None
        with torch.device(device):
            cells = config.condition_channels * factor**2
            self.stem = nn.Sequential(nn.PixelUnshuffle(factor), _conv(cells, widths[0]))
            self.text = None if empty is None else Text(empty.to(device, torch.float32))
            self.down = nn.ModuleList(Level(width, blocks, read) for width in widths)
            self.up = nn.ModuleList(Level(width, blocks, read) for width in widths[:-1])
            self.smaller = nn.ModuleList(_conv(high, low, stride=2) for high, low in pairwise(widths))
            self.larger = nn.ModuleList(nn.Conv2d(low, high, 1) for high, low in pairwise(widths))
            # after the object that the text names has been located, the text is attended to once more
            self.last = Level(widths[0], blocks, read) if read else None
            self.out = _conv(widths[0], sum(self.added))
            self.gain = nn.Linear(unet.time_embedding.linear_2.out_features, sum(self.added))
        for value in (self.out.weight, self.out.bias, self.gain.weight):
            nn.init.zeros_(value)  # type: ignore[arg-type]
        nn.init.ones_(self.gain.bias)
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(self, backbone: Any, condition: Tensor, prompt: Prompt) -> Prepared:
        """Return what is added at every step: to the base's first features, and to its prediction."""
        text = None if self.text is None else self.text(prompt["context"])
        hidden, features = self.stem(condition - 0.5), list[Tensor]()
        for number, level in enumerate(self.down):
            hidden = level(self.smaller[number - 1](hidden) if number else hidden, text)
            features.append(hidden)
        for number, level in reversed([*enumerate(self.up)]):
            wider = nn.functional.interpolate(self.larger[number](hidden), size=features[number].shape[2:])
            hidden = level(features[number] + wider, text)
        if self.last is not None:
            hidden = self.last(hidden, text)
        return list(self.out(hidden).split(self.added, dim=1))

    def residuals(
        self, backbone: Any, state: UNetState, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: Prepared
    ) -> Residuals:
        """Return g(t) r, of the first features and of the prediction."""
        gains = self.gain(nn.functional.silu(state.emb))[:, :, None, None].split(self.added, dim=1)
        return Residuals({"0": gains[0] * prepared[0], OUTPUT: gains[1] * prepared[1]})


class Level(nn.Module):
    """Residual blocks at one resolution, with cross-attention to the text after the first."""

    def __init__(self, width: int, blocks: int, read: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, read) for _ in range(blocks))
        self.reading = CrossAttention(width) if read else None

    def forward(self, hidden: Tensor, text: Tensor | None) -> Tensor:
        for number, block in enumerate(self.blocks):
            hidden = block(hidden)
            if number == 0 and self.reading is not None and text is not None:
                hidden = self.reading(hidden, text)
        return hidden


class Block(nn.Module):
    """x + conv(relu(conv(x))); normalised, x + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, width: int, normalised: bool):
        super().__init__()
        self.first, self.last = (_conv(width, width) for _ in range(2))
        groups = max(1, width // GROUP)
        self.before = nn.Sequential(nn.GroupNorm(groups, width), nn.ReLU()) if normalised else nn.Identity()
        self.between = nn.GroupNorm(groups, width) if normalised else nn.Identity()
        with torch.no_grad():
            self.last.weight.mul_(SCALING)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.last(nn.functional.relu(self.between(self.first(self.before(hidden)))))


class CrossAttention(nn.Module):
    """Every place attends to the text."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, HEADS, kdim=TEXT_WIDTH, vdim=TEXT_WIDTH, batch_first=True)

    def forward(self, hidden: Tensor, text: Tensor) -> Tensor:
        """Attend from (B, width, h, w) to (B, tokens, TEXT_WIDTH)."""
        places = self.norm(hidden.flatten(2).transpose(1, 2))
        # with few keys the CPU's fused kernel is fast forward only: with its backward pass it takes three times as
        # long; to ask for the weights is to do without it, where `sdpa_kernel` would switch it off in every thread
        plain = torch.is_grad_enabled() and places.device.type == "cpu"
        attended = self.attention(places, text, text, need_weights=plain, average_attn_weights=False)[0]
        return hidden + attended.transpose(1, 2).reshape(hidden.shape)


class Text(nn.Module):
    """A small transformer on the base's prompt embeddings, minus those of an empty prompt.

    What all texts have in common can be most of an embedding, and outweighs the words.

    Args:
        nothing: an empty prompt's embeddings, (tokens, width).
    """

    def __init__(self, nothing: Tensor):
        super().__init__()
        self.nothing = nn.Parameter(nothing.clone())
        self.norm = nn.LayerNorm(nothing.shape[1])
        self.enter = nn.Linear(nothing.shape[1], TEXT_WIDTH)
        layer = nn.TransformerEncoderLayer(TEXT_WIDTH, HEADS, 2 * TEXT_WIDTH, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, TEXT_LAYERS, enable_nested_tensor=False)

    def forward(self, prompt: Tensor) -> Tensor:
        """(B, tokens, width) -> (B, tokens, TEXT_WIDTH)."""
        return self.layers(self.enter(self.norm(prompt - self.nothing)))


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
