"""Measure whether adapters keep a few-step base few-step: `python -m recipes.fast_base`.

A small U-Net is trained on smooth random colour fields, then distilled to 4 steps (progressive distillation), without
any condition. On that base an adapter is trained by PE-CoDi on the base's own grid, and another by plain conditional
fine-tuning: on pairs whose condition determines the latents, and on pairs whose gray condition leaves the colours open.
All are measured at several numbers of steps.

Two errors against the target latents x under their condition c are printed. The squared error alone hides a loss of
speed: few steps of an undistilled model are blurred, and a mean is nearer to x than a sample is. The energy distance
(Szekely & Rizzo, 2013) between the pairs (output, c) and (x, c) is 0 for equal distributions only, so that it sees
blur and a wrong condition alike.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import codi_hub
from codi_hub import adapters, backbones
from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.base_only import BaseOnly
from codi_hub.backbones.parts import Parts
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.config.base import BaseOptions
from codi_hub.config.distill import TrainingConfig
from codi_hub.diffusion.samplers import sample
from codi_hub.diffusion.schedule import CLEAN, Denoiser
from codi_hub.losses import METHODS
from codi_hub.losses.conditional import conditional_loss
from codi_hub.losses.progressive import PHASES, gd_loss, teacher_steps
from codi_hub.training.latents import Cache
from codi_hub.training.trainer import Trainer, update_ema

NANO = Path(codi_hub.__file__).with_name("nano") / "base"
FAST = 4  # steps that the base is distilled to
STEPS = (1, 2, 4, 8, 50)
BATCH = 16
HELD_OUT = 192
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, x, eps) -> loss of a batch."""


@dataclass(frozen=True)
class Budget:
    """Optimiser steps: of the base, of each of its three distillations, of an adapter."""

    base: int = 800
    phase: int = 200
    adapter: int = 200


def pairs(count: int, seed: int, *, gray: bool = False) -> Cache:
    """Return smooth colour fields: conditions (N, 3, 32, 32), and x (N, 12, 8, 8), their pixels at half the size.

    A gray condition leaves the colours open.
    """
    coarse = torch.rand((count, 3, 3, 3), generator=torch.Generator().manual_seed(seed))
    images = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=True)
    conditions = (255 * images).round().to(torch.uint8)
    small = 4 * (nn.functional.avg_pool2d(conditions.float() / 255, 2) - 0.5)
    if gray:
        conditions = conditions.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return Cache(nn.functional.pixel_unshuffle(small, 2).half(), conditions, [""] * count)


def new_base(nano: Any) -> UNetBackbone:
    """Return a base with a small random U-Net, and nano's other parts and schedule."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=nano.latents.channels,
        out_channels=nano.latents.channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=nano.unet.config.cross_attention_dim,
    )
    parts = {"vae": nano.vae, "text_encoder": nano.text_encoders[0], "tokenizer": nano.tokenizers[0], "unet": unet}
    scheduler = backbones.locate(BaseOptions(source=str(NANO))).files.configs["scheduler"]
    return UNetBackbone(Parts(parts, scheduler))


def train_base(base: UNetBackbone, budget: Budget) -> None:
    """Train the base's network as a diffusion model, then distil it to `FAST` steps."""
    schedule, prompt = base.schedule, base.embed([""])
    x_all, generator = pairs(2048, 1).x.float(), torch.Generator().manual_seed(0)

    def denoiser(network: nn.Module) -> Denoiser:
        return schedule.denoiser(lambda z_t, t: base.predict(z_t, t, prompt.rows([0] * len(z_t)), network=network))

    def diffusion(network: nn.Module, x: Tensor, eps: Tensor) -> Tensor:
        u = torch.rand(len(x), generator=generator, dtype=torch.float64)
        return conditional_loss(denoiser(network), x, eps, schedule.time_of(u).float(), schedule)["diffusion"]

    network = _trained(base.unet, diffusion, budget.base, 2e-3, x_all, generator)
    for phase in range(PHASES):
        teacher, steps = network, teacher_steps(phase)
        times = torch.tensor([*schedule.grid(steps), CLEAN])

        def progressive(student: nn.Module, x: Tensor, eps: Tensor) -> Tensor:
            k = 2 * torch.randint(0, steps // 2, (len(x),), generator=generator)  # noqa: B023 - called in this turn
            t, middle, s = (times[k + ahead] for ahead in range(3))  # noqa: B023
            networks = denoiser(student), denoiser(teacher)  # noqa: B023
            return gd_loss(*networks, x, eps, t, middle, s, schedule)["progressive"]

        network = _trained(teacher, progressive, budget.phase, 1e-3, x_all, generator)
    base.unet.load_state_dict(network.state_dict())


def _trained(
    network: nn.Module, loss: Loss, count: int, lr: float, x_all: Tensor, generator: torch.Generator
) -> nn.Module:
    """Return the moving average of a copy of a network, trained with a short rise and a linear fall of the rate."""
    network = copy.deepcopy(network).requires_grad_(True)
    ema = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99))
    for step in range(count):
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20, (count - step) / (count / 2))
        x = x_all[torch.randint(0, len(x_all), (BATCH,), generator=generator)]
        loss(network, x, torch.randn(x.shape, generator=generator)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        update_ema(ema, network, min(0.99, (1 + step) / (10 + step)))
    return ema


def train_adapter(base: UNetBackbone, method: str, loss: dict[str, Any], steps: int, *, gray: bool) -> Adapter:
    """Return the moving average of an adapter of kind `control`, trained by the library's trainer."""
    torch.manual_seed(0)
    cls = METHODS.load(method)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            base,
            adapters.build("control", base),
            pairs(512, 2, gray=gray),
            cls(cls.Config(**loss), base.device),
            TrainingConfig(train_steps=steps, batch=BATCH, lr=1e-3, checkpoint_every=10**6),
            Accelerator(cpu=True),
            Path(folder),
        )
        trainer.run(lambda event: None)
    return trainer.ema


