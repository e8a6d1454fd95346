"""Requests for images, grouped into batches: the request interface of the engine on top of its one-batch call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from codi_hub.adapters.full import FullAdapter
from codi_hub.adapters.mixed import MixedBatch
from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import UsageError
from codi_hub.inference import engine as one_batch
from codi_hub.inference.tiling import Window

AUTO_PIXELS = {"cpu": 1 << 20, "mps": 2 << 20, "cuda": 16 << 20}  # output pixels of an automatic batch


@dataclass(frozen=True, eq=False)
class Request:
    """One image to generate.

    Attributes:
        condition: float32 (H, W, C) in [0, 1], of any size.
        adapter: the adapter that takes it.
        prompt: text, may be empty.
        seed: the image's noise depends on it and on the image's size alone.
        strength: scale in [0, 1] of what the adapter adds.
        window: of a tile, its place in the whole image.
    """

    condition: np.ndarray
    adapter: Any
    prompt: str = ""
    seed: int = 0
    strength: float = 1.0
    window: Window | None = None

    @property
    def group(self) -> tuple[Any, ...]:
        """Return a key that is equal for requests that can share a batch."""
        shared = not isinstance(self.adapter, FullAdapter) and getattr(self.adapter, "start", 1.0) == 1
        return (*self.condition.shape[:2], None if shared else self.adapter)


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    Attributes:
        steps: network evaluations per image.
        sampler: "ddim", "renoise" or "dpmpp".
        temperature: scale of the noise.
    """

    steps: int = 4
    sampler: str = "ddim"
    temperature: float = 1.0


@dataclass(frozen=True)
class Generated:
    """Images in the order of their requests, float32 (H, W, 3) in [0, 1], and the sizes of the batches computed."""

    images: list[np.ndarray]
    batches: list[int]


class Engine:
    """Runs adapters on one loaded base.

    Args:
        base: the base.
        compile: compile the networks at the first images.
        on_message: gets lines for people.
    """

    def __init__(
        self, base: FrozenBase, *, compile: bool = False, on_message: Callable[[str], object] = lambda text: None
    ) -> None:
        self.base = base
        self._engine = one_batch.Engine(base, compile=compile, say=on_message)
        self._limits: dict[tuple[int, ...], int] = {}  # largest batch that fits into the memory, by the images' size

    def auto_batch(self, height: int, width: int) -> int:
        """Return how many images of a size in pixels one batch holds if no batch size is set."""
        pixels = AUTO_PIXELS.get(self.base.device.type, AUTO_PIXELS["cpu"])
        count = max(1, pixels // max(1, height * width))
        return min(count, self._limits.get((height, width), count))

    def generate(
        self, requests: Sequence[Request], sampling: Sampling = Sampling(), *, batch: int | None = None
    ) -> Generated:
        """Generate one image per request; requests of one size share batches, whatever their adapters.

        Args:
            batch: largest batch; None: `auto_batch`. A batch that does not fit into the memory is halved and repeated.

        Raises:
            UsageError: a strength other than 1.
            MemoryError: a single image does not fit.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for k, request in enumerate(requests):
            if request.strength != 1:
                raise UsageError(f"strength {request.strength}: only 1 is supported")
            groups.setdefault(request.group, []).append(k)
        images: dict[int, np.ndarray] = {}
        sizes: list[int] = []
        for (height, width, _), rows in groups.items():
            while rows:
                part = rows[: batch or self.auto_batch(height, width)]
                outputs = self._halving([requests[k] for k in part], sampling)
                images.update(zip(part, outputs, strict=False))
                sizes.append(len(outputs))
                rows = rows[len(outputs) :]
        return Generated([images[k] for k in range(len(requests))], sizes)

    def _halving(self, requests: Sequence[Request], sampling: Sampling) -> list[np.ndarray]:
        """Generate as many of the first requests as fit into the memory: all, half of them, and so on."""
        while True:
            try:
                return self._batch(requests, sampling)
            except (MemoryError, torch.OutOfMemoryError):
                if len(requests) == 1:
                    raise
            requests = requests[: len(requests) // 2]
            self._limits[requests[0].condition.shape[:2]] = len(requests)

    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> list[np.ndarray]:
        adapters = [request.adapter for request in requests]
        windows = [request.window for request in requests if request.window is not None]
        return self._engine.generate(
            adapters[0] if len(set(adapters)) == 1 else MixedBatch(adapters),
            [request.condition for request in requests],
            [request.prompt for request in requests],
            [request.seed for request in requests],
            steps=sampling.steps,
            sampler=sampling.sampler,
            temperature=sampling.temperature,
            windows=windows or None,
        )
