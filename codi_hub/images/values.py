"""Conversion of stored pixel values to 8-bit sRGB: 16-bit and float grey, gamma, colours under transparency."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from codi_hub.errors import InvalidInput
from codi_hub.images.filters import luma

SRGB_GAMMA = 1 / 2.2
SAME_GAMMA = 0.02  # difference of file gammas that nobody sees


def eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return 16-bit, 32-bit or float grey as 8-bit RGB, and its alpha channel if one value stands for transparency.

    16-bit values are of 65535. The other modes do not state their range: integers are of 255, or 65535, or of the
    largest value; floats are of 1, or of the largest value above it, so that no threshold changes the brightness.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise InvalidInput("pixels that are not numbers (NaN or infinity): save the image again without them")
    top = float(values.max())
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "F":
        top = max(top, 1.0)
    else:
        top = next((limit for limit in (255.0, 65535.0) if top <= limit), top)
    grey = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
    key = image.info.get("transparency")  # tRNS of a 16-bit grey PNG
    alpha = Image.fromarray(np.where(values == key, np.uint8(0), np.uint8(255))) if isinstance(key, int) else None
    return Image.fromarray(grey).convert("RGB"), alpha


def grey(pixels: np.ndarray) -> np.ndarray:
    """Return the luma of uint8 or uint16 (H, W, 3) as (H, W) of the same type."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return luma(pixels.astype(np.float32)).round().astype(pixels.dtype)


def fit_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut an array (H, W) or (H, W, C) to the shape of `size` = (width, height) around its middle, and resize it.

    Bilinear with a low-pass filter, which invents no value beyond the others. What is not finite has no weight; where
    it is more than half of an output pixel, the pixel is NaN.
    """
    planes = values.reshape(*values.shape[:2], -1).astype(np.float32)
    finite = np.isfinite(planes)
    fitted = []
    for k in range(planes.shape[2]):
        sums, weights = (
            np.asarray(ImageOps.fit(Image.fromarray(part), size, Image.Resampling.BILINEAR))
            for part in (np.where(finite[..., k], planes[..., k], 0), finite[..., k].astype(np.float32))
        )
        fitted.append(np.where(weights > 0.5, sums / np.maximum(weights, 0.5), np.float32(np.nan)))
    return np.stack(fitted, -1).reshape(*fitted[0].shape, *values.shape[2:])


def without_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Convert 8-bit RGB from a PNG's gAMA, where value = light^gamma, to sRGB."""
    if not 0 < gamma < 10 or abs(gamma - SRGB_GAMMA) < SAME_GAMMA:
        return image
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    return image.point((shown * 255).round().astype(int).tolist() * 3)


def bled(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Replace the colours of fully transparent pixels of 8-bit RGB by those nearby, so that no filter darkens an edge.

    Empty cells take the colour of a cell twice as large, the mean of its pixels that have a colour.
    """
    visible = np.asarray(alpha) > 0
    if visible.all() or not visible.any():
        return image
    weights = visible.astype(np.float32)[..., None]
    filled = _filled(np.asarray(image).astype(np.float32) * weights, weights)
    return Image.fromarray(filled.round().astype(np.uint8))


def _filled(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3) of sums `values` over `weights` (H, W, 1), without weight those of a coarser grid."""
    empty = weights == 0
    colours = values / np.where(empty, 1, weights)
    if not empty.any():
        return colours
    coarse = _filled(_halved(values), _halved(weights))
    height, width = weights.shape[:2]
    return np.where(empty, coarse.repeat(2, 0).repeat(2, 1)[:height, :width], colours)


def _halved(values: np.ndarray) -> np.ndarray:
    """Sum (H, W, C) over cells of 2x2."""
    height, width = values.shape[:2]
    values = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    return values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]
