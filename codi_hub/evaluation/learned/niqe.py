"""NIQE (Mittal, Soundararajan and Bovik, 2013): how far an image is from natural ones, without a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from scipy.ndimage import correlate1d
from scipy.special import gamma

from codi_hub.errors import InvalidInput, NotFound, describe
from codi_hub.images.filters import resize
from codi_hub.images.metrics import luminance

BLOCK = 96  # px
WINDOW, SIGMA = 7, 7 / 6  # px, of the local mean and deviation
FEATURES = 36
SHAPES = np.arange(0.2, 10.001, 0.001)  # candidates of the shape of a generalised Gaussian
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours whose products are fitted


class Niqe:
    """The distance by a model of natural images: .mat or .npz with `mu_prisparam` (36) and `cov_prisparam` (36, 36).

    Raises:
        NotFound, InvalidInput: no such file, or not such a model.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise NotFound(f"{file}: no such file")
        try:
            model = loadmat(file) if file.suffix == ".mat" else np.load(file, allow_pickle=False)
            self.mean = np.asarray(model["mu_prisparam"], np.float64).reshape(FEATURES)
            self.covariance = np.asarray(model["cov_prisparam"], np.float64).reshape(FEATURES, FEATURES)
        except Exception as error:  # loadmat raises almost anything
            raise InvalidInput(f"{file}: no NIQE model (mu_prisparam, cov_prisparam): {describe(error)}") from error

    def __call__(self, image: np.ndarray) -> float | None:
        """Return the distance of a uint8 (H, W, 3) image, eq. 10; None for one of less than two blocks of 96 px."""
        vectors = features(image)
        if len(vectors) < 2:
            return None
        mean, covariance = vectors.mean(0), np.cov(vectors, rowvar=False)
        difference = self.mean - mean
        return float(np.sqrt(difference @ np.linalg.pinv((self.covariance + covariance) / 2) @ difference))


def features(image: np.ndarray) -> np.ndarray:
    """Return the 36 features of every block of 96 px, at full and half resolution, float64 (blocks, 36)."""
    gray = np.round(255 * luminance(image))
    height, width = (n // BLOCK * BLOCK for n in gray.shape)
    gray = gray[:height, :width]
    if not gray.size:
        return np.empty((0, FEATURES))
    half = resize(gray[..., None].astype(np.float32), (width // 2, height // 2), Image.Resampling.BICUBIC)[..., 0]
    scales = [_of_blocks(_normalised(gray), BLOCK), _of_blocks(_normalised(half.astype(np.float64)), BLOCK // 2)]
    return np.concatenate(scales, axis=1)


def _normalised(gray: np.ndarray) -> np.ndarray:
    """Divide out the local mean and deviation (eq. 1)."""
    taps = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SIGMA**2)
    taps /= taps.sum()

    def smooth(values: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(values, taps, 0, mode="nearest"), taps, 1, mode="nearest")

    mean = smooth(gray)
    return (gray - mean) / (np.sqrt(np.abs(smooth(gray**2) - mean**2)) + 1)


def _of_blocks(values: np.ndarray, side: int) -> np.ndarray:
    rows, columns = (n // side for n in values.shape)
    blocks = values.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(-1, side, side)
    return np.array([_of_block(block) for block in blocks])


def _of_block(block: np.ndarray) -> list[float]:
    """Return the shape and spread of the values, and four parameters of each neighbour's product (eqs. 2 to 9)."""
    shape, left, right = _asymmetric_fit(block)
    vector = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = _asymmetric_fit(block * np.roll(block, shift, (0, 1)))
        vector += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return vector


def _asymmetric_fit(values: np.ndarray) -> tuple[float, float, float]:
    """Fit an asymmetric generalised Gaussian by moments (Lasmar et al., 2009): its shape, left and right spread."""
    flat = values.ravel()
    below, above = flat[flat < 0], flat[flat > 0]
    left = np.sqrt(np.mean(below**2)) if below.size else 1e-6
    right = np.sqrt(np.mean(above**2)) if above.size else 1e-6
    skew = left / right
    ratio = np.mean(np.abs(flat)) ** 2 / max(np.mean(flat**2), 1e-12)
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = float(SHAPES[np.argmin((RATIOS - ratio) ** 2)])
    spread = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float(left * spread), float(right * spread)
