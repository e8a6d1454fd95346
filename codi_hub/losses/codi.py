"""The loss of conditional diffusion distillation (Mei et al., CVPR 2024, Algorithm 1; docs/method.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from codi_hub.backbones.backbone import Backbone
from codi_hub.diffusion.samplers import rollout
from codi_hub.diffusion.schedule import Denoiser, Schedule
from codi_hub.errors import UsageError
from codi_hub.losses import GUIDANCE
from codi_hub.losses.adversarial import Discriminator, hinge_terms
from codi_hub.losses.guidance import GuidanceInput, Lpips
from codi_hub.losses.method import Method, MethodConfig, StepContext, Terms, neighbours

Ode = Literal["own", "noise", "none"]
Distance = Callable[[Tensor, Tensor], Tensor]
"""(x, x_hat), latents (B, ...) -> scalar: the guidance term d_x."""
Adversary = Callable[[Tensor, Tensor], Terms]
"""(x, x_hat), latents (B, C, h, w) -> the terms of the student and of the discriminator."""


class CoDiConfig(MethodConfig):
    """Switches of the paper's ablations, and those this project adds: both caps, `relative` guidance and `rollout`."""

    grid: int = Field(8, ge=2)
    """Points of the time grid that training draws from."""
    dt: int = Field(1, ge=1)
    """Grid points between the student's time and the target's."""
    shared_t: bool = True
    """One time for the whole batch, or one per sample."""
    ode: Ode = "own"
    """How z at the earlier time is computed: the network's own PF-ODE step, the true noise, or no step at all."""
    guidance: str = "latent"
    """Where the prediction is compared with the ground truth: latent, relative (in latents, each pair's error relative
    to the change from condition to target), roundtrip, pixel, lpips, or off."""
    guidance_cap: float | None = Field(5.0, gt=0)
    """Largest weight of the guidance term on an eps-predicting base, where it grows as sigma^2 / alpha^2."""
    lpips: Path | None = None
    """Weights of the perceptual network of guidance lpips."""
    consistency: float = Field(1.0, ge=0)
    """Weight of the self-consistency term in the noise prediction; 0 trains without it."""
    consistency_cap: bool = True
    """Bound the consistency term's weight on x at small times by min(1, 2 sigma_s^2 / alpha_s^2)."""
    teacher_guidance: float | None = Field(None, gt=1, le=100)
    """Scale of classifier-free guidance that moves the ground truth of guidance latent, by what the adapter at
    initialisation predicts with and without the prompt (default: none)."""
    adversarial: float = Field(0.0, ge=0)
    """Weight of a hinge loss on features of the frozen base, against the smoothness of d_x (LADD); 0 trains without.
    Heads beside the adapter are trained to tell predictions from data under noise. On U-Net bases."""
    rollout: float | None = Field(None, ge=0, le=1)
    """Share of the steps that start from a state of the sampler itself instead of the noised image (default: 1 where
    sampling begins with an image without noise, else 0)."""


