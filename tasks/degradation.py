"""Degradations that turn a sharp image into a realistic low-resolution one, for training super-resolution.

`full` is the second-order pipeline of Real-ESRGAN (Wang et al., "Training Real-World Blind Super-Resolution with Pure
Synthetic Data", 2021) with its published ranges: blur, resize, noise and JPEG, twice, and a final sinc filter. `light`
is one such pass with milder ranges: a downscaled, slightly noisy JPEG, and sometimes a clean downscaled image.

Images are float32 (H, W, 3) in [0, 1] inside; sigmas of noise are in levels of 255, sigmas of blur in pixels.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.filters import filter2d, luma, resize, smooth, to_uint8

Range = tuple[float, float]
CLEAN = 0.15  # share of the light ones that are downscaled only
METHODS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Pass:
    """Ranges of one blur-resize-noise-JPEG pass; the values below are those that both passes of Real-ESRGAN share."""

    blur: Range  # sigma, px
    scale: Range
    scale_odds: tuple[float, float, float]  # of enlarging, reducing, and keeping the size
    noise: Range  # sigma of Gaussian noise
    poisson: Range  # strength of shot noise
    blur_odds: float = 1.0
    sinc_odds: float = 0.1
    gray_odds: float = 0.4
    jpeg: Range = (30, 95)


FIRST = Pass(blur=(0.2, 3.0), scale=(0.15, 1.5), scale_odds=(0.2, 0.7, 0.1), noise=(1, 30), poisson=(0.05, 3.0))
SECOND = Pass(
    blur=(0.2, 1.5), scale=(0.3, 1.2), scale_odds=(0.3, 0.4, 0.3), noise=(1, 25), poisson=(0.05, 2.5), blur_odds=0.8
)
FINAL_SINC_ODDS = 0.8
KERNEL_SIZES = range(7, 22, 2)
# (form, isotropic, odds)
KERNELS = (
    ("gaussian", True, 0.45),
    ("gaussian", False, 0.25),
    ("generalised", True, 0.12),
    ("generalised", False, 0.03),
    ("plateau", True, 0.12),
    ("plateau", False, 0.03),
)


def degrade(image: np.ndarray, scale: int, rng: np.random.Generator, preset: str = "light") -> np.ndarray:
    """Return a low-resolution version of `image`, randomly degraded.

    Args:
        image: uint8 (H, W, 3).
        scale: downscaling factor.
        rng: the only source of randomness.
        preset: "light" or "full".

    Returns:
        uint8 (H // scale, W // scale, 3).

    Raises:
        UsageError: no such preset.
        InvalidInput: the image has another type or shape, or is smaller than `scale`.
    """
    if preset not in PRESETS:
        raise UsageError(f"no degradation preset {preset!r}: use {' or '.join(PRESETS)}")
    return PRESETS[preset](_unit(image, scale), scale, rng)


def degrade_once(
    image: np.ndarray,
    scale: int,
    blur_sigma: float,
    noise_sigma: float,
    jpeg_quality: int | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Apply a fixed degradation, for evaluation: Gaussian blur, averaging down, Gaussian noise, JPEG if any."""
    small = resize(smooth(_unit(image, scale), blur_sigma), _size(image, scale), Image.Resampling.BOX)
    noisy = add_gaussian_noise(small, noise_sigma, rng)
    return to_uint8(noisy) if jpeg_quality is None else jpeg(noisy, jpeg_quality)


def _light(image: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """Degrade by one mild pass."""
    if rng.random() < CLEAN:
        return to_uint8(resize(image, _size(image, scale), METHODS[rng.integers(3)]))
    sigma = rng.uniform(0.2, 2.5)
    if rng.random() < 0.6:
        blurred = smooth(image, sigma)
    else:
        size = 2 * math.ceil(3 * sigma) + 1
        blurred = filter2d(image, blur_kernel("gaussian", size, sigma, rng.uniform(0.2, sigma), rng.uniform(0, np.pi)))
    small = resize(blurred, _size(image, scale), METHODS[rng.integers(3)])
    gray = rng.random() < 0.3
    if rng.random() < 0.75:
        noisy = add_gaussian_noise(small, rng.uniform(1, 10), rng, gray=gray)
    else:
        noisy = add_poisson_noise(small, rng.uniform(0.1, 0.8), rng, gray=gray)
    return jpeg(noisy, int(rng.integers(50, 96)))


def _full(image: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """Degrade by the second-order pipeline of Real-ESRGAN."""
    width, height = _size(image, scale)
    first = _blur_resize_noise(image, image.shape[1], image.shape[0], FIRST, rng)
    between = _unit(jpeg(first, _quality(FIRST, rng)))
    second = _blur_resize_noise(between, width, height, SECOND, rng)
    ringing = sinc_kernel(_odd_size(rng), rng.uniform(np.pi / 3, np.pi)) if rng.random() < FINAL_SINC_ODDS else None
    quality, method, sinc_first = _quality(SECOND, rng), METHODS[rng.integers(3)], rng.random() < 0.5

    def finish(small: np.ndarray) -> np.ndarray:
        small = resize(small, (width, height), method, antialias=False)
        return small if ringing is None else filter2d(small, ringing)

    if sinc_first:
        return jpeg(finish(second), quality)
    return to_uint8(finish(_unit(jpeg(second, quality))))


PRESETS = {"light": _light, "full": _full}


def _blur_resize_noise(
    image: np.ndarray, width: int, height: int, ranges: Pass, rng: np.random.Generator
) -> np.ndarray:
    """Apply one pass without its JPEG; the result measures about (width, height) times a random scale."""
    if rng.random() < ranges.blur_odds:
        image = filter2d(image, random_kernel(ranges, rng))
    low, high = ranges.scale
    kind = rng.choice(3, p=ranges.scale_odds)
    factor = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[kind]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # Bilinear and bicubic without a low-pass filter alias, as in many image libraries.
    image = resize(image, size, METHODS[rng.integers(3)], antialias=False)
    gray = rng.random() < ranges.gray_odds
    if rng.random() < 0.5:
        return add_gaussian_noise(image, rng.uniform(*ranges.noise), rng, gray=gray)
    return add_poisson_noise(image, rng.uniform(*ranges.poisson), rng, gray=gray)


def random_kernel(ranges: Pass, rng: np.random.Generator) -> np.ndarray:
    """Sample a blur kernel as Real-ESRGAN does: mostly Gaussian, sometimes generalised, plateau-shaped or a sinc."""
    size = _odd_size(rng)
    if rng.random() < ranges.sinc_odds:
        return sinc_kernel(size, rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi))
    form, isotropic, _ = KERNELS[rng.choice(len(KERNELS), p=[odds for *_, odds in KERNELS])]
    sigma_x = rng.uniform(*ranges.blur)
    sigma_y, angle = (sigma_x, 0.0) if isotropic else (rng.uniform(*ranges.blur), rng.uniform(-np.pi, np.pi))
    low, high = {"gaussian": (1.0, 1.0), "generalised": (0.5, 4.0), "plateau": (1.0, 2.0)}[form]
    beta = rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)
    return blur_kernel(form, size, sigma_x, sigma_y, angle, beta)


def blur_kernel(
    form: str, size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """Return a kernel of sum 1, float64 (size, size).

    With q = x^T S^-1 x for the covariance S of the two sigmas turned by `angle`: exp(-q^beta / 2) for "gaussian"
    (beta 1) and "generalised", 1 / (1 + q^beta) for "plateau".
    """
    y, x = np.mgrid[:size, :size] - size // 2
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    q = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    kernel = 1 / (1 + q**beta) if form == "plateau" else np.exp(-0.5 * q**beta)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Return the circular low-pass filter of `cutoff` (rad / px, up to pi), which rings; sum 1, (size, size)."""
    from scipy.special import j1

    y, x = np.mgrid[:size, :size] - size // 2
    radius = np.hypot(x, y)
    radius[size // 2, size // 2] = 1.0
    kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return kernel / kernel.sum()


def add_gaussian_noise(image: np.ndarray, sigma: float, rng: np.random.Generator, *, gray: bool = False) -> np.ndarray:
    """Add noise of standard deviation `sigma` levels, the same in all channels if `gray`; unclipped."""
    noise = rng.standard_normal((*image.shape[:2], 1 if gray else 3), np.float32)
    return image + noise * np.float32(sigma / 255)


def add_poisson_noise(
    image: np.ndarray, strength: float, rng: np.random.Generator, *, gray: bool = False
) -> np.ndarray:
    """Add shot noise, with as many photons as the image has levels, times `strength`; unclipped."""
    light = np.clip(luma(image)[..., None] if gray else image, 0, 1)
    levels = len(np.unique(to_uint8(light)))
    photons = 2.0 ** math.ceil(math.log2(max(levels, 2)))
    noise = rng.poisson(light * photons).astype(np.float32) / np.float32(photons) - light
    return image + noise * np.float32(strength)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Encode float32 (H, W, 3), clipped, as a JPEG of `quality` and decode it: uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer, formats=["JPEG"]))


def _quality(ranges: Pass, rng: np.random.Generator) -> int:
    return round(rng.uniform(*ranges.jpeg))


def _odd_size(rng: np.random.Generator) -> int:
    return int(rng.choice(KERNEL_SIZES))


def _size(image: np.ndarray, scale: int) -> tuple[int, int]:
    return image.shape[1] // scale, image.shape[0] // scale


def _unit(image: np.ndarray, scale: int = 1) -> np.ndarray:
    """Convert uint8 to float32 in [0, 1]. Raises InvalidInput."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < scale:
        raise InvalidInput(
            f"cannot degrade {image.dtype} {image.shape} by {scale}: give a uint8 (H, W, 3) image of at least that size"
        )
    return image.astype(np.float32) / 255
