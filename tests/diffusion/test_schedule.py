"""The variance-preserving schedule and its conversions, against closed forms in float64."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from tiny import scheduler_config
from torch import Tensor

from codi_hub.diffusion.schedule import CLEAN, TABLE_SCHEDULERS, VariancePreserving, boundary
from codi_hub.errors import Mismatch, UsageError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def known(index: int, schedule: VariancePreserving) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, eps, z_t and (alpha_t, sigma_t) of a table entry, float64, z_t written out."""
    generator = torch.Generator().manual_seed(index)
    x, eps = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    alpha_t, sigma_t = schedule.alphas[index], schedule.sigmas[index]
    return x, eps, alpha_t * x + sigma_t * eps, alpha_t, sigma_t


@pytest.mark.parametrize("index", [1, 7, 124, 500, 999])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversion_recovers_x_and_eps_from_the_true_output(prediction: str, index: int) -> None:
    schedule = VariancePreserving.from_config(scheduler_config(prediction, zero_snr=prediction != "epsilon"))
    x, eps, z_t, alpha_t, sigma_t = known(index, schedule)
    rows = torch.full((3,), schedule.time(index))
    assert torch.allclose(schedule.add_noise(x, eps, rows), z_t, rtol=0, atol=1e-15)
    output = {"epsilon": eps, "v_prediction": alpha_t * eps - sigma_t * x, "sample": x}[prediction]
    x_hat, eps_hat = schedule.convert(output, z_t, rows)
    if prediction == "sample":  # the boundary's closed form
        c_skip = 0.25 / ((10 * index) ** 2 + 0.25)
        x = c_skip * z_t + 10 * index / ((10 * index) ** 2 + 0.25) ** 0.5 * x
        eps = (z_t - alpha_t * x) / sigma_t
    assert torch.allclose(x_hat, x, rtol=0, atol=1e-12)
    assert torch.allclose(eps_hat, eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_conversion_lies_on_z_t(prediction: str) -> None:
    """alpha_t x_hat + sigma_t eps_hat = z_t for any output at all, each row at its own t."""
    schedule = VariancePreserving.from_config(scheduler_config(prediction))
    generator = torch.Generator().manual_seed(0)
    output, z_t = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.001, 0.002, 0.401, 1.0])
    x_hat, eps_hat = schedule.convert(output, z_t, t)
    assert torch.allclose(schedule.add_noise(x_hat, eps_hat, t), z_t, rtol=0, atol=1e-12)


def test_x_prediction_at_the_clean_end_is_z_itself() -> None:
    schedule = VariancePreserving.from_config(scheduler_config("sample"))
    z_t = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_hat, eps_hat = schedule.convert(torch.full_like(z_t, 1e6), z_t, torch.full((2,), schedule.time(0)))
    assert torch.equal(x_hat, z_t)
    assert eps_hat.isfinite().all()
    assert [c.item() for c in boundary(torch.zeros((), dtype=torch.float64))] == [1.0, 0.0]


def test_boundary_leaves_the_later_timesteps_as_they_are() -> None:
    c_skip, c_out = boundary(torch.arange(1000, dtype=torch.float64))
    assert c_skip[1:].max() < 0.0025
    assert (1 - c_out[1:]).max() < 0.00125
    assert (c_skip.diff() < 0).all()
    assert (c_out.diff() > 0).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_eps_and_v_prediction_tend_to_z_by_themselves(prediction: str) -> None:
    """|x_hat - z_t| is of the order of sigma_t as sigma_t -> 0, so no boundary is needed."""
    sigmas = torch.tensor([1e-1, 1e-3, 1e-5], dtype=torch.float64)
    schedule = VariancePreserving((1 - sigmas**2).sqrt(), sigmas, prediction)
    z_t, output = torch.ones(3, 1, dtype=torch.float64), torch.full((3, 1), 2.0, dtype=torch.float64)
    x_hat, _ = schedule.convert(output, z_t, torch.arange(1, 4) / 3)
    assert ((x_hat - z_t).abs().squeeze(1) < 2.5 * sigmas).all()


@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedule_is_the_bases_own_and_preserves_variance(zero_snr: bool) -> None:
    config = scheduler_config("v_prediction", zero_snr=zero_snr)
    schedule = VariancePreserving.from_config(config)
    theirs = DDIMScheduler.from_config(config).alphas_cumprod.double()
    assert torch.allclose(schedule.alphas**2, theirs, rtol=0, atol=1e-12)
    assert torch.allclose(schedule.alphas**2 + schedule.sigmas**2, torch.ones(1000).double(), rtol=0, atol=1e-12)
    assert (schedule.alphas.diff() < 0).all()
    assert schedule.sigmas[0] > 0
    assert (schedule.alphas[-1] == 0) == zero_snr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", TABLE_SCHEDULERS)
