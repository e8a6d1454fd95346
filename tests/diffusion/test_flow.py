"""Rectified flow, and what every schedule has in common: conversions that are inverses, times that fit."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from gaussian import COSINE
from hypothesis import given
from hypothesis import strategies as st
from tiny import scheduler_config
from torch import Tensor

from codi_hub.diffusion.schedule import (
    CLEAN,
    FLOW_SOLVERS,
    RectifiedFlow,
    Schedule,
    VariancePreserving,
    resolution_shift,
)
from codi_hub.errors import Mismatch, UsageError

SCHEDULES: dict[str, Schedule] = {
    "epsilon": VariancePreserving.from_config(scheduler_config("epsilon")),
    "v_prediction": VariancePreserving.from_config(scheduler_config("v_prediction")),
    "v_prediction, zero SNR": VariancePreserving.from_config(scheduler_config("v_prediction", zero_snr=True)),
    "sample": VariancePreserving.from_config(scheduler_config("sample", zero_snr=True)),
    "cosine": VariancePreserving(COSINE.cos(), COSINE.sin(), "v_prediction"),
    "flow": RectifiedFlow(),
    "flow, negated": RectifiedFlow(shift=3.0, negated=True, time_scale=1.0),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
values = st.lists(st.floats(-10, 10), min_size=3, max_size=3)
times = st.lists(st.floats(0.001, 1), min_size=3, max_size=3)


def column(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


# ---- every schedule


@every_schedule
@given(x=values, eps=values, t=times)
def test_converting_what_a_base_should_predict_gives_back_x_and_eps(
    name: str, x: list[float], eps: list[float], t: list[float]
) -> None:
    schedule, rows = SCHEDULES[name], torch.tensor(t, dtype=torch.float64)
    if name == "sample":  # its boundary mixes z_t in, by less than 1e-7 from the middle on
        rows = 0.5 + rows / 2
    wanted_x, wanted_eps = column(x), column(eps)
    z_t = schedule.add_noise(wanted_x, wanted_eps, rows)
    x_hat, eps_hat = schedule.convert(schedule.prediction(wanted_x, wanted_eps, rows), z_t, rows)
    tolerance = 1e-6 if name == "sample" else 1e-9
    assert torch.allclose(x_hat, wanted_x, rtol=0, atol=tolerance)
    assert torch.allclose(eps_hat, wanted_eps, rtol=0, atol=tolerance)


@every_schedule
@given(output=values, z=values, t=times)
def test_a_conversion_lies_on_z_t_and_gives_back_the_prediction(
    name: str, output: list[float], z: list[float], t: list[float]
) -> None:
    schedule, rows = SCHEDULES[name], torch.tensor(t, dtype=torch.float64)
    if name == "sample":
        rows = 0.5 + rows / 2
    predicted, z_t = column(output), column(z)
    x_hat, eps_hat = schedule.convert(predicted, z_t, rows)
    tolerance = 1e-5 if name == "sample" else 1e-9
    assert torch.allclose(schedule.prediction(x_hat, eps_hat, rows), predicted, rtol=0, atol=tolerance)
    assert torch.allclose(schedule.add_noise(x_hat, eps_hat, rows), z_t, rtol=0, atol=1e-9)


@every_schedule
def test_time_runs_from_clean_to_noise(name: str) -> None:
    schedule, like = SCHEDULES[name], torch.zeros(1, 1, dtype=torch.float64)
    alpha, sigma = schedule.at(torch.tensor([CLEAN]), like)
    assert (alpha.item(), sigma.item()) == (1.0, 0.0)
    t = torch.linspace(CLEAN, 1, 101, dtype=torch.float64)
    alphas, sigmas = (v.flatten() for v in schedule.at(t, like))
    assert (alphas.diff() < 0).all()
    assert (sigmas.diff() > 0).all()
    assert schedule.at(torch.ones(5), torch.zeros(5, 2, 3, 4))[0].shape == (5, 1, 1, 1)


@every_schedule
@given(steps=st.integers(1, 1000), start=st.floats(0.02, 1))
def test_a_grid_descends_from_its_start_and_never_reaches_clean(name: str, steps: int, start: float) -> None:
    schedule = SCHEDULES[name]
    if isinstance(schedule, VariancePreserving):
        steps = min(steps, round(start * len(schedule)))
    grid = schedule.grid(steps, start)
    assert len(grid) == steps
    assert all(later < earlier for earlier, later in pairwise(grid))
    assert CLEAN < grid[-1] <= grid[0] <= 1
    assert grid[0] == schedule.grid(1, start)[0]
    assert schedule.learning_grid(steps, start).tolist() == grid[::-1]


@every_schedule
@given(u=st.floats(0, 1, exclude_max=True))
def test_a_uniform_number_becomes_a_time_with_noise(name: str, u: float) -> None:
    t = SCHEDULES[name].time_of(torch.tensor([u], dtype=torch.float64)).item()
    assert CLEAN < t <= 1


# ---- rectified flow


def test_a_flow_is_the_straight_path_from_the_image_to_the_noise() -> None:
    schedule = RectifiedFlow()
    x, eps = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    rows = t.view(3, 1, 1, 1)
    assert torch.allclose(schedule.add_noise(x, eps, t), (1 - rows) * x + rows * eps, rtol=0, atol=1e-15)
    assert torch.equal(schedule.prediction(x, eps, t), eps - x)
    z_t, v = eps, x  # any numbers
    x_hat, eps_hat = schedule.convert(v, z_t, t)
    assert torch.allclose(x_hat, z_t - rows * v, rtol=0, atol=1e-15)
    assert torch.allclose(eps_hat, z_t + (1 - rows) * v, rtol=0, atol=1e-15)
    s = torch.tensor([0.05, 0.2, 0.75], dtype=torch.float64)
    euler = z_t + (s - t).view(3, 1, 1, 1) * v
    assert torch.allclose(schedule.add_noise(x_hat, eps_hat, s), euler, rtol=0, atol=1e-14)


def test_a_negated_flow_predicts_the_opposite_and_counts_time_from_the_noise() -> None:
    plain, negated = RectifiedFlow(), RectifiedFlow(negated=True)
    x, eps = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    assert torch.equal(negated.prediction(x, eps, t), -plain.prediction(x, eps, t))
    for ours, theirs in zip(negated.convert(-eps, x, t), plain.convert(eps, x, t), strict=True):
        assert torch.equal(ours, theirs)
    assert plain.model_time(t).tolist() == [250.0, 1000.0]
    assert negated.model_time(t).tolist() == [750.0, 0.0]
    assert negated.grid(4) == plain.grid(4)  # time itself runs as on every schedule


@pytest.mark.parametrize("time_scale", [1.0, 1000.0])
def test_the_network_is_given_the_scaled_time(time_scale: float) -> None:
    schedule = RectifiedFlow(time_scale=time_scale)
    seen: list[Tensor] = []

    def network(z_t: Tensor, t: Tensor) -> Tensor:
        seen.append(schedule.model_time(t))
        return z_t

    schedule.denoiser(network)(torch.zeros(2, 1), torch.tensor([0.5, 1.0]))
    assert seen[0].tolist() == [0.5 * time_scale, time_scale]


def test_grids_of_a_flow_are_shifted_towards_the_noise() -> None:
    assert RectifiedFlow().grid(4) == [1.0, 0.75, 0.5, 0.25]
    assert RectifiedFlow(shift=3.0).grid(4) == pytest.approx([1.0, 0.9, 0.75, 0.5])
    assert RectifiedFlow(shift=3.0).grid(2, 0.5) == pytest.approx([0.75, 0.5])  # u = 0.5 and 0.25
    assert RectifiedFlow(shift=3.0).learning_grid(4).tolist() == pytest.approx([0.5, 0.75, 0.9, 1.0])
    for steps in (1, 2, 4, 8):
        assert set(RectifiedFlow(shift=3.0).grid(steps)) <= set(RectifiedFlow(shift=3.0).learning_grid(8).tolist())
    assert all(RectifiedFlow(shift=k / 37).grid(1) == [1.0] for k in range(1, 370))  # rounding leaves the end alone
    u = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    assert RectifiedFlow(shift=3.0).time_of(u).tolist() == pytest.approx([1.0, 0.9, 0.75])


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_a_flow_refuses_a_grid_that_cannot_be(count: int) -> None:
    with pytest.raises(UsageError, match=f"steps {count}: between 1 and 1000"):
        RectifiedFlow().grid(count)
    with pytest.raises(UsageError, match=f"loss.grid {count}: between 1 and 1000"):
        RectifiedFlow().learning_grid(count)


# ---- shift by resolution


def test_the_shift_of_a_resolution_is_that_of_fluxs_pipeline() -> None:
    """calculate_shift: mu = 0.5 + 0.65 / 3840 (tokens - 256), and the scheduler's shift is exp(mu)."""
    mu = {256: 0.5, 1024: 0.63, 2176: 0.825, 4096: 1.15}
    for tokens, value in mu.items():
        assert resolution_shift(tokens) == pytest.approx(math.exp(value), rel=1e-12)
    # Qwen-Image's constants: mu = 0.5 + 0.4 / 7936 (tokens - 256)
    other = resolution_shift(4224, max_tokens=8192, max_shift=0.9)
    assert other == pytest.approx(math.exp(0.7), rel=1e-12)


