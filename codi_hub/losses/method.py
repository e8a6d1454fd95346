"""What a training method is: a loss on one micro-batch, and what the trainer must know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt
from codi_hub.diffusion.guidance import guided_denoiser
from codi_hub.diffusion.schedule import Denoiser, Schedule

Terms = dict[str, Tensor]
"""Scalar loss terms by name, to be summed; a term that is switched off is absent."""


@dataclass(frozen=True)
class StepContext:
    """One micro-batch of a training step, and all that a loss may ask of the training.

    Attributes:
        x, eps: clean latents and noise, float32 (B, C, h, w).
        initial: latents from which the sampler would begin with this noise, (B, C, h, w): eps itself, or the condition
            under noise for an adapter that starts from its condition.
        condition: images in [0, 1], (B, K, H, W).
        targets: ground truth in [0, 1], (B, 3, H, W), where the method asks for it (`Method.needs_targets`).
        student, ema: the network being trained and its moving average, as denoisers under the batch's prompts and
            conditions; `ema` is evaluated without gradient.
        teacher, unprompted: the frozen teacher under the batch's prompts and under none, for methods that keep one
            (`Method.keeps_teacher`).
        backbone: the frozen base.
        start: where sampling begins, as a share of the schedule.
        phase: current phase of a method with several, see `Method.phase`.
        prompt: embedded prompts of the batch.
        draw: (low, high, shared) -> integers of [low, high), int64 (B,): one for the whole optimiser step, or one per
            sample.
        renoise: () -> (u, eps), u uniform in [0, 1) (B,) and Gaussian eps (B, C, h, w), for losses that noise a
            prediction again.
        rollout: generator of the step's rollout decisions, the same in every process and micro-batch.
    """

    x: Tensor
    eps: Tensor
    initial: Tensor
    condition: Tensor
    targets: Tensor | None
    student: Denoiser
    ema: Denoiser
    teacher: Denoiser | None
    unprompted: Denoiser | None
    backbone: Backbone
    start: float
    phase: int
    prompt: Prompt
    draw: Callable[[int, int, bool], Tensor]
    renoise: Callable[[], tuple[Tensor, Tensor]]
    rollout: torch.Generator

    @property
    def schedule(self) -> Schedule:
        """Schedule of the base for latents of x's size."""
        factor = self.backbone.latents.factor
        return self.backbone.schedule_for(*(factor * side for side in self.x.shape[2:]))

    def guided_teacher(self, guidance_scale: float | None) -> Denoiser:
        """Return the frozen teacher under classifier-free guidance; None: without."""
        assert self.teacher is not None  # `keeps_teacher`
        assert self.unprompted is not None
        if guidance_scale is None:
            return self.teacher
        return guided_denoiser(self.teacher, self.unprompted, guidance_scale)


class MethodConfig(BaseModel):
    """What a method can be told. Fields with their defaults, limits and docstrings; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Method(ABC):
    """A training method. A subclass in one file, registered in `METHODS` or by the entry point `codi_hub.losses`.

    Attributes:
        Config: the class of its switches.
        needs_teacher: whether a version of the task must be named as the frozen teacher.
        trains_base: whether its adapter kind must train a copy of the base's network too; None: either.
        steps: sampling steps its adapters are for.
        default_kind: adapter kind, unless the task or the user says otherwise.
        prompt_dropout: share of the pairs that are trained without their prompt, unless the user says otherwise.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    needs_teacher: ClassVar[bool] = False
    trains_base: ClassVar[bool | None] = None
    steps: ClassVar[int] = 4
    default_kind: ClassVar[str] = "control"
    prompt_dropout: ClassVar[float] = 0.0

    def __init__(self, config: Any, device: torch.device) -> None:
        """Keep the switches, and load what the loss needs to `device`.

        Args:
            config: an instance of `Config`.

        Raises:
            InvalidInput: files that the switches name cannot be used.
        """
        self.config = config

    @property
    def needs_targets(self) -> bool:
        """Whether the loss compares images, so that ground truth must be kept beside the latents."""
        return False

    @property
    def keeps_teacher(self) -> bool:
        """Whether a frozen copy of the adapter at initialisation, which has a parent's weights, is evaluated."""
        return self.needs_teacher

    def companion(self, base: Backbone) -> nn.Module | None:
        """Return a network that the loss trains beside the adapter, on the base's device; None for most methods.

        It is in the checkpoint, and not in the finished adapter. Called once, before the first loss.
        """
        return None

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Return the terms that are trained, with their weights, as the adapter's record states them."""

    @abstractmethod
    def loss(self, context: StepContext) -> Terms:
        """Return the loss terms of a micro-batch, weighted, to be summed."""

    def phase(self, share: float) -> int:
        """Return the phase at a share of the training in [0, 1].

        Entering a new one, the trainer copies the moving average to the teacher and the student.
        """
        return 0


def neighbours(
    context: StepContext, points: int, dt: int, shared: bool, clean: float | None = None
) -> tuple[Tensor, Tensor]:
    """Draw t and s = t - dt on the learning grid, float32 (B,).

    Args:
        context: the micro-batch.
        points: points of the grid.
        dt: grid points between the two.
        shared: one t for the whole optimiser step, or one per sample.
        clean: the time before the first grid point; None where sigma_s must not be 0: then the schedule's least time
            takes its place, and on a flow the first grid point itself.
    """
    schedule = context.schedule
    grid = schedule.learning_grid(points, context.start)
    first = clean if clean is not None else schedule.least or float(grid[0])
    times = torch.cat([torch.full((dt,), first, dtype=grid.dtype), grid]).float()
    k = context.draw(dt, points + 1, shared)
    return times[k - 1 + dt].to(context.x.device), times[k - 1].to(context.x.device)
