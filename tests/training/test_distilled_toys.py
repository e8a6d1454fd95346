"""A toy learns its condition with the loss of PE-CoDi: x is a linear function of the condition's colour."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import sd3, sdxl
from torch import Tensor, nn

from codi_hub import adapters, backbones
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.backbone import Backbone
from codi_hub.diffusion.samplers import ddim
from codi_hub.diffusion.schedule import Denoiser
from codi_hub.losses.codi import codi_loss, latent_l2
from codi_hub.training.networks import update_ema

SIDE, POINTS = 16, 8  # pixels of an image; times of the learning grid
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
MODELS: dict[str, Callable[[Path], Path]] = {
    "sdxl": lambda folder: sdxl(folder, widths=(32, 32), **ZERO_SNR),
    "sd3": sd3,
}


class Toy:
    """A base that is trained a little without conditions, and pairs.

    Its autoencoder is scaled so that the latents of conditions have unit variance.
    """

    def __init__(self, base: Backbone) -> None:
        self.base, self.schedule = base, base.schedule_for(SIDE, SIDE)
        self.prompt = base.embed([""])
        base.vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
        with torch.no_grad():
            latents = base.encode(self.pairs(64, 3)[0])
        base.vae.register_to_config(scaling_factor=1 / float(latents.std()), shift_factor=float(latents.mean()))

    def pairs(self, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return conditions of one colour each, x of unit variance, and noise."""
        generator, latents = torch.Generator().manual_seed(seed), self.base.latents
        colours = torch.rand(count, 3, 1, 1, generator=generator)
        mixing = torch.randn(latents.channels, 3, generator=torch.Generator().manual_seed(9))
        x = torch.einsum("kc,bchw->bkhw", mixing, 2 * (colours - 0.5)).expand(-1, -1, *latents.size(SIDE, SIDE))
        return colours.expand(-1, -1, SIDE, SIDE), x, torch.randn(x.shape, generator=generator)

    def denoiser(self, adapter: Adapter | None, condition: Tensor) -> Denoiser:
        """Return an adapter, or the base alone, with a condition bound."""
        base, prompt = self.base, self.prompt.rows([0] * len(condition))
        if adapter is None:
            return self.schedule.denoiser(lambda z_t, t: base.predict(z_t, t, prompt))
        prepared = adapter.prepare(base, condition, prompt)
        return self.schedule.denoiser(lambda z_t, t: adapter.predict(base, z_t, t, prompt, prepared))

    def pretrain(self, steps: int) -> None:
        """Train the base to denoise x without its condition."""
        network, schedule = self.base.network.requires_grad_(True), self.schedule
        prompt = self.prompt.rows([0] * 16)

        def loss(step: int) -> Tensor:
            _, x, eps = self.pairs(16, 10_000 + step)
            t = schedule.time_of(torch.rand(16, generator=torch.Generator().manual_seed(step)))
            z_t = schedule.add_noise(x, eps, t)
            predicted = self.base.predict(z_t, t, prompt, network=network)
            return (predicted - schedule.prediction(x, eps, t)).square().mean()

        optimise([{"params": list(network.parameters()), "lr": 5e-3}], loss, steps)
        network.requires_grad_(False)

    def train(self, adapter: Adapter, steps: int, lr: float) -> Adapter:
        """Distil an adapter with the loss of PE-CoDi; return the moving average."""
        ema, grid = copy.deepcopy(adapter).requires_grad_(False), self.schedule.learning_grid(POINTS).float()

        def loss(step: int) -> Tensor:
            if step:
                update_ema(ema, adapter, min(0.95, step / (9 + step)))
            condition, x, eps = self.pairs(8, step)
            k = int(torch.randint(1, POINTS, (1,), generator=torch.Generator().manual_seed(step)))
            times = grid[k].expand(8), grid[k - 1].expand(8)
            with torch.no_grad():
                target = self.denoiser(ema, condition)
            student = self.denoiser(adapter, condition)
            return torch.stack(
                [*codi_loss(student, target, x, eps, times, self.schedule, guidance=latent_l2).values()]
            ).sum()

        optimise(adapter.parameter_groups(lr), loss, steps)
        return ema

    @torch.no_grad()
    def error(self, adapter: Adapter | None, *, another: bool = False) -> float:
        """Return the mean square error of four steps; with `another`, of another pair's condition."""
        condition, x, eps = self.pairs(8, 77_777)
        denoise = self.denoiser(adapter, condition.roll(1, 0) if another else condition)
        return float((ddim(denoise, eps, self.schedule.grid(4), self.schedule) - x).square().mean())


def optimise(groups: list[dict[str, Any]], loss: Callable[[int], Tensor], steps: int) -> None:
    """Take optimiser steps with a short rise of the learning rate and a fall to zero in the second half."""
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    rates = [group["lr"] for group in optimiser.param_groups]
    for step in range(steps):
        optimiser.zero_grad()
        loss(step).backward()
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            nn.utils.clip_grad_norm_(group["params"], 1.0)
            group["lr"] = rate * min(1, (step + 1) / 20, 2 * (1 - step / steps))
        optimiser.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "steps", "lr"),
    [
        ("sdxl", "control", 130, 5e-3),
        ("sdxl", "concat", 320, 2e-3),
        ("sd3", "control", 130, 1e-2),
        ("sd3", "concat", 130, 2e-3),
    ],
)
def test_a_toy_learns_its_condition_in_four_steps(
    tmp_path: Path, family: str, kind: str, steps: int, lr: float
) -> None:
    torch.manual_seed(0)
    toy = Toy(backbones.load(str(MODELS[family](tmp_path))))
    toy.pretrain(130)
    adapter = toy.train(adapters.build(kind, toy.base), steps, lr)
    alone, followed, misled = toy.error(None), toy.error(adapter), toy.error(adapter, another=True)
    assert followed < alone / 2
    assert misled > 2 * followed
