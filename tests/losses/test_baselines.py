"""The losses CoDi is compared with, by what defines them, on Gaussian data and in float64."""

from collections.abc import Callable

import pytest
import torch
from gaussian import D, M, deviation, posterior_mean, transport
from tiny import scheduler_config
from torch import Tensor, nn

from codi_hub.diffusion.samplers import ddim
from codi_hub.diffusion.schedule import CLEAN, Denoiser, RectifiedFlow, Schedule, VariancePreserving
from codi_hub.losses.conditional import conditional_loss
from codi_hub.losses.consistency_distillation import cm_loss, sampler_step
from codi_hub.losses.progressive import gd_loss, gd_target, truncated_snr

V, FLOW = VariancePreserving.from_config(scheduler_config("v_prediction", zero_snr=True)), RectifiedFlow(shift=3.0)
BY_PREDICTION: dict[str, Schedule] = {
    "epsilon": VariancePreserving.from_config(scheduler_config("epsilon")),
    "v_prediction": V,
    "sample": VariancePreserving.from_config(scheduler_config("sample")),
    "flow": FLOW,
}
every_schedule = pytest.mark.parametrize("prediction", BY_PREDICTION)
v_and_flow = pytest.mark.parametrize("schedule", [V, FLOW], ids=["v", "flow"])


