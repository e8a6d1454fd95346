"""Pairs: whatever turns the first picture of each pair of a folder into the second, learnt from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels


class Pairs(Task):
    """A task without code: `codi task add NAME --like pairs --data FOLDER`."""

    name = "pairs"
    summary = "Any picture to any picture, as a folder of pairs shows"
    finishes_tiles = True
    data = None
    uses_prompt = True

    class Options(Task.Options):
        crop: bool = False
        """Train on pieces at full resolution, as restoring wants, instead of whole pictures made smaller."""

    @property
    def whole_pictures(self) -> bool:
        return not self.options.crop

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """The example's `condition` and `image`, and its `caption` if there is one."""
        target, condition = needed(example, "image", self.name), needed(example, "condition", self.name)
        return Pair(target, pixels(condition), example.get("caption") or "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """The picture itself is the condition."""
        condition = pixels(image)
        return Prepared(condition, (condition.shape[1], condition.shape[0]))
