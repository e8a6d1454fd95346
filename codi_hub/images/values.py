"""Conversion of stored pixel values to 8-bit sRGB: 16-bit and float grey, gamma, colours under transparency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from codi_hub.errors import InvalidInput
from codi_hub.images.filters import luma

SRGB_GAMMA = 1 / 2.2
SAME_GAMMA = 0.02  # difference of file gammas that nobody sees
SRGB = np.array([[0.3127, 0.329], [0.64, 0.33], [0.3, 0.6], [0.15, 0.06]])  # x and y of white, red, green, blue
SAME_CHROMATICITY = 0.005
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])  # of ICC.1
ROWS = 256  # that are converted at once


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


def without_gamma(image: Image.Image, gamma: float, chromaticity: Sequence[float] | None = None) -> Image.Image:
    """Convert 8-bit RGB from a PNG's gAMA, where value = light^gamma, and cHRM to sRGB.

    Args:
        chromaticity: x and y of white, red, green and blue; None, or one that is no set of primaries: those of sRGB.
    """
    if not 0 < gamma < 10:
        return image
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    matrix = None if chromaticity is None else _to_srgb_primaries(chromaticity)
    if matrix is not None:
        pixels = np.asarray(image)
        linear, out = light.astype(np.float32), np.empty_like(pixels)
        for top in range(0, len(pixels), ROWS):
            rows = slice(top, top + ROWS)
            out[rows] = (_srgb_curve(np.clip(linear[pixels[rows]] @ matrix.T, 0, 1)) * 255).round()
        return Image.fromarray(out)
    if abs(gamma - SRGB_GAMMA) < SAME_GAMMA:
        return image
    return image.point((_srgb_curve(light) * 255).round().astype(int).tolist() * 3)


def _srgb_curve(light: np.ndarray) -> np.ndarray:
    """Return the values of light in [0, 1], IEC 61966-2-1."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _to_srgb_primaries(chromaticity: Sequence[float]) -> np.ndarray | None:
    """Return the matrix from light of other primaries to that of sRGB's, white to white (Bradford).

    None for those of sRGB, and for numbers that are no primaries.
    """
    given = np.asarray(chromaticity, np.float64).reshape(4, 2)
    if np.abs(given - SRGB).max() < SAME_CHROMATICITY or given[:, 1].min() <= 0:
        return None
    try:
        (own_white, own), (white, srgb) = _xyz(given), _xyz(SRGB)
        adapted = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ white / (BRADFORD @ own_white)) @ BRADFORD
        matrix = np.linalg.inv(srgb) @ adapted @ own
    except np.linalg.LinAlgError:
        return None
    return matrix.astype(np.float32) if np.isfinite(matrix).all() else None


def _xyz(chromaticity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return white in XYZ, and the matrix from light of the primaries to XYZ."""
    x, y = chromaticity.T
    white, *primaries = np.stack([x / y, np.ones(4), (1 - x - y) / y], -1)
    columns = np.stack(primaries, -1)
    return white, columns * np.linalg.solve(columns, white)


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
