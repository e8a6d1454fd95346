"""What the engine is asked for: an image's conditions, the adapters that take them, and their strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.mixed import MixedBatch
from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import UsageError
from codi_hub.inference.tiling import Window

ALONE = "brings its own network and takes no second condition: use adapters of kind control"
STARTS = "begins from its condition and takes no second one: use adapters with start 1"


@dataclass(frozen=True, eq=False)
class Request:
    """One image to generate.

    Attributes:
        condition: float32 (H, W, K) in [0, 1], of any size; of several adapters, the channels of all their conditions.
        adapter: the adapter that takes it, or its first channels.
        prompt: text, may be empty.
        seed: the image's noise depends on it and the image's size alone.
        strength: scale in [0, 1] of what the adapter adds; 0 is the base bit for bit.
        window: of a tile: its place in the whole image, `top` and `left` multiples of the base's `multiple`. A tile's
            noise is its part of the whole image's.
        negative_prompt: what guidance leads away from; None: the base's embedding of no prompt.
        also: further adapters, which take the channels that follow, each with its strength. What they add is summed.
    """

    condition: np.ndarray
    adapter: Adapter
    prompt: str = ""
    seed: int = 0
    strength: float = 1.0
    window: Window | None = None
    negative_prompt: str | None = None
    also: tuple[tuple[Adapter, float], ...] = ()

    @property
    def group(self) -> tuple[Any, ...]:
        """Equal for requests that can share a batch."""
        alone = None if self.adapter.adds_residuals else self.adapter
        return (*self.condition.shape[:2], self.adapter.start, alone)

    @property
    def adapters(self) -> tuple[tuple[Adapter, float], ...]:
        """All adapters, each with its strength."""
        return ((self.adapter, self.strength), *self.also)

    @property
    def conditions(self) -> list[np.ndarray]:
        """The condition of each adapter."""
        if not self.also:
            return [self.condition]
        ends = np.cumsum([adapter.settings.condition_channels for adapter, _ in self.adapters])
        return np.split(self.condition, ends[:-1], axis=2)


def check_adapters(request: Request) -> None:
    """Raise UsageError for a strength that an adapter lacks, or adapters that cannot share an image."""
    for adapter, strength in request.adapters:
        if not 0 <= strength <= 1:
            raise UsageError(f"strength {strength}: from 0 to 1")
        if strength != 1 and not adapter.scalable:
            raise UsageError(f"strength {strength}: an adapter of kind {adapter.kind} has no strength")
    for adapter, _ in request.adapters if request.also else ():
        if not adapter.adds_residuals:
            raise UsageError(f"an adapter of kind {adapter.kind} {ALONE}")
        if adapter.start != 1:
            raise UsageError(f"an adapter with start {adapter.start:g} {STARTS}")


def mixed_batch(requests: Sequence[Request]) -> MixedBatch:
    """Return the adapters of a batch, each of one condition of one row."""
    rows = [row for row, request in enumerate(requests) for _ in request.adapters]
    return MixedBatch([adapter for request in requests for adapter, _ in request.adapters], rows)


def strengths(requests: Sequence[Request], base: Backbone) -> Tensor | None:
    """Return the strengths of all conditions, (B,) where each row has one; None where all are 1."""
    values = [strength for request in requests for _, strength in request.adapters]
    if all(strength == 1 for strength in values):
        return None
    return torch.tensor(values, device=base.device, dtype=base.dtype)
