"""Deblurring: the condition is the blurred picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from codi_hub.images.filters import filter2d, smooth, to_uint8, with_low_frequencies
from codi_hub.images.metrics import psnr
from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels
from codi_hub.tasks.degradation import add_gaussian_noise, blur_kernel

MAX_PSNR = 100.0
LEAST_BLUR = 0.3  # px


class Deblur(Task):
    """For pictures out of focus, moved or soft."""

    name = "deblur"
    summary = "Sharpen pictures that are out of focus, moved or soft"
    finishes_tiles = True
    data = "leaves"
    distill: ClassVar[dict[str, Any]] = {"count": 5000, "lr": 6e-4}

    class Options(Task.Options):
        blur: float = Field(3.0, gt=LEAST_BLUR, le=16)
        """Strongest blur of the training pictures: sigma in pixels, or what deviates as much."""
        noise: float = Field(3.0, ge=0, le=100)
        """Strongest noise of the training pictures: sigma in levels of 255."""
        correct: bool = True
        """Put the input's low frequencies, which no blur takes away, back into the output."""
        correct_sigma: float = Field(8.0, gt=0, le=64)
        """Where low ends: sigma of a Gaussian in pixels, well above that of the blur."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Blurs `image` and adds a little noise; an example with a `condition` of its own keeps that."""
        image = needed(example, "image", self.name)
        if example.get("condition") is not None:
            return Pair(image, pixels(example["condition"]), "")
        kernel = random_blur(rng, math.exp(rng.uniform(math.log(LEAST_BLUR), math.log(self.options.blur))))
        blurred = filter2d(image.astype(np.float32) / 255, kernel)
        return Pair(image, to_uint8(add_gaussian_noise(blurred, rng.uniform(0, self.options.noise), rng)), "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        blurred = pixels(image)
        return Prepared(blurred, (blurred.shape[1], blurred.shape[0]))

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """With `correct`: output + G (condition - output), G the Gaussian: colours and light stay the input's."""
        if self.options.correct:
            output = with_low_frequencies(output, prepared.condition, self.options.correct_sigma)
        return to_uint8(output)

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float:
        """PSNR in dB between the two under the strongest blur, which hides what was sharpened; at most `MAX_PSNR`."""
        soft, given = (smooth(picture, self.options.blur) for picture in (output, condition))
        return min(MAX_PSNR, psnr(soft, given))


def random_blur(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """A kernel out of focus, moved or Gaussian at equal odds, of about the deviation `sigma` in px; sums to 1."""
    kind = rng.integers(3)
    if kind == 0:
        return disc_kernel(2 * sigma)  # a disc of radius r deviates by r / 2 along each axis
    if kind == 1:
        return motion_kernel(rng, math.sqrt(12) * sigma)  # as a line of length l by l / sqrt(12) along itself
    return blur_kernel("gaussian", _odd(3 * sigma), sigma, rng.uniform(0.5, 1) * sigma, rng.uniform(0, math.pi))


def disc_kernel(radius: float) -> np.ndarray:
    """Out of focus by geometrical optics: a disc, its rim antialiased; float64 (K, K), sums to 1."""
    size = _odd(radius)
    y, x = np.mgrid[:size, :size] - size // 2
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return kernel / kernel.sum()


def motion_kernel(rng: np.random.Generator, length: float) -> np.ndarray:
    """The path of a shaken camera, `length` px long at constant speed, bending at random; float64 (K, K), sums to 1."""
    count = max(8, math.ceil(4 * length))
    bend = rng.normal(0, 1.2) + np.cumsum(rng.normal(0, 1.5 / math.sqrt(count), count))
    angle = rng.uniform(0, 2 * math.pi) + np.cumsum(bend) / count
    path = np.cumsum(np.stack([np.sin(angle), np.cos(angle)]), 1) * (length / count)
    path -= path.mean(1, keepdims=True)
    size = _odd(np.abs(path).max() + 1)
    kernel = np.zeros((size, size))
    low = np.floor(path).astype(int)
    part = path - low
    for down in (0, 1):  # each point is shared by the four pixels around it
        for right in (0, 1):
            weight = np.abs(1 - down - part[0]) * np.abs(1 - right - part[1])
            np.add.at(kernel, (low[0] + down + size // 2, low[1] + right + size // 2), weight)
    return kernel / kernel.sum()


def _odd(reach: float) -> int:
    return 2 * math.ceil(reach) + 1
