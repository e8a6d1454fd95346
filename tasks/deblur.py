"""Deblurring: the condition is the blurred image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from codi_hub.images.filters import filter2d, smooth, to_uint8, with_low_frequencies
from codi_hub.images.metrics import psnr
from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels
from codi_hub.tasks.degradation import add_gaussian_noise, blur_kernel

MAX_PSNR = 100.0
MIN_BLUR = 0.3  # px


class Deblur(Task):
    """Deblurring of images with defocus, camera shake or softness."""

    name = "deblur"
    summary = "Sharpen images that are out of focus, shaken or soft"
    finishes_tiles = True
    keeps_grey = True
    data = "leaves"
    distill: ClassVar[dict[str, Any]] = {"count": 5000, "lr": 6e-4}

    class Options(Task.Options):
        blur: float = Field(3.0, gt=MIN_BLUR, le=16)
        """Strongest blur of training images: standard deviation of the kernel in px."""
        noise: float = Field(3.0, ge=0, le=100)
        """Strongest noise of training images: sigma in levels of 255."""
        correct: bool = True
        """Replace the output's low frequencies by the input's, which blur preserves."""
        correct_sigma: float = Field(8.0, gt=0, le=64)
        """Cutoff of the low frequencies: sigma of a Gaussian in px, well above that of the blur."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Blur `image` and add noise; an example's own `condition` is used if it has one."""
        image = needed(example, "image", self.name)
        if example.get("condition") is not None:
            return Pair(image, pixels(example["condition"]), "")
        kernel = random_blur(rng, math.exp(rng.uniform(math.log(MIN_BLUR), math.log(self.options.blur))))
        blurred = filter2d(image.astype(np.float32) / 255, kernel)
        return Pair(image, to_uint8(add_gaussian_noise(blurred, rng.uniform(0, self.options.noise), rng)), "")

    def finish_values(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """With `correct`, return output + G (condition - output), G a Gaussian: colours and light stay the input's."""
        if self.options.correct:
            output = with_low_frequencies(output, prepared.condition, self.options.correct_sigma)
        return output

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float:
        """Return the PSNR in dB of both under the strongest blur, which hides sharpened detail; at most `MAX_PSNR`."""
        blurred, reference = (smooth(image, self.options.blur) for image in (output, condition))
        return min(MAX_PSNR, psnr(blurred, reference))


def random_blur(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Sample a defocus, motion or Gaussian kernel of about the standard deviation `sigma`, px; sum 1."""
    kind = rng.integers(3)
    if kind == 0:
        return disc_kernel(2 * sigma)  # a disc of radius r has the standard deviation r / 2 along each axis
    if kind == 1:
        return motion_kernel(rng, math.sqrt(12) * sigma)  # a line of length l has the standard deviation l / sqrt(12)
    return blur_kernel("gaussian", _odd(3 * sigma), sigma, rng.uniform(0.5, 1) * sigma, rng.uniform(0, math.pi))


def disc_kernel(radius: float) -> np.ndarray:
    """Return the defocus kernel of geometrical optics: an antialiased disc; float64 (K, K), sum 1."""
    size = _odd(radius)
    y, x = np.mgrid[:size, :size] - size // 2
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return kernel / kernel.sum()


def motion_kernel(rng: np.random.Generator, length: float) -> np.ndarray:
    """Sample the path of a camera, `length` px at constant speed with random curvature; float64 (K, K), sum 1."""
    count = max(8, math.ceil(4 * length))
    bend = rng.normal(0, 1.2) + np.cumsum(rng.normal(0, 1.5 / math.sqrt(count), count))
    angle = rng.uniform(0, 2 * math.pi) + np.cumsum(bend) / count
    path = np.cumsum(np.stack([np.sin(angle), np.cos(angle)]), 1) * (length / count)
    path -= path.mean(1, keepdims=True)
    size = _odd(np.abs(path).max() + 1)
    kernel = np.zeros((size, size))
    low = np.floor(path).astype(int)
    part = path - low
    for down in (0, 1):  # bilinear splatting
        for right in (0, 1):
            weight = np.abs(1 - down - part[0]) * np.abs(1 - right - part[1])
            np.add.at(kernel, (low[0] + down + size // 2, low[1] + right + size // 2), weight)
    return kernel / kernel.sum()


def _odd(reach: float) -> int:
    """Return the side of a kernel that reaches so far from its centre."""
    return 2 * math.ceil(reach) + 1