class PECoDi(Method):
    """CoDi for the adapter alone: the base stays frozen (parameter-efficient CoDi)."""

    Config: ClassVar[type[MethodConfig]] = CoDiConfig
    trains_base: ClassVar[bool | None] = False
    default_kind: ClassVar[str] = "static"
    config: CoDiConfig

    def __init__(self, config: CoDiConfig, device: torch.device) -> None:
        """See `Method`.

        Raises:
            UsageError: switches that exclude each other. InvalidInput: unreadable LPIPS weights.
        """
        super().__init__(config, device)
        if config.dt >= config.grid:
            raise UsageError(f"loss.dt {config.dt}: less than loss.grid ({config.grid})")
        if config.rollout and not config.shared_t:
            raise UsageError("loss.rollout needs one time for the whole batch: leave out loss.shared_t=false")
        if config.guidance == "lpips" and config.lpips is None:
            raise UsageError("loss.guidance lpips needs a network: name its weights with loss.lpips")
        if config.guidance == "off" and not config.consistency:
            raise UsageError("nothing would be trained: loss.guidance is off and loss.consistency is 0")
        if config.teacher_guidance and config.guidance != "latent":
            raise UsageError("loss.teacher_guidance moves the target in latents: use it with loss.guidance latent")
        if config.adversarial and config.guidance == "off":
            raise UsageError(
                "loss.adversarial compares with images of any condition, and loss.guidance is off: nothing would keep "
                "the condition; use a guidance term"
            )
        self._discriminator: Discriminator | None = None
        self._guidance = None if config.guidance == "off" else GUIDANCE.load(config.guidance)
        self._lpips = Lpips(config.lpips).to(device) if config.lpips else None

    @property
    def needs_targets(self) -> bool:
        """See `Method.needs_targets`."""
        return bool(getattr(self._guidance, "needs_targets", False))

    @property
    def keeps_teacher(self) -> bool:
        """See `Method.keeps_teacher`."""
        return self.config.teacher_guidance is not None

    def weights(self) -> dict[str, float]:
        """See `Method.weights`."""
        terms = {} if self._guidance is None else {"guidance": 1.0}
        others = {"consistency": self.config.consistency, "adversarial": self.config.adversarial}
        return terms | {name: weight for name, weight in others.items() if weight}

    def companion(self, base: Backbone) -> nn.Module | None:
        """See `Method.companion`. Raises UsageError for a base that is not a U-Net and `adversarial`."""
        self._discriminator = Discriminator(base) if self.config.adversarial else None
        return self._discriminator

    def loss(self, context: StepContext) -> Terms:
        """Return `codi_loss` at a time of the learning grid."""
        config = self.config
        t, s = neighbours(context, config.grid, config.dt, config.shared_t)
        z_t = self._sampler_state(context, t)
        return codi_loss(
            context.student,
            context.ema,
            context.x,
            context.eps,
            (t, s),
            context.schedule,
            config=config,
            guidance=self._distance(context, self._shift(context, t, z_t)),
            z_t=z_t,
            adversary=self._adversary(context),
        )

    def _adversary(self, context: StepContext) -> Adversary | None:
        discriminator = self._discriminator
        if discriminator is None:
            return None

        def terms(x: Tensor, x_hat: Tensor) -> Terms:
            noise = context.renoise()
            student, heads = hinge_terms(discriminator, context.backbone, context.prompt, x, x_hat, noise)
            return {"adversarial": self.config.adversarial * student, "discriminator": heads}

        return terms

    def _distance(self, context: StepContext, shift: Tensor | float) -> Distance | None:
        term = self._guidance
        if term is None:
            return None
        return lambda x, x_hat: term(
            GuidanceInput(x + shift, x_hat, context.backbone, context.condition, context.targets, self._lpips)
        )

    @torch.no_grad()
    def _shift(self, context: StepContext, t: Tensor, z_t: Tensor | None) -> Tensor | float:
        """Return (w - 1) (x_hat(z_t, t, c, prompt) - x_hat(z_t, t, c)) of the frozen teacher, what guidance adds to x.

        The mean of x + shift, given z_t, is the teacher's guided prediction where the teacher predicts the mean of x.
        """
        scale = self.config.teacher_guidance
        if scale is None:
            return 0.0
        z_t = context.schedule.add_noise(context.x, context.eps, t) if z_t is None else z_t
        guided, plain = context.guided_teacher(scale), context.guided_teacher(None)
        return guided(z_t, t)[0] - plain(z_t, t)[0]

    @torch.no_grad()
    def _sampler_state(self, context: StepContext, t: Tensor) -> Tensor | None:
        """Return the sampler's state at t after a walk along some grid points; None in steps on noised data.

        Where the sampler begins with its condition, the grid's last time is trained on that state in all steps.
        """
        grid = context.schedule.learning_grid(self.config.grid, context.start).float()
        first, *coins = torch.rand(1 + len(grid), generator=context.rollout).tolist()
        *lower, top = grid.tolist()
        if first >= (self.config.rollout or 0.0):
            if context.initial is context.eps:
                return None
            noised = context.schedule.add_noise(context.x, context.eps, t)
            return torch.where((t == top)[:, None, None, None], context.initial, noised)
        now = float(t[0])
        between = [point for point, coin in zip(lower, coins, strict=False) if now < point and coin < 0.5]
        walk = [top, *reversed(between), *([now] if now < top else [])]
        return rollout(context.ema, context.initial, walk, context.schedule)


class CoDi(PECoDi):
    """CoDi for everything: the adapter and a copy of the base's network are trained."""

    trains_base: ClassVar[bool | None] = True
    default_kind: ClassVar[str] = "full"


def latent_l2(x: Tensor, x_hat: Tensor) -> Tensor:
    """d_x in latent space, the paper's default."""
    return (x_hat - x).square().mean()


