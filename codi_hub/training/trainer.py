"""The training loop, under accelerate. What a step minimises is the method's: `codi_hub.losses`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from codi_hub import seeds
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.values import Prompt
from codi_hub.config.distill import TrainingConfig
from codi_hub.diffusion.schedule import Denoiser
from codi_hub.errors import InvalidInput
from codi_hub.events import Message, OnEvent, TrainingStep
from codi_hub.interrupts import delayed_interrupts
from codi_hub.losses.method import Method, StepContext, Terms
from codi_hub.partial import clean
from codi_hub.training import checkpoint
from codi_hub.training.distributed import agreed
from codi_hub.training.latents import Pairs
from codi_hub.training.networks import enable_checkpointing, on_device, update_ema
from codi_hub.training.optimiser import new_optimiser
from codi_hub.training.prompts import PromptStore
from codi_hub.training.stream import PairStream

WARM_UP_STEPS = 30
DECAY = 0.5  # share of the training in which the learning rate falls to zero
CLIP = 1.0
CHECKPOINT_SECONDS = 120.0
MOST_RESERVED = 1 / 3  # of a time budget for the evaluation
PREPARED = 256  # pairs encoded together at most, between steps


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps taken.
        seconds: of the steps alone.
        phase: the method's (`Method.phase`).
        elapsed: seconds of the run's commands from their start until the last step: the time budget's clock.
        reserve: seconds of the time budget that are kept for the evaluation.
    """

    step: int = 0
    seconds: float = 0.0
    phase: int = 0
    elapsed: float = 0.0
    reserve: float = 0.0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Return what a checkpoint says; earlier ones know the seconds alone."""
        names = {one.name for one in fields(cls)}
        return cls(**{"elapsed": state["seconds"]} | {name: state[name] for name in names & state.keys()})

    def time(self, settings: TrainingConfig) -> float | None:
        """Return the seconds until which training goes on, if there is a time budget."""
        return settings.time_budget and max(settings.time_budget - self.reserve, 1e-9)

    def ends(self, settings: TrainingConfig) -> bool:
        """Whether the steps or the time are used up. One step is always taken."""
        if self.step == 0:
            return False
        total, time = settings.train_steps, self.time(settings)
        return bool(total and self.step >= total) or bool(time and self.elapsed >= time)


class Trainer:
    """Trains an adapter on cached pairs. Everything random in step k depends on (seed, k) and nothing else.

    Args:
        base: frozen, in the dtype the networks compute in.
        adapter: float32; becomes theta. A copy becomes theta_minus, the moving average that is kept in the end, and
            with a method that keeps a teacher another copy becomes that.
        cache: the training pairs.
        method: what a step minimises.
        settings: how long and how fast; the steps or a time budget are given.
        accelerator: of this process.
        folder: where the checkpoint is.
        began: `time.monotonic()` when the command began (default: now).
        evaluation: training steps that take as long as the evaluation at the end, about.
    """

    def __init__(
        self,
        base: Backbone,
        adapter: Adapter,
        cache: Pairs,
        method: Method,
        settings: TrainingConfig,
        accelerator: Accelerator,
        folder: Path,
        began: float | None = None,
        evaluation: float = 0.0,
    ) -> None:
        adapter.settings.check_trainable()
        self.base, self.cache, self.method, self.settings = base, cache, method, settings
        self.accelerator, self.folder, self.progress = accelerator, folder, Progress()
        self.began, self.evaluation = time.monotonic() if began is None else began, evaluation
        self._before = 0.0  # seconds of earlier commands of the run
        self.start = adapter.start
        self.ema = copy.deepcopy(adapter).requires_grad_(False) if settings.ema else adapter
        self.teacher = copy.deepcopy(adapter).requires_grad_(False) if method.keeps_teacher else None
        if settings.ema and settings.ema_device == "cpu":
            self.ema.to("cpu")
        if settings.checkpointing:
            enable_checkpointing(base, adapter)
        self.companion = method.companion(base)
        groups = adapter.parameter_groups(settings.lr)
        groups += [{"params": [*self.companion.parameters()], "lr": settings.lr}] if self.companion else []
        optimiser = new_optimiser(settings.optimizer, groups)
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.student, self.optimiser = accelerator.prepare(adapter, optimiser)
        # train_step takes the mean over micro-batches itself; accelerate would divide once more
        accelerator.gradient_accumulation_steps = 1
        self.stream = PairStream(
            len(cache),
            settings.batch,
            settings.accumulate,
            settings.seed,
            accelerator.num_processes,
            accelerator.process_index,
        )
        self.prompts = PromptStore(base, cache.folder)
        self.unconditional = base.unconditional().to(accelerator.device)
        self._prepared, self._ahead = 0, 1  # the step before which everything is encoded; steps encoded together
        base.release_text_encoders()

    # ---- one step

    def context(self, step: int, micro: int) -> StepContext:
        """Return one micro-batch with its networks bound to its prompts and conditions."""
        rows, start = self.stream.rows(step, micro)
        device, layout = self.accelerator.device, torch.channels_last
        pairs = self.cache.rows(rows)
        x = pairs.x.float().to(device, memory_format=layout)
        eps = self.stream.noise(start, tuple(x.shape[1:])).to(device, memory_format=layout)
        condition = pairs.conditions.to(device, memory_format=layout).float() / 255
        prompt = self.prompts.rows(pairs.prompts).to(device)
        if share := self.settings.prompt_dropout:
            prompt = prompt.replaced(self.stream.dropped(start, share), self.unconditional)
        targets = None if pairs.targets is None else pairs.targets.to(device).float() / 255
        with torch.no_grad():
            initial = self.ema.initial_latents(self.base, condition, eps)
        return StepContext(
            x=x,
            eps=eps,
            initial=initial,
            condition=condition,
            targets=targets,
            student=self.bind(self.student, prompt, condition, trained=True),
            ema=self.bind(self.ema, prompt, condition),
            teacher=self.teacher and self.bind(self.teacher, prompt, condition),
            unprompted=self.teacher and self.bind(self.teacher, self.unconditional.rows([0] * len(x)), condition),
            backbone=self.base,
            start=self.start,
            phase=self.progress.phase,
            prompt=prompt,
            draw=lambda low, high, shared: self.stream.integers(step, start, low, high, shared),
            renoise=lambda: self._renoising(start, x),
            rollout=seeds.rollout_path(self.settings.seed, step),
        )

    def _renoising(self, start: int, like: Tensor) -> tuple[Tensor, Tensor]:
        u, eps = self.stream.renoising(start, tuple(like.shape[1:]))
        return u.to(like.device), eps.to(like.device, memory_format=torch.channels_last)

    def bind(self, network: Any, prompt: Prompt, condition: Tensor, trained: bool = False) -> Denoiser:
        """Return a network as a denoiser with its prompt and condition bound, converted in float32.

        One that is not `trained` has no gradient, may be evaluated several times, and prepares its condition once.
        """
        if trained:
            return self.base.schedule.denoiser(lambda z_t, t: network(self.base, z_t, t, prompt, condition))
        prepared: list[Any] = []

        @torch.no_grad()
        def evaluate(z_t: Tensor, t: Tensor) -> Tensor:
            if not prepared:
                net = on_device(network, self.accelerator.device)
                prepared.extend([net, net.prepare(self.base, condition, prompt)])
            net, view = prepared
            return net.predict(self.base, z_t, t, prompt, view)

        return self.base.schedule.denoiser(evaluate)

    def losses(self, step: int, micro: int) -> Terms:
        """Return the terms of the loss on one micro-batch."""
        context = self.context(step, micro)
        with self.accelerator.autocast():
            return self.method.loss(context)

    def train_step(self) -> dict[str, float]:
        """Take one optimiser step; return the mean of each term.

        Raises:
            FloatingPointError: a loss or gradient that is not finite.
        """
        self._enter_phase()
        sums: dict[str, float] = {}
        step, count = self.progress.step, self.settings.accumulate
        for micro in range(count):
            with self.accelerator.no_sync(self.student) if micro + 1 < count else nullcontext():
                terms = self.losses(step, micro)
                values = torch.stack(list(terms.values()))
                self.accelerator.backward(values.sum() / count)
            for name, value in zip(terms, values.tolist(), strict=True):  # the device is waited for once
                sums[name] = sums.get(name, 0.0) + value / count
        sums = self._mean(sums)
        if not all(math.isfinite(value) for value in sums.values()):
            raise FloatingPointError(f"the loss is not finite at step {step}: {sums}")
        self._optimise(step)
        if self.settings.ema:
            # a young average forgets faster, or it would hold on to the initial weights
            gamma = min(self.settings.ema, (1 + step) / (10 + step))
            update_ema(self.ema, self.accelerator.unwrap_model(self.student), gamma)
        self.progress.step += 1
        return sums

    def _optimise(self, step: int) -> None:
        factor = self.rate_factor()
        if self.companion and self.accelerator.num_processes > 1:  # no process group wraps it
            for weight in self.companion.parameters():
                weight.grad = self.accelerator.reduce(weight.grad, "mean")
        self.accelerator.unscale_gradients()  # once: accelerate's own clipping would do it again for every group
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
            norm = nn.utils.clip_grad_norm_(group["params"], CLIP)
            if self.accelerator.scaler is None and not torch.isfinite(norm):  # a scaler skips such a step itself
                raise FloatingPointError(f"the gradient is not finite at step {step}")
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _enter_phase(self) -> None:
        """Enter the method's phase: the moving average becomes the next teacher, and the student goes on from it."""
        phase = self.method.phase(self.share())
        if phase > self.progress.phase:
            networks = self.modules()
            for name in ("teacher", "student"):
                if name in networks:
                    networks[name].load_state_dict(self.ema.state_dict())
            self.progress.phase = phase

    def _mean(self, terms: dict[str, float]) -> dict[str, float]:
        """Return the mean over all processes, so that all of them see a loss that is not finite anywhere."""
        if self.accelerator.num_processes == 1:
            return terms
        values = torch.tensor(list(terms.values()), device=self.accelerator.device)
        return dict(zip(terms, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def share(self) -> float:
        """Return how much of the training is over, from 0 to 1: of its steps or of its time, whichever is more."""
        shares = []
        if self.settings.train_steps:
            shares.append(self.progress.step / self.settings.train_steps)
        if limit := self.progress.time(self.settings):
            shares.append(self.progress.elapsed / limit)
        return max(shares)

    def rate_factor(self) -> float:
        """Return the learning-rate factor: a short rise, a plateau, and a linear fall to zero at the end."""
        return max(0.0, min((self.progress.step + 1) / WARM_UP_STEPS, 1.0, (1 - self.share()) / DECAY))

    # ---- the loop

    @property
    def finished(self) -> bool:
        """Whether the steps or the time are used up. One step is always taken."""
        return self.progress.ends(self.settings)

    def run(self, on_event: OnEvent, on_sample: Callable[[int], object] = lambda step: None) -> None:
        """Train to the end, with a checkpoint every so many steps, every two minutes, and when it is interrupted."""
        settings, saved = self.settings, time.monotonic()
        self._tick()
        self.prompts.on_message = lambda text: on_event(Message(text))
        self._expect()
        try:
            while not self.finished:
                self._prepare(self.progress.step)
                with delayed_interrupts():  # a checkpoint is of a whole step
                    began = time.monotonic()
                    losses = self.train_step()
                    spent = time.monotonic() - began
                    self.progress.seconds = agreed(self.progress.seconds + spent)
                    self._tick()
                step = self.progress.step
                images = settings.batch * settings.accumulate * self.accelerator.num_processes
                on_event(TrainingStep(step, settings.train_steps, losses, images / spent, self.eta()))
                if step % settings.checkpoint_every == 0 or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if settings.sample_every and step % settings.sample_every == 0:
                    on_sample(step)
        except FloatingPointError:
            if all(bool(value.isfinite().all()) for net in self.modules().values() for value in net.parameters()):
                self.save()  # else the last checkpoint stays: the weights are spoilt already
            raise
        except BaseException:
            self.save()
            raise
        self.save()

    def _tick(self) -> None:
        """Note the time, the same in all processes: the rate, the phase and the end depend on it."""
        progress, budget = self.progress, self.settings.time_budget
        progress.elapsed = agreed(self._elapsed())
        if budget and progress.step:
            progress.reserve = min(self.evaluation_seconds(), budget * MOST_RESERVED)

    def _elapsed(self) -> float:
        """Return the seconds of the run's commands until now."""
        return self._before + time.monotonic() - self.began

    def evaluation_seconds(self) -> float:
        """Return the seconds that the whole evaluation takes, about, from those of the steps so far."""
        return self.evaluation * self.progress.seconds / max(1, self.progress.step)

    def left(self) -> float | None:
        """Return the seconds of the time budget that are left of the whole command, if there is one."""
        budget = self.settings.time_budget
        return budget and max(0.0, budget - self._elapsed())

    def _last(self, step: int) -> int:
        """Return `step`, or the number of steps where that is less."""
        return min(step, self.settings.train_steps or step)

    def _expect(self) -> None:
        """Tell the pairs in which order they will be needed, until all have been seen once."""
        step = self._prepared = self.progress.step
        self.cache.expect(self.stream.rows_between(step, self._last(step + self.stream.steps_per_epoch)))

    def _prepare(self, step: int) -> None:
        """Encode what the next steps need: one step's at first, then more, since text encoders are loaded for it."""
        if step < self._prepared:
            return
        ahead = self._ahead
        if (limit := self.progress.time(self.settings)) and step:  # no more than there is time for
            ahead = min(ahead, max(1, int(step * (limit / max(self.progress.elapsed, 1e-9) - 1))))
        self._prepared = self._last(step + ahead)
        self._ahead = min(2 * self._ahead, max(1, PREPARED // (self.settings.batch * self.settings.accumulate)))
        self.prompts.prepare(self.cache.prepare([*self.stream.rows_between(step, self._prepared)]))

    def eta(self) -> float:
        """Return the estimated seconds of training left."""
        left = []
        if limit := self.progress.time(self.settings):
            left.append(limit - self.progress.elapsed)
        if self.settings.train_steps:
            left.append((self.settings.train_steps - self.progress.step) * self.progress.seconds / self.progress.step)
        return max(0.0, min(left))

    # ---- checkpoints

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks of a run, by their names in a checkpoint."""
        modules: dict[str, nn.Module] = {"student": self.accelerator.unwrap_model(self.student)}
        modules |= {"target": self.ema} if self.settings.ema else {}
        modules |= {"teacher": self.teacher} if self.teacher else {}
        return modules | ({"companion": self.companion} if self.companion else {})

    def save(self) -> None:
        """Write the checkpoint (main process only)."""
        if self.accelerator.is_main_process and self.progress.step:
            scaler = self.accelerator.scaler
            state = asdict(self.progress) | ({"scaler": scaler.state_dict()} if scaler else {})
            checkpoint.save(self.folder / checkpoint.NAME, self.modules(), self.optimiser, state)

    def restore(self) -> bool:
        """Go back to the checkpoint; whether there was one.

        Raises:
            InvalidInput: damaged, or not the one that the main process has.
        """
        path = self.folder / checkpoint.NAME
        clean(self.folder)
        if path.exists():
            state = checkpoint.load(path, self.modules(), self.optimiser)
            scale = state.pop("scaler", None)
            if scale and self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(scale)
            self.progress = Progress.of(state)
            self._before = self.progress.elapsed
        if self.progress != agreed(self.progress):
            raise InvalidInput(f"{path}: not the main process's checkpoint; name a run folder that all machines share")
        return path.exists()
