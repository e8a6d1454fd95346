"""Classifier-free guidance: one doubled batch, without the prompt and with it, becomes one prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]
"""(z_t, t) -> prediction in the base's own parametrisation: z_t (B, ...), t (B,)."""


def guided(network: Network, guidance_scale: float) -> Network:
    """Return uncond + w (cond - uncond) of a network (Ho & Salimans, 2022, eq. 6, with w as diffusers counts it).

    Args:
        network: takes 2 B rows: B under the negative prompt (or none), then the same under the prompt.
        guidance_scale: w; 1 is the prediction under the prompt.

    Returns:
        a network of B rows.
    """

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        uncond, cond = network(torch.cat([z_t, z_t]), torch.cat([t, t])).chunk(2)
        return uncond + guidance_scale * (cond - uncond)

    return predict
