"""Training step of CoDi against latent consistency distillation of a ControlNet as in diffusers' example.

Both train the same copy of the encoder on the same frozen U-Net, with one optimiser and one moving average, in the same
precision: only the step differs. The example evaluates the network four times (student, teacher with and without the
prompt for its guidance, target) with one backward pass; CoDi twice, with one backward pass. The example also encodes
images and prompts in every step, which CoDi does once before training; without that the example is a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.bases import folder_of
from benchmarks.table import Row, in_turn, ratios
from codi_hub import adapters, backbones
from codi_hub.backbones.values import Prompt
from codi_hub.config.distill import TrainingConfig
from codi_hub.diffusion.schedule import boundary
from codi_hub.inference.devices import choose_device, choose_dtype
from codi_hub.losses.codi import CoDiConfig, PECoDi
from codi_hub.training.latents import Cache
from codi_hub.training.run import PRECISIONS
from codi_hub.training.trainer import CLIP, Trainer, update_ema
from recipes.nano.kernels import attention

SIDES, BATCHES, REPEATS = {"nano": 64, "sd15": 256}, {"nano": 16, "sd15": 1}, {"nano": 3, "sd15": 1}
FEW = 3  # rounds where a step takes many seconds
PAIRS = 64
DDIM_STEPS = 50  # of the example's solver
GUIDANCE = (5.0, 15.0)  # range of the example's random guidance scale
GOAL = 0.6
WHAT, THEIRS = "distillation step", "diffusers' LCM example"


def rows(bases: list[str], rounds: int) -> Iterator[Row]:
    """Yield CoDi's time over the example's."""
    for name in bases:
        trainer, images = _trainer(name)
        forms = {THEIRS: Lcm(trainer, images), f"{THEIRS}, all encoded beforehand": Lcm(trainer, None)}
        works: dict[str, Callable[[], object]] = {"ours": trainer.train_step}
        works |= {which: form.step for which, form in forms.items()}
        _evaluations(trainer, works)
        repeated = {which: _repeated(work, REPEATS[name]) for which, work in works.items()}
        seconds = in_turn(repeated, rounds if name == "nano" else min(rounds, FEW))
        note = f"{trainer.base.dtype}, batch {BATCHES[name]}, {SIDES[name]} px"
        for which in forms:
            values, goal = ratios(seconds["ours"], seconds[which]), GOAL if which == THEIRS else None
            yield Row(WHAT, name, "pe-codi, control", which, values, goal=goal, at_most=True, note=note)


def _repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated


def _trainer(name: str) -> tuple[Trainer, Tensor]:
    """Return a CoDi trainer on pairs of noise, and the images of its pairs."""
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=PRECISIONS[dtype])
    base = backbones.load(str(folder_of(name)), device=device, dtype=dtype)
    generator, side = torch.Generator().manual_seed(0), SIDES[name]
    images = torch.randint(0, 256, (PAIRS, 3, side, side), generator=generator, dtype=torch.uint8)
    x = torch.randn((PAIRS, base.latents.channels, *base.latents.size(side, side)), generator=generator)
    cache = Cache(x.half(), images, [f"photograph {k}" for k in range(PAIRS)])
    method = PECoDi(CoDiConfig(), device)
    settings = TrainingConfig(train_steps=10_000, batch=BATCHES[name])
    adapter = peers.lively("control", base, 0)
    trainer = Trainer(base, adapter, cache, method, settings, accelerator, Path("unused"))
    trainer.prompts.prepare(cache.prompts)  # not in a step that is timed
    return trainer, images


@dataclass
class Lcm:
    """A step of latent consistency distillation (Luo et al., 2023), on the networks of a CoDi trainer.

    Args:
        trainer: its networks, optimiser and pairs are used.
        images: encoded in every step, with their prompts; None where both are encoded beforehand.
    """

    trainer: Trainer
    images: Tensor | None
    taken: int = field(default=0, init=False)
    teacher: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        base = self.trainer.base
        self.teacher = adapters.build("control", base).encoder.requires_grad_(False).to(base.dtype)

    def step(self) -> None:
        """Take one optimiser step."""
        trainer = self.trainer
        base, accelerator, schedule = trainer.base, trainer.accelerator, trainer.base.schedule
        rows, _ = trainer.stream.rows(self.taken, 0)
        self.taken += 1
        x, prompt, nothing = self.encoded(rows)
        condition = trainer.cache.rows(rows).conditions.to(base.device, memory_format=torch.channels_last).float() / 255
        k = torch.randint(1, DDIM_STEPS + 1, (len(rows),), device=base.device)
        t, s = k / DDIM_STEPS, ((k - 1) / DDIM_STEPS).clamp(min=schedule.least)
        eps = torch.randn_like(x)
        z_t = schedule.add_noise(x, eps, t)
        scale = torch.empty((len(rows), 1, 1, 1), device=base.device).uniform_(*GUIDANCE)

        def predicted(net: nn.Module, z: Tensor, at: Tensor, words: Prompt) -> tuple[Tensor, Tensor]:
            output = peers.step(net, base.unet, z, schedule.model_time(at), words["context"], condition)
            return schedule.convert(output.float(), z, at)

        def consistent(x_hat: Tensor, z: Tensor, at: Tensor) -> Tensor:
            c_skip, c_out = (c.view(-1, 1, 1, 1) for c in boundary(schedule.model_time(at)))
            return c_skip * z + c_out * x_hat

        with accelerator.autocast(), attention(x, accelerator.mixed_precision):
            found = consistent(predicted(trainer.student.encoder, z_t, t, prompt)[0], z_t, t)
            with torch.no_grad():
                with_text, without = (predicted(self.teacher, z_t, t, words) for words in (prompt, nothing))
                x_hat, eps_hat = (a + scale * (a - b) for a, b in zip(with_text, without, strict=True))
                z_s = schedule.add_noise(x_hat, eps_hat, s)
                wanted = consistent(predicted(trainer.ema.encoder, z_s, s, prompt)[0], z_s, s)
            loss = nn.functional.mse_loss(found, wanted)
        accelerator.backward(loss)
        nn.utils.clip_grad_norm_(trainer.student.parameters(), CLIP)
        trainer.optimiser.step()
        trainer.optimiser.zero_grad()
        update_ema(trainer.ema, trainer.student, trainer.settings.ema)
        loss.item()

    @torch.no_grad()
    def encoded(self, rows: Tensor) -> tuple[Tensor, Prompt, Prompt]:
        """Return latents, and the embeddings of the prompts and of the empty prompt."""
        trainer, base = self.trainer, self.trainer.base
        prompt, nothing = trainer.prompts.rows(trainer.cache.rows(rows).prompts), base.embed([""] * len(rows))
        if self.images is None:
            x = trainer.cache.rows(rows).x.to(base.device).float()
        else:
            x = base.encode(self.images[rows].float() / 255)
            prompt = base.embed_texts(trainer.cache.rows(rows).prompts)
        return x.to(memory_format=torch.channels_last), prompt, nothing


def _evaluations(trainer: Trainer, works: dict[str, Callable[[], object]]) -> None:
    """Exit unless a step of CoDi is two evaluations of the network, and one of the example four."""
    seen: list[bool] = []
    watched = trainer.base.unet.conv_out.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    for which, work in works.items():
        seen.clear()
        work()
        if (len(seen), sum(seen)) != ((2, 1) if which == "ours" else (4, 1)):
            raise SystemExit(f"a step of {which}: {len(seen)} evaluations, {sum(seen)} of them with gradients")
    watched.remove()
