"""The loss of conditional diffusion distillation (PAPER.md, "Training"; Mei et al., CVPR 2024, Algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from codi_hub.diffusion.schedule import Denoiser, Schedule

Distance = Callable[[Tensor, Tensor], Tensor]
"""(x, x_hat), latents (B, ...) -> scalar: the guidance term d_x."""


def latent_l2(x: Tensor, x_hat: Tensor) -> Tensor:
    """d_x in latent space, the paper's default."""
    return (x_hat - x).square().mean()


@dataclass(frozen=True)
class LossOptions:
    """The switches of the paper's ablations, and the two this project adds (`consistency_cap`, `guidance_cap`)."""

    ode: Literal["own", "noise", "none"] = "own"  # the model's own PF-ODE step; the true noise; no step (z_s from x)
    consistency: bool = True
    consistency_weight: float = 1.0
    consistency_cap: bool = True
    guidance_cap: float | None = 5.0  # eps-prediction weighs x by sigma_t^2 / alpha_t^2: no more than this


def consistency_weight(schedule: Schedule, s: Tensor, like: Tensor, *, capped: bool) -> Tensor:
    """Weight of the noise-consistency term at s.

    In noise space the term is x-consistency times alpha_s^2 / sigma_s^2, heavy near s = 0, where it makes drift grow
    with the number of sampling steps. Capped by min(1, 2 sigma_s^2 / alpha_s^2), x-consistency never
    weighs more than 2.
    """
    alpha_s, sigma_s = schedule.at(s, like)
    return (2 * sigma_s**2 / alpha_s**2).clamp(max=1.0) if capped else torch.ones_like(sigma_s)


def step_to(schedule: Schedule, x: Tensor, x_hat: Tensor, eps: Tensor, eps_hat: Tensor, s: Tensor, ode: str) -> Tensor:
    """z_hat_s, the point at which the target network is asked (no gradient passes through it)."""
    if ode == "own":
        return schedule.add_noise(x_hat, eps_hat, s).detach()
    return schedule.add_noise(x_hat if ode == "noise" else x, eps, s).detach()


def codi_loss(
    student: Denoiser,
    target: Denoiser,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    s: Tensor,
    schedule: Schedule,
    *,
    options: LossOptions = LossOptions(),
    guidance: Distance | None = latent_l2,
    z_t: Tensor | None = None,
) -> dict[str, Tensor]:
    """One evaluation of the CoDi loss.

    Args:
        student, target: the network being trained and its moving average, the condition bound inside.
        x, eps: clean latents of unit deviation and the noise added to them, (B, C, h, w).
        t, s: timesteps, int64 (B,), s < t; the same number in every row unless mixed t is being tried.
        guidance: d_x, or None to train without it.
        z_t: where the student is asked, instead of at x noised by eps.

    Returns:
        the terms to be summed: `guidance` and `consistency`, scalars. One that is switched off is absent.
    """
    z_t = schedule.add_noise(x, eps, t) if z_t is None else z_t
    x_hat_t, eps_hat_t = student(z_t, t)
    terms = {}
    if guidance is not None:
        terms["guidance"] = guidance(x, x_hat_t) * guidance_scale(schedule, t, options.guidance_cap)
    if options.consistency:
        z_hat_s = step_to(schedule, x, x_hat_t, eps, eps_hat_t, s, options.ode)
        with torch.no_grad():
            _, eps_hat_s = target(z_hat_s, s)
            weight = options.consistency_weight * consistency_weight(schedule, s, x, capped=options.consistency_cap)
        terms["consistency"] = (weight * (eps_hat_t - eps_hat_s).square()).mean()
    return terms


def guidance_scale(schedule: Schedule, t: Tensor, cap: float | None) -> float:
    """Factor on d_x that holds its weight on an eps-predicting base's error, sigma_t^2 / alpha_t^2, at `cap`."""
    if cap is None or schedule.prediction_type != "epsilon":
        return 1.0
    alpha_t, sigma_t = schedule.at(t, schedule.alphas[:1])
    ratio = (sigma_t**2 / alpha_t**2).mean().item()
    return min(1.0, cap / ratio)


@torch.no_grad()
def update_ema(target: nn.Module, student: nn.Module, gamma: float) -> None:
    """theta_minus <- gamma theta_minus + (1 - gamma) theta."""
    pairs = zip(target.parameters(), student.parameters(), strict=True)
    kept, trained = zip(*((average, value.to(average)) for average, value in pairs), strict=True)
    torch._foreach_lerp_(kept, trained, 1 - gamma)
