"""What the deep levels of a conditional encoder know, brought to its fine ones.

A ControlNet has no way up: what its deep levels have recognised, such as which thing the prompt names, reaches the fine
ones of a picture only through the frozen decoder, which was never taught to repaint what it is shown. The way up is a
feature pyramid's top-down pathway (Lin et al., CVPR 2017).
"""

from typing import Any

from torch import Tensor, nn

from codi_hub.backbones.unet import Features

GROUP = 16  # channels of a group in the normalisations, about


class TopDown(nn.Module):
    """From the middle up to the first level; at each, to the last layer's features is added what came from below.

    Args:
        encoder: a conditional encoder; its shape is taken, and its middle is where the way up begins.
    """

    def __init__(self, encoder: Any):
        super().__init__()
        self.places, place = list[int](), 0  # among the fused features, the first of which is conv_in's
        for block in encoder.down_blocks:
            place += len(block.resnets)
            self.places.append(place)
            place += len(block.downsamplers or ())
        *levels, deepest = [block.resnets[-1].out_channels for block in encoder.down_blocks]
        above = [*levels[1:], deepest]
        self.lift = nn.ModuleList(nn.Conv2d(high, low, 1) for high, low in zip(above, levels, strict=True))
        self.norm = nn.ModuleList(nn.GroupNorm(max(1, width // GROUP), width) for width in levels)
        self.conv = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in levels)
        self.out = nn.ModuleList(nn.Conv2d(width, width, 1) for width in levels)
        for layer in self.out:  # what is new adds nothing yet
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Features) -> dict[int, Tensor]:
        """The encoder's features, conv_in's first -> what to add to some of them, by their places."""
        hidden, added = features[-1], dict[int, Tensor]()
        for level in reversed(range(len(self.out))):
            lateral = features[self.places[level]]
            hidden = nn.functional.interpolate(self.lift[level](hidden), size=lateral.shape[2:])
            hidden = nn.functional.silu(self.norm[level](lateral + hidden))
            hidden = nn.functional.silu(self.conv[level](hidden))
            added[self.places[level]] = self.out[level](hidden)
        return added