@pytest.mark.parametrize("changes", [{}, {"trained_betas": [0.1, 0.2, 0.3]}, {"rescale_betas_zero_snr": True}], ids=str)
def test_every_class_has_the_noise_that_diffusers_gives_it(name: str, changes: dict[str, Any]) -> None:
    config = scheduler_config("v_prediction") | {"_class_name": f"{name}Scheduler"} | changes
    if name == "DPMSolverSDE":
        pytest.importorskip("torchsde")
    theirs = getattr(diffusers, f"{name}Scheduler").from_config(config).alphas_cumprod.double()
    assert torch.equal(VariancePreserving.from_config(config).alphas, theirs.sqrt())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (scheduler_config("epsilon", zero_snr=True), "zero terminal SNR"),
        (scheduler_config("flow_prediction"), "'flow_prediction'"),
        (scheduler_config("epsilon") | {"_class_name": "EDMEulerScheduler"}, "scheduler EDMEulerScheduler is not one"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "scheduler FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "scheduler ScoreSdeVeScheduler"),
        (scheduler_config("epsilon") | {"trained_betas": [0.1] * 900}, "zero terminal SNR"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "has use_flow_sigmas=True"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "has timestep_type='continuous'"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(Mismatch, match=words) as caught:
        VariancePreserving.from_config(config)
    assert "\n" not in str(caught.value)


def test_a_time_is_a_table_entry_and_the_one_before_the_first_is_clean() -> None:
    schedule = VariancePreserving.from_config(scheduler_config("v_prediction", zero_snr=True))
    x = torch.ones(4, 1, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        every = torch.tensor([schedule.time(index) for index in range(1000)], dtype=dtype)
        assert schedule.index(every).tolist() == schedule.model_time(every).tolist() == list(range(1000))
    assert schedule.index(torch.tensor([CLEAN])).tolist() == [-1]
    assert schedule.least == schedule.time(0) == 0.001
    alpha, sigma = schedule.at(torch.tensor([CLEAN, schedule.time(0), 1.0, CLEAN]), x)
    assert alpha.flatten().tolist() == [1.0, schedule.alphas[0].item(), 0.0, 1.0]
    assert sigma.flatten().tolist() == [0.0, schedule.sigmas[0].item(), 1.0, 0.0]


def indices(schedule: VariancePreserving, times: list[float]) -> list[int]:
    return [int(index) for index in schedule.index(torch.tensor(times, dtype=torch.float64))]


def test_grids_end_at_noise_and_share_their_points() -> None:
    schedule = VariancePreserving.from_config(scheduler_config("epsilon"))
    assert schedule.grid(1) == [1.0]
    assert schedule.grid(4) == [1.0, 0.75, 0.5, 0.25]
    assert indices(schedule, schedule.grid(4)) == [999, 749, 499, 249]
    assert indices(schedule, schedule.grid(1000)) == list(range(999, -1, -1))
    grid = schedule.learning_grid(8).tolist()
    assert grid == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    for steps in (1, 2, 4, 8):
        assert set(schedule.grid(steps)) <= set(grid)


def test_a_grid_that_starts_lower_covers_its_share_of_the_schedule() -> None:
    schedule = VariancePreserving.from_config(scheduler_config("epsilon"))
    assert indices(schedule, schedule.grid(4, 0.5)) == [499, 374, 249, 124]
    assert indices(schedule, schedule.grid(1, 0.02)) == [19]
    assert schedule.learning_grid(2, 0.5).tolist() == [0.25, 0.5]
    with pytest.raises(UsageError, match="steps 21: between 1 and 20"):
        schedule.grid(21, 0.02)


def test_uniform_numbers_reach_every_table_entry_alike() -> None:
    schedule = VariancePreserving.from_config(scheduler_config("epsilon"))
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert schedule.index(schedule.time_of(u)).bincount().tolist() == [4] * 1000
    assert schedule.index(schedule.time_of(torch.zeros(1))).tolist() == [0]


@pytest.mark.parametrize("length", [100, 997, 1000])
def test_a_uniform_number_on_the_edge_of_an_entry_is_that_entry(length: int) -> None:
    schedule = VariancePreserving(torch.linspace(1, 0, length), torch.linspace(0, 1, length), "v_prediction")
    u = torch.arange(length, dtype=torch.float64) / length
    assert schedule.index(schedule.time_of(u)).tolist() == list(range(length))
    assert schedule.time_of(torch.tensor([1 - 1e-12], dtype=torch.float64)).item() == 1.0


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_a_grid_that_cannot_be_is_refused(count: int) -> None:
    schedule = VariancePreserving.from_config(scheduler_config("epsilon"))
    with pytest.raises(UsageError, match=f"steps {count}: between 1 and 1000"):
        schedule.grid(count)
    with pytest.raises(UsageError, match=f"loss.grid {count}: between 1 and 1000"):
        schedule.learning_grid(count)
