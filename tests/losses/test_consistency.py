"""The CoDi loss on toys whose answers are known, in float64."""

import pytest
import torch
from tiny import scheduler_config
from torch import Tensor, nn

from codi_hub.diffusion.schedule import Denoiser, RectifiedFlow, Schedule, VariancePreserving, boundary
from codi_hub.losses.codi import (
    CoDiConfig,
    Ode,
    codi_loss,
    consistency_weight,
    guidance_scale,
    latent_l2,
    step_to,
)
from codi_hub.training.trainer import update_ema

EPS, V, X = (
    VariancePreserving.from_config(scheduler_config(prediction, zero_snr=prediction == "v_prediction"))
    for prediction in ("epsilon", "v_prediction", "sample")
)
FLOW, NEGATED = RectifiedFlow(), RectifiedFlow(negated=True)
SCHEDULES: dict[str, Schedule] = {"epsilon": EPS, "v_prediction": V, "sample": X, "flow": FLOW, "negated": NEGATED}
ODES: list[Ode] = ["own", "noise", "none"]
ROWS, WIDTH = 16, 3


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(A, c, eps): x = A c is the toy's data."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    c, eps = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return a, c, eps


def plain(*, ode: Ode = "own", consistency: float = 1.0, consistency_cap: bool = False) -> CoDiConfig:
    """The loss without its caps."""
    return CoDiConfig(ode=ode, consistency=consistency, consistency_cap=consistency_cap, guidance_cap=None)


def rows(t: float) -> Tensor:
    return torch.full((ROWS,), t, dtype=torch.float64)


def noise_of(schedule: Schedule, t: float) -> tuple[float, float]:
    """(alpha_t, sigma_t)."""
    alpha, sigma = schedule.at(rows(t)[:1], torch.zeros(1, dtype=torch.float64))
    return alpha.item(), sigma.item()


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def gradients(value: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(network.parameters())))


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(f, e, rtol=1e-10, atol=1e-14) for f, e in zip(found, expected, strict=True))


def guess(schedule: Schedule, network: nn.Module, c: Tensor) -> Denoiser:
    """A predictor whose x_hat is network(c), handed over in the base's own prediction type."""

    def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = schedule.at(t, z_t)
        x = network(c)
        eps = (z_t - alpha_t * x) / sigma_t
        output = schedule.prediction(x, eps, t)
        if schedule is X:
            c_skip, c_out = (v.view(-1, 1) for v in boundary(X.index(t).to(z_t)))
            output = (x - c_skip * z_t) / c_out
        return schedule.convert(output, z_t, t)

    return denoise


def linear(weight: Tensor) -> nn.Linear:
    network = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64)
    network.weight.data = weight.clone()
    return network


class Mixed(nn.Module):
    """An arbitrary network of z_t, t and c, as (x_hat, eps_hat) of a base with this schedule."""

    def __init__(self, c: Tensor, seed: int, schedule: Schedule = V):
        super().__init__()
        self.schedule = schedule
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(2 * WIDTH + 1, 16), nn.Tanh(), nn.Linear(16, WIDTH)).double()
        self.c = c

    def forward(self, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.convert(self.output(z_t, t), z_t, t)

    def output(self, z_t: Tensor, t: Tensor) -> Tensor:
        """What the network itself predicts."""
        predicted: Tensor = self.body(torch.cat([z_t, self.c, t[:, None]], dim=1))
        return predicted


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.75), (0.5, 0.375), (0.125, 0.002)])
@pytest.mark.parametrize("ode", ODES)
@pytest.mark.parametrize("prediction", SCHEDULES)
def test_loss_is_zero_at_the_true_predictor(prediction: str, ode: Ode, t: float, s: float) -> None:
    schedule = SCHEDULES[prediction]
    a, c, eps = draw()
    true = guess(schedule, linear(a), c)
    terms = codi_loss(true, true, c @ a.T, eps, (rows(t), rows(s)), schedule, config=plain(ode=ode))
    assert terms.keys() == {"guidance", "consistency"}
    assert all(0 <= value.item() < 1e-22 for value in terms.values())  # float64's rounding, squared


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "cap"), [(V, True), (V, False), (FLOW, True)], ids=["v, cap", "v", "flow, cap"])
@pytest.mark.parametrize("ode", ODES)
def test_gradient_descent_leads_to_the_true_predictor(schedule: Schedule, ode: Ode, cap: bool) -> None:
    """On a flow without the cap, x-consistency's weight of 49 at s = 1/8 would need a smaller learning rate."""
    a, c, _ = draw()
    student, target = linear(torch.zeros(WIDTH, WIDTH).double()), linear(torch.zeros(WIDTH, WIDTH).double())
    optimiser = torch.optim.SGD(student.parameters(), lr=0.2)
    config = CoDiConfig(ode=ode, consistency_cap=cap)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(400):
        eps = torch.randn(c.shape, generator=generator, dtype=torch.float64)
        k = int(torch.randint(2, 9, (), generator=generator))
        times = rows(k / 8), rows((k - 1) / 8)
        denoisers = guess(schedule, student, c), guess(schedule, target, c)
        loss = total(codi_loss(*denoisers, c @ a.T, eps, times, schedule, config=config))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        update_ema(target, student, 0.9)
        losses.append(loss.item())
    assert losses[0] > 0.1
    assert losses[-1] < 1e-6 * losses[0]
    assert torch.allclose(student.weight, a, atol=1e-3)
    assert torch.allclose(target.weight, a, atol=1e-3)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.75), (0.5, 0.375), (0.125, 0.001)])
