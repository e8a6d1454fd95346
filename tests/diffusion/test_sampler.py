"""The samplers on Gaussian data, where everything is known, and beside diffusers' own."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from gaussian import SCHEDULES, D, M, posterior_mean, transport
from tiny import scheduler_config
from torch import Tensor

from codi_hub.diffusion import SAMPLERS
from codi_hub.diffusion.samplers import ddim, dpmpp, rollout, sample
from codi_hub.diffusion.schedule import Denoiser, RectifiedFlow, Schedule, VariancePreserving

STABLE_DIFFUSION = VariancePreserving.from_config(scheduler_config("v_prediction", zero_snr=True))
FLOWS = pytest.mark.parametrize("shift", [1.0, 3.0])


def errors(schedule: Schedule, counts: list[int], sampler: Any = ddim) -> list[float]:
    """Largest distance between the walk of so many steps and the transport map, over noise from -3 to 3."""
    noise = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    exact, _ = transport(schedule)(noise, torch.ones(len(noise)))
    walks = [sampler(posterior_mean(schedule), noise, schedule.grid(n), schedule) for n in counts]
    return [(walk - exact).abs().max().item() for walk in walks]


def order(counts: list[int], found: list[float]) -> float:
    """Slope of the errors over the numbers of steps, both as logarithms: -1 for a method of first order."""
    return float(np.polyfit(np.log(counts), np.log(found), 1)[0])


def test_many_steps_converge_to_the_transport_map_at_first_order() -> None:
    counts = [16, 32, 64, 128, 256, 512, 1024]
    found = errors(SCHEDULES["cosine, fine"], counts)
    assert -1.1 < order(counts, found) < -0.9
    assert found[-1] < 0.005 < found[0]


def test_error_falls_with_every_doubling_on_stable_diffusions_schedule() -> None:
    found = errors(SCHEDULES["Stable Diffusion"], [1, 2, 4, 8, 16, 32, 64, 125, 250, 500])
    assert all(later < 0.75 * earlier for earlier, later in pairwise(found))
    assert found[-1] < 0.015


def test_one_step_gives_the_mean_of_the_data() -> None:
    """From pure noise (alpha_T = 0) the posterior knows nothing: x_hat is m for every z_T."""
    schedule = SCHEDULES["Stable Diffusion"]
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    assert torch.allclose(sample(posterior_mean(schedule), noise, [1.0], schedule), torch.full_like(noise, M))


def test_a_rollout_is_the_walk_up_to_where_the_sampler_asks_next() -> None:
    schedule, walk = SCHEDULES["Stable Diffusion"], [1.0, 0.75, 0.5, 0.25]
    denoise = posterior_mean(schedule)
    asked: list[Tensor] = []
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]

    def listening(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(z_t)
        return denoise(z_t, t)

    sample(listening, noise, walk, schedule)
    for number in range(len(walk)):
        assert torch.equal(rollout(denoise, noise, walk[: number + 1], schedule), asked[number])


def test_a_step_goes_along_the_predicted_noise() -> None:
    schedule = STABLE_DIFFUSION
    asked: list[tuple[float, float]] = []

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        asked.append((z_t.item(), float(t)))
        return torch.full_like(z_t, 2.0), torch.full_like(z_t, -1.0)

    x_hat = sample(denoise, torch.full((1, 1), 5.0, dtype=torch.float64), [1.0, 0.5], schedule)
    second = 2.0 * schedule.alphas[499].item() - schedule.sigmas[499].item()
    assert x_hat.item() == 2.0
    assert [t for _, t in asked] == [1.0, 0.5]
    assert [z for z, _ in asked] == pytest.approx([5.0, second], abs=1e-15)


def renoised_variance(denoise: Denoiser, schedule: Schedule, times: list[float]) -> float:
    """Exact variance of what renoising gives: the walk is linear, so row k is fed the k-th of its noises alone."""
    rows = torch.eye(len(times), dtype=torch.float64)
    coefficients = sample(denoise, rows[0][:, None], times, schedule, fresh_noise=lambda k: rows[k + 1][:, None])
    return coefficients.square().sum().item()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["Stable Diffusion", "flow"])
def test_renoising_a_perfect_consistency_model_gives_the_variance_of_the_data(name: str, steps: int) -> None:
    schedule = SCHEDULES[name]
    found = renoised_variance(transport(schedule, 0.0), schedule, schedule.grid(steps))
    assert found == pytest.approx(D**2, rel=1e-9)


@pytest.mark.parametrize("name", ["Stable Diffusion", "flow"])
def test_renoising_the_posterior_mean_follows_the_recursion_of_its_variance(name: str) -> None:
    schedule = SCHEDULES[name]
    times = schedule.grid(8)
    variance = 0.0  # of x_hat; that of the first z_t is 1
    for number, t in enumerate(times):
        alpha, sigma = (v.item() for v in schedule.at(torch.tensor([t]).double(), torch.zeros(1).double()))
        gain = alpha * D**2 / (alpha**2 * D**2 + sigma**2)
        variance = gain**2 * (alpha**2 * variance + sigma**2 if number else 1.0)
    assert renoised_variance(posterior_mean(schedule, 0.0), schedule, times) == pytest.approx(variance, rel=1e-9)


def test_renoising_draws_noise_between_the_steps_only() -> None:
    schedule = SCHEDULES["Stable Diffusion"]
    drawn: list[int] = []

    def fresh(number: int) -> Tensor:
        drawn.append(number)
        return torch.zeros(2, 1, dtype=torch.float64)

    sample(posterior_mean(schedule), torch.ones(2, 1).double(), schedule.grid(4), schedule, fresh_noise=fresh)
    assert drawn == [0, 1, 2]


# ---- DPM-Solver++(2M)


@pytest.mark.slow
def test_dpm_solver_converges_at_second_order_where_ddim_is_of_first() -> None:
    counts = [64, 128, 256, 512, 1024]
    schedule = SCHEDULES["cosine, fine"]
    ours, plain = errors(schedule, counts, dpmpp), errors(schedule, counts)
    assert -2.1 < order(counts, ours) < -1.6
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
    schedule = VariancePreserving(squared.sqrt(), (1 - squared).sqrt(), prediction)
    times = schedule.grid(steps)
    assert theirs.timesteps.tolist() == schedule.model_time(torch.tensor(times)).tolist()
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]

    def network(z_t: Tensor, t: Tensor) -> Tensor:
        x_hat, eps_hat = posterior_mean(schedule)(z_t, t)
        return schedule.prediction(x_hat + 0.1 * z_t.sin(), eps_hat, t)

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return schedule.convert(network(z_t, t), z_t, t)

    expected = noise
    for timestep, t in zip(theirs.timesteps, times, strict=True):
        output = network(expected, torch.full((len(noise),), t))
        expected = theirs.step(output, timestep, expected).prev_sample
    found = dpmpp(denoise, noise, times, schedule)
    tolerance = 1e-3 if prediction == "sample" else 1e-4  # they have no boundary at t = 0
    assert torch.allclose(found, expected, atol=tolerance)
    if steps > 2:
        assert (found - ddim(denoise, noise, times, schedule)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["Stable Diffusion", "flow"])
def test_dpm_solver_begins_at_pure_noise_with_steps_of_first_order(name: str) -> None:
    """The step from alpha = 0, and the one after it, whose step before was infinite, are DDIM's; the third is not."""
    schedule = SCHEDULES[name]
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    seen: dict[str, list[Tensor]] = {"ddim": [], "dpmpp": []}
    for sampler, kept in seen.items():

        def denoise(z_t: Tensor, t: Tensor, kept: list[Tensor] = kept) -> tuple[Tensor, Tensor]:
            kept.append(z_t)
            return posterior_mean(schedule)(z_t, t)

        assert SAMPLERS.load(sampler)(denoise, noise, schedule.grid(4), schedule, None).isfinite().all()
    same = [torch.allclose(a, b, atol=1e-12) for a, b in zip(seen["ddim"], seen["dpmpp"], strict=True)]
    assert same == [True, True, True, False]


