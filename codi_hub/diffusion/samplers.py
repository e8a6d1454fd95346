"""Samplers: pure functions of a denoiser, initial latents and times, found by name in `codi_hub.diffusion.SAMPLERS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from codi_hub.diffusion.schedule import CLEAN, Denoiser, Schedule

FreshNoise = Callable[[int], Tensor]
"""Step number -> new noise, (B, ...)."""

Sampler = Callable[[Denoiser, Tensor, Sequence[float], Schedule, FreshNoise | None], Tensor]
"""(denoise, z, times, schedule, fresh_noise) -> x_hat of the last step, (B, ...).

    z: initial latents at the first time, (B, ...); for most adapters noise ~ N(0, I).
    times: descending, as `Schedule.grid` gives them; after the last comes `CLEAN`.
    fresh_noise: asked by samplers that add noise between the steps.
"""


def sample(
    denoise: Denoiser,
    z: Tensor,
    times: Sequence[float],
    schedule: Schedule,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """Walk from initial latents to a clean latent as CoDi does, z_s = alpha_s x_hat + sigma_s eps_hat.

    On a variance-preserving schedule this is DDIM (Song et al., 2021, eq. 12), on a flow the Euler method.

    Args:
        denoise, z, times, schedule: see `Sampler`. Without times, z comes back: it is clean already.
        fresh_noise: if given, takes the place of eps_hat (renoising); else the walk is deterministic.
    """
    z_t = rollout(denoise, z, times, schedule, fresh_noise)
    return denoise(z_t, _batch(times[-1], z_t))[0] if times else z_t


def rollout(
    denoise: Denoiser,
    z: Tensor,
    times: Sequence[float],
    schedule: Schedule,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """Return the state, (B, ...), in which `sample` arrives at the last of `times`, having begun with z at the first.

    A student trained on such states sees its own errors, which noised data never contain ("backward simulation" in
    Yin et al., "Improved Distribution Matching Distillation", 2024).
    """
    z_t = z
    for number, (t, s) in enumerate(pairwise(times)):
        x_hat, eps_hat = denoise(z_t, _batch(t, z_t))
        z_t = schedule.add_noise(x_hat, fresh_noise(number) if fresh_noise else eps_hat, _batch(s, z_t))
    return z_t


def ddim(
    denoise: Denoiser, z: Tensor, times: Sequence[float], schedule: Schedule, _: FreshNoise | None = None
) -> Tensor:
    """Walk deterministically: `sample` without fresh noise."""
    return sample(denoise, z, times, schedule)


def dpmpp(
    denoise: Denoiser, z: Tensor, times: Sequence[float], schedule: Schedule, _: FreshNoise | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2022, Algorithm 2): second order at one evaluation a step.

    With lambda = log(alpha / sigma) and h the step in it, z_s = (sigma_s / sigma_t) z_t - alpha_s (e^-h - 1) D, where
    D is x_hat extrapolated through the previous step, D = x_hat + h / (2 h_before) (x_hat - x_hat_before). Without a
    previous step, or where h_before is infinite (it began at alpha = 0), D = x_hat: a first-order step, which is
    DDIM's. The step to `CLEAN` (h infinite) is of first order too, and ends at x_hat.
    """
    grid = torch.tensor([*times, CLEAN], dtype=torch.float64)
    alphas, sigmas = (v.flatten() for v in schedule.at(grid, grid))
    lambdas = (alphas / sigmas).log()
    z_t, before, h_before = z, z, torch.tensor(torch.inf, dtype=lambdas.dtype)
    for k, t in enumerate(times):
        x_hat, _eps = denoise(z_t, _batch(t, z_t))
        if k == len(times) - 1:
            return x_hat
        h = lambdas[k + 1] - lambdas[k]
        extrapolation = 0.0 if h_before.isinf() else (h / (2 * h_before)).item()
        direction = x_hat + extrapolation * (x_hat - before)
        z_t = (sigmas[k + 1] / sigmas[k]).item() * z_t - (alphas[k + 1] * (-h).expm1()).item() * direction
        before, h_before = x_hat, h
    return z_t


def _batch(t: float, z_t: Tensor) -> Tensor:
    return torch.full((len(z_t),), t, device=z_t.device, dtype=torch.promote_types(z_t.dtype, torch.float32))