@pytest.mark.parametrize("solver", FLOW_SOLVERS)
def test_a_solver_on_a_flow_is_the_flow_with_its_shift(solver: str) -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    scheduler = getattr(diffusers, f"{solver}Scheduler")(**flow)
    config = {"_class_name": f"{solver}Scheduler", **scheduler.config}
    schedule = RectifiedFlow.from_config(config)
    assert schedule == RectifiedFlow(shift=3.0)
    scheduler.set_timesteps(4)  # begins at 0.999 in place of 1
    assert torch.allclose(scheduler.sigmas[:4].double(), torch.tensor(schedule.grid(4)).double(), rtol=0, atol=2e-3)
    for change, said in (
        ({"use_flow_sigmas": False}, "is not a flow's: this base needs one of FlowMatchEuler"),
        ({"prediction_type": "epsilon"}, "prediction_type='epsilon', and a flow model predicts 'flow_prediction': set"),
        ({"use_karras_sigmas": True}, "has use_karras_sigmas=True, which is not supported: take it out of"),
    ):
        with pytest.raises(Mismatch, match=said):
            RectifiedFlow.from_config(config | change)


def test_the_lcm_scheduler_of_a_flow_is_one() -> None:
    config = {"_class_name": "FlowMatchLCMScheduler", **diffusers.FlowMatchLCMScheduler(shift=2.0).config}
    assert RectifiedFlow.from_config(config) == RectifiedFlow(shift=2.0)
    with pytest.raises(Mismatch, match="scale_factors="):
        RectifiedFlow.from_config(config | {"scale_factors": [0.5, 1.0]})


def test_a_shift_by_resolution_is_that_of_diffusers_dynamic_shifting() -> None:
    schedule = RectifiedFlow(shift=resolution_shift)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.63)
    assert schedule.for_tokens(1024).grid(4) == pytest.approx(theirs.sigmas[:4].tolist(), abs=1e-6)
    assert RectifiedFlow(shift=3.0).for_tokens(1024) == RectifiedFlow(shift=3.0)
    with pytest.raises(TypeError, match="number of tokens"):
        schedule.grid(4)
