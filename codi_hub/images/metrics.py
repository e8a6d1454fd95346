"""Image metrics on numpy arrays: (H, W, 3) RGB, uint8, or float in [0, 1]. No torch at import."""

import math

import numpy as np

from codi_hub.images.filters import smooth

Array = np.ndarray

LUMA = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601, as in the reference code of GMSD
GMSD_T = 170.0  # Xue et al. 2014, section II-B, for values in 0..255


def as_float(image: Array) -> Array:
    """Convert a uint8 or float image to float64 in [0, 1]; floats are clipped."""
    if image.dtype == np.uint8:
        return image.astype(np.float64) / 255
    return np.clip(image.astype(np.float64), 0, 1)


def _checked(image: Array, reference: Array) -> tuple[Array, Array]:
    """Return both as float64 in [0, 1]. Raises ValueError for different shapes."""
    if image.shape != reference.shape:
        raise ValueError(f"images of different shapes cannot be compared: {image.shape} and {reference.shape}")
    return as_float(image), as_float(reference)


def luminance(image: Array) -> Array:
    """Return the luminance, float64 (H, W) in [0, 1], of (H, W, 3), (H, W, 1) or (H, W)."""
    values = as_float(image)
    if values.ndim == 2:
        return values
    return values[..., 0] if values.shape[2] == 1 else values[..., :3] @ np.array(LUMA)


def psnr(image: Array, reference: Array) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels; infinite for equal images."""
    a, b = _checked(image, reference)
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(image: Array, reference: Array) -> float:
    """Return the structural similarity of Wang et al. 2004 (Gaussian window, sigma 1.5 px); sides of at least 12 px."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    # float32: 15 times faster than float64 here, and within 2e-3 of it even where the image is flat
    a, b = (torch.from_numpy(v.astype(np.float32).transpose(2, 0, 1)[None].copy()) for v in _checked(image, reference))
    return float(structural_similarity_index_measure(a, b, data_range=1.0))


def _halved(field: Array) -> Array:
    """Average 2 x 2 cells of (H, W)."""
    height, width = field.shape[0] // 2 * 2, field.shape[1] // 2 * 2
    return field[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _prewitt(field: Array) -> Array:
    """Return the gradient magnitude by Prewitt filters with taps of 1/3 (Xue et al. 2014, eq. 1 and 2)."""
    from scipy.ndimage import prewitt

    across, down = (prewitt(field, axis, mode="constant") / 3 for axis in (1, 0))
    return np.sqrt(across**2 + down**2)


def gmsd(image: Array, reference: Array) -> float:
    """Return the gradient magnitude similarity deviation: 0 for equal images, lower is better.

    Xue, Zhang, Mou, Bovik, "Gradient magnitude similarity deviation: a highly efficient perceptual image quality
    index", IEEE TIP 2014: luminance in 0..255, 2x2 average and decimation, similarity (eq. 4), its deviation (eq. 6).
    """
    _checked(image, reference)
    m_d, m_r = (_prewitt(_halved(luminance(v) * 255)) for v in (image, reference))
    similarity = (2 * m_r * m_d + GMSD_T) / (m_r**2 + m_d**2 + GMSD_T)
    return float(similarity.std())


def blur(field: Array, sigma: float) -> Array:
    """Blur (H, W) with a Gaussian of `sigma` px, float64, borders repeated, kernel cut at three sigmas."""
    return smooth(field, sigma, border="edge", truncate=3.0, dtype=np.float64)


def gradient_magnitude(field: Array) -> Array:
    """Return |grad| of (H, W) by central differences, in units per px."""
    down, across = np.gradient(field.astype(np.float64))
    return np.hypot(down, across)


def correlation(a: Array, b: Array) -> float:
    """Return Pearson's correlation over all elements; 0 if either is constant."""
    x, y = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 1e-12 else 0.0


def hole_edge(image: Array, hole: Array) -> float | None:
    """Return the RMS difference of neighbouring pixels across the boundary of a hole, bool (H, W); None without one."""
    values = as_float(image)
    total, count = 0.0, 0
    for axis in (0, 1):
        across = np.diff(hole, axis=axis)
        total += float((np.diff(values, axis=axis)[across] ** 2).sum())
        count += int(across.sum()) * values.shape[2]
    return math.sqrt(total / count) if count else None


def structure_agreement(image: Array, depth: Array) -> float:
    """Return how well the edges of an image coincide with those of a depth map, in [-1, 1]; 0 for unrelated ones.

    The correlation of the gradients of the image's luminance with the changes of slope of the map, (H, W) or (H, W, 1)
    in [0, 1]: a plane of any slope has no edge. Both are blurred by 1 px before, against noise, and by 2 px after, so
    that an edge 1 px off still counts, and compressed by a square root, so that no single edge dominates.
    """
    edges = gradient_magnitude(blur(luminance(image), 1.0))
    bends = gradient_magnitude(gradient_magnitude(blur(luminance(depth), 1.0)))
    return correlation(blur(np.sqrt(edges), 2.0), blur(np.sqrt(bends), 2.0))
