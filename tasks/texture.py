"""Texture synthesis for smooth fills: fine detail from similar places of the same image.

A network trained on squared errors fills a hole with the mean of the possible contents, which has no grain. Patches
have (Efros and Freeman, "Image quilting for texture synthesis and transfer", 2001): here only the fine detail of
patches of the image is added to the fill, which keeps its colours and shapes.
"""

import numpy as np

from codi_hub import seeds
from codi_hub.images.filters import harmonic, smooth

FINE = 3.0  # px; sigma of the Gaussian that separates detail from the rest
PIECE = 24  # px; side of a patch; patches overlap by half
APART = 6  # px; distance of the points that describe the slope at a place
WEIGHTS = {"slope": 0.5, "grain": 2.0, "place": 0.02}  # relative to colour
AMONG = 64  # nearest places, of which one is chosen at random: the nearest alone would repeat patches
SOURCES = 40_000  # maximum number of candidate places
GRAIN = 4.0  # px; sigma of the window of detail power, averaged by logarithms so that edges have little influence
FAINT = (0.5 / 255) ** 2  # power below which there is no detail
NORMAL = 0.635  # -E[log |x|] of a standard normal x


def textured(image: np.ndarray, hole: np.ndarray, strength: float) -> np.ndarray:
    """Add as much detail to a filled hole as its surroundings have.

    Args:
        image: float32 (H, W, 3) in [0, 1], its hole filled smoothly.
        hole: bool (H, W).
        strength: share of the missing detail that is added, in [0, 1].

    Returns:
        float32 (H, W, 3), equal to `image` outside the hole; `image` itself if too little of it is left.
    """
    from scipy.ndimage import maximum_filter, minimum_filter
    from scipy.spatial import cKDTree

    coarse = smooth(image, FINE)
    detail = image - coarse
    own = minimum_filter(~hole, 4 * int(FINE) + 1, mode="nearest")  # where the detail does not depend on the fill
    sources = np.argwhere(minimum_filter(own, PIECE, mode="constant", cval=False))
    if len(sources) < AMONG:
        return image
    rng = seeds.constant(0)
    sources = sources[rng.permutation(len(sources))[:SOURCES]]
    spread = smooth(own[..., None].astype(np.float32), GRAIN)
    power = np.square(detail)
    logarithms = np.where(own, np.log(power + FAINT).mean(-1), np.float32(0))[..., None]
    grain = harmonic(np.exp(smooth(logarithms, GRAIN) / np.maximum(spread, 1e-3) / 2 + NORMAL), ~own)
    power = smooth(power.mean(-1, keepdims=True), GRAIN)
    lacking = np.sqrt(np.maximum(np.square(grain) - power, 0))

    framed = np.pad(coarse, ((APART, APART), (APART, APART), (0, 0)), "edge")

    def features(places: np.ndarray) -> np.ndarray:
        """Return the features (N, F) by which places (N, 2) are compared."""
        y, x = places.T
        colour = coarse[y, x]
        around = [framed[y + APART + a, x + APART + b] for a, b in ((-APART, 0), (APART, 0), (0, -APART), (0, APART))]
        slope = [WEIGHTS["slope"] * (other - colour) for other in around]
        return np.hstack([colour, *slope, WEIGHTS["grain"] * grain[y, x], WEIGHTS["place"] / PIECE * places])

    targets = np.argwhere(maximum_filter(hole, 2 * PIECE)[:: PIECE // 2, :: PIECE // 2]) * (PIECE // 2)
    _, nearest = cKDTree(features(sources)).query(features(targets), k=AMONG)
    chosen = sources[nearest[np.arange(len(targets)), rng.integers(0, AMONG, len(targets))]]
    added = _overlapped(detail, targets, chosen)
    there = np.sqrt(smooth(np.square(added).mean(-1, keepdims=True), GRAIN))
    added *= np.minimum(1, lacking / np.maximum(there, 1e-4))
    return np.where(hole[..., None], np.clip(image + np.float32(strength) * added, 0, 1), image)


def _overlapped(detail: np.ndarray, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Copy patches of the detail around `sources` to `targets`, both (N, 2): float32 (H, W, 3).

    Overlaps are divided by the root of the sum of squared weights, which preserves the power of unlike patches.
    """
    half = PIECE // 2
    window = np.hanning(PIECE + 2)[1:-1].astype(np.float32)
    weight = np.outer(window, window)[..., None]
    height, width = detail.shape[:2]
    laid = np.zeros((height + PIECE, width + PIECE, 3), np.float32)
    squares = np.full((height + PIECE, width + PIECE, 1), 1e-6, np.float32)
    for (y, x), (v, u) in zip(targets.tolist(), sources.tolist(), strict=True):
        laid[y : y + PIECE, x : x + PIECE] += weight * detail[v - half : v + half, u - half : u + half]
        squares[y : y + PIECE, x : x + PIECE] += weight**2
    return (laid / np.sqrt(squares))[half:-half, half:-half]
