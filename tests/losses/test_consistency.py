"""The CoDi loss on toys whose answers are known, in float64."""

from dataclasses import replace

import pytest
import torch
from tiny import scheduler_config
from torch import Tensor, nn

from codi_hub.diffusion.samplers import Denoiser
from codi_hub.diffusion.schedule import Schedule, boundary
from codi_hub.losses.codi import (
    LossOptions,
    codi_loss,
    consistency_weight,
    guidance_scale,
    latent_l2,
    step_to,
    update_ema,
)

PLAIN = LossOptions(consistency_cap=False, guidance_cap=None)
SCHEDULES = {
    prediction: Schedule.from_config(scheduler_config(prediction, zero_snr=prediction == "v_prediction"))
    for prediction in ("epsilon", "v_prediction", "sample")
}
V = SCHEDULES["v_prediction"]
ROWS, WIDTH = 16, 3


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(A, c, eps): x = A c is the toy's data."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    c, eps = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return a, c, eps


def rows(t: int) -> Tensor:
    return torch.full((ROWS,), t)


def guess(schedule: Schedule, network: nn.Module, c: Tensor) -> Denoiser:
    """A predictor whose x_hat is network(c), handed over in the base's own prediction type."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = schedule.at(t, z_t)
        x = network(c)
        c_skip, c_out = (v.view(-1, 1) for v in boundary(t.to(z_t)))
        output = {
            "epsilon": (z_t - alpha_t * x) / sigma_t,
            "v_prediction": (alpha_t * z_t - x) / sigma_t,
            "sample": (x - c_skip * z_t) / c_out,
        }[schedule.prediction_type]
        return schedule.convert(output, z_t, t)

    return denoise


def linear(weight: Tensor) -> nn.Linear:
    network = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64)
    network.weight.data = weight.clone()
    return network


class Mixed(nn.Module):
    """An arbitrary network of z_t, t and c, as (x_hat, eps_hat) in v-prediction."""

    def __init__(self, c: Tensor, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(2 * WIDTH + 1, 16), nn.Tanh(), nn.Linear(16, WIDTH)).double()
        self.c = c

    def forward(self, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return V.convert(self.body(torch.cat([z_t, self.c, t[:, None] / 1000], dim=1)), z_t, t)


@pytest.mark.parametrize(("t", "s"), [(999, 749), (499, 374), (124, 1)])
@pytest.mark.parametrize("ode", ["own", "noise", "none"])
@pytest.mark.parametrize("prediction", SCHEDULES)
def test_loss_is_zero_at_the_true_predictor(prediction: str, ode: str, t: int, s: int) -> None:
    schedule = SCHEDULES[prediction]
    a, c, eps = draw()
    true = guess(schedule, linear(a), c)
    terms = codi_loss(true, true, c @ a.T, eps, rows(t), rows(s), schedule, options=replace(PLAIN, ode=ode))
    assert terms.keys() == {"guidance", "consistency"}
    assert all(0 <= value.item() < 1e-22 for value in terms.values())  # float64's rounding, squared


@pytest.mark.parametrize("cap", [True, False])
@pytest.mark.parametrize("ode", ["own", "noise", "none"])
def test_gradient_descent_leads_to_the_true_predictor(ode: str, cap: bool) -> None:
    a, c, _ = draw()
    student, target = linear(torch.zeros(WIDTH, WIDTH).double()), linear(torch.zeros(WIDTH, WIDTH).double())
    optimiser = torch.optim.SGD(student.parameters(), lr=0.2)
    options = LossOptions(ode=ode, consistency_cap=cap)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(400):
        eps = torch.randn(c.shape, generator=generator, dtype=torch.float64)
        k = int(torch.randint(2, 9, (), generator=generator))
        t, s = rows(125 * k - 1), rows(125 * (k - 1) - 1)
        terms = codi_loss(guess(V, student, c), guess(V, target, c), c @ a.T, eps, t, s, V, options=options)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
        update_ema(target, student, 0.9)
        losses.append(sum(terms.values()).item())
    assert losses[0] > 0.1
    assert losses[-1] < 1e-6 * losses[0]
    assert torch.allclose(student.weight, a, atol=1e-3)
    assert torch.allclose(target.weight, a, atol=1e-3)


@pytest.mark.parametrize(("t", "s"), [(999, 749), (499, 374), (124, 0)])
def test_consistency_term_of_a_predictor_constant_along_its_own_steps(t: int, s: int) -> None:
    """x_hat = W c, wrong by delta: zero along its own steps, (alpha_t / sigma_t) delta off the true noise, ..."""
    a, c, eps = draw()
    wrong = a + 0.5
    delta = c @ (a - wrong).T
    constant = guess(V, linear(wrong), c)
    found = {
        ode: codi_loss(constant, constant, c @ a.T, eps, rows(t), rows(s), V, options=replace(PLAIN, ode=ode))
        for ode in ("own", "noise", "none")
    }
    ratio_t, ratio_s = (V.alphas[k] / V.sigmas[k] for k in (t, s))
    assert found["own"]["consistency"].item() < 1e-22
    assert found["own"]["guidance"].item() == pytest.approx(delta.square().mean().item())
    expected = {"noise": ratio_t * delta, "none": (ratio_t - ratio_s) * delta}
    for ode, off in expected.items():
        assert found[ode]["consistency"].item() == pytest.approx(off.square().mean().item(), rel=1e-9, abs=1e-22)
    assert found["none"]["consistency"].item() > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_consistency_term_is_positive_for_other_predictors(seed: int) -> None:
    a, c, eps = draw()
    student = Mixed(c, seed)
    terms = codi_loss(student, student, c @ a.T, eps, rows(749), rows(499), V, options=PLAIN)
    assert terms["consistency"].item() > 1e-4


def test_no_gradient_reaches_the_target_network_nor_its_input() -> None:
    a, c, eps = draw()
    student, target = Mixed(c, 0), Mixed(c, 1)
    terms = codi_loss(student, target, c @ a.T, eps, rows(749), rows(499), V, guidance=None, options=PLAIN)
    terms["consistency"].backward()
    assert all(p.requires_grad and p.grad is None for p in target.parameters())
    found = [p.grad.clone() for p in student.parameters()]
    # by hand: what the target says is a number, and the student is pulled towards it through eps_hat_t alone
    z_t = V.add_noise(c @ a.T, eps, rows(749))
    x_hat, eps_hat = student(z_t, rows(749))
    with torch.no_grad():
        _, asked = target(V.add_noise(x_hat, eps_hat, rows(499)), rows(499))
    expected = torch.autograd.grad((eps_hat - asked).square().mean(), list(student.parameters()))
    assert all(torch.allclose(f, e, rtol=1e-12, atol=1e-15) for f, e in zip(found, expected, strict=True))
    assert any(e.abs().max() > 0 for e in expected)


def test_step_is_taken_along_the_switch() -> None:
    x, x_hat, eps, eps_hat = torch.arange(1.0, 5.0, dtype=torch.float64).view(4, 1, 1).expand(4, ROWS, WIDTH)
    x_hat = x_hat.clone().requires_grad_()
    alpha_s, sigma_s = V.alphas[499], V.sigmas[499]
    expected = {
        "own": 2 * alpha_s + 4 * sigma_s,
        "noise": 2 * alpha_s + 3 * sigma_s,
        "none": 1 * alpha_s + 3 * sigma_s,
    }
    for ode, value in expected.items():
        z_hat_s = step_to(V, x, x_hat, eps, eps_hat, rows(499), ode)
        assert torch.allclose(z_hat_s, value.expand(ROWS, WIDTH))
        assert not z_hat_s.requires_grad


def test_terms_that_are_off_are_absent_and_cost_nothing() -> None:
    a, c, eps = draw()
    student = Mixed(c, 0)

    def unwanted(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("the target was asked")

    off = codi_loss(student, unwanted, c @ a.T, eps, rows(749), rows(499), V, options=LossOptions(consistency=False))
    assert off.keys() == {"guidance"}
    without = codi_loss(student, student, c @ a.T, eps, rows(749), rows(499), V, guidance=None)
    assert without.keys() == {"consistency"}
    both = codi_loss(student, student, c @ a.T, eps, rows(749), rows(499), V)
    assert both["guidance"] == off["guidance"]
    assert both["consistency"] == without["consistency"]


@pytest.mark.parametrize("s", [0, 124, 249, 499, 749])
def test_cap_and_weight_scale_the_consistency_term(s: int) -> None:
    a, c, eps = draw()
    student, t = Mixed(c, 0), rows(874)
    bound = min(1.0, 2 * (V.sigmas[s] ** 2 / V.alphas[s] ** 2).item())
    assert consistency_weight(V, rows(s), c, capped=True).flatten().tolist() == pytest.approx([bound] * ROWS)
    assert consistency_weight(V, rows(s), c, capped=False).flatten().tolist() == [1.0] * ROWS
    plain, capped, tripled = (
        codi_loss(student, student, c @ a.T, eps, t, rows(s), V, options=options)["consistency"].item()
        for options in (PLAIN, replace(PLAIN, consistency_cap=True), replace(PLAIN, consistency_weight=3.0))
    )
    assert capped == pytest.approx(bound * plain)
    assert tripled == pytest.approx(3 * plain)
    # x-consistency is the term times sigma_s^2 / alpha_s^2, so capped it never weighs more than 2
    assert bound * (V.alphas[s] ** 2 / V.sigmas[s] ** 2).item() <= 2 + 1e-9


def test_guidance_cap_holds_the_weight_of_an_eps_prediction() -> None:
    schedule = SCHEDULES["epsilon"]
    ratio = (schedule.sigmas[999] ** 2 / schedule.alphas[999] ** 2).item()
    assert ratio == pytest.approx(214, abs=1)  # PAPER.md: "about 214 at Stable Diffusion's last step"
    assert guidance_scale(schedule, rows(999), 5.0) * ratio == pytest.approx(5.0)
    assert guidance_scale(schedule, rows(100), 5.0) == 1.0
    assert guidance_scale(schedule, rows(999), None) == 1.0
    assert guidance_scale(V, rows(999), 5.0) == guidance_scale(SCHEDULES["sample"], rows(999), 5.0) == 1.0
    a, c, eps = draw()
    wrong = guess(schedule, linear(a + 0.5), c)
    plain, capped = (
        codi_loss(wrong, wrong, c @ a.T, eps, rows(999), rows(749), schedule, options=LossOptions(guidance_cap=cap))
        for cap in (None, 5.0)
    )
    assert capped["guidance"].item() == pytest.approx(plain["guidance"].item() * 5 / ratio)
    assert capped["consistency"] == plain["consistency"]


def test_moving_average_follows_its_formula() -> None:
    student, target = linear(torch.ones(WIDTH, WIDTH).double()), linear(torch.zeros(WIDTH, WIDTH).double())
    update_ema(target, student, 0.9)
    update_ema(target, student, 0.9)
    assert torch.allclose(target.weight, torch.full((WIDTH, WIDTH), 0.19).double())
    update_ema(target, student, 0.0)
    assert torch.equal(target.weight, student.weight)
    assert torch.equal(student.weight, torch.ones(WIDTH, WIDTH).double())


def test_latent_l2_is_the_mean_square() -> None:
    assert latent_l2(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [0.0, 1.0]])).item() == 1.5