@pytest.mark.parametrize("schedule", [V, FLOW], ids=["v", "flow"])
def test_consistency_term_of_a_predictor_constant_along_its_own_steps(schedule: Schedule, t: float, s: float) -> None:
    """x_hat = W c, wrong by delta: zero along its own steps, (alpha_t / sigma_t) delta off the true noise, ..."""
    a, c, eps = draw()
    wrong = a + 0.5
    delta = c @ (a - wrong).T
    constant = guess(schedule, linear(wrong), c)
    found = {
        ode: codi_loss(constant, constant, c @ a.T, eps, (rows(t), rows(s)), schedule, config=plain(ode=ode))
        for ode in ODES
    }
    ratio_t, ratio_s = (alpha / sigma for alpha, sigma in (noise_of(schedule, k) for k in (t, s)))
    assert found["own"]["consistency"].item() < 1e-22
    assert found["own"]["guidance"].item() == pytest.approx(delta.square().mean().item())
    expected: dict[Ode, Tensor] = {"noise": ratio_t * delta, "none": (ratio_t - ratio_s) * delta}
    for ode, off in expected.items():
        assert found[ode]["consistency"].item() == pytest.approx(off.square().mean().item(), rel=1e-9, abs=1e-22)
    assert found["none"]["consistency"].item() > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_consistency_term_is_positive_for_other_predictors(seed: int) -> None:
    a, c, eps = draw()
    student = Mixed(c, seed)
    terms = codi_loss(student, student, c @ a.T, eps, (rows(0.75), rows(0.5)), V, config=plain())
    assert terms["consistency"].item() > 1e-4


@pytest.mark.parametrize("schedule", [EPS, V, X], ids=["eps", "v", "x"])
def test_no_gradient_reaches_the_target_network_nor_its_input(schedule: Schedule) -> None:
    a, c, eps = draw()
    t, s = rows(0.75), rows(0.5)
    student, target = Mixed(c, 0, schedule), Mixed(c, 1, schedule)
    terms = codi_loss(student, target, c @ a.T, eps, (t, s), schedule, guidance=None, config=plain())
    found = gradients(terms["consistency"], student)
    terms = codi_loss(student, target, c @ a.T, eps, (t, s), schedule, guidance=None, config=plain())
    terms["consistency"].backward()
    assert all(p.requires_grad and p.grad is None for p in target.parameters())
    # by hand: what the target says is a number, and the student is pulled towards it through eps_hat_t alone
    z_t = schedule.add_noise(c @ a.T, eps, t)
    x_hat, eps_hat = student(z_t, t)
    with torch.no_grad():
        _, asked = target(schedule.add_noise(x_hat, eps_hat, s), s)
    expected = gradients((eps_hat - asked).square().mean(), student)
    assert close(found, expected)
    assert any(e.abs().max() > 0 for e in expected)


# ---- the velocity form: docs/method.md


def mean_square(weight: float, error: Tensor) -> Tensor:
    return weight * error.square().mean()


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.75), (1.0, 0.125), (0.75, 0.5), (0.25, 0.125), (0.125, 0.125)])
@pytest.mark.parametrize("schedule", [FLOW, NEGATED], ids=["flow", "negated"])
def test_on_a_flow_the_loss_is_its_closed_form_by_value_and_by_gradient(
    schedule: RectifiedFlow, t: float, s: float
) -> None:
    """(1 - s)^2 ||v_t - sg v_s||^2 + t^2 ||v_t - (eps - x)||^2, v_s the target's at z_t + (s - t) v_t."""
    a, c, eps = draw()
    x, sign = c @ a.T, -1 if schedule.negated else 1
    student, target = Mixed(c, 0, schedule), Mixed(c, 1, schedule)
    terms = codi_loss(student, target, x, eps, (rows(t), rows(s)), schedule, config=plain())
    z_t = (1 - t) * x + t * eps
    v_t = sign * student.output(z_t, rows(t))
    with torch.no_grad():
        v_s = sign * target.output(z_t + (s - t) * v_t, rows(s))
    expected = {"consistency": mean_square((1 - s) ** 2, v_t - v_s), "guidance": mean_square(t**2, v_t - (eps - x))}
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-10)
    assert close(gradients(total(terms), student), gradients(total(expected), student))


