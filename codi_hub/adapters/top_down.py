"""A top-down pathway beside a conditional encoder: first edition only, loaded and run but not trained.

A feature pyramid's top-down pathway (Lin et al., CVPR 2017): deep features of the encoder are brought to its fine
levels, which a ControlNet reaches through the frozen decoder only.
"""

from typing import Any

from torch import Tensor, nn

from codi_hub.backbones.unet import Features

GROUP = 16  # channels of a group in the normalisations, about


class TopDown(nn.Module):
    """From the middle up to the first level; at each, the level below is added to the last layer's features.

    Args:
        encoder: a conditional encoder, for its shape.
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
        for layer in self.out:  # adds nothing at initialisation
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Features) -> dict[int, Tensor]:
        """Map the encoder's features, conv_in's first, to what is added to some of them, by their places."""
        hidden, added = features[-1], dict[int, Tensor]()
        for level in reversed(range(len(self.out))):
            lateral = features[self.places[level]]
            hidden = nn.functional.interpolate(self.lift[level](hidden), size=lateral.shape[2:])
            hidden = nn.functional.silu(self.norm[level](lateral + hidden))
            hidden = nn.functional.silu(self.conv[level](hidden))
            added[self.places[level]] = self.out[level](hidden)
        return added