def draw(rows: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(x, eps), x ~ N(m, d^2), float64 (rows, 1)."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, rows, 1, generator=generator, dtype=torch.float64)
    return M + D * x, eps


def rows(t: float, count: int = 64) -> Tensor:
    return torch.full((count,), t, dtype=torch.float64)


def noise_of(schedule: Schedule, t: float) -> tuple[float, float]:
    """(alpha_t, sigma_t)."""
    alpha, sigma = schedule.at(rows(t, 1), torch.zeros(1, dtype=torch.float64))
    return alpha.item(), sigma.item()


class Linear(nn.Module):
    """x_hat = a z_t + b."""

    def __init__(self, schedule: Schedule, a: float = 0.3, b: float = -0.2):
        super().__init__()
        self.schedule = schedule
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def forward(self, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.schedule.at(t, z_t)
        x_hat = self.a * z_t + self.b
        return x_hat, (z_t - alpha_t * x_hat) / sigma_t


# ---- clean time, and what a base predicts


def test_the_time_after_the_last_is_clean() -> None:
    x, eps = draw()
    assert torch.equal(V.add_noise(x, eps, rows(CLEAN)), x)
    assert torch.equal(FLOW.add_noise(x, eps, rows(CLEAN)), x)
    mixed = torch.tensor([CLEAN, 0.001, 1.0, CLEAN] * 16)
    alpha, sigma = V.at(mixed, x)
    assert alpha[:4, 0].tolist() == [1.0, V.alphas[0].item(), V.alphas[999].item(), 1.0]
    assert sigma[:4, 0].tolist() == [0.0, V.sigmas[0].item(), V.sigmas[999].item(), 0.0]


@every_schedule
def test_what_a_base_should_predict_is_converted_back(prediction: str) -> None:
    schedule = BY_PREDICTION[prediction]
    x, eps = draw(3)
    t = torch.tensor([0.501, 0.901, 1.0], dtype=torch.float64)
    x_hat, eps_hat = schedule.convert(schedule.prediction(x, eps, t), schedule.add_noise(x, eps, t), t)
    assert torch.allclose(x_hat, x, atol=1e-6)
    assert torch.allclose(eps_hat, eps, atol=1e-6)


# ---- conditional


@every_schedule
def test_conditional_loss_is_zero_at_the_exact_predictor_and_by_the_formula_elsewhere(prediction: str) -> None:
    schedule = BY_PREDICTION[prediction]
    x, eps = draw()
    t = (torch.arange(64) * 15 + 2).double() / 1000  # one per sample
    assert conditional_loss(lambda z_t, t: (x, eps), x, eps, t, schedule)["diffusion"].item() == 0
    alpha, sigma = schedule.at(t, x)
    found = conditional_loss(lambda z_t, t: (x + 0.1, eps - 0.1 * alpha / sigma), x, eps, t, schedule)
    same = torch.full_like(x, 0.1)
    in_eps, in_v = 0.1 * alpha / sigma, 0.1 / sigma  # on a flow too: v = eps - x is off by 0.1 (1 - t) / t + 0.1
    off = {"epsilon": in_eps, "v_prediction": in_v, "sample": same, "flow": in_v}[prediction]
    assert found.keys() == {"diffusion"}
    assert found["diffusion"].item() == pytest.approx(off.square().mean().item(), rel=1e-9)


@every_schedule
def test_conditional_loss_leads_to_the_posterior_mean(prediction: str) -> None:
    schedule = BY_PREDICTION[prediction]
    student, t = Linear(schedule), rows(0.4, 4096)
    alpha, sigma = noise_of(schedule, 0.4)
    gain = alpha * D**2 / (alpha**2 * D**2 + sigma**2)
    # a velocity's error is 1 / t of that in x
    optimiser = torch.optim.SGD(student.parameters(), lr=0.3 * (sigma**2 if prediction == "flow" else 1))
    for seed in range(150):
        optimiser.zero_grad()
        conditional_loss(student, *draw(4096, seed), t, schedule)["diffusion"].backward()
        optimiser.step()
    assert student.a.item() == pytest.approx(gain, abs=0.03)
    assert student.b.item() == pytest.approx(M * (1 - gain * alpha), abs=0.03)


# ---- consistency distillation


def follow(teacher: Denoiser, grid: list[float], schedule: Schedule) -> Denoiser:
    """The teacher's DDIM walk along the grid, from t to clean: exactly consistent along the teacher's ODE."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        left = [point for point in grid if point <= t[0]]
        return ddim(teacher, z_t, left, schedule), z_t

    return denoise


@v_and_flow
@pytest.mark.parametrize("step", range(8))
def test_cm_loss_is_zero_for_a_student_consistent_along_the_teachers_ode(schedule: Schedule, step: int) -> None:
    grid = schedule.grid(8)
    t, s = [*grid, CLEAN][step : step + 2]
    teacher = posterior_mean(schedule)
    student = follow(teacher, grid, schedule)
    terms = cm_loss(student, student, teacher, *draw(), rows(t), rows(s), schedule)
    assert terms.keys() == {"consistency"}
    assert terms["consistency"].item() < 1e-24
    if s != CLEAN:  # there the posterior mean is its own endpoint
        assert cm_loss(teacher, teacher, teacher, *draw(), rows(t), rows(s), schedule)["consistency"].item() > 1e-5


def test_at_the_clean_end_cm_compares_with_the_teachers_endpoint_alone() -> None:
    student, teacher = Linear(V), posterior_mean(V)

    def target(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        assert (t > CLEAN).all()
        return torch.full_like(z_t, 100.0), z_t

    x, eps = draw()
    t = rows(0.125)
    s = torch.tensor([CLEAN, 0.063] * 32, dtype=torch.float64)
    both = cm_loss(student, target, teacher, x, eps, t, s, V)["consistency"].item()
    z_t = V.add_noise(x, eps, t)
    x_hat = student(z_t, t)[0]
    to_teacher = (x_hat - teacher(z_t, t)[0]).square()[::2]
    to_target = (x_hat - 100.0).square()[1::2]
    assert both == pytest.approx((to_teacher.mean() + to_target.mean()).item() / 2)


def test_cm_asks_the_target_one_step_of_the_teacher_further_and_gives_gradient_to_the_student_alone() -> None:
    student, target, teacher = Linear(V), Linear(V, 0.6, 0.4), Linear(V, 0.9, 0.1)
    x, eps = draw()
    cm_loss(student, target, teacher, x, eps, rows(0.75), rows(0.5), V)["consistency"].backward()
    assert all(p.grad is None for network in (target, teacher) for p in network.parameters())
    z_t = V.add_noise(x, eps, rows(0.75))
    x_hat, eps_hat = teacher(z_t, rows(0.75))
    z_s = V.alphas[499] * x_hat + V.sigmas[499] * eps_hat
    by_hand = (student(z_t, rows(0.75))[0] - target(z_s, rows(0.5))[0].detach()).square().mean()
    expected = torch.autograd.grad(by_hand, [student.a, student.b])
    found = [p.grad.item() for p in (student.a, student.b) if p.grad is not None]
    assert found == pytest.approx([g.item() for g in expected], rel=1e-12)


# ---- progressive distillation


def halved(teacher: Denoiser, grid: list[float], schedule: Schedule) -> Denoiser:
    """The student that hits x~ at every second point of the teacher's grid."""
    times = [*grid, CLEAN]

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        k = times.index(float(t[0]))
        middle, s = (torch.full_like(t, point) for point in times[k + 1 : k + 3])
        x_hat = gd_target(teacher, z_t, t, middle, s, schedule)
        alpha_t, sigma_t = schedule.at(t, z_t)
        return x_hat, (z_t - alpha_t * x_hat) / sigma_t

    return denoise


TEACHERS: dict[str, Callable[[Schedule], Denoiser]] = {"posterior mean": posterior_mean, "transport": transport}


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize(
    ("t", "middle", "s"),
    [(1.0, 0.875, 0.75), (1.0, 0.999, 0.998), (0.5, 0.251, 0.008), (0.25, 0.125, CLEAN), (1.0, 0.5, CLEAN)],
)
def test_one_step_of_a_student_that_hits_its_target_is_two_of_the_teacher(
    prediction: str, teacher: str, t: float, middle: float, s: float
) -> None:
    """At t = 1 the v-predicting schedule and the flow are pure noise, alpha = 0."""
    schedule = BY_PREDICTION[prediction]
    slow = TEACHERS[teacher](schedule)
    z_t = schedule.add_noise(*draw(), rows(t))
    two = sampler_step(slow, sampler_step(slow, z_t, rows(t), rows(middle), schedule), rows(middle), rows(s), schedule)
    one = sampler_step(halved(slow, [t, middle] + [s] * (s != CLEAN), schedule), z_t, rows(t), rows(s), schedule)
    assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)
    x, eps = draw()
    exact = halved(slow, [t, middle] + [s] * (s != CLEAN), schedule)
    assert gd_loss(exact, slow, x, eps, rows(t), rows(middle), rows(s), schedule)["progressive"].item() == 0
    assert gd_loss(Linear(schedule), slow, x, eps, rows(t), rows(middle), rows(s), schedule)["progressive"] > 1e-3


@v_and_flow
def test_three_halvings_keep_the_walk_of_the_first_teacher(schedule: Schedule) -> None:
    noise = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    denoise = posterior_mean(schedule)
    expected = ddim(denoise, noise, schedule.grid(32), schedule)
    for steps in (32, 16, 8):
        denoise = halved(denoise, schedule.grid(steps), schedule)
    found = ddim(denoise, noise, schedule.grid(4), schedule)
    assert torch.allclose(found, expected, atol=1e-10)
    assert (expected - ddim(posterior_mean(schedule), noise, schedule.grid(4), schedule)).abs().max() > 0.1


@v_and_flow
@pytest.mark.parametrize("t", [0.031, 0.125, 0.5, 1.0])
def test_gd_weighs_by_the_larger_of_the_errors_in_x_and_in_eps(schedule: Schedule, t: float) -> None:
    student, teacher = Linear(schedule), posterior_mean(schedule)
    x, eps = draw()
    z_t = schedule.add_noise(x, eps, rows(t))
    middle, s = rows(round(t * 500) / 1000), rows(CLEAN)
    wanted = gd_target(teacher, z_t, rows(t), middle, s, schedule)
    x_hat, eps_hat = student(z_t, rows(t))
    alpha, sigma = noise_of(schedule, t)
    in_x = (wanted - x_hat).square()
    in_eps = ((z_t - alpha * wanted) / sigma - eps_hat).square()
    found = gd_loss(student, teacher, x, eps, rows(t), middle, s, schedule)
    assert found.keys() == {"progressive"}
    assert found["progressive"].item() == pytest.approx(torch.maximum(in_x, in_eps).mean().item(), rel=1e-9)
    assert truncated_snr(rows(1.0), x, schedule)[0].item() == 1.0


def test_gd_gives_no_gradient_to_the_teacher() -> None:
    student, teacher = Linear(V), Linear(V, 0.9, 0.1)
    gd_loss(student, teacher, *draw(), rows(1.0), rows(0.875), rows(0.75), V)["progressive"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.abs() > 0 for p in student.parameters())


def test_the_helpers_here_are_what_they_say() -> None:
    """The exact denoiser's noise and the deviation of z_t belong together: E eps_hat^2 is known."""
    x, eps = draw(200_000)
    for schedule in (V, FLOW):
        z_t = schedule.add_noise(x, eps, rows(0.5, len(x)))
        assert z_t.std().item() == pytest.approx(deviation(schedule, rows(0.5, 1), z_t[:1], D).item(), rel=0.01)