def noise_form(student: Mixed, target: Mixed, x: Tensor, eps: Tensor, t: float, s: float) -> Tensor:
    """Algorithm 1 as printed: ||eps_hat_t - sg eps_hat_s||^2."""
    schedule = student.schedule
    x_hat, eps_hat = student(schedule.add_noise(x, eps, rows(t)), rows(t))
    with torch.no_grad():
        _, asked = target(schedule.add_noise(x_hat, eps_hat, rows(s)), rows(s))
    return (eps_hat - asked).square().mean()


@pytest.mark.parametrize("prediction", ["v_prediction", "flow", "negated"])
def test_at_pure_noise_the_consistency_term_keeps_its_value_and_has_a_gradient(prediction: str) -> None:
    """Through eps_hat_t, which is z_t whatever the network says, it would have none."""
    schedule = SCHEDULES[prediction]
    a, c, eps = draw()
    x, t, s = c @ a.T, 1.0, 0.75
    student, target = Mixed(c, 0, schedule), Mixed(c, 1, schedule)
    found = codi_loss(student, target, x, eps, (rows(t), rows(s)), schedule, guidance=None, config=plain())
    printed = noise_form(student, target, x, eps, t, s)
    assert found["consistency"].item() == pytest.approx(printed.item(), rel=1e-10)
    assert all(g.abs().max() < 1e-15 for g in gradients(printed, student))
    assert all(g.abs().max() > 1e-4 for g in gradients(found["consistency"], student))


def test_at_pure_noise_a_v_predicting_base_is_trained_by_its_velocity_at_s() -> None:
    """alpha_s^2 ||v - sg v_s||^2 with v = alpha_s eps_hat_t - sigma_s x_hat_t, the velocity that belongs to z_hat_s."""
    a, c, eps = draw()
    x, s = c @ a.T, rows(0.75)
    student, target = Mixed(c, 0), Mixed(c, 1)
    found = codi_loss(student, target, x, eps, (rows(1.0), s), V, guidance=None, config=plain())
    alpha_s, sigma_s = noise_of(V, 0.75)
    x_hat, eps_hat = -student.output(eps, rows(1.0)), eps  # alpha = 0: z_t is the noise
    with torch.no_grad():
        v_s = target.output(alpha_s * x_hat + sigma_s * eps_hat, s)
    expected = mean_square(alpha_s**2, alpha_s * eps_hat - sigma_s * x_hat - v_s)
    assert found["consistency"].item() == pytest.approx(expected.item(), rel=1e-10)
    assert close(gradients(found["consistency"], student), gradients(expected, student))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_below_pure_noise_a_diffusion_base_keeps_the_printed_form(prediction: str) -> None:
    schedule = SCHEDULES[prediction]
    a, c, eps = draw()
    student, target = Mixed(c, 0, schedule), Mixed(c, 1, schedule)
    times = rows(0.999), rows(0.75)
    found = codi_loss(student, target, c @ a.T, eps, times, schedule, guidance=None, config=plain())["consistency"]
    printed = noise_form(student, target, c @ a.T, eps, 0.999, 0.75)
    assert found.item() == pytest.approx(printed.item(), rel=1e-12)
    assert close(gradients(found, student), gradients(printed, student))


def test_with_a_time_per_sample_each_row_has_the_form_of_its_time() -> None:
    a, c, eps = draw()
    x = c @ a.T
    student, target = Mixed(c, 0), Mixed(c, 1)
    top = torch.arange(ROWS) % 2 == 0
    times = torch.where(top, 1.0, rows(0.5)), torch.where(top, 0.75, rows(0.25))

    whole = codi_loss(student, target, x, eps, times, V, guidance=None, config=plain())
    mixed = gradients(whole["consistency"], student)
    halves = []
    for part in (top, ~top):
        here, there = Mixed(c[part], 0), Mixed(c[part], 1)
        pair = times[0][part], times[1][part]
        terms = codi_loss(here, there, x[part], eps[part], pair, V, guidance=None, config=plain())
        halves.append(gradients(terms["consistency"], here))
    assert close(mixed, [(one + other) / 2 for one, other in zip(*halves, strict=True)])


# ---- its parts


