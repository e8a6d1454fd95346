"""Colorization: the condition is the luma of an image, which the output keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from codi_hub.images.filters import luma
from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels


class Colorize(Task):
    """Colours for grey images. Of a colour image only the luma is used."""

    name = "colorize"
    summary = "Colourise grey images and keep their luma"
    finishes_tiles = True
    condition_channels = 1
    data = "scenes+leaves"
    reads_pairs = False
    distill: ClassVar[dict[str, Any]] = {"count": 4000, "lr": 6e-4}

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Return `image` and its luma."""
        image = needed(example, "image", self.name)
        return Pair(image, _grey(image), "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        grey = _grey(pixels(image))
        return Prepared(grey, (grey.shape[1], grey.shape[0]))

    def finish_values(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Combine the output's chroma with the input's BT.601 luma Y: Y + s (output - luma(output)).

        s <= 1 is the largest factor that keeps a pixel within [0, 1]: out-of-gamut colours are desaturated, so that the
        luma is the input's up to the rounding of the three channels (half a level at most).
        """
        y = prepared.condition
        chroma = output - luma(output)[..., None]
        room = np.where(chroma > 0, 1 - y, y)
        fits = np.minimum(1.0, room / np.maximum(np.abs(chroma), 1e-6)).min(-1, keepdims=True)
        return y + fits * chroma


def _grey(image: np.ndarray) -> np.ndarray:
    """Return the rounded BT.601 luma of a uint8 (H, W, 3) image: uint8 (H, W, 1)."""
    return (luma(image) + 0.5).astype(np.uint8)[..., None]
