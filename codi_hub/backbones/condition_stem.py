"""Initialisation of the stem through which a U-Net's ControlNet sees its condition."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LAST_GAIN = 0.5
LUMA_DEVIATION, CHROMA_DEVIATION = 0.25, 0.06  # of photographs in [0, 1], about
WHITEN = [  # rows: luma, orange-blue, green-magenta, each brought to unit deviation
    [1 / (3 * LUMA_DEVIATION)] * 3,
    [0.5 / CHROMA_DEVIATION, 0.0, -0.5 / CHROMA_DEVIATION],
    [-0.25 / CHROMA_DEVIATION, 0.5 / CHROMA_DEVIATION, -0.25 / CHROMA_DEVIATION],
]


def initialise_stem(stem: Any) -> None:
    """Initialise a condition stem so that it carries its condition from the first step; its form stays ControlNet's.

    PyTorch's default shrinks a signal about threefold at every layer, and ControlNet starts the last layer at zero:
    the output hardly depends on the condition, and colour, whose share in an RGB image is small, is learnt last (in
    800 steps of superres, not at all). So: He initialisation (He et al., 2015), a first layer that sees the condition
    centred and decorrelated, and a last layer that is not zero; the fusion starts at zero instead.
    """
    layers = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    first, last = stem.conv_in, stem.conv_out
    with torch.no_grad():
        last.weight.mul_(LAST_GAIN)
        scale = torch.eye(first.in_channels, device=first.weight.device) / LUMA_DEVIATION
        if first.in_channels >= 3:  # an image; what follows it, such as a mask, is only scaled
            scale[:3, :3] = torch.tensor(WHITEN)
        first.weight.copy_(torch.einsum("ochw,cd->odhw", first.weight, scale))
        first.bias.copy_(-0.5 * first.weight.sum((1, 2, 3)))
