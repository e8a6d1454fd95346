"""`residual`: a feed-forward network on the condition (and perhaps the prompt), run once per image beside the base.

Side-tuning (Zhang et al., ECCV 2020): what it finds is added to what the base predicts, and here to the base's first
features too. Its depth lies where the base has least, at the latents' own resolution, and it is made as networks that
restore pictures are: residual blocks without normalisation (EDSR, Lim et al., CVPRW 2017). One that reads the prompt is
normalised all the same, or takes many times as long to recognise anything.
"""

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from codi_hub.adapters.adapter import Adapter, Prepared
from codi_hub.backbones.unet import Features, FrozenBase
from codi_hub.errors import UsageError

BLOCKS, MAX_BLOCKS = 12, 64
GROUP = 16  # channels of a group in the normalisations, about
SCALING = 0.1  # of a block's last layer at the beginning, so that many of them stay a small change
TEXT_WIDTH, TEXT_LAYERS, HEADS = 128, 2, 4


class ResidualAdapter(Adapter):
    """Residual blocks on the condition, whose cells of f x f pixels are the latents'.

    Args:
        base: the base it belongs to; only its shape is taken, and what it makes of an empty prompt.
        blocks: how many there are, at each level on the way down and on the way up.
        levels: resolutions, each half the one before, with the base's channels. One is enough to restore detail; what
            is to be recognised takes more.
        read: whether it reads the prompt.
        fusion: "zero_conv", which is what it does.
        pretrained: has no meaning here.
        others: see `Adapter`.

    Raises:
        UsageError: see `Adapter`; a number of blocks or levels that cannot be, or another fusion.
    """

    kind = "residual"

    def __init__(
        self,
        base: FrozenBase,
        *,
        blocks: int = BLOCKS,
        levels: int = 1,
        read: bool = False,
        fusion: str = "zero_conv",
        pretrained: bool = True,
        **config: Any,
    ):
        super().__init__(**config)
        channels = base.unet.config.block_out_channels
        if type(blocks) is not int or not 1 <= blocks <= MAX_BLOCKS:
            raise UsageError(f"--blocks {blocks!r:.40}: a number from 1 to {MAX_BLOCKS}")
        if type(levels) is not int or not 1 <= levels <= len(channels):
            raise UsageError(f"--levels {levels!r:.40}: a number from 1 to the base's {len(channels)}")
        if fusion != "zero_conv":
            raise UsageError(f"--fusion {fusion!r:.40}: not with --kind residual, which replaces no features")
        if type(read) is not bool:
            raise UsageError(f"read {read!r:.40}: true or false")
        self.config |= {"blocks": blocks, "levels": levels, "read": read}
        unet, widths = base.unet, channels[:levels]
        self.added = [unet.conv_in.out_channels, unet.conv_out.out_channels]
        with torch.device("cpu"):  # where tokens are made, also when the adapter is to have shapes only
            nothing = base.embed([""])[0] if read else None
        with torch.device(base.device):
            cells = self.config["condition_channels"] * base.factor**2
            self.stem = nn.Sequential(nn.PixelUnshuffle(base.factor), _conv(cells, widths[0]))
            self.text = None if nothing is None else Text(nothing.to(base.device, torch.float32))
            self.down = nn.ModuleList(Level(width, blocks, read) for width in widths)
            self.up = nn.ModuleList(Level(width, blocks, read) for width in widths[:-1])
            self.smaller = nn.ModuleList(_conv(high, low, stride=2) for high, low in pairwise(widths))
            self.larger = nn.ModuleList(nn.Conv2d(low, high, 1) for high, low in pairwise(widths))
            # what has found the thing that the text names reads once more, what to do with it
            self.last = Level(widths[0], blocks, read) if read else None
            self.out = _conv(widths[0], sum(self.added))
            self.gain = nn.Linear(unet.time_embedding.linear_2.out_features, sum(self.added))
        for value in (self.out.weight, self.out.bias, self.gain.weight):
            nn.init.zeros_(value)  # type: ignore[arg-type]
        nn.init.ones_(self.gain.bias)
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(self, condition: Tensor, prompt: Tensor | None = None) -> Prepared:
        """What is added at every step: to the base's first features, and to its prediction."""
        text = None if self.text is None else self.text(prompt)
        hidden, found = self.stem(condition - 0.5), list[Tensor]()
        for number, level in enumerate(self.down):
            hidden = level(self.smaller[number - 1](hidden) if number else hidden, text)
            found.append(hidden)
        for number, level in reversed([*enumerate(self.up)]):
            wider = nn.functional.interpolate(self.larger[number](hidden), size=found[number].shape[2:])
            hidden = level(found[number] + wider, text)
        if self.last is not None:
            hidden = self.last(hidden, text)
        return list(self.out(hidden).split(self.added, dim=1))

    def conditioned(
        self, emb: Tensor, features: Features, z_t: Tensor, t: Tensor, prompt: Tensor, prepared: Prepared
    ) -> Features:
        """h' = h + g(t) r of the first features."""
        return [torch.addcmul(features[0], self._gains(emb)[0], prepared[0]), *features[1:]]

    def corrected(self, emb: Tensor, prediction: Tensor, prepared: Prepared) -> Tensor:
        """The prediction + g(t) r."""
        return torch.addcmul(prediction, self._gains(emb)[1], prepared[1])

    def _gains(self, emb: Tensor) -> tuple[Tensor, ...]:
        return self.gain(nn.functional.silu(emb))[:, :, None, None].split(self.added, dim=1)


class Level(nn.Module):
    """Residual blocks at one resolution, the text read after the first."""

    def __init__(self, width: int, blocks: int, read: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, read) for _ in range(blocks))
        self.reading = Reading(width) if read else None

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


class Reading(nn.Module):
    """Every place asks the text."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, HEADS, kdim=TEXT_WIDTH, vdim=TEXT_WIDTH, batch_first=True)

    def forward(self, hidden: Tensor, text: Tensor) -> Tensor:
        """(B, width, h, w) and (B, tokens, TEXT_WIDTH)."""
        places = self.norm(hidden.flatten(2).transpose(1, 2))
        # of few keys the CPU kernel is quick one way only: there and back it takes three times as long as this one
        plain = torch.is_grad_enabled() and places.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            told = self.attention(places, text, text, need_weights=False)[0]
        return hidden + told.transpose(1, 2).reshape(hidden.shape)


class Text(nn.Module):
    """The base's prompt embeddings as the side network reads them.

    Only in what they differ from those of an empty prompt: what all texts have in common can be most of them, and
    drowns the words.

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
        read: Tensor = self.layers(self.enter(self.norm(prompt - self.nothing)))
        return read


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