@torch.no_grad()
def errors(base: UNetBackbone, adapter: Adapter, *, gray: bool = False) -> dict[int, tuple[float, float]]:
    """Return (mean squared error, energy distance) on held-out pairs, by numbers of steps."""
    held_out = pairs(HELD_OUT, 3, gray=gray)
    x, condition = held_out.x.float(), held_out.conditions.float() / 255
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    prompt = base.embed([""] * len(x))
    prepared = adapter.prepare(base, condition, prompt)
    denoise = base.schedule.denoiser(lambda z_t, t: adapter.predict(base, z_t, t, prompt, prepared))
    c = nn.functional.avg_pool2d(condition, 4).flatten(1)
    found = {}
    for steps in STEPS:
        x_hat = sample(denoise, noise, base.schedule.grid(steps), base.schedule)
        joint = [torch.cat([latents.flatten(1), 4 * c], dim=1) for latents in (x_hat, x)]
        found[steps] = (x_hat - x).square().mean().item(), energy_distance(*joint)
    return found


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return 2 E|a - b'| - E|a - a'| - E|b - b'| of paired samples (N, D); a prime is another row's."""

    def mean(one: Tensor, other: Tensor) -> Tensor:
        distances = torch.cdist(one, other)
        return (distances.sum() - distances.trace()) / (len(one) * (len(one) - 1))

    return (2 * mean(a, b) - mean(a, a) - mean(b, b)).item()


def measure(budget: Budget = Budget()) -> dict[str, dict[int, tuple[float, float]]]:
    """Train the base and its adapters; return the errors of each."""
    base = new_base(backbones.load(str(NANO)))
    train_base(base, budget)
    rows = {"the base, without the condition": errors(base, BaseOnly(base))}
    for gray in (False, True):
        for method, loss in (("pe-codi", {"grid": FAST}), ("conditional", {})):
            adapter = train_adapter(base, method, loss, budget.adapter, gray=gray)
            rows[f"{method}, {'gray' if gray else 'colour'}"] = errors(base, adapter, gray=gray)
    return rows


def table(rows: dict[str, dict[int, tuple[float, float]]]) -> str:
    """Return the errors as Markdown, with those of 4 steps relative to those of 50."""
    heads = ["", "error", *(f"{steps} step{'s' * (steps > 1)}" for steps in STEPS), f"{FAST} / 50"]
    lines: list[Sequence[str]] = [heads, ["-", "-", *["-:"] * (len(STEPS) + 1)]]
    for name, found in rows.items():
        for k, error in enumerate(("squared", "energy distance")):
            values = [found[steps][k] for steps in STEPS]
            lines.append([name, error, *(f"{v:.3f}" for v in values), f"{found[FAST][k] / found[50][k]:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapter-steps", type=int, default=Budget.adapter, help="optimiser steps of an adapter")
    torch.set_num_threads(1)
    print(table(measure(Budget(adapter=parser.parse_args().adapter_steps))))
