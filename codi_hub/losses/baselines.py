"""The losses CoDi is compared with: plain conditional fine-tuning, consistency and progressive distillation.

Each takes denoisers with the condition bound inside, and returns its terms by name, as `codi_loss` does.
"""

import torch
from torch import Tensor

from codi_hub.diffusion.schedule import CLEAN, Denoiser, Schedule


def conditional_loss(student: Denoiser, x: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> dict[str, Tensor]:
    """The diffusion loss under a condition (Ho et al., 2020, eq. 14), on what the base predicts: eps, v or x.

    Args:
        x, eps: clean latents of unit deviation and the noise added to them, (B, C, h, w).
        t: timesteps, int64 (B,).

    Returns:
        `diffusion`: E ||prediction - network(alpha_t x + sigma_t eps, t)||^2, a scalar.
    """
    x_hat, eps_hat = student(schedule.add_noise(x, eps, t), t)
    wanted = schedule.prediction(x, eps, t)
    return {"diffusion": (schedule.prediction(x_hat, eps_hat, t) - wanted).square().mean()}


def ddim_step(denoise: Denoiser, z_t: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """z_s = alpha_s x_hat + sigma_s eps_hat, the deterministic step from t to s (Song et al., 2021, eq. 12)."""
    x_hat, eps_hat = denoise(z_t, t)
    return schedule.add_noise(x_hat, eps_hat, s)


def cm_loss(
    student: Denoiser, target: Denoiser, teacher: Denoiser, x: Tensor, eps: Tensor, t: Tensor, s: Tensor,
    schedule: Schedule,
) -> dict[str, Tensor]:  # fmt: skip
    """Consistency distillation (Song et al., 2023, eq. 7; in latent space Luo et al., 2023), l2 distance, weight 1.

    Args:
        student, target, teacher: the network being trained, its moving average, and the frozen conditional model.
        x, eps: clean latents of unit deviation and the noise added to them, (B, C, h, w).
        t, s: timesteps, int64 (B,), s before t on the grid; s may be `CLEAN`.

    Returns:
        `consistency`: E ||f_theta(z_t, t) - f_theta_minus(z_s, s)||^2, with z_s one DDIM step of the teacher from z_t.
        At s = CLEAN the boundary condition f(z, 0) = z makes it the distance to the teacher's own endpoint.
    """
    z_t = schedule.add_noise(x, eps, t)
    with torch.no_grad():
        z_s = ddim_step(teacher, z_t, t, s, schedule)
        clean = (s == CLEAN).view(-1, *[1] * (x.ndim - 1))
        x_hat_s = torch.where(clean, z_s, target(z_s, s.clamp(min=0))[0])
    x_hat_t, _ = student(z_t, t)
    return {"consistency": (x_hat_t - x_hat_s).square().mean()}


def gd_target(teacher: Denoiser, z_t: Tensor, t: Tensor, middle: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    """x~, from which one DDIM step t -> s lands where two steps of the teacher, t -> middle -> s, do.

    Salimans & Ho (2022), Algorithm 2: x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t).
    It holds at zero terminal SNR (alpha_t = 0), and at s = CLEAN, where it is z_s itself.
    """
    z_middle = ddim_step(teacher, z_t, t, middle, schedule)
    z_s = ddim_step(teacher, z_middle, middle, s, schedule)
    alpha_t, sigma_t = schedule.at(t, z_t)
    alpha_s, sigma_s = schedule.at(s, z_t)
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z_t) / (alpha_s - ratio * alpha_t)


def truncated_snr(t: Tensor, like: Tensor, schedule: Schedule) -> Tensor:
    """max(alpha_t^2 / sigma_t^2, 1), the weight on x of max(||x - x_hat||^2, ||eps - eps_hat||^2).

    Salimans & Ho (2022), section 4, "truncated SNR".
    """
    alpha_t, sigma_t = schedule.at(t, like)
    return (alpha_t / sigma_t).square().clamp(min=1.0)


def gd_loss(
    student: Denoiser, teacher: Denoiser, x: Tensor, eps: Tensor, t: Tensor, middle: Tensor, s: Tensor,
    schedule: Schedule,
) -> dict[str, Tensor]:  # fmt: skip
    """Progressive distillation of a conditional model (Salimans & Ho, 2022, Algorithm 2).

    Args:
        student, teacher: the network being trained, and the frozen one that takes twice as many steps.
        x, eps: clean latents of unit deviation and the noise added to them, (B, C, h, w).
        t, middle, s: timesteps, int64 (B,): two neighbours of the student's grid, s perhaps `CLEAN`, and the teacher's
            point between them.

    Returns:
        `progressive`: E w_t ||x~ - x_hat(z_t, t)||^2, w_t the truncated SNR.
    """
    z_t = schedule.add_noise(x, eps, t)
    with torch.no_grad():
        wanted = gd_target(teacher, z_t, t, middle, s, schedule)
    x_hat, _ = student(z_t, t)
    return {"progressive": (truncated_snr(t, x, schedule) * (wanted - x_hat).square()).mean()}
