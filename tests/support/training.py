"""Trainers on ten small pairs, and ways to compare them."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from codi_hub import adapters
from codi_hub.backbones.backbone import Backbone
from codi_hub.config.distill import TrainingConfig
from codi_hub.events import Event
from codi_hub.losses import METHODS
from codi_hub.training.latents import Cache, Pairs
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

    def __init__(self, base: Backbone, folder: Path):
        self.base, self.folder = base, folder
        self.cache: Pairs = pairs()

    def __call__(
        self,
        *,
        method: str = "pe-codi",
        kind: str = "",
        adapter: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        mixed_precision: str = "no",
        **settings: Any,
    ) -> Trainer:
        """Return a trainer.

        Args:
            method: a name in `METHODS`.
            kind: adapter kind (default: the method's).
            adapter, loss: fields of the kind's and the method's `Config`.
            mixed_precision: accelerate's.
            settings: fields of `TrainingConfig`.
        """
        torch.manual_seed(0)
        cls = METHODS.load(method)
        accelerator = Accelerator(
            cpu=True,
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=settings.get("accumulate", 1),
        )
        return Trainer(
            self.base,
            adapters.build(kind or cls.default_kind, self.base, **(adapter or {})),
            self.cache,
            cls(cls.Config(**(loss or {})), self.base.device),
            TrainingConfig(**{"train_steps": 6, "batch": 2, "checkpoint_every": 1000} | settings),
            accelerator,
            self.folder,
        )


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return copies of the student's and the moving average's tensors."""
    modules = {"student": trainer.student, "target": trainer.ema}
    return {f"{kind}/{k}": v.clone() for kind, module in modules.items() for k, v in module.state_dict().items()}


def state(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's tensors."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_gradient(name: str) -> bool:
    """Whether a tensor has none by construction: a bias of all keys shifts all of a softmax's scores alike."""
    return name.endswith("add_embedding.pool.k_proj.bias")


def quiet(event: Event) -> None:
    """Ignore an event."""
