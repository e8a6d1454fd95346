"""Edges to image: the condition is a map of edges, the prompt says what is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from codi_hub.images.filters import luma
from codi_hub.images.metrics import blur, correlation, gradient_magnitude, luminance
from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels


class Canny(Task):
    """From a photograph's edges by Canny's detector, or with `edges` from edge maps, white on black."""

    name = "canny"
    summary = "Pictures from edges and a prompt"
    finishes_tiles = True
    condition_channels = 1
    data = "scenes"
    uses_prompt = True
    score = "adherence"
    distill: ClassVar[dict[str, Any]] = {"count": 2500, "lr": 6e-4, "kind": "control"}  # it reads the prompt

    class Options(Task.Options):
        edges: bool = False
        """The inputs are edge maps already, white on black."""
        low: float = Field(0.1, ge=0, le=1)
        """Weakest change of brightness that goes on an edge; training varies both thresholds up to twofold."""
        high: float = Field(0.2, ge=0, le=1)
        """Weakest change of brightness that begins an edge."""
        sigma: float = Field(1.0, ge=0, le=16)
        """Smoothing before edges are looked for: sigma of a Gaussian in pixels."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low > self.high:
                raise ValueError(f"option 'low' ({self.low}) must not be above 'high' ({self.high})")
            return self

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """The edges of `image`, or the example's own `condition`; the prompt is its `caption`."""
        image = needed(example, "image", self.name)
        factor = 2 ** rng.uniform(-1, 1)
        if example.get("condition") is not None:
            edges = luma(pixels(example["condition"])).astype(np.uint8)
        else:
            edges = self._edges(image, factor)
        return Pair(image, edges[..., None], example.get("caption") or "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        picture = pixels(image)
        edges = luma(picture).round().astype(np.uint8) if self.options.edges else self._edges(picture)
        return Prepared(edges[..., None], (edges.shape[1], edges.shape[0]))

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None:
        """Whether the output changes where the edges are: a correlation in [-1, 1]. None for a map without edges.

        Both are smoothed by 2 px, so that an edge a pixel off still counts.
        """
        if np.ptp(condition) == 0:
            return None
        changes = np.sqrt(gradient_magnitude(blur(luminance(output), 1.0)))
        return correlation(blur(changes, 2.0), blur(condition[..., 0], 2.0))

    def _edges(self, image: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """Edges of a uint8 (H, W, 3) picture as 255, uint8 (H, W); `factor` on both thresholds."""
        from skimage.feature import canny

        low, high = (min(1.0, threshold * factor) for threshold in (self.options.low, self.options.high))
        found = canny(luma(image) / 255, self.options.sigma, low, high)
        return np.where(found, np.uint8(255), np.uint8(0))
