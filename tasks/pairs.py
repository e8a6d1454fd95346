"""Image to image from a folder of pairs: the task is defined by the training data alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from codi_hub.tasks.base import Pair, Task, needed, pixels


class Pairs(Task):
    """A task without code: register a variant with the option `data`."""

    name = "pairs"
    summary = "Any image to any image, by a folder of pairs"
    finishes_tiles = True
    data = None
    uses_prompt = True

    class Options(Task.Options):
        crop: bool = False
        """Train on crops at full resolution, as for restoration, instead of whole images resized."""

    @property
    def whole_images(self) -> bool:
        return not self.options.crop

    @property
    def size_is_free(self) -> bool:
        return self.whole_images

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Return the example's `condition`, `image` and, if it has one, `caption`."""
        target, condition = needed(example, "image", self.name), needed(example, "condition", self.name)
        return Pair(target, pixels(condition), example.get("caption") or "")
