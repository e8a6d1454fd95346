"""The samplers on Gaussian data, where everything is known, and beside diffusers' own."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from gaussian import SCHEDULES, D, M, posterior_mean, transport
from tiny import scheduler_config
from torch import Tensor

from codi_hub.diffusion.samplers import SAMPLERS, ddim, dpmpp, rollout, sample
from codi_hub.diffusion.schedule import Denoiser, Schedule, sampling_timesteps


def errors(schedule: Schedule, counts: list[int], sampler: Any = ddim) -> list[float]:
    """Largest distance between the walk of so many steps and the transport map, over noise from -3 to 3."""
    noise = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    last = torch.full((len(noise),), len(schedule) - 1)
    exact, _ = transport(schedule)(noise, last)
    walks = [sampler(posterior_mean(schedule), noise, sampling_timesteps(n, len(schedule)), schedule) for n in counts]
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


def test_a_rollout_is_the_walk_up_to_where_the_sampler_asks_next() -> None:
    schedule, walk = SCHEDULES["Stable Diffusion"], [999, 749, 499, 249]
    denoise, asked = posterior_mean(schedule), []
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]

    def listening(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(z_t)
        return denoise(z_t, t)

    sample(listening, noise, walk, schedule)
    for number in range(len(walk)):
        assert torch.equal(rollout(denoise, noise, walk[: number + 1], schedule), asked[number])


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


# ---- DPM-Solver++(2M)


def test_dpm_solver_converges_at_second_order_where_ddim_is_of_first() -> None:
    counts = [64, 128, 256, 512, 1024]
    schedule = SCHEDULES["cosine, fine"]
    ours, plain = errors(schedule, counts, dpmpp), errors(schedule, counts)
    slope = np.polyfit(np.log(counts), np.log(ours), 1)[0]
    assert -2.1 < slope < -1.6
    assert ours[-1] < 0.02 * plain[-1]


@pytest.mark.parametrize("steps", [16, 64, 250])
def test_dpm_solver_is_nearer_than_ddim_on_stable_diffusions_schedule(steps: int) -> None:
    schedule = SCHEDULES["Stable Diffusion"]
    assert errors(schedule, [steps], dpmpp)[0] < 0.6 * errors(schedule, [steps])[0]


PREDICTIONS = [("epsilon", False), ("sample", False), ("v_prediction", False), ("v_prediction", True)]


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 20, 250])
@pytest.mark.parametrize(("prediction", "zero_snr"), PREDICTIONS)
def test_dpm_solver_is_that_of_diffusers(prediction: str, zero_snr: bool, steps: int) -> None:
    """On their alphas: where the terminal SNR is zero, they replace alpha_T = 0 by 2^-12, so that lambda is finite."""
    config = scheduler_config(prediction, zero_snr=zero_snr)
    theirs = DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    squared = theirs.alphas_cumprod.double()
    schedule = Schedule(squared.sqrt(), (1 - squared).sqrt(), prediction)
    timesteps = sampling_timesteps(steps, 1000)
    assert theirs.timesteps.tolist() == timesteps
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]

    def network(z_t: Tensor, t: Tensor) -> Tensor:
        x_hat, eps_hat = posterior_mean(schedule)(z_t, t)
        return schedule.prediction(x_hat + 0.1 * z_t.sin(), eps_hat, t)

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return schedule.convert(network(z_t, t), z_t, t)

    expected = noise
    for t in theirs.timesteps:
        expected = theirs.step(network(expected, t.expand(len(noise))), t, expected).prev_sample
    found = dpmpp(denoise, noise, timesteps, schedule)
    assert torch.allclose(
        found, expected, atol=1e-3 if prediction == "sample" else 1e-4
    )  # they have no boundary at t = 0
    if steps > 2:
        assert (found - ddim(denoise, noise, timesteps, schedule)).abs().max() > 0.01


def test_dpm_solver_begins_at_pure_noise_with_steps_of_first_order() -> None:
    """The step from alpha = 0, and the one after it, whose step before was infinite, are DDIM's; the third is not."""
    schedule = SCHEDULES["Stable Diffusion"]
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    seen: dict[str, list[Tensor]] = {"ddim": [], "dpmpp": []}
    for name, kept in seen.items():

        def denoise(z_t: Tensor, t: Tensor, kept: list[Tensor] = kept) -> tuple[Tensor, Tensor]:
            kept.append(z_t)
            return posterior_mean(schedule)(z_t, t)

        assert SAMPLERS[name](denoise, noise, [999, 749, 499, 249], schedule, None).isfinite().all()
    same = [torch.allclose(a, b, atol=1e-12) for a, b in zip(seen["ddim"], seen["dpmpp"], strict=True)]
    assert same == [True, True, True, False]
