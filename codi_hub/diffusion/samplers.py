"""Samplers: pure functions of a denoiser, noise and timesteps, all called alike and found by name in `SAMPLERS`."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from codi_hub.diffusion.schedule import CLEAN, Denoiser, Schedule

FreshNoise = Callable[[int], Tensor]
"""Step number -> new noise, (B, ...)."""

Sampler = Callable[[Denoiser, Tensor, Sequence[int], Schedule, FreshNoise | None], Tensor]
"""(denoise, noise, timesteps, schedule, fresh_noise) -> x_hat of the last step, (B, ...).

    noise: z_T ~ N(0, I), (B, ...).
    timesteps: descending; the step after the last one is clean.
    fresh_noise: asked by the samplers that draw noise between the steps.
"""


def sample(
    denoise: Denoiser,
    noise: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """Walks from noise to a clean latent as CoDi does (PAPER.md, "Sampling"), which is DDIM (Song et al., 2021).

    Args:
        denoise, noise, timesteps, schedule: see `Sampler`.
        fresh_noise: if given, taken in place of eps_hat (renoising), else the walk is deterministic.

    Without timesteps the noise comes back: it is clean already.
    """
    z_t = rollout(denoise, noise, timesteps, schedule, fresh_noise)
    return denoise(z_t, _batch(timesteps[-1], z_t))[0] if timesteps else z_t


def rollout(
    denoise: Denoiser,
    noise: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    fresh_noise: FreshNoise | None = None,
) -> Tensor:
    """The state, (B, ...), in which `sample` arrives at the last of `timesteps`, having begun with noise at the first.

    Trained on such states, a student sees its own errors, which noised data never show it ("backward simulation" in
    Yin et al., "Improved Distribution Matching Distillation", 2024).
    """
    z_t = noise
    for number, (t, s) in enumerate(pairwise(timesteps)):
        x_hat, eps_hat = denoise(z_t, _batch(t, z_t))
        z_t = schedule.add_noise(x_hat, fresh_noise(number) if fresh_noise else eps_hat, _batch(s, z_t))
    return z_t


def _batch(t: int, z_t: Tensor) -> Tensor:
    return torch.full((len(z_t),), t, device=z_t.device)


def ddim(
    denoise: Denoiser, noise: Tensor, timesteps: Sequence[int], schedule: Schedule, _: FreshNoise | None = None
) -> Tensor:
    """The deterministic walk."""
    return sample(denoise, noise, timesteps, schedule)


def dpmpp(
    denoise: Denoiser, noise: Tensor, timesteps: Sequence[int], schedule: Schedule, _: FreshNoise | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2022, Algorithm 2): second order at one evaluation a step.

    With lambda = log(alpha / sigma) and h the step in it, z_s = (sigma_s / sigma_t) z_t - alpha_s (e^-h - 1) D, where
    D is x_hat extrapolated through the step before, D = x_hat + h / (2 h_before) (x_hat - x_hat_before). Without a step
    before, or where h_before is infinite (it began at alpha = 0), D = x_hat: a step of first order, which is DDIM's.
    The step to clean (h infinite) is of first order too, and ends at x_hat.
    """
    times = [*timesteps, CLEAN]
    alphas, sigmas = (v.flatten() for v in schedule.at(torch.tensor(times), schedule.alphas))
    lambdas = (alphas / sigmas).log()
    z_t, before, h_before = noise, noise, torch.tensor(torch.inf, dtype=lambdas.dtype)
    for k, t in enumerate(timesteps):
        x_hat, _eps = denoise(z_t, _batch(t, z_t))
        if times[k + 1] == CLEAN:
            return x_hat
        h = lambdas[k + 1] - lambdas[k]
        reach = 0.0 if h_before.isinf() else (h / (2 * h_before)).item()
        direction = x_hat + reach * (x_hat - before)
        z_t = (sigmas[k + 1] / sigmas[k]).item() * z_t - (alphas[k + 1] * (-h).expm1()).item() * direction
        before, h_before = x_hat, h
    return z_t


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "renoise": sample, "dpmpp": dpmpp}
