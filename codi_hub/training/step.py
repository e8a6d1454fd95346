"""What a training step minimises, by the name of its method: CoDi's loss, and those it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codi_hub.diffusion.samplers import rollout
from codi_hub.diffusion.schedule import CLEAN, Denoiser, sampling_timesteps
from codi_hub.losses.baselines import cm_loss, conditional_loss, gd_loss
from codi_hub.losses.codi import codi_loss
from codi_hub.losses.guidance import distance

if TYPE_CHECKING:
    from codi_hub.training.trainer import Trainer

FIRST_TEACHER_STEPS = 32  # progressive distillation: 32 -> 16 -> 8 -> 4
PHASES = 3

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Drawn:
    """One micro-batch of step `step`, its first pair at `start` in the stream.

    Attributes:
        x, eps: clean latents and noise, float32 (B, C, h, w).
        targets: pictures in [0, 1], (B, 3, H, W), where the guidance compares pictures.
        source: latents of the condition, (B, C, h, w), where the guidance is relative to them.
        begun: where the sampler would begin with that noise, (B, C, h, w).
        bind: a network -> its denoiser under the batch's prompts and conditions.
    """

    x: Tensor
    eps: Tensor
    begun: Tensor
    targets: Tensor | None
    source: Tensor | None
    step: int
    start: int
    bind: Callable[[nn.Module], Denoiser]


@dataclass(frozen=True)
class Method:
    """A loss, the sampling steps its adapters are for, and what happens before every optimiser step."""

    loss: Callable[[Trainer, Drawn], Terms]
    steps: int = 4
    before_step: Callable[[Trainer], None] = lambda trainer: None


def codi(trainer: Trainer, drawn: Drawn) -> Terms:
    """CoDi (Mei et al., 2024): `pe-codi` and `codi` differ in what the adapter's kind lets be trained."""
    t, s = (v.to(drawn.x.device) for v in trainer.times(drawn.step, drawn.start))
    student, target = drawn.bind(trainer.student), drawn.bind(trainer.target)
    return codi_loss(
        student,
        target,
        drawn.x,
        drawn.eps,
        t,
        s,
        trainer.base.schedule,
        options=trainer.loss_options,
        guidance=distance(trainer.options.guidance, trainer.base, drawn.targets, trainer.lpips, drawn.source),
        z_t=seen_by_the_sampler(trainer, target, drawn, t),
    )


@torch.no_grad()
def seen_by_the_sampler(trainer: Trainer, target: Denoiser, drawn: Drawn, times: Tensor) -> Tensor | None:
    """The sampler's own state at t, after a walk along some points of the grid; None in steps of noised data.

    Where the sampler begins with its condition, the first time of its walk sees that in all steps.
    """
    generator = torch.Generator().manual_seed(trainer.options.seed * 1_000_003 + 2**42 + drawn.step)
    first, *coins = torch.rand(1 + len(trainer.grid), generator=generator).tolist()
    *lower, top = trainer.grid.tolist()
    if first >= (trainer.options.rollout or 0.0):
        if drawn.begun is drawn.eps:
            return None
        noised = trainer.base.schedule.add_noise(drawn.x, drawn.eps, times)
        return torch.where((times == top)[:, None, None, None], drawn.begun, noised)
    t = int(times[0])
    between = [point for point, coin in zip(lower, coins, strict=False) if t < point and coin < 0.5]
    walk = [top, *reversed(between), *([t] if t < top else [])]
    return rollout(target, drawn.begun, walk, trainer.base.schedule)


def conditional(trainer: Trainer, drawn: Drawn) -> Terms:
    """Plain fine-tuning, every pair at a time of its own, from all of the base's timesteps."""
    schedule = trainer.base.schedule
    t = trainer.draw(drawn.step, drawn.start, 0, len(schedule), shared=False).to(drawn.x.device)
    return conditional_loss(drawn.bind(trainer.student), drawn.x, drawn.eps, t, schedule)


def cm(trainer: Trainer, drawn: Drawn) -> Terms:
    """Consistency distillation of the teacher, on the time grid."""
    assert trainer.teacher is not None  # the options have made sure of it
    t, s = (v.to(drawn.x.device) for v in trainer.times(drawn.step, drawn.start, clean=CLEAN))
    student, target = drawn.bind(trainer.student), drawn.bind(trainer.target)
    teacher = drawn.bind(trainer.teacher)
    return cm_loss(student, target, teacher, drawn.x, drawn.eps, t, s, trainer.base.schedule)


def gd(trainer: Trainer, drawn: Drawn) -> Terms:
    """Progressive distillation: the student's step from t to s is to be worth two of the teacher's."""
    assert trainer.teacher is not None  # the options have made sure of it
    schedule = trainer.base.schedule
    steps = teacher_steps(trainer.progress.phase)
    times = torch.tensor([*sampling_timesteps(steps, len(schedule)), CLEAN])
    k = 2 * trainer.draw(drawn.step, drawn.start, 0, steps // 2, shared=trainer.options.shared_t)
    t, middle, s = (times[k + ahead].to(drawn.x.device) for ahead in range(3))
    student, teacher = drawn.bind(trainer.student), drawn.bind(trainer.teacher)
    return gd_loss(student, teacher, drawn.x, drawn.eps, t, middle, s, schedule)


def teacher_steps(phase: int) -> int:
    """Steps of the teacher in a phase; the student takes half as many."""
    return FIRST_TEACHER_STEPS >> phase


def halve(trainer: Trainer) -> None:
    """Enters the phase that the share of the training asks for: what has been learnt becomes the next teacher.

    It is the moving average that does, being what is kept in the end, and the student goes on from it.
    """
    phase = min(int(trainer.share() * PHASES), PHASES - 1)
    if phase > trainer.progress.phase:
        networks = trainer.modules()
        for name in ("teacher", "student"):
            networks[name].load_state_dict(networks["target"].state_dict())
        trainer.progress.phase = phase


METHODS: dict[str, Method] = {
    "pe-codi": Method(codi),
    "codi": Method(codi),
    "conditional": Method(conditional, steps=50),
    "cm": Method(cm),
    "gd": Method(gd, before_step=halve),
}
