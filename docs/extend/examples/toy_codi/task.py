"""A task: brighten images that are too dark."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from codi_hub.tasks import Pair, Prepared, Task
from codi_hub.tasks.base import needed, pixels


class Brighten(Task):
    """Dark images to images of normal exposure."""

    name = "brighten"
    summary = "Brighten images that are too dark"
    data = "leaves"  # trains on synthetic images unless --data is given
    finishes_tiles = True  # `finish` works pixel by pixel, so large images can be tiled

    class Options(Task.Options):
        gamma: float = Field(2.0, gt=1, le=4)
        """Exponent that darkens the training images."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Darken `image` by the gamma curve."""
        target = needed(example, "image", self.name)
        dark = 255 * (target / 255) ** self.options.gamma
        return Pair(target, np.rint(dark).astype(np.uint8), "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """Use the image itself as the condition, uint8 (H, W, 3)."""
        condition = pixels(image)
        return Prepared(condition, (condition.shape[1], condition.shape[0]))

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float:
        """Return how well the output, darkened again, agrees with the condition; 1 is best."""
        return 1 - float(np.abs(output**self.options.gamma - condition).mean())
