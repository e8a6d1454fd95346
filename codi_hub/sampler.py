"""Samplers of 1 to 8 steps: pure functions of a denoiser, noise and timesteps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from codi_hub.schedule import Denoiser, Schedule


def sample(
    denoise: Denoiser,
    noise: Tensor,
    timesteps: Sequence[int],
    schedule: Schedule,
    *,
    fresh_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Walks from noise to a clean latent along `timesteps`, as CoDi does (PAPER.md, "Sampling").

    Args:
        denoise: the student.
        noise: z_T ~ N(0, I), (B, ...).
        timesteps: descending; the step after the last one is clean.
        schedule: the base's.
        fresh_noise: if given, step number -> new noise in place of eps_hat (renoising), else the deterministic walk.

    Returns:
        x_hat of the last step, (B, ...).
    """
    z_t, x_hat = noise, noise
    for number, t in enumerate(timesteps):
        x_hat, eps_hat = denoise(z_t, torch.full((len(z_t),), t, device=z_t.device))
        if number + 1 < len(timesteps):
            s = torch.full((len(z_t),), timesteps[number + 1], device=z_t.device)
            z_t = schedule.add_noise(x_hat, fresh_noise(number) if fresh_noise else eps_hat, s)
    return x_hat
