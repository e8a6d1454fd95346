"""Colorization: the condition is a picture's brightness, which the output keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from codi_hub.images.filters import luma, to_uint8
from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels


class Colorize(Task):
    """Gives grey pictures colours. Of a picture that has some, only the brightness counts."""

    name = "colorize"
    summary = "Colours for grey pictures, their brightness kept"
    finishes_tiles = True
    condition_channels = 1
    data = "scenes+leaves"
    reads_pairs = False
    distill: ClassVar[dict[str, Any]] = {"count": 4000, "lr": 6e-4}

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """`image` and its brightness."""
        image = needed(example, "image", self.name)
        return Pair(image, _grey(image), "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        grey = _grey(pixels(image))
        return Prepared(grey, (grey.shape[1], grey.shape[0]))

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """The output's colour differences on the input's BT.601 luma Y: Y + s (output - luma(output)).

        s <= 1 is the most that keeps a pixel within [0, 1]: colours that do not fit are made paler, so that luma stays
        the input's, but for the rounding of the three channels (half a level at most).
        """
        y = prepared.condition
        chroma = output - luma(output)[..., None]
        room = np.where(chroma > 0, 1 - y, y)
        fits = np.minimum(1.0, room / np.maximum(np.abs(chroma), 1e-6)).min(-1, keepdims=True)
        return to_uint8(y + fits * chroma)


def _grey(image: np.ndarray) -> np.ndarray:
    """BT.601 luma of a uint8 (H, W, 3) picture, rounded: uint8 (H, W, 1)."""
    return (luma(image) + 0.5).astype(np.uint8)[..., None]
