"""The noise schedule, the time grids, and the one place where v, eps and x predictions are converted.

Notation of PAPER.md: `z_t = alpha_t x + sigma_t eps`, `alpha_t^2 + sigma_t^2 = 1`. A timestep is an index of the base's
training schedule, 0 (nearly clean) to T - 1 (noise).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codi_hub.errors import Mismatch, UsageError

Denoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z_t, t) -> (x_hat, eps_hat); z_t (B, ...), t int64 (B,). The condition and the prompt are bound inside."""

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
CLEAN = -1  # the time after timestep 0, where alpha = 1 and sigma = 0
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Schedule:
    """alpha_t and sigma_t of a base, float64 (T,) on the CPU, and what its network predicts."""

    alphas: Tensor
    sigmas: Tensor
    prediction_type: str

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        """Reads a diffusers scheduler config.

        Raises:
            Mismatch: an unknown prediction type, or eps-prediction with zero terminal SNR, where x cannot be recovered.
        """
        from diffusers import DDPMScheduler

        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in PREDICTION_TYPES:
            raise Mismatch(f"prediction type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
        known = {key: value for key, value in config.items() if not key.startswith("_")}
        alphas_squared = DDPMScheduler.from_config(known).alphas_cumprod.double()
        schedule = cls(alphas_squared.sqrt(), (1 - alphas_squared).sqrt(), prediction_type)
        if prediction_type == "epsilon" and schedule.alphas[-1] < 1e-3:
            raise Mismatch(
                "an eps-predicting base with zero terminal SNR cannot recover x at the last step; use v-prediction"
            )
        return schedule

    def __len__(self) -> int:
        return len(self.alphas)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) for timesteps t, int (B,), `CLEAN` among them, shaped to multiply `like`, (B, ...)."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        index = t.to("cpu", torch.long)
        clean = index == CLEAN
        alpha_t, sigma_t = self.alphas[index].where(~clean, 1.0), self.sigmas[index].where(~clean, 0.0)
        return alpha_t.to(like).view(shape), sigma_t.to(like).view(shape)

    def add_noise(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha_t x + sigma_t eps."""
        alpha_t, sigma_t = self.at(t, x)
        return alpha_t * x + sigma_t * eps

    def convert(self, output: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x_hat, eps_hat) from what the network predicts at z_t.

        eps: x_hat = (z_t - sigma_t eps) / alpha_t. v: x_hat = alpha_t z_t - sigma_t v and eps_hat = alpha_t v +
        sigma_t z_t. x: eps_hat = (z_t - alpha_t x_hat) / sigma_t. The first two tend to x_hat = z_t as t -> 0; x needs
        the boundary of consistency models, x_hat = c_skip z_t + c_out output, here with the scaling of latent
        consistency models (Luo et al., 2023), which leaves every timestep but the very first as the base has it.
        """
        alpha_t, sigma_t = self.at(t, z_t)
        if self.prediction_type == "v_prediction":
            return alpha_t * z_t - sigma_t * output, alpha_t * output + sigma_t * z_t
        if self.prediction_type == "epsilon":
            return (z_t - sigma_t * output) / alpha_t, output
        c_skip, c_out = (c.view(alpha_t.shape) for c in boundary(t.to(z_t)))
        x_hat = c_skip * z_t + c_out * output
        return x_hat, (z_t - alpha_t * x_hat) / sigma_t

    def prediction(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The other way round: what a network of this base should predict for x and eps: eps, x, or
        v = alpha_t eps - sigma_t x (Salimans & Ho, 2022, appendix D)."""
        if self.prediction_type == "v_prediction":
            alpha_t, sigma_t = self.at(t, x)
            return alpha_t * eps - sigma_t * x
        return eps if self.prediction_type == "epsilon" else x

    def denoiser(self, network: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
        """Wraps a network, (z_t, t) -> its prediction, so that losses and samplers need not know what it predicts."""

        def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.convert(network(z_t, t).float(), z_t, t)

        return denoise


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of an x-predicting consistency model: (1, 0) at t = 0, (0, 1) from the first timesteps on."""
    scaled = (TIMESTEP_SCALING * t) ** 2
    return SIGMA_DATA**2 / (scaled + SIGMA_DATA**2), (scaled / (scaled + SIGMA_DATA**2)).sqrt()


def sampling_timesteps(steps: int, length: int) -> list[int]:
    """Trailing grid of few-step sampling: `steps` timesteps from T - 1 down, evenly spaced; after the last, clean.

    Sampling that begins in the middle takes a smaller T, see `Adapter.horizon`.

    Raises:
        UsageError: steps outside 1..length.
    """
    if not 1 <= steps <= length:
        raise UsageError(f"--steps {steps}: between 1 and {length} steps can be taken on this base")
    return [round(length * k / steps) - 1 for k in range(steps, 0, -1)]


def learning_timesteps(grid: int, length: int) -> Tensor:
    """The timesteps training draws from, ascending, int64 (grid,). 8 points hold those of 1, 2, 4 and 8 steps.

    Raises:
        UsageError: grid outside 1..length.
    """
    if not 1 <= grid <= length:
        raise UsageError(f"--grid {grid}: between 1 and {length} points are possible on this base")
    return torch.tensor(sampling_timesteps(grid, length)[::-1])
