"""Small image filters in numpy and Pillow: no threads and no torch, so they are safe in forked data workers."""

from functools import lru_cache

import numpy as np
from PIL import Image

_BLOCK = 128  # rows smoothed by one matrix product


def luma(image: np.ndarray) -> np.ndarray:
    """Brightness (BT.601) of RGB, float32 (H, W), in the units of `image` (H, W, 3)."""
    return (image @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.float32)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float [0, 1] of any shape to uint8, rounded; values outside are clipped."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def resize(image: np.ndarray, size: tuple[int, int], method: Image.Resampling, *, antialias: bool = True) -> np.ndarray:
    """float32 (H, W, C) to `size` = (width, height), unclipped. Without `antialias` it is sampled, but for BOX."""
    height, width = image.shape[:2]
    sampling = (width / size[0], 0, 0, 0, height / size[1], 0)
    channels = []
    for k in range(image.shape[2]):
        channel = Image.fromarray(np.ascontiguousarray(image[..., k], np.float32))
        if antialias or method == Image.Resampling.BOX:
            channel = channel.resize(size, method)
        else:
            channel = channel.transform(size, Image.Transform.AFFINE, sampling, resample=method)
        channels.append(np.asarray(channel))
    return np.stack(channels, -1)


def filter2d(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """float32 (H, W, C) convolved with an odd (K, K) kernel, edges mirrored; through the Fourier transform."""
    r = kernel.shape[0] // 2
    padded = np.pad(image, ((r, r), (r, r), (0, 0)), "reflect").transpose(2, 0, 1)
    shape = padded.shape[1:]
    transfer = np.fft.rfft2(kernel.astype(np.float32), s=shape)
    filtered = np.fft.irfft2(np.fft.rfft2(padded) * transfer, s=shape)
    return filtered[:, 2 * r :, 2 * r :].transpose(1, 2, 0).astype(np.float32)


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """float32 (H, W, C) under a Gaussian of `sigma` pixels, edges mirrored. 2048 x 2048 takes about 0.3 s."""
    if sigma <= 0:
        return image.astype(np.float32)
    once = _smooth_rows(image.astype(np.float32), sigma).transpose(1, 0, 2)
    return np.ascontiguousarray(_smooth_rows(once, sigma).transpose(1, 0, 2))


@lru_cache(maxsize=8)
def _band(sigma: float, rows: int) -> np.ndarray:
    """The Gaussian as a banded matrix, float32 (rows, rows + 2 r): one product smooths a block of rows."""
    r = max(1, int(np.ceil(4 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    band = np.zeros((rows, rows + 2 * r), np.float32)
    for k in range(rows):
        band[k, k : k + 2 * r + 1] = taps / taps.sum()
    return band


def _smooth_rows(image: np.ndarray, sigma: float) -> np.ndarray:
    height = image.shape[0]
    rows = min(_BLOCK, height)
    band = _band(sigma, rows)
    r = (band.shape[1] - rows) // 2
    padded = np.pad(image, ((r, r + -height % rows), (0, 0), (0, 0)), "reflect")
    flat = padded.reshape(len(padded), -1)
    blocks = [band @ flat[top : top + rows + 2 * r] for top in range(0, height, rows)]
    return np.concatenate(blocks)[:height].reshape(image.shape)
