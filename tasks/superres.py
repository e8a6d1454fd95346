"""Super-resolution: the condition is the small input, enlarged to the output's size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from codi_hub.errors import InvalidInput
from codi_hub.images.filters import back_projected, resize, smooth, to_uint8, with_low_frequencies
from codi_hub.images.metrics import psnr
from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels
from codi_hub.tasks.degradation import degrade

MAX_PIXELS = 120_000_000  # of an output
MAX_PSNR = 100.0
SHARPEN_SIGMA = 0.5  # input pixels


class SuperRes(Task):
    """x2 or x4, for pictures that are small, soft, noisy or badly compressed."""

    name = "superres"
    summary = "Enlarge and restore small, degraded pictures"
    finishes_tiles = True
    data = "leaves"
    training_size = 0.75  # degradations are local: smaller pieces, more of them
    distill: ClassVar[dict[str, Any]] = {"count": 5000, "lr": 6e-4}

    class Options(Task.Options):
        scale: Literal[2, 4] = 4
        """How many times larger the output is."""
        both: bool = False
        """Half of the training pairs are of the other scale, so that one adapter serves both."""
        preset: Literal["light", "full"] = "light"
        """Degradation of the training pictures: light, or the whole of Real-ESRGAN's."""
        strength: float = Field(0.7, ge=0, le=1)
        """How much of what the network changes is taken: photographs have fine texture, and some of it looks like
        noise to what was trained on smoother pictures."""
        correct: bool = True
        """Put the input's low frequencies back into the output."""
        correct_sigma: float = Field(0.75, gt=0, le=16)
        """Where low ends: sigma of a Gaussian in the input's pixels."""
        project: float = Field(0.0, ge=0, le=1)
        """How much to put back of what else the output lost of the input, as far as noise does not explain it."""
        sharpen: float = Field(0.5, ge=0, le=2)
        """How much fine contrast, which a prediction between several possible pictures lacks, is given back."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Degrades `image`; an example that has a `condition` of its own, such as a real small picture, keeps that."""
        scale = self.options.scale
        if self.options.both and rng.random() < 0.5:
            scale = 6 - scale
        image = needed(example, "image", self.name)
        target = image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]
        height, width = target.shape[:2]
        if example.get("condition") is not None:
            return Pair(
                target, _enlarge(pixels(example["condition"]), image.shape[1], image.shape[0])[:height, :width], ""
            )
        small = degrade(target, scale, rng, self.options.preset)
        return Pair(target, _enlarge(small, width, height), "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """Raises InvalidInput where the output would have more than `MAX_PIXELS` pixels."""
        small = pixels(image)
        height, width = (self.options.scale * side for side in small.shape[:2])
        if width * height > MAX_PIXELS:
            raise InvalidInput(f"{width}x{height} pixels would come out, over the limit of {MAX_PIXELS}: cut the input")
        return Prepared(_enlarge(small, width, height), (width, height))

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """First condition + strength (output - condition).

        With `correct`, y = output + G (condition - output), G the Gaussian: colours and light stay the input's.

        With `project`, back-projection: averaged down, y is the input again, but for the input's noise. Last the
        unsharp mask y + sharpen (y - G y), its Gaussian half an input's pixel wide.
        """
        scale = self.options.scale
        output = prepared.condition + self.options.strength * (output - prepared.condition)
        if self.options.correct:
            output = with_low_frequencies(output, prepared.condition, scale * self.options.correct_sigma)
        if self.options.project:
            output = back_projected(output, prepared.condition, scale, self.options.project)
        if self.options.sharpen:
            output = output + self.options.sharpen * (output - smooth(output, scale * SHARPEN_SIGMA))
        return to_uint8(output)

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float:
        """PSNR in dB between the two, both averaged down to the input's size; at most `MAX_PSNR`."""
        height, width = condition.shape[:2]
        size = (max(1, width // self.options.scale), max(1, height // self.options.scale))
        small, given = (resize(picture, size, Image.Resampling.BOX) for picture in (output, condition))
        return min(MAX_PSNR, psnr(small, given))


def _enlarge(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