def codi_loss(
    student: Denoiser,
    target: Denoiser,
    x: Tensor,
    eps: Tensor,
    times: tuple[Tensor, Tensor],
    schedule: Schedule,
    *,
    config: CoDiConfig = CoDiConfig(),
    guidance: Distance | None = latent_l2,
    z_t: Tensor | None = None,
    adversary: Adversary | None = None,
) -> Terms:
    """Evaluate the CoDi loss once (Algorithm 1).

    Args:
        student, target: the network being trained and its moving average, the condition bound inside.
        x, eps: clean latents of unit variance and the noise added to them, (B, C, h, w).
        times: (t, s), each (B,), s < t; the same number in every row unless `shared_t` is off.
        schedule: of the base.
        config: the switches.
        guidance: d_x, or None to train without it.
        z_t: where the student is evaluated, instead of at x noised by eps.
        adversary: further terms of the prediction, or None.

    Returns:
        the terms to be summed: `guidance`, `consistency` and those of `adversary`, scalars. One that is switched off
        is absent.
    """
    t, s = times
    z_t = schedule.add_noise(x, eps, t) if z_t is None else z_t
    x_hat_t, eps_hat_t = student(z_t, t)
    terms = {}
    if guidance is not None:
        terms["guidance"] = guidance(x, x_hat_t) * guidance_scale(schedule, t, config.guidance_cap)
    if config.consistency:
        z_hat_s = step_to(schedule, x, x_hat_t, eps, eps_hat_t, s, config.ode)
        with torch.no_grad():
            x_hat_s, eps_hat_s = target(z_hat_s, s)
            weight = config.consistency * consistency_weight(schedule, s, x, capped=config.consistency_cap)
        distance = (eps_hat_t - eps_hat_s).square()
        if config.ode == "own":
            distance = _with_velocity_form(distance, schedule, t, s, (x_hat_t, eps_hat_t), (x_hat_s, eps_hat_s))
        terms["consistency"] = (weight * distance).mean()
    return terms | (adversary(x, x_hat_t) if adversary else {})


def _with_velocity_form(
    distance: Tensor,
    schedule: Schedule,
    t: Tensor,
    s: Tensor,
    student: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
) -> Tensor:
    """Return the consistency distance, in velocity form where the noise form has no gradient at alpha_t = 0.

    z_hat_s is the student's own step, so both predictions agree on it and eps_hat_t - eps_hat_s =
    alpha_s (v_t - v_s), v the velocity at s that belongs to (x_hat, eps_hat). The values are equal. Through eps_hat_t
    alone the gradient is proportional to alpha_t: nothing where one-step sampling starts. Taken on a flow at every
    time ((1 - s)^2 ||v_t - v_s||^2) and on a v-predicting base where alpha_t = 0; see docs/method.md.
    """
    if schedule.prediction_type not in ("flow", "v_prediction"):
        return distance
    alpha_t, _ = schedule.at(t, distance)
    use = torch.ones_like(alpha_t, dtype=torch.bool) if schedule.prediction_type == "flow" else alpha_t.abs() < 1e-6
    if not use.any():
        return distance
    alpha_s, _ = schedule.at(s, distance)
    velocity = alpha_s**2 * (schedule.prediction(*student, s) - schedule.prediction(*target, s)).square()
    return torch.where(use, velocity, distance)


def consistency_weight(schedule: Schedule, s: Tensor, like: Tensor, *, capped: bool) -> Tensor:
    """Return the weight of the noise-consistency term at s, shaped to multiply `like`.

    In noise space the term is x-consistency times alpha_s^2 / sigma_s^2, large near s = 0, where it lets drift grow
    with the number of sampling steps. Capped by min(1, 2 sigma_s^2 / alpha_s^2), x-consistency has a weight of at
    most 2.
    """
    alpha_s, sigma_s = schedule.at(s, like)
    return (2 * sigma_s**2 / alpha_s**2).clamp(max=1.0) if capped else torch.ones_like(sigma_s)


def step_to(schedule: Schedule, x: Tensor, x_hat: Tensor, eps: Tensor, eps_hat: Tensor, s: Tensor, ode: Ode) -> Tensor:
    """Return z_hat_s, where the target network is evaluated; no gradient passes through it."""
    if ode == "own":
        return schedule.add_noise(x_hat, eps_hat, s).detach()
    return schedule.add_noise(x_hat if ode == "noise" else x, eps, s).detach()


def guidance_scale(schedule: Schedule, t: Tensor, cap: float | None) -> float:
    """Return the factor on d_x that bounds its weight on an eps-predicting base's error, sigma_t^2 / alpha_t^2."""
    if cap is None or schedule.prediction_type != "epsilon":
        return 1.0
    alpha_t, sigma_t = schedule.at(t, torch.zeros(1, dtype=torch.float64))
    return min(1.0, cap / (sigma_t**2 / alpha_t**2).mean().item())