def test_step_is_taken_along_the_switch() -> None:
    x, x_hat, eps, eps_hat = torch.arange(1.0, 5.0, dtype=torch.float64).view(4, 1, 1).expand(4, ROWS, WIDTH)
    x_hat = x_hat.clone().requires_grad_()
    alpha_s, sigma_s = V.alphas[499], V.sigmas[499]
    expected: dict[Ode, Tensor] = {
        "own": 2 * alpha_s + 4 * sigma_s,
        "noise": 2 * alpha_s + 3 * sigma_s,
        "none": 1 * alpha_s + 3 * sigma_s,
    }
    for ode, value in expected.items():
        z_hat_s = step_to(V, x, x_hat, eps, eps_hat, rows(0.5), ode)
        assert torch.allclose(z_hat_s, value.expand(ROWS, WIDTH))
        assert not z_hat_s.requires_grad


def test_terms_that_are_off_are_absent_and_cost_nothing() -> None:
    a, c, eps = draw()
    student = Mixed(c, 0)

    def unwanted(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("the target was asked")

    times, off = (rows(0.75), rows(0.5)), CoDiConfig(consistency=0)
    alone = codi_loss(student, unwanted, c @ a.T, eps, times, V, config=off)
    assert alone.keys() == {"guidance"}
    without = codi_loss(student, student, c @ a.T, eps, times, V, guidance=None)
    assert without.keys() == {"consistency"}
    both = codi_loss(student, student, c @ a.T, eps, times, V)
    assert both["guidance"] == alone["guidance"]
    assert both["consistency"] == without["consistency"]


@pytest.mark.parametrize("s", [0.001, 0.125, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("schedule", [V, FLOW], ids=["v", "flow"])
def test_cap_and_weight_scale_the_consistency_term(schedule: Schedule, s: float) -> None:
    a, c, eps = draw()
    student, times = Mixed(c, 0, schedule), (rows(0.875), rows(s))
    alpha, sigma = noise_of(schedule, s)
    bound = min(1.0, 2 * sigma**2 / alpha**2)
    assert consistency_weight(schedule, rows(s), c, capped=True).flatten().tolist() == pytest.approx([bound] * ROWS)
    assert consistency_weight(schedule, rows(s), c, capped=False).flatten().tolist() == [1.0] * ROWS
    uncapped, capped, tripled = (
        codi_loss(student, student, c @ a.T, eps, times, schedule, config=config)["consistency"].item()
        for config in (plain(), plain(consistency_cap=True), plain(consistency=3.0))
    )
    assert capped == pytest.approx(bound * uncapped)
    assert tripled == pytest.approx(3 * uncapped)
    # x-consistency is the term times sigma_s^2 / alpha_s^2, so capped it never weighs more than 2
    assert bound * alpha**2 / sigma**2 <= 2 + 1e-9


@pytest.mark.parametrize("s", [0.001, 0.125, 0.4, 0.414, 0.415, 0.75])
def test_the_cap_on_a_flow_is_its_closed_form(s: float) -> None:
    """min(1, 2 s^2 / (1 - s)^2), which reaches 1 at s = sqrt(2) - 1."""
    found = consistency_weight(FLOW, rows(s), torch.zeros(ROWS, 1, dtype=torch.float64), capped=True)
    assert found.flatten().tolist() == pytest.approx([min(1.0, 2 * s**2 / (1 - s) ** 2)] * ROWS)
    assert (found.max().item() == 1.0) == (s > 2**0.5 - 1)


def test_guidance_cap_holds_the_weight_of_an_eps_prediction() -> None:
    ratio = (EPS.sigmas[999] ** 2 / EPS.alphas[999] ** 2).item()
    assert ratio == pytest.approx(214, abs=1)  # docs/method.md: "about 214 at Stable Diffusion's last step"
    assert guidance_scale(EPS, rows(1.0), 5.0) * ratio == pytest.approx(5.0)
    assert guidance_scale(EPS, rows(0.1), 5.0) == 1.0
    assert guidance_scale(EPS, rows(1.0), None) == 1.0
    assert all(guidance_scale(other, rows(1.0), 5.0) == 1.0 for other in (V, X, FLOW, NEGATED))
    a, c, eps = draw()
    wrong = guess(EPS, linear(a + 0.5), c)
    uncapped, capped = (
        codi_loss(wrong, wrong, c @ a.T, eps, (rows(1.0), rows(0.75)), EPS, config=CoDiConfig(guidance_cap=cap))
        for cap in (None, 5.0)
    )
    assert capped["guidance"].item() == pytest.approx(uncapped["guidance"].item() * 5 / ratio)
    assert capped["consistency"] == uncapped["consistency"]


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
