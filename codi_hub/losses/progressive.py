"""`gd`: progressive distillation of a conditional teacher (Salimans & Ho, 2022), in phases that halve its steps."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from codi_hub.diffusion.schedule import CLEAN, Denoiser, Schedule
from codi_hub.losses.consistency_distillation import sampler_step
from codi_hub.losses.method import Method, MethodConfig, StepContext, Terms

FIRST_TEACHER_STEPS = 32  # 32 -> 16 -> 8 -> 4
PHASES = 3


class ProgressiveConfig(MethodConfig):
    """Switches of progressive distillation."""

    shared_t: bool = True
    """One time for the whole batch, or one per sample."""
    teacher_guidance: float | None = Field(None, gt=1, le=100)
    """Scale of classifier-free guidance of the teacher's predictions, in the first phase (default: none)."""


class ProgressiveDistillation(Method):
    """In each phase the student's step from t to s is trained to equal two steps of the teacher."""

    Config: ClassVar[type[MethodConfig]] = ProgressiveConfig
    needs_teacher: ClassVar[bool] = True

    def weights(self) -> dict[str, float]:
        """Return the one term."""
        return {"progressive": 1.0}

    def phase(self, share: float) -> int:
        """Return one of three phases of equal length."""
        return min(int(share * PHASES), PHASES - 1)

    def loss(self, context: StepContext) -> Terms:
        """See `gd_loss`."""
        # later teachers are students that have learned the guided predictions
        teacher = context.guided_teacher(None if context.phase else self.config.teacher_guidance)
        steps = teacher_steps(context.phase)
        times = torch.tensor([*context.schedule.grid(steps, context.start), CLEAN], dtype=torch.float32)
        k = 2 * context.draw(0, steps // 2, self.config.shared_t)
        t, middle, s = (times[k + ahead].to(context.x.device) for ahead in range(3))
        return gd_loss(context.student, teacher, context.x, context.eps, t, middle, s, context.schedule)


def teacher_steps(phase: int) -> int:
    """Return the teacher's steps in a phase; the student takes half as many."""
    return FIRST_TEACHER_STEPS >> phase


def gd_target(teacher: Denoiser, z_t: Tensor, t: Tensor, middle: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """Return x~, from which one step t -> s arrives where two steps of the teacher, t -> middle -> s, do.

    Salimans & Ho (2022), Algorithm 2: x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t).
    It holds at zero terminal SNR (alpha_t = 0), and at s = CLEAN, where it is z_s itself.
    """
    z_middle = sampler_step(teacher, z_t, t, middle, schedule)
    z_s = sampler_step(teacher, z_middle, middle, s, schedule)
    alpha_t, sigma_t = schedule.at(t, z_t)
    alpha_s, sigma_s = schedule.at(s, z_t)
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z_t) / (alpha_s - ratio * alpha_t)


def truncated_snr(t: Tensor, like: Tensor, schedule: Schedule) -> Tensor:
    """Return max(alpha_t^2 / sigma_t^2, 1), the weight on x of max(||x - x_hat||^2, ||eps - eps_hat||^2).

    Salimans & Ho (2022), section 4, "truncated SNR".
    """
    alpha_t, sigma_t = schedule.at(t, like)
    return (alpha_t / sigma_t).square().clamp(min=1.0)


def gd_loss(
    student: Denoiser, teacher: Denoiser, x: Tensor, eps: Tensor, t: Tensor, middle: Tensor, s: Tensor,
    schedule: Schedule,
) -> Terms:  # fmt: skip
    """Return the progressive distillation loss (Salimans & Ho, 2022, Algorithm 2).

    Args:
        student, teacher: the network being trained, and the frozen one that takes twice as many steps.
        x, eps: clean latents of unit variance and the noise added to them, (B, C, h, w).
        t, middle, s: times (B,): two neighbours of the student's grid, s perhaps `CLEAN`, and the teacher's point
            between them.
        schedule: of the base.

    Returns:
        `progressive`: E w_t ||x~ - x_hat(z_t, t)||^2, w_t the truncated SNR.
    """
    z_t = schedule.add_noise(x, eps, t)
    with torch.no_grad():
        wanted = gd_target(teacher, z_t, t, middle, s, schedule)
    x_hat, _ = student(z_t, t)
    return {"progressive": (truncated_snr(t, x, schedule) * (wanted - x_hat).square()).mean()}
