"""Edges to image: the condition is an edge map, the prompt describes the content."""

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
    """Edges of a photograph by Canny's detector, or with `edges` edge maps, white on black."""

    name = "canny"
    summary = "Image from edges and a prompt"
    finishes_tiles = True
    condition_channels = 1
    data = "scenes"
    uses_prompt = True
    score = "adherence"
    distill: ClassVar[dict[str, Any]] = {"count": 2500, "lr": 6e-4, "kind": "control"}  # a kind that uses the prompt

    class Options(Task.Options):
        edges: bool = False
        """Inputs are edge maps, white on black."""
        low: float = Field(0.1, ge=0, le=1)
        """Lower threshold of Canny's detector, of 1; training varies both by a factor of up to 2."""
        high: float = Field(0.2, ge=0, le=1)
        """Upper threshold of Canny's detector, of 1."""
        sigma: float = Field(1.0, ge=0, le=16)
        """Blur before edge detection: sigma of a Gaussian in px."""

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low > self.high:
                raise ValueError(f"option 'low' ({self.low}) must not be above 'high' ({self.high})")
            return self

    @property
    def size_is_free(self) -> bool:
        return True

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Detect the edges of `image`, or use the example's own `condition`; the prompt is its `caption`."""
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
        rgb = pixels(image)
        edges = luma(rgb).round().astype(np.uint8) if self.options.edges else self._edges(rgb)
        return Prepared(edges[..., None], (edges.shape[1], edges.shape[0]))

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None:
        """Return the correlation, in [-1, 1], of the output's gradients with the edges. None for a map without edges.

        Both are blurred by 2 px, so that an edge 1 px off still counts.
        """
        if np.ptp(condition) == 0:
            return None
        changes = np.sqrt(gradient_magnitude(blur(luminance(output), 1.0)))
        return correlation(blur(changes, 2.0), blur(condition[..., 0], 2.0))

    def _edges(self, image: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """Detect the edges of a uint8 (H, W, 3) image: uint8 (H, W), 0 or 255. `factor` scales both thresholds."""
        from skimage.feature import canny

        low, high = (min(1.0, threshold * factor) for threshold in (self.options.low, self.options.high))
        edges = canny(luma(image) / 255, self.options.sigma, low, high)
        return np.where(edges, np.uint8(255), np.uint8(0))
