"""Noise schedules in continuous time, and the one place where network outputs are converted to x_hat and eps_hat.

Time is `t` in (0, 1] for every family: 0 is the clean image, 1 the most noise. `z_t = alpha_t x + sigma_t eps`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from codi_hub.errors import Mismatch, UsageError

Denoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z_t, t) -> (x_hat, eps_hat): z_t (B, ...), t float (B,) in (0, 1]. Condition and prompt are bound inside."""

CLEAN = 0.0
"""The time at which alpha = 1 and sigma = 0."""

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
# Solvers that walk a flow where `use_flow_sigmas` is set; their shift is `flow_shift`.
FLOW_SOLVERS = ("DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "SASolver", "UniPCMultistep")
OTHER_GRIDS = (
    "invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "scale_factors",
)  # fmt: skip
LEAVE_OUT = "take it out of scheduler_config.json if the model was trained without it, or use another base"
# Schedulers of diffusers that walk a table of alphas_cumprod: they differ in how they sample, not in the noise.
TABLE_SCHEDULERS = (
    "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSDE",
    "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
    "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep",
)  # fmt: skip
OTHER_NOISE = {"use_flow_sigmas": (None, False), "timestep_type": (None, "discrete"), "invert_sigmas": (None, False)}


class Schedule(ABC):
    """What losses and samplers know of a base's noise: alpha_t, sigma_t, time grids and conversions.

    Attributes:
        prediction_type: what the network predicts: `epsilon`, `v_prediction`, `sample` or `flow`.
        max_steps: largest number of sampling steps a grid can have.
        least: the first time after `CLEAN`, None where time is continuous.
    """

    prediction_type: str
    max_steps: int
    least: float | None = None

    @abstractmethod
    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t) of times (B,) in [0, 1], in the dtype of `like` and shaped to multiply it."""

    @abstractmethod
    def model_time(self, t: Tensor) -> Tensor:
        """Return what the network is given as its time, (B,)."""

    @abstractmethod
    def grid(self, steps: int, start: float = 1.0) -> list[float]:
        """Return the times of `steps` sampling steps, descending from `start`; `CLEAN` follows the last.

        Args:
            steps: number of steps, from 1.
            start: where sampling begins, as a share of the schedule in (0, 1].

        Raises:
            UsageError: more steps than the schedule has.
        """

    @abstractmethod
    def time_of(self, u: Tensor) -> Tensor:
        """Map u, uniform in [0, 1), to times that cover the whole schedule as training samples it."""

    @abstractmethod
    def convert(self, output: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x_hat, eps_hat) from what the network predicts at z_t."""

    @abstractmethod
    def prediction(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return what a network of this base should predict at t for x and eps: the inverse of `convert`."""

    def add_noise(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return z_t = alpha_t x + sigma_t eps, (B, ...)."""
        alpha_t, sigma_t = self.at(t, x)
        return alpha_t * x + sigma_t * eps

    def learning_grid(self, points: int, start: float = 1.0) -> Tensor:
        """Return the times that few-step training draws from, ascending, float64 (points,).

        8 points contain the grids of 1, 2, 4 and 8 sampling steps.

        Raises:
            UsageError: more points than the schedule has.
        """
        try:
            times = self.grid(points, start)
        except UsageError as error:
            raise UsageError(f"loss.grid {points}: {str(error).partition(': ')[2]}") from None
        return torch.tensor(times[::-1], dtype=torch.float64)

    def denoiser(self, network: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
        """Wrap a network, (z_t, t) -> its prediction, into a `Denoiser`; converted in float32 or better."""

        def denoise(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.convert(network(z_t, t).float(), z_t, t)

        return denoise

    def _check_steps(self, steps: int, most: int) -> None:
        if not 1 <= steps <= most:
            raise UsageError(f"steps {steps}: between 1 and {most} steps can be taken on this base")


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """alpha_t^2 + sigma_t^2 = 1, from a table of T entries; entry k stands at t = (k + 1) / T.

    Attributes:
        alphas, sigmas: float64 (T,), on the CPU.
        prediction_type: `epsilon`, `v_prediction` or `sample`.
    """

    alphas: Tensor
    sigmas: Tensor
    prediction_type: str

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VariancePreserving:
        """Read a diffusers scheduler config; the noise is that of the class it names.

        Raises:
            Mismatch: another kind of scheduler, an option that changes the noise, an unknown prediction type, or
                eps-prediction with zero terminal SNR, where x cannot be recovered.
        """
        import diffusers

        name = str(config.get("_class_name", "DDPMScheduler"))
        if name.removesuffix("Scheduler") not in TABLE_SCHEDULERS:
            raise Mismatch(
                f"scheduler {name} is not one of a model that predicts eps, v or x at timesteps of a table (such as "
                "DDIMScheduler or EulerDiscreteScheduler): use a base with such a scheduler"
            )
        for entry, usual in OTHER_NOISE.items():
            if config.get(entry) not in usual:
                raise Mismatch(
                    f"the scheduler {name} has {entry}={config[entry]!r}, which a model that predicts eps, v or x at "
                    f"timesteps of a table does not have: {LEAVE_OUT}"
                )
        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in PREDICTION_TYPES:
            raise Mismatch(
                f"prediction type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}: set in "
                "scheduler_config.json which of them the model predicts, or use another base"
            )
        known = {key: value for key, value in config.items() if not key.startswith("_")}
        table = name.replace("DPMSolverSDE", "HeunDiscrete")  # the same noise; the former needs a package more
        alphas_squared = getattr(diffusers, table).from_config(known).alphas_cumprod.double()
        schedule = cls(alphas_squared.sqrt(), (1 - alphas_squared).sqrt(), prediction_type)
        if prediction_type == "epsilon" and schedule.alphas[-1] < 1e-3:
            raise Mismatch(
                "an eps-predicting base with zero terminal SNR cannot recover x at the last step; use v-prediction"
            )
        return schedule

    def __len__(self) -> int:
        return len(self.alphas)

    @property
    def max_steps(self) -> int:  # type: ignore[override]
        """Number of table entries."""
        return len(self)

    @property
    def least(self) -> float:  # type: ignore[override]
        """Time of the first table entry."""
        return 1 / len(self)

    def index(self, t: Tensor) -> Tensor:
        """Return the table entry of each time, int64; -1 for `CLEAN`."""
        return (t * len(self)).round().long() - 1

    def time(self, index: int) -> float:
        """Return the time of a table entry."""
        return (index + 1) / len(self)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `Schedule.at`; times between two entries count as the nearer one."""
        index = self.index(t.to("cpu", torch.float64))
        clean, shape = index < 0, (-1,) + (1,) * (like.ndim - 1)
        alpha_t, sigma_t = self.alphas[index].where(~clean, 1.0), self.sigmas[index].where(~clean, 0.0)
        return alpha_t.to(like).view(shape), sigma_t.to(like).view(shape)

    def model_time(self, t: Tensor) -> Tensor:
        """Return the training timestep, int64: 0 (nearly clean) to T - 1 (noise)."""
        return self.index(t)

    def grid(self, steps: int, start: float = 1.0) -> list[float]:
        """Return the trailing grid: evenly spaced entries, ending at the one of `start`."""
        length = max(1, round(start * len(self)))
        self._check_steps(steps, length)
        return [round(length * k / steps) / len(self) for k in range(steps, 0, -1)]

    def time_of(self, u: Tensor) -> Tensor:
        """Return the times of uniformly drawn entries."""
        entry = (u * len(self) + 1e-9).floor().clamp(max=len(self) - 1)  # k / T * T may round to less than k
        return (entry + 1) / len(self)

    def convert(self, output: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Schedule.convert`.

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
        c_skip, c_out = (c.view(alpha_t.shape) for c in boundary(self.index(t).to(z_t)))
        x_hat = c_skip * z_t + c_out * output
        return x_hat, (z_t - alpha_t * x_hat) / sigma_t

    def prediction(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return eps, x, or v = alpha_t eps - sigma_t x (Salimans & Ho, 2022, appendix D)."""
        if self.prediction_type == "v_prediction":
            alpha_t, sigma_t = self.at(t, x)
            return alpha_t * eps - sigma_t * x
        return eps if self.prediction_type == "epsilon" else x


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """Straight paths (Liu et al., 2023; Lipman et al., 2023): alpha_t = 1 - t, sigma_t = t, v = eps - x.

    Attributes:
        shift: moves sampling times towards the noise, t = shift u / (1 + (shift - 1) u) (Esser et al., 2024, eq. 23);
            a number, or a function of the number of image tokens (see `for_tokens`).
        time_scale: the network is given time_scale * t.
        negated: the network predicts x - eps and is given time_scale * (1 - t), as Z-Image does.
    """

    shift: float | Callable[[int], float] = 1.0
    time_scale: float = 1000.0
    negated: bool = False
    prediction_type: str = "flow"
    max_steps: int = 1000

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, time_scale: float = 1000.0, negated: bool = False
    ) -> RectifiedFlow:
        """Read a diffusers scheduler config: of a flow's scheduler, or of a solver with `use_flow_sigmas`.

        Raises:
            Mismatch: another scheduler than a flow's, or a time grid that is not a shifted one.
        """
        name = str(config.get("_class_name", FLOW_SCHEDULERS[0]))
        solver = name.removesuffix("Scheduler") in FLOW_SOLVERS and config.get("use_flow_sigmas")
        if not solver and name not in FLOW_SCHEDULERS:
            raise Mismatch(
                f"scheduler {name} is not a flow's: this base needs one of {', '.join(FLOW_SCHEDULERS)}, or a solver "
                "such as DPMSolverMultistepScheduler with use_flow_sigmas"
            )
        predicted = config.get("prediction_type", "flow_prediction")
        if solver and predicted != "flow_prediction":
            raise Mismatch(
                f"the scheduler {name} has prediction_type={predicted!r}, and a flow model predicts 'flow_prediction': "
                "set it in scheduler_config.json if the model is one, or use another base"
            )
        if other := [entry for entry in OTHER_GRIDS if config.get(entry)]:
            raise Mismatch(f"the scheduler has {other[0]}={config[other[0]]!r}, which is not supported: {LEAVE_OUT}")
        if not config.get("use_dynamic_shifting"):
            return cls(float(config.get("flow_shift" if solver else "shift", 1.0)), time_scale, negated)
        if (form := config.get("time_shift_type", "exponential")) != "exponential":
            raise Mismatch(
                f"the scheduler has time_shift_type={form!r}, and only 'exponential' is supported: use another base"
            )
        names = {"base_tokens": "base_image_seq_len", "max_tokens": "max_image_seq_len"}
        names |= {"base_shift": "base_shift", "max_shift": "max_shift"}
        constants = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
        return cls(partial(resolution_shift, **constants), time_scale, negated)

    def for_tokens(self, tokens: int) -> RectifiedFlow:
        """Return the schedule with its shift for an image of so many tokens."""
        return replace(self, shift=self.shift(tokens)) if callable(self.shift) else self

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `Schedule.at`."""
        t = t.to(like).view((-1,) + (1,) * (like.ndim - 1))
        return 1 - t, t

    def model_time(self, t: Tensor) -> Tensor:
        """Return time_scale * t, or time_scale * (1 - t) where `negated`."""
        return self.time_scale * (1 - t if self.negated else t)

    def shifted(self, u: Tensor) -> Tensor:
        """Return t = shift u / (1 + (shift - 1) u)."""
        if callable(self.shift):
            raise TypeError("the shift depends on the number of tokens: take `for_tokens(n)` first")
        return self.shift * u / (self.shift * u + (1 - u))  # written so that 1 stays 1 exactly

    def grid(self, steps: int, start: float = 1.0) -> list[float]:
        """Return the shifted times of u = start * k / steps.

        diffusers' pipelines shift themselves and are given u (`sigmas=[1, .75, .5, .25]`).
        """
        self._check_steps(steps, self.max_steps)
        u = start * (torch.arange(steps, 0, -1, dtype=torch.float64) / steps)
        return [float(t) for t in self.shifted(u)]

    def time_of(self, u: Tensor) -> Tensor:
        """Return shifted times of 1 - u, in (0, 1]."""
        return self.shifted(1 - u)

    def convert(self, output: Tensor, z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_hat = z_t - t v and eps_hat = z_t + (1 - t) v."""
        alpha_t, sigma_t = self.at(t, z_t)
        v = -output if self.negated else output
        return z_t - sigma_t * v, z_t + alpha_t * v

    def prediction(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return v = eps - x, or its negative."""
        return x - eps if self.negated else eps - x


def boundary(index: Tensor) -> tuple[Tensor, Tensor]:
    """Return (c_skip, c_out) of an x-predicting consistency model: (1, 0) at index 0, (0, 1) from the first ones on."""
    scaled = (TIMESTEP_SCALING * index) ** 2
    return SIGMA_DATA**2 / (scaled + SIGMA_DATA**2), (scaled / (scaled + SIGMA_DATA**2)).sqrt()


def resolution_shift(
    tokens: int, *, base_tokens: int = 256, max_tokens: int = 4096, base_shift: float = 0.5, max_shift: float = 1.15
) -> float:
    """Return FLUX.1-dev's shift for an image of so many tokens: exp of a line through two points.

    The constants are those of its scheduler config in diffusers.
    """
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (tokens - base_tokens))
