"""Inputs of a network: noisy latents, times, prompts and conditions."""

from typing import NamedTuple

import torch
from torch import Tensor

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt

HEIGHT, WIDTH = 16, 24  # of the condition, in pixels
TEXTS = ("a red ball", "", "two trees")
TIMES = (1.0, 0.301, 0.7)


class Inputs(NamedTuple):
    """Arguments of `Adapter.forward` after the base."""

    z_t: Tensor
    t: Tensor
    prompt: Prompt
    condition: Tensor

    def row(self, k: int) -> "Inputs":
        """One row of the batch, as a batch."""
        index = slice(k, k + 1)
        return Inputs(self.z_t[index], self.t[index], self.prompt.rows(index), self.condition[index])


def inputs(base: Backbone, channels: int = 3, *, count: int = 2) -> Inputs:
    """A batch of up to three rows that differ in everything."""
    generator = torch.Generator().manual_seed(0)
    height, width = base.latents.size(HEIGHT, WIDTH)
    return Inputs(
        torch.randn(count, base.latents.channels, height, width, generator=generator),
        torch.tensor(TIMES[:count]),
        base.embed(TEXTS[:count]),
        torch.rand(count, channels, HEIGHT, WIDTH, generator=generator),
    )
