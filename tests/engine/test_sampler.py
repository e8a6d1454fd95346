"""The samplers on Gaussian data, x ~ N(m, d^2), where the posterior mean and the transport map are known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import scheduler_config
from torch import Tensor

from codi_hub.sampler import Denoiser, sample
from codi_hub.schedule import Schedule, sampling_timesteps

M, D = 0.7, 0.6
LENGTH = 1 << 14
COSINE = torch.arange(1, LENGTH + 1, dtype=torch.float64) * math.pi / 2 / LENGTH
SCHEDULES = {
    "cosine, fine": Schedule(COSINE.cos(), COSINE.sin(), "v_prediction"),
    "Stable Diffusion": Schedule.from_config(scheduler_config("v_prediction", zero_snr=True)),
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


def errors(schedule: Schedule, counts: list[int]) -> list[float]:
    """Largest distance between the walk of so many steps and the transport map, over noise from -3 to 3."""
    noise = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    last = torch.full((len(noise),), len(schedule) - 1)
    exact, _ = transport(schedule)(noise, last)
    walks = [sample(posterior_mean(schedule), noise, sampling_timesteps(n, len(schedule)), schedule) for n in counts]
    return [(walk - exact).abs().max().item() for walk in walks]


def test_many_steps_converge_to_the_transport_map_at_first_order() -> None:
    counts = [16, 32, 64, 128, 256, 512, 1024]
    found = errors(SCHEDULES["cosine, fine"], counts)
    slope = np.polyfit(np.log(counts), np.log(found), 1)[0]
    assert -1.1 < slope < -0.9
    assert found[-1] < 0.005 < found[0]


def test_error_falls_with_every_doubling_on_stable_diffusions_schedule() -> None:
    found = errors(SCHEDULES["Stable Diffusion"], [1, 2, 4, 8, 16, 32, 64, 125, 250, 500])
    assert all(later < 0.75 * earlier for earlier, later in pairwise(found))
    assert found[-1] < 0.015


def test_one_step_gives_the_mean_of_the_data() -> None:
    """From pure noise (alpha_T = 0) the posterior knows nothing: x_hat is m for every z_T."""
    schedule = SCHEDULES["Stable Diffusion"]
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    assert torch.allclose(sample(posterior_mean(schedule), noise, [999], schedule), torch.full_like(noise, M))


def test_a_step_goes_along_the_predicted_noise() -> None:
    schedule = SCHEDULES["Stable Diffusion"]
    asked: list[tuple[float, int]] = []

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        asked.append((z_t.item(), int(t)))
        return torch.full_like(z_t, 2.0), torch.full_like(z_t, -1.0)

    x_hat = sample(denoise, torch.full((1, 1), 5.0, dtype=torch.float64), [999, 499], schedule)
    second = 2.0 * schedule.alphas[499].item() - schedule.sigmas[499].item()
    assert x_hat.item() == 2.0
    assert [t for _, t in asked] == [999, 499]
    assert [z for z, _ in asked] == pytest.approx([5.0, second], abs=1e-15)


def renoised_variance(denoise: Denoiser, schedule: Schedule, timesteps: list[int]) -> float:
    """Exact variance of what renoising gives: the walk is linear, so row k is fed the k-th of its noises alone."""
    rows = torch.eye(len(timesteps), dtype=torch.float64)
    coefficients = sample(denoise, rows[0][:, None], timesteps, schedule, fresh_noise=lambda k: rows[k + 1][:, None])
    return coefficients.square().sum().item()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_renoising_a_perfect_consistency_model_gives_the_variance_of_the_data(steps: int) -> None:
    schedule = SCHEDULES["Stable Diffusion"]
    timesteps = sampling_timesteps(steps, 1000)
    assert renoised_variance(transport(schedule, 0.0), schedule, timesteps) == pytest.approx(D**2, rel=1e-9)


def test_renoising_the_posterior_mean_follows_the_recursion_of_its_variance() -> None:
    schedule = SCHEDULES["Stable Diffusion"]
    timesteps = sampling_timesteps(8, 1000)
    variance = 0.0  # of x_hat; that of the first z_t is 1
    for number, t in enumerate(timesteps):
        alpha, sigma = schedule.alphas[t].item(), schedule.sigmas[t].item()
        gain = alpha * D**2 / (alpha**2 * D**2 + sigma**2)
        variance = gain**2 * (alpha**2 * variance + sigma**2 if number else 1.0)
    assert renoised_variance(posterior_mean(schedule, 0.0), schedule, timesteps) == pytest.approx(variance, rel=1e-9)


def test_renoising_draws_noise_between_the_steps_only() -> None:
    schedule = SCHEDULES["Stable Diffusion"]
    drawn: list[int] = []

    def fresh(number: int) -> Tensor:
        drawn.append(number)
        return torch.zeros(2, 1, dtype=torch.float64)

    sample(posterior_mean(schedule), torch.ones(2, 1).double(), [999, 749, 499, 249], schedule, fresh_noise=fresh)
    assert drawn == [0, 1, 2]
