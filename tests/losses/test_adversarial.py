"""The adversarial term: who is moved by what, what it learns, and that nothing changes without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from training import Make, equal, weights

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import UsageError
from codi_hub.losses import METHODS
from codi_hub.losses.adversarial import Discriminator, encoder_features, hinge_terms
from codi_hub.losses.codi import CoDiConfig, PECoDi
from codi_hub.training import checkpoint

ROWS = 4


def draw(base: Backbone, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """(x, x_hat, (u, eps)): data with fine detail, and a prediction that has none."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, ROWS, base.latents.channels, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 4), scale_factor=4)
    return x, smooth, (0.3 * torch.rand(ROWS, generator=generator), eps)


def test_neither_side_is_moved_by_the_others_loss(base: UNetBackbone) -> None:
    discriminator = Discriminator(base)
    x, x_hat, noise = draw(base)
    x_hat.requires_grad_(True)
    student, heads = hinge_terms(discriminator, base, base.embed([""] * ROWS), x, x_hat, noise)
    student.backward()
    assert x_hat.grad is not None
    assert x_hat.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in discriminator.parameters())
    x_hat.grad = None
    heads.backward()
    assert x_hat.grad is None
    assert all(weight.grad is not None for weight in discriminator.parameters())
    assert all(weight.grad is None for weight in base.parameters())


def test_values_are_those_of_the_formula(base: UNetBackbone) -> None:
    discriminator, prompt = Discriminator(base), base.embed([""] * ROWS)
    x, x_hat, (u, eps) = draw(base)
    t = base.schedule.time_of(u).float()
    with torch.no_grad():
        logits = [
            discriminator(encoder_features(base, base.schedule.add_noise(latents, eps, t), t, prompt))
            for latents in (x, x_hat)
        ]
        student, heads = hinge_terms(discriminator, base, prompt, x, x_hat, (u, eps))
    real, fake = ([float((sign * m).mean()) for m in maps] for sign, maps in zip((1, -1), logits, strict=True))
    assert len(real) == len(base.unet.config.block_out_channels)
    assert float(student) == pytest.approx(sum(fake) / len(fake), abs=1e-6)
    hinges = [[float((1 - sign * m).relu().mean()) for m in maps] for sign, maps in zip((1, -1), logits, strict=True)]
    assert float(heads) == pytest.approx(sum(sum(side) / len(side) for side in hinges), abs=1e-5)


def test_it_learns_to_tell_data_and_asks_for_detail(base: UNetBackbone) -> None:
    discriminator, prompt = Discriminator(base), base.embed([""] * ROWS)
    optimiser = torch.optim.AdamW(discriminator.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        x, x_hat, noise = draw(base, step)
        _, heads = hinge_terms(discriminator, base, prompt, x, x_hat, noise)
        optimiser.zero_grad()
        heads.backward()
        optimiser.step()
        losses.append(heads.item())
    assert losses[0] == pytest.approx(2, abs=0.7)  # of logits about 0
    assert sum(losses[-10:]) / 10 < 0.8 * sum(losses[:10]) / 10
    x, x_hat, noise = draw(base, 99)
    of_smooth, of_data = (hinge_terms(discriminator, base, prompt, x, one, noise)[0] for one in (x_hat, x))
    assert of_smooth > of_data + 0.3


def test_without_it_nothing_is_kept_and_nothing_else_is_drawn(make: Make, tmp_path: Path) -> None:
    """The student beside heads whose weight is too small to count goes where it goes alone: no stream is shared."""

    def trained(**loss: Any) -> tuple[dict[str, torch.Tensor], set[str], dict[str, float]]:
        trainer = make(kind="control", loss=loss)
        terms = [trainer.train_step() for _ in range(3)][-1]
        trainer.save()
        with safe_open(tmp_path / checkpoint.NAME, "pt") as file:
            parts = {name.split("/")[0] for name in file.keys()}  # noqa: SIM118 - not a mapping
        return weights(trainer), parts, terms

    alone, parts, terms = trained()
    assert parts == {"student", "target", "optimiser"}
    assert terms.keys() == {"guidance", "consistency"}
    assert equal(trained(adversarial=0.0)[0], alone)
    beside, parts, terms = trained(adversarial=1e-30)
    assert parts == {"student", "target", "optimiser", "companion"}
    assert terms.keys() == {"guidance", "consistency", "adversarial", "discriminator"}
    assert all(torch.allclose(beside[name], value, rtol=0, atol=1e-9) for name, value in alone.items())
    moved, _, _ = trained(adversarial=1.0)
    assert not all(torch.allclose(moved[name], value, rtol=0, atol=1e-9) for name, value in alone.items())


def test_it_is_refused_where_it_makes_no_sense(family_base: Callable[[str], Backbone]) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UsageError, match=r"loss\.guidance is off: nothing would keep the condition"):
        PECoDi(CoDiConfig(adversarial=0.1, guidance="off"), cpu)
    with pytest.raises(UsageError, match=r"loss\.adversarial: a base of family sd3 has no encoder half .* U-Net base"):
        PECoDi(CoDiConfig(adversarial=0.1), cpu).companion(family_base("sd3"))
    for name in ("conditional", "cm", "gd"):
        assert "adversarial" not in METHODS.load(name).Config.model_fields
    assert PECoDi(CoDiConfig(adversarial=0.1), cpu).weights() == {
        "guidance": 1.0,
        "consistency": 1.0,
        "adversarial": 0.1,
    }
