"""Image filters in numpy and Pillow. No threads and no torch, so that they are safe in forked data workers."""

from functools import lru_cache

import numpy as np
from PIL import Image

SWEEPS = 12  # Jacobi iterations at full resolution; doubled at each coarser level
LARGE = 4 << 20  # px; a larger bounding box of the whole hole is split into several boxes
CELL = 64  # px; side of the cells by which a large hole is split
_BLOCK = 128  # rows filtered by one matrix product


def luma(image: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma of RGB, float32 (H, W), in the units of `image` (H, W, 3)."""
    return (image @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.float32)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert float in [0, 1], any shape, to uint8 with rounding; clip values outside the range."""
    return (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def to_uint16(image: np.ndarray) -> np.ndarray:
    """Convert float in [0, 1], any shape, to uint16 with rounding; clip values outside the range."""
    return (np.clip(image, 0.0, 1.0) * 65535.0 + 0.5).astype(np.uint16)


def resize(image: np.ndarray, size: tuple[int, int], method: Image.Resampling, *, antialias: bool = True) -> np.ndarray:
    """Resize float32 (H, W, C) to `size` = (width, height), unclipped.

    Without `antialias`, bilinear and bicubic sample the image without a low-pass filter; BOX always averages.
    """
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
    """Convolve float32 (H, W, C) with a (K, K) kernel, K odd, borders mirrored, by the Fourier transform."""
    r = kernel.shape[0] // 2
    padded = np.pad(image, ((r, r), (r, r), (0, 0)), "reflect").transpose(2, 0, 1)
    shape = padded.shape[1:]
    transfer = np.fft.rfft2(kernel.astype(np.float32), s=shape)
    filtered = np.fft.irfft2(np.fft.rfft2(padded) * transfer, s=shape)
    return filtered[:, 2 * r :, 2 * r :].transpose(1, 2, 0).astype(np.float32)


def smooth(
    image: np.ndarray, sigma: float, *, border: str = "reflect", truncate: float = 4.0, dtype: type = np.float32
) -> np.ndarray:
    """Blur (H, W) or (H, W, C) with a Gaussian of `sigma` px. 2048 x 2048 x 3 takes about 0.3 s.

    Args:
        image: float of any range.
        sigma: standard deviation in px; 0 or less returns the image unchanged.
        border: padding mode of `numpy.pad`: "reflect" mirrors, "edge" repeats the border.
        truncate: half width of the kernel in standard deviations.
        dtype: precision of the computation and of the result.
    """
    values: np.ndarray = image.astype(dtype)
    if sigma <= 0:
        return values
    reach = max(1, int(np.ceil(truncate * sigma)))
    vertical = _smooth_rows(values, sigma, reach, border).swapaxes(0, 1)
    return np.ascontiguousarray(_smooth_rows(vertical, sigma, reach, border).swapaxes(0, 1))


def with_low_frequencies(image: np.ndarray, reference: np.ndarray, sigma: float) -> np.ndarray:
    """Return image + G (reference - image), G a Gaussian of `sigma` px: colours and light become the reference's."""
    return image + smooth(reference - image, sigma)


def noise_level(image: np.ndarray) -> float:
    """Estimate the standard deviation of the noise in float32 (H, W, C), in the image's units.

    Immerkaer, "Fast noise variance estimation", 1996: the difference of two Laplacians, which is zero on edges and
    slopes; with the median in place of the mean, so that texture in less than half of the image has little influence.
    """
    if min(image.shape[:2]) < 3:
        return 0.0
    rows = image[:-2] - 2 * image[1:-1] + image[2:]
    both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.median(np.abs(both)) / (6 * 0.6745))


def back_projected(
    image: np.ndarray, reference: np.ndarray, factor: int, share: float = 1.0, rounds: int = 2
) -> np.ndarray:
    """Correct the image towards agreement with the reference when both are downscaled by averaging.

    The difference r of the two is added back with the Wiener gain (v - n^2) / v: v is the local power of r, n the
    noise level of the reference. Iterative back-projection: Irani and Peleg, 1991.

    Args:
        image, reference: float32 (H, W, C) of one size.
        factor: downscaling factor.
        share: maximum gain, in [0, 1].
        rounds: number of iterations; the upscaling spreads each correction, so that one is not enough.
    """
    height, width = image.shape[:2]
    size = (max(1, width // factor), max(1, height // factor))
    small = resize(reference, size, Image.Resampling.BOX)
    noise = noise_level(small) ** 2
    for _ in range(rounds):
        rest = small - resize(image, size, Image.Resampling.BOX)
        power = smooth(np.square(rest).mean(-1, keepdims=True), 2.0)
        gain = share * np.clip(1 - noise / np.maximum(power, 1e-12), 0, 1)
        image = image + resize(gain * rest, (width, height), Image.Resampling.BICUBIC)
    return image


@lru_cache(maxsize=8)
def _band(sigma: float, reach: int, rows: int, dtype: np.dtype) -> np.ndarray:
    """Return the Gaussian as a banded matrix (rows, rows + 2 reach): one product filters a block of rows."""
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    band = np.zeros((rows, rows + 2 * reach), dtype)
    for k in range(rows):
        band[k, k : k + 2 * reach + 1] = taps / taps.sum()
    return band


def _smooth_rows(image: np.ndarray, sigma: float, reach: int, border: str) -> np.ndarray:
    """Filter along the first axis."""
    height = image.shape[0]
    rows = min(_BLOCK, height)
    band = _band(sigma, reach, rows, image.dtype)
    sides: list[tuple[int, int]] = [(reach, reach + -height % rows)] + [(0, 0)] * (image.ndim - 1)
    flat = np.pad(image, sides, border).reshape(height + -height % rows + 2 * reach, -1)  # type: ignore[call-overload]
    blocks = [band @ flat[top : top + rows + 2 * reach] for top in range(0, height, rows)]
    return np.concatenate(blocks)[:height].reshape(image.shape)


def harmonic(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill the hole of an image with the harmonic function that continues its surroundings: laplace(u) = 0.

    Solved from coarse to fine, each level initialised by the coarser one and refined by Jacobi iterations (cascadic
    multigrid: Bornemann and Deuflhard, 1996). The image border is a free boundary. 512 x 512 takes about 0.3 s.

    Args:
        image: float32 (H, W, C); values inside the hole are ignored.
        hole: bool (H, W), True inside.

    Returns:
        float32 (H, W, C), equal to `image` outside the hole; 0 everywhere if the hole covers the whole image.
    """
    filled = np.where(hole[..., None], np.float32(0), image)
    if not hole.any() or hole.all():
        return filled
    box = bounding_box(hole)
    filled[box] = _relaxed(filled[box], hole[box], SWEEPS)
    return filled


def bounding_box(hole: np.ndarray) -> tuple[slice, slice]:
    """Return (rows, columns) of the bounding box of a hole that is not empty, with a margin of 1 px."""
    spans = [np.flatnonzero(hole.any(axis)) for axis in (1, 0)]
    rows, columns = (slice(max(0, int(span[0]) - 1), int(span[-1]) + 2) for span in spans)
    return rows, columns


def boxes(hole: np.ndarray) -> list[tuple[slice, slice]]:
    """Return disjoint boxes that cover the hole with a margin of 1 px; one box unless it has more than `LARGE` px.

    No connected part of the hole is divided. Filling box by box takes memory by the largest box, not by the image.
    """
    if not hole.any():
        return []
    box = bounding_box(hole)
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
    """Solve laplace(u) = 0 in the hole of one level, initialised by the coarser levels."""
    inside = hole[..., None]
    if max(hole.shape) > 1:
        coarse, unknown = _halved(image, hole)
        if unknown.any():
            coarse = _relaxed(coarse, unknown, 2 * sweeps)
        guess = resize(coarse, (hole.shape[1], hole.shape[0]), Image.Resampling.BILINEAR)
        image = np.where(inside, guess, image)
    framed = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
    middle, neighbours = framed[1:-1, 1:-1], np.empty_like(image)
    for _ in range(sweeps):
        np.add(framed[:-2, 1:-1], framed[2:, 1:-1], out=neighbours)
        neighbours += framed[1:-1, :-2]
        neighbours += framed[1:-1, 2:]
        neighbours *= 0.25
        np.copyto(middle, neighbours, where=inside)
        framed[0], framed[-1] = framed[1], framed[-2]
        framed[:, 0], framed[:, -1] = framed[:, 1], framed[:, -2]
    return middle


def _halved(image: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the pixels outside the hole in cells of 2 x 2, and a mask of the cells without any."""
    height, width = (side + side % 2 for side in hole.shape)
    grow = ((0, height - hole.shape[0]), (0, width - hole.shape[1]))
    weight = np.pad(~hole, grow)[..., None].astype(np.float32)
    cells = (height // 2, 2, width // 2, 2)
    total = (np.pad(image, (*grow, (0, 0))) * weight).reshape(*cells, -1).sum((1, 3))
    counts = weight.reshape(*cells, 1).sum((1, 3))
    return total / np.maximum(counts, 1), counts[..., 0] == 0
