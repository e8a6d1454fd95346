"""Small image filters in numpy and Pillow: no threads and no torch, so they are safe in forked data workers."""

from functools import lru_cache

import numpy as np
from PIL import Image

SWEEPS = 12  # of Jacobi's method at full resolution; twice as many at each half of it
LARGE = 4 << 20  # pixels of one box around all of a hole
CELL = 64  # pixels a side, by which a large hole is taken apart
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


def with_low_frequencies(image: np.ndarray, given: np.ndarray, sigma: float) -> np.ndarray:
    """image + G (given - image), G the Gaussian of `sigma` pixels: colours and light become those of `given`."""
    return image + smooth(given - image, sigma)


def noise_level(image: np.ndarray) -> float:
    """Deviation of the noise in float32 (H, W, C), in its units: at least what even clean texture looks like.

    Immerkaer, "Fast noise variance estimation", 1996: the difference of two Laplacians, blind to edges and slopes; with
    the median in place of the mean, texture that does not fill the picture counts little.
    """
    if min(image.shape[:2]) < 3:
        return 0.0
    rows = image[:-2] - 2 * image[1:-1] + image[2:]
    both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.median(np.abs(both)) / (6 * 0.6745))


def back_projected(
    image: np.ndarray, given: np.ndarray, factor: int, share: float = 1.0, rounds: int = 2
) -> np.ndarray:
    """The image made to agree with the given one where both are averaged down, as far as noise does not explain.

    What the two differ by, r, is put back with Wiener's gain (v - n^2) / v: v is the power of r around a pixel, n the
    noise of the given picture. Iterative back-projection: Irani and Peleg, 1991.

    Args:
        image, given: float32 (H, W, C) of one size.
        factor: by which both are averaged down.
        share: of it all that is put back, at most.
        rounds: how often; what is put back is spread by the enlargement, and once does not do.
    """
    height, width = image.shape[:2]
    size = (max(1, width // factor), max(1, height // factor))
    small = resize(given, size, Image.Resampling.BOX)
    noise = noise_level(small) ** 2
    for _ in range(rounds):
        rest = small - resize(image, size, Image.Resampling.BOX)
        power = smooth(np.square(rest).mean(-1, keepdims=True), 2.0)
        gain = share * np.clip(1 - noise / np.maximum(power, 1e-12), 0, 1)
        image = image + resize(gain * rest, (width, height), Image.Resampling.BICUBIC)
    return image


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


def harmonic(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The image with its hole filled by the smoothest function that meets what surrounds it: laplace(u) = 0.

    Solved from coarse to fine, each level starting from the one below and smoothed by Jacobi's method (cascadic
    multigrid: Bornemann and Deuflhard, 1996). At the picture's own border u is free. 512 x 512 takes about 0.3 s.

    Args:
        image: float32 (H, W, C); what it holds in the hole does not matter.
        hole: bool (H, W).

    Returns:
        float32 (H, W, C), equal to `image` outside the hole; 0 where nothing at all is known.
    """
    filled = np.where(hole[..., None], np.float32(0), image)
    if not hole.any() or hole.all():
        return filled
    box = around(hole)
    filled[box] = _relaxed(filled[box], hole[box], SWEEPS)
    return filled


def around(hole: np.ndarray) -> tuple[slice, slice]:
    """The smallest box with the hole, which is not empty, and a pixel around it."""
    spans = [np.flatnonzero(hole.any(axis)) for axis in (1, 0)]
    rows, columns = (slice(max(0, int(span[0]) - 1), int(span[-1]) + 2) for span in spans)
    return rows, columns


def boxes(hole: np.ndarray) -> list[tuple[slice, slice]]:
    """Boxes that lie apart, each with whole parts of the hole and a pixel around: one, unless it would be `LARGE`.

    What is filled box by box takes memory by the largest of them, and not by the picture.
    """
    if not hole.any():
        return []
    box = around(hole)
    if hole[box].size <= LARGE:
        return [box]
    from skimage.measure import label, regionprops

    height, width = hole.shape
    grown = np.pad(hole, ((0, -height % CELL), (0, -width % CELL)))
    cells = grown.reshape(grown.shape[0] // CELL, CELL, grown.shape[1] // CELL, CELL).any((1, 3))
    apart: list[tuple[int, int, int, int]] = []
    for region in regionprops(label(cells, connectivity=2)):
        top, left, bottom, right = region.bbox
        while near := [b for b in apart if b[0] <= bottom and top <= b[2] and b[1] <= right and left <= b[3]]:
            top, left = min(top, *(b[0] for b in near)), min(left, *(b[1] for b in near))
            bottom, right = max(bottom, *(b[2] for b in near)), max(right, *(b[3] for b in near))
            apart = [b for b in apart if b not in near]
        apart.append((top, left, bottom, right))
    return [
        (slice(max(0, top * CELL - 1), bottom * CELL + 1), slice(max(0, left * CELL - 1), right * CELL + 1))
        for top, left, bottom, right in apart
    ]


def _relaxed(image: np.ndarray, hole: np.ndarray, sweeps: int) -> np.ndarray:
    inside = hole[..., None]
    if max(hole.shape) > 1:
        coarse, unknown = _halved(image, hole)
        if unknown.any():
            coarse = _relaxed(coarse, unknown, 2 * sweeps)
        guess = resize(coarse, (hole.shape[1], hole.shape[0]), Image.Resampling.BILINEAR)
        image = np.where(inside, guess, image)
    framed = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
    middle, around = framed[1:-1, 1:-1], np.empty_like(image)
    for _ in range(sweeps):
        np.add(framed[:-2, 1:-1], framed[2:, 1:-1], out=around)
        around += framed[1:-1, :-2]
        around += framed[1:-1, 2:]
        around *= 0.25
        np.copyto(middle, around, where=inside)
        framed[0], framed[-1] = framed[1], framed[-2]
        framed[:, 0], framed[:, -1] = framed[:, 1], framed[:, -2]
    return middle


def _halved(image: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of what is known in cells of 2 x 2, and the cells where nothing is."""
    height, width = (side + side % 2 for side in hole.shape)
    grow = ((0, height - hole.shape[0]), (0, width - hole.shape[1]))
    weight = np.pad(~hole, grow)[..., None].astype(np.float32)
    cells = (height // 2, 2, width // 2, 2)
    total = (np.pad(image, (*grow, (0, 0))) * weight).reshape(*cells, -1).sum((1, 3))
    known = weight.reshape(*cells, 1).sum((1, 3))
    return total / np.maximum(known, 1), known[..., 0] == 0
