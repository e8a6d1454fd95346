"""`conditional`: plain conditional fine-tuning of a diffusion model, the baseline that is not distilled."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from codi_hub.diffusion.schedule import Denoiser, Schedule
from codi_hub.losses.method import Method, StepContext, Terms

RESOLUTION = 1000  # different times a sample can be trained at


class Conditional(Method):
    """The diffusion loss under a condition, each pair at its own time, from the whole schedule."""

    steps: ClassVar[int] = 50
    prompt_dropout: ClassVar[float] = 0.1

    def weights(self) -> dict[str, float]:
        """Return the one term."""
        return {"diffusion": 1.0}

    def loss(self, context: StepContext) -> Terms:
        """See `conditional_loss`."""
        schedule = context.schedule
        count = min(RESOLUTION, schedule.max_steps)
        u = context.draw(0, count, False).to(torch.float64) / count
        t = schedule.time_of(u).to(context.x.device, torch.float32)
        return conditional_loss(context.student, context.x, context.eps, t, schedule)


def conditional_loss(student: Denoiser, x: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Terms:
    """Return the diffusion loss under a condition (Ho et al., 2020, eq. 14), on what the base predicts.

    Args:
        student: the network being trained.
        x, eps: clean latents of unit variance and the noise added to them, (B, C, h, w).
        t: times (B,).
        schedule: of the base.

    Returns:
        `diffusion`: E ||prediction - network(alpha_t x + sigma_t eps, t)||^2, a scalar.
    """
    x_hat, eps_hat = student(schedule.add_noise(x, eps, t), t)
    wanted = schedule.prediction(x, eps, t)
    return {"diffusion": (schedule.prediction(x_hat, eps_hat, t) - wanted).square().mean()}
