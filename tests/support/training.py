"""Trainers on ten small pairs, and ways to compare them."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from codi_hub import adapters
from codi_hub.backbones.unet import FrozenBase
from codi_hub.config.options import TAUGHT, DistillOptions
from codi_hub.training.latents import Cache
from codi_hub.training.trainer import Trainer

PAIRS = 10


def pairs() -> Cache:
    """Pairs in which the condition determines x: its small copy."""
    generator = torch.Generator().manual_seed(0)
    conditions = torch.randint(0, 256, (PAIRS, 3, 8, 8), generator=generator, dtype=torch.uint8)
    small = nn.functional.avg_pool2d(conditions.float() / 255 - 0.5, 2) * 7
    return Cache(
        torch.cat([small, small.mean(1, keepdim=True)], dim=1).half(),
        conditions,
        ["a red ball", ""] * (PAIRS // 2),
        torch.randint(0, 256, (PAIRS, 3, 8, 8), generator=generator, dtype=torch.uint8),
    )


class Make:
    """Makes trainers that begin alike."""

    def __init__(self, base: FrozenBase, folder: Path):
        self.base, self.cache, self.folder = base, pairs(), folder

    def __call__(
        self, *, fusion: str = "zero_conv", total: int = 6, mixed_precision: str = "no", **options: Any
    ) -> Trainer:
        torch.manual_seed(0)
        taught = {"parent": "depth:1", "kind": "control"} if options.get("method") in TAUGHT else {}
        settings = DistillOptions(**({"batch": 2, "checkpoint_every": 1000} | taught | options))
        adapter = adapters.build(settings.kind, self.base, fusion=fusion)
        accelerator = Accelerator(
            cpu=True, mixed_precision=mixed_precision, gradient_accumulation_steps=settings.accumulate
        )
        return Trainer(self.base, adapter, self.cache, settings, accelerator, total=total, folder=self.folder)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    modules = {"student": trainer.student, "target": trainer.target}
    return {f"{kind}/{k}": v.clone() for kind, module in modules.items() for k, v in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quiet(event: dict[str, Any]) -> None:
    """Nothing listens."""
