"""Classifier-free guidance (Ho & Salimans, 2022): predictions with and without the prompt become one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from codi_hub.diffusion.schedule import Denoiser

Network = Callable[[Tensor, Tensor], Tensor]
"""(z_t, t) -> prediction in the base's own parametrisation: z_t (B, ...), t (B,)."""


def guide(uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
    """Return uncond + w (cond - uncond): w = 1 is no guidance (eq. 6, whose w is this w - 1)."""
    return uncond + guidance_scale * (cond - uncond)


def guided(network: Network, guidance_scale: float) -> Network:
    """Return the guided prediction of a network that computes both in one batch.

    Args:
        network: takes 2 B rows: B under the negative prompt, or none, then the same under the prompt.
        guidance_scale: w.

    Returns:
        a network of B rows.
    """

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        uncond, cond = network(torch.cat([z_t, z_t]), torch.cat([t, t])).chunk(2)
        return guide(uncond, cond, guidance_scale)

    return predict


def guided_denoiser(cond: Denoiser, uncond: Denoiser, guidance_scale: float) -> Denoiser:
    """Return the guided denoiser; x_hat and eps_hat are affine in what is predicted, and so guided alike."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, eps_hat = (guide(*both, guidance_scale) for both in zip(uncond(z_t, t), cond(z_t, t), strict=True))
        return x_hat, eps_hat

    return denoise
