"""The training loop, under accelerate. What a step minimises is the method's: `codi_hub.training.step`."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from codi_hub.adapters import Adapter
from codi_hub.adapters.adapter import as_picture
from codi_hub.backbones.unet import FrozenBase
from codi_hub.config.options import TAUGHT, DistillOptions
from codi_hub.diffusion.schedule import Denoiser, learning_timesteps
from codi_hub.errors import InvalidInput
from codi_hub.events import OnEvent, TrainingStep
from codi_hub.losses.codi import LossOptions, update_ema
from codi_hub.losses.guidance import Lpips
from codi_hub.training import checkpoint
from codi_hub.training.distributed import agreed
from codi_hub.training.kernels import attention, quicken
from codi_hub.training.latents import Cache
from codi_hub.training.muon import Muon
from codi_hub.training.step import METHODS, Drawn

WARM_UP_STEPS = 30
FALL = 0.5  # share of the training in which the learning rate falls to zero
CLIP = 1.0
CHECKPOINT_SECONDS = 120.0


@dataclass
class Progress:
    """How far a run has come. `seconds` counts training alone, `phase` the halvings of progressive distillation."""

    step: int = 0
    seconds: float = 0.0
    phase: int = 0


class Trainer:
    """Trains an adapter on cached pairs. Everything random in step k depends on (seed, k) and nothing else.

    Args:
        base: frozen, in the dtype the networks compute in.
        adapter: float32; becomes theta. Its copy becomes theta_minus, the moving average that is kept in the end, and
            with a method that has a teacher another copy becomes that.
        total: optimiser steps, or None to train until `options.time_budget`.
        folder: where the checkpoint is.
    """

    def __init__(
        self,
        base: FrozenBase,
        adapter: Adapter,
        cache: Cache,
        options: DistillOptions,
        accelerator: Accelerator,
        *,
        total: int | None,
        folder: Path,
    ):
        self.base, self.cache, self.options, self.accelerator = base, cache, options, accelerator
        self.total, self.folder, self.progress = total, folder, Progress()
        for net in (base.unet, adapter):
            quicken(net)
        self.target = copy.deepcopy(adapter).requires_grad_(False)
        self.teacher = copy.deepcopy(self.target) if options.method in TAUGHT else None
        self.method = METHODS[options.method]
        groups = adapter.parameter_groups(options.lr)
        told: dict[str, Any] = {"weight_decay": 0.01, "betas": (0.9, 0.99)}
        muon = options.optimizer == "muon"
        optimiser = Muon(groups, **told) if muon else torch.optim.AdamW(groups, **told, fused=True)
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.student, self.optimiser = accelerator.prepare(adapter, optimiser)
        # train_step takes the mean over micro-batches itself; accelerate would divide once more
        accelerator.gradient_accumulation_steps = 1
        self.grid = learning_timesteps(options.grid, adapter.horizon(len(base.schedule)))
        unique = list(dict.fromkeys(cache.prompts))
        with torch.no_grad():
            self.prompts = torch.cat([base.embed(unique[k : k + 256]) for k in range(0, len(unique), 256)])
        places = {text: k for k, text in enumerate(unique)}
        self.prompt_of = torch.tensor([places[text] for text in cache.prompts])
        self.loss_options = LossOptions(
            options.ode,  # type: ignore[arg-type]
            options.consistency,
            options.consistency_weight,
            options.consistency_cap,
            options.guidance_cap,
        )
        self.lpips = Lpips(options.lpips).to(base.device) if options.lpips else None
        self._order: tuple[int, Tensor] | None = None

    # ---- one step

    def rows(self, step: int, micro: int) -> tuple[Tensor, int]:
        """(rows of the cache, position in the stream) of this process's share of a micro-batch.

        The stream is a new permutation in every epoch; one process with twice the batch sees the pairs that two see.
        """
        batch, world = self.options.batch, self.accelerator.num_processes
        start = ((step * self.options.accumulate + micro) * world + self.accelerator.process_index) * batch
        rows = [self._at(start + k) for k in range(batch)]
        return torch.tensor(rows), start

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.cache))
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
            self._order = epoch, torch.randperm(len(self.cache), generator=generator)
        return int(self._order[1][place])

    def draw(self, step: int, start: int, low: int, high: int, *, shared: bool) -> Tensor:
        """Whole numbers of [low, high), int64 (batch,); shared: one, the same in all processes and micro-batches."""
        batch, seed = self.options.batch, self.options.seed
        if shared:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + 2**41 + step)
            return torch.randint(low, high, (1,), generator=generator).expand(batch)
        # each by its place in the stream, whatever batch and process it falls in; not torch's generator, which reads
        # 32 bits of a seed, so that this would depend on the noise
        places = range(start, start + batch)
        return torch.tensor([int(np.random.default_rng([seed, 2, place]).integers(low, high)) for place in places])

    def times(self, step: int, start: int, clean: int = 0) -> tuple[Tensor, Tensor]:
        """Timesteps t and s = t - dt of the grid, int64 (batch,).

        Before the first grid point lies the clean end. Where sigma must not be 0, the first timestep stands in for it.
        """
        options = self.options
        t = self.draw(step, start, options.dt, options.grid + 1, shared=options.shared_t)
        earlier = t - options.dt
        return self.grid[t - 1], torch.where(earlier > 0, self.grid[(earlier - 1).clamp(min=0)], clean)

    def losses(self, step: int, micro: int) -> dict[str, Tensor]:
        """The terms of the loss on one micro-batch."""
        rows, start = self.rows(step, micro)
        device = self.accelerator.device
        x = self.cache.x[rows].float()
        seeds = [self.options.seed * 1_000_003 + start + k for k in range(len(rows))]
        eps = torch.stack([torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        x, eps = (v.to(device, memory_format=torch.channels_last) for v in (x, eps))
        condition = self.cache.conditions[rows].to(device, memory_format=torch.channels_last).float() / 255
        prompt = self.prompts[self.prompt_of[rows]].to(device)
        targets = None
        if self.cache.targets is not None:
            targets = self.cache.targets[rows].to(device).float() / 255
        with torch.no_grad():
            begun = self.target.begun(self.base, condition, eps)
            source = self.base.encode(as_picture(condition)) if self.options.guidance == "relative" else None
        drawn = Drawn(x, eps, begun, targets, source, step, start, lambda one: self.bind(one, prompt, condition))
        with self.accelerator.autocast(), attention(x, self.accelerator.mixed_precision):
            return self.method.loss(self, drawn)

    def bind(self, network: Any, prompt: Tensor, condition: Tensor) -> Denoiser:
        """A denoiser with its prompt and condition bound: (z_t, t) -> (x_hat, eps_hat), converted in float32.

        What no gradient goes through is asked several times, and sees its condition once.
        """
        if network is self.student:
            return self.base.schedule.denoiser(lambda z_t, t: network(self.base, z_t, t, prompt, condition))
        with torch.no_grad():
            prepared = network.prepare(condition, prompt)
        return self.base.schedule.denoiser(lambda z_t, t: network.predict(self.base, z_t, t, prompt, prepared))

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns the mean of each term."""
        self.method.before_step(self)
        sums: dict[str, float] = {}
        step, count = self.progress.step, self.options.accumulate
        for micro in range(count):
            with self.accelerator.no_sync(self.student) if micro + 1 < count else nullcontext():
                terms = self.losses(step, micro)
                values = torch.stack(list(terms.values()))
                self.accelerator.backward(values.sum() / count)
            for name, value in zip(terms, values.tolist(), strict=True):  # the device is waited for once
                sums[name] = sums.get(name, 0.0) + value / count
        sums = self.mean(sums)
        if not all(math.isfinite(value) for value in sums.values()):
            raise FloatingPointError(f"the loss is not finite at step {step}: {sums}")
        factor = self.rate_factor()
        self.accelerator.unscale_gradients()  # once: accelerate's own clipping would do it again for every group
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
            norm = nn.utils.clip_grad_norm_(group["params"], CLIP)
            if self.accelerator.scaler is None and not torch.isfinite(norm):  # a scaler skips such a step itself
                raise FloatingPointError(f"the gradient is not finite at step {step}")
        self.optimiser.step()
        self.optimiser.zero_grad()
        # a young average forgets faster, or it would hold on to the initial weights
        gamma = min(self.options.ema, (1 + step) / (10 + step))
        update_ema(self.target, self.accelerator.unwrap_model(self.student), gamma)
        self.progress.step += 1
        return sums

    def mean(self, terms: dict[str, float]) -> dict[str, float]:
        """The mean over all processes, so that all of them see a loss that is not finite anywhere."""
        if self.accelerator.num_processes == 1:
            return terms
        values = torch.tensor(list(terms.values()), device=self.accelerator.device)
        return dict(zip(terms, self.accelerator.reduce(values, "mean").tolist(), strict=True))

    def share(self) -> float:
        """How much of the training is over, from 0 to 1: of its steps or of its time, whichever is more."""
        shares = []
        if self.total:
            shares.append(self.progress.step / self.total)
        if self.options.time_budget:
            shares.append(self.progress.seconds / self.options.time_budget)
        return max(shares)

    def rate_factor(self) -> float:
        """Learning-rate factor: a short rise, a plateau, and a linear fall to zero at the end of steps or time."""
        return max(0.0, min((self.progress.step + 1) / WARM_UP_STEPS, 1.0, (1 - self.share()) / FALL))

    # ---- the loop

    @property
    def finished(self) -> bool:
        """Whether the steps or the time are used up. One step is always taken."""
        budget = self.options.time_budget
        if self.progress.step == 0:
            return False
        return bool(self.total and self.progress.step >= self.total) or bool(budget and self.progress.seconds >= budget)

    def run(self, on_event: OnEvent, on_sample: Callable[[int], object] = lambda step: None) -> None:
        """Trains to the end, with a checkpoint every so many steps, every two minutes, and when it is interrupted."""
        saved = time.monotonic()
        try:
            while not self.finished:
                began = time.monotonic()
                losses = self.train_step()
                spent = time.monotonic() - began
                self.progress.seconds = agreed(self.progress.seconds + spent)  # rate, phase and end depend on it
                step = self.progress.step
                images = self.options.batch * self.options.accumulate * self.accelerator.num_processes
                on_event(TrainingStep(step, self.total, losses, images / spent, self.eta()))
                if step % self.options.checkpoint_every == 0 or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if self.options.sample_every and step % self.options.sample_every == 0:
                    on_sample(step)
        finally:
            self.save()

    def eta(self) -> float:
        """Seconds of training left."""
        left = []
        if self.options.time_budget:
            left.append(self.options.time_budget - self.progress.seconds)
        if self.total:
            left.append((self.total - self.progress.step) * self.progress.seconds / self.progress.step)
        return max(0.0, min(left))

    # ---- checkpoints

    def modules(self) -> dict[str, nn.Module]:
        """The networks of a run, by their names in a checkpoint."""
        modules = {"student": self.accelerator.unwrap_model(self.student), "target": self.target}
        return modules | ({"teacher": self.teacher} if self.teacher else {})

    def save(self) -> None:
        """Writes the checkpoint (main process only)."""
        if self.accelerator.is_main_process and self.progress.step:
            scaler = self.accelerator.scaler
            state = asdict(self.progress) | ({"scaler": scaler.state_dict()} if scaler else {})
            checkpoint.save(self.folder / checkpoint.NAME, self.modules(), self.optimiser, state)

    def restore(self) -> bool:
        """Goes back to the checkpoint, if there is one.

        Raises:
            InvalidInput: damaged, or not the one that the main process has.
        """
        path = self.folder / checkpoint.NAME
        if path.exists():
            state = checkpoint.load(path, self.modules(), self.optimiser)
            scale = state.pop("scaler", None)
            if scale and self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(scale)
            self.progress = Progress(**state)
        if self.progress != agreed(self.progress):
            raise InvalidInput(f"{path}: not what the main process has; name a --run-dir that all machines share")
        return path.exists()
