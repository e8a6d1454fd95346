"""Gaussian data, x ~ N(m, d^2), on which the posterior mean and the transport map are known."""

import math

import torch
from tiny import scheduler_config
from torch import Tensor

from codi_hub.diffusion.schedule import Denoiser, RectifiedFlow, Schedule, VariancePreserving

M, D = 0.7, 0.6
LENGTH = 1 << 14
COSINE = torch.arange(1, LENGTH + 1, dtype=torch.float64) * math.pi / 2 / LENGTH
SCHEDULES: dict[str, Schedule] = {
    "cosine, fine": VariancePreserving(COSINE.cos(), COSINE.sin(), "v_prediction"),
    "Stable Diffusion": VariancePreserving.from_config(scheduler_config("v_prediction", zero_snr=True)),
    "flow": RectifiedFlow(),
}


def deviation(schedule: Schedule, t: Tensor, like: Tensor, d: float) -> Tensor:
    """Standard deviation of z_t = alpha_t x + sigma_t eps."""
    alpha_t, sigma_t = schedule.at(t, like)
    return (alpha_t**2 * d**2 + sigma_t**2).sqrt()


def posterior_mean(schedule: Schedule, m: float = M, d: float = D) -> Denoiser:
    """E[x | z_t], exactly, and the eps that goes with it."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = schedule.at(t, z_t)
        x_hat = m + alpha_t * d**2 / deviation(schedule, t, z_t, d) ** 2 * (z_t - alpha_t * m)
        return x_hat, (z_t - alpha_t * x_hat) / sigma_t

    return denoise


def transport(schedule: Schedule, m: float = M, d: float = D) -> Denoiser:
    """Where the PF-ODE carries z_t: x = m + d (z_t - alpha_t m) / deviation_t, a perfect consistency model."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = schedule.at(t, z_t)
        x_hat = m + d * (z_t - alpha_t * m) / deviation(schedule, t, z_t, d)
        return x_hat, (z_t - alpha_t * x_hat) / sigma_t

    return denoise
