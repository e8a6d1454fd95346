"""A toy of FLUX.1 and Z-Image: its base learns small images, an adapter learns to follow its condition.

SD3 and SDXL are in test_distilled_toys.py.
"""

from collections.abc import Callable, Iterable

import pytest
import torch
from families import MODELS
from torch import Tensor, nn
from walks import walk

from codi_hub import adapters, backbones
from codi_hub.backbones.backbone import Backbone

SIDE, BATCH, HELD_OUT = 8, 16, 16
TEXT = "a red ball"
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module", params=["flux", "z-image"])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Tensor, Tensor]:
    """A base whose network was trained for 300 steps, images (N, 3, H, W), and their latents of unit variance."""
    base = backbones.load(str(MODELS[request.param](tmp_path_factory.mktemp(request.param))))
    for tokenizer in base.tokenizers:
        tokenizer.model_max_length = min(tokenizer.model_max_length, 32)
    small = torch.rand(256 + HELD_OUT, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    with torch.no_grad():
        latents, encode = base.encode(images), base.encode
    deviation, mean = torch.std_mean(latents, (0, 2, 3), keepdim=True)
    base.encode = lambda images: (encode(images) - mean) / deviation  # type: ignore[method-assign]
    x, prompt = (latents - mean) / deviation, base.embed([TEXT] * BATCH)
    network = base.network.requires_grad_(True)
    train(base, x, lambda z_t, t, rows: base.predict(z_t, t, prompt), network.parameters(), steps=300, lr=1e-2)
    network.requires_grad_(False)
    return base, images, x


def train(
    base: Backbone, x: Tensor, predict: Predict, parameters: Iterable[nn.Parameter], *, steps: int, lr: float
) -> None:
    """Train on all but the held-out latents with the diffusion loss."""
    generator, schedule = torch.Generator().manual_seed(1), base.schedule_for(SIDE, SIDE)
    optimiser = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.99), weight_decay=0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(HELD_OUT, len(x), (BATCH,), generator=generator)
        eps = torch.randn(x[rows].shape, generator=generator)
        t = schedule.time_of(torch.rand(BATCH, generator=generator))
        predicted = predict(schedule.add_noise(x[rows], eps, t), t, rows)
        (predicted - schedule.prediction(x[rows], eps, t)).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        rates.step()


@pytest.mark.slow
def test_a_toy_learns_its_condition(toy: tuple[Backbone, Tensor, Tensor]) -> None:
    base, images, x = toy
    torch.manual_seed(0)
    adapter = adapters.build(base.default_kind or "control", base)
    prompt = base.embed([TEXT] * BATCH)
    parameters = [value for value in adapter.parameters() if value.requires_grad]
    train(base, x, lambda z_t, t, rows: adapter(base, z_t, t, prompt, images[rows]), parameters, steps=300, lr=1e-2)
    adapter.eval()
    targets, own = x[:HELD_OUT], images[:HELD_OUT]
    noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(2))
    texts = [TEXT] * HELD_OUT

    def error(latents: Tensor) -> float:
        return (latents - targets).square().mean().item()

    alone = error(walk(base, texts, noise, 4))
    followed = error(walk(base, texts, noise, 4, adapter=adapter, condition=own))
    misled = error(walk(base, texts, noise, 4, adapter=adapter, condition=own.roll(1, 0)))
    assert followed < alone / 2
    assert misled > 2 * followed
