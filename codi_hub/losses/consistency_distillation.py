"""`cm`: consistency distillation of a conditional teacher (Song et al., 2023; in latent space Luo et al., 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from codi_hub.diffusion.schedule import CLEAN, Denoiser, Schedule
from codi_hub.losses.method import Method, MethodConfig, StepContext, Terms, neighbours


class ConsistencyConfig(MethodConfig):
    """Switches of consistency distillation."""

    grid: int = Field(8, ge=2)
    """Points of the time grid that training draws from."""
    dt: int = Field(1, ge=1)
    """Grid points between the student's time and the target's."""
    shared_t: bool = True
    """One time for the whole batch, or one per sample."""
    teacher_guidance: float | None = Field(None, gt=1, le=100)
    """Scale of classifier-free guidance of the teacher's predictions (default: none)."""


class ConsistencyDistillation(Method):
    """Consistency distillation on the time grid."""

    Config: ClassVar[type[MethodConfig]] = ConsistencyConfig
    needs_teacher: ClassVar[bool] = True

    def weights(self) -> dict[str, float]:
        """Return the one term."""
        return {"consistency": 1.0}

    def loss(self, context: StepContext) -> Terms:
        """See `cm_loss`."""
        teacher = context.guided_teacher(self.config.teacher_guidance)
        t, s = neighbours(context, self.config.grid, self.config.dt, self.config.shared_t, clean=CLEAN)
        return cm_loss(context.student, context.ema, teacher, context.x, context.eps, t, s, context.schedule)


def sampler_step(denoise: Denoiser, z_t: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """Return z_s = alpha_s x_hat + sigma_s eps_hat, the deterministic step t -> s (Song et al., 2021, eq. 12)."""
    x_hat, eps_hat = denoise(z_t, t)
    return schedule.add_noise(x_hat, eps_hat, s)


def cm_loss(
    student: Denoiser, target: Denoiser, teacher: Denoiser, x: Tensor, eps: Tensor, t: Tensor, s: Tensor,
    schedule: Schedule,
) -> Terms:  # fmt: skip
    """Return the consistency distillation loss (Song et al., 2023, eq. 7), l2 distance, weight 1.

    Args:
        student, target, teacher: the network being trained, its moving average, and the frozen conditional model.
        x, eps: clean latents of unit variance and the noise added to them, (B, C, h, w).
        t, s: times (B,), s before t on the grid; s may be `CLEAN`.
        schedule: of the base.

    Returns:
        `consistency`: E ||f_theta(z_t, t) - f_theta_minus(z_s, s)||^2, with z_s one step of the teacher from z_t. At
        s = CLEAN the boundary condition f(z, 0) = z makes it the distance to the teacher's own endpoint.
    """
    z_t = schedule.add_noise(x, eps, t)
    with torch.no_grad():
        z_s = sampler_step(teacher, z_t, t, s, schedule)
        clean = s == CLEAN
        x_hat_s = target(z_s, torch.where(clean, t, s))[0]  # where s is clean, t stands in and is not used
        x_hat_s = torch.where(clean.view(-1, *[1] * (x.ndim - 1)), z_s, x_hat_s)
    x_hat_t, _ = student(z_t, t)
    return {"consistency": (x_hat_t - x_hat_s).square().mean()}