# ---- rectified flow


@FLOWS
def test_on_a_flow_the_euler_walk_converges_at_first_order(shift: float) -> None:
    counts = [16, 32, 64, 128, 256, 512, 1000]
    found = errors(RectifiedFlow(shift=shift), counts)
    assert -1.1 < order(counts, found) < -0.9
    assert found[-1] < 0.005 < found[0]


@pytest.mark.slow
@FLOWS
def test_on_a_flow_dpm_solver_converges_at_second_order(shift: float) -> None:
    """Errors are of the order log(n) / n^2: in lambda the steps at both ends stay wide however many there are."""
    counts = [256, 512, 1024, 2048]
    schedule = RectifiedFlow(shift=shift, max_steps=counts[-1])
    ours, plain = errors(schedule, counts, dpmpp), errors(schedule, counts)
    assert -2.1 < order(counts, [error / np.log(n) for n, error in zip(counts, ours, strict=True)]) < -1.85
    assert ours[-1] < 0.02 * plain[-1]


def test_one_step_on_a_flow_gives_the_mean_of_the_data() -> None:
    schedule = RectifiedFlow()
    noise = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    assert torch.allclose(ddim(posterior_mean(schedule), noise, [1.0], schedule), torch.full_like(noise, M))


@FLOWS
@pytest.mark.parametrize("negated", [False, True])
def test_the_euler_walk_is_that_of_diffusers(shift: float, negated: bool) -> None:
    """Pipelines hand over sigmas=[1, .75, .5, .25], which the scheduler shifts; Z-Image's negates the prediction."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    schedule = RectifiedFlow(shift=shift, negated=negated)
    times = schedule.grid(4)
    assert times == pytest.approx(theirs.sigmas[:4].tolist(), abs=1e-6)
    assert theirs.sigmas[4] == 0
    asked = schedule.model_time(torch.tensor(times))
    expected_times = 1000 - theirs.timesteps if negated else theirs.timesteps
    assert asked.tolist() == pytest.approx(expected_times.tolist(), abs=1e-3)
    noise = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))

    def network(z_t: Tensor, timestep: Tensor) -> Tensor:
        v = (2 * z_t + timestep.view(-1, 1, 1, 1) / 300).sin() + z_t
        return -v if negated else v

    denoise = schedule.denoiser(
        lambda z_t, t: network(z_t, 1000 - schedule.model_time(t) if negated else schedule.model_time(t))
    )
    expected = noise
    for timestep in theirs.timesteps:
        output = network(expected, timestep.expand(len(noise)))
        expected = theirs.step(-output if negated else output, timestep, expected).prev_sample
    found = ddim(denoise, noise, times, schedule)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert (found - noise).abs().max() > 0.1
