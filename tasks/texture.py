"""Fine detail for smooth fillings, from places of the same picture that look alike from afar.

A network trained by squared errors fills a hole with the mean of what could be there, which has no grain. What is made
of pieces has (Efros and Freeman, "Image quilting for texture synthesis and transfer", 2001): here they are pieces of
the picture's own fine detail alone, laid over the filling, which keeps its colours and shapes.
"""

import numpy as np

from codi_hub.images.filters import harmonic, smooth

FINE = 3.0  # px; sigma of what is detail and what is seen from afar
PIECE = 24  # px a side; pieces overlap by half
APART = 6  # px; how far around a place its slope is looked at
WEIGHTS = {"slope": 0.5, "grain": 2.0, "place": 0.02}  # beside colour
AMONG = 64  # places that look most alike, of which one is drawn: with the first alone a piece repeats itself
SOURCES = 40_000  # places looked at, at most
GRAIN = 4.0  # px; sigma within which the strength of detail is measured, by logarithms: edges, being few, count little
FAINT = (0.5 / 255) ** 2  # power below which there is no detail
NORMAL = 0.635  # minus the mean logarithm of a standard normal variable's size


def textured(image: np.ndarray, hole: np.ndarray, strength: float) -> np.ndarray:
    """The image with as much detail in its hole as there is around it.

    Args:
        image: float32 (H, W, 3) in [0, 1], its hole filled smoothly.
        hole: bool (H, W).
        strength: share of the detail that the filling lacks which is added.

    Returns:
        float32 (H, W, 3), equal to `image` outside the hole; `image` itself where too little else is there.
    """
    from scipy.ndimage import maximum_filter, minimum_filter
    from scipy.spatial import cKDTree

    afar = smooth(image, FINE)
    detail = image - afar
    own = minimum_filter(~hole, 4 * int(FINE) + 1, mode="nearest")  # where the detail owes nothing to the filling
    sources = np.argwhere(minimum_filter(own, PIECE, mode="constant", cval=False))
    if len(sources) < AMONG:
        return image
    rng = np.random.default_rng(0)
    sources = sources[rng.permutation(len(sources))[:SOURCES]]
    spread = smooth(own[..., None].astype(np.float32), GRAIN)
    power = np.square(detail)
    logarithms = np.where(own, np.log(power + FAINT).mean(-1), np.float32(0))[..., None]
    grain = harmonic(np.exp(smooth(logarithms, GRAIN) / np.maximum(spread, 1e-3) / 2 + NORMAL), ~own)
    power = smooth(power.mean(-1, keepdims=True), GRAIN)
    lacking = np.sqrt(np.maximum(np.square(grain) - power, 0))

    framed = np.pad(afar, ((APART, APART), (APART, APART), (0, 0)), "edge")

    def seen(places: np.ndarray) -> np.ndarray:
        """What places (N, 2) are compared by, (N, F)."""
        y, x = places.T
        colour = afar[y, x]
        around = [framed[y + APART + a, x + APART + b] for a, b in ((-APART, 0), (APART, 0), (0, -APART), (0, APART))]
        slope = [WEIGHTS["slope"] * (other - colour) for other in around]
        return np.hstack([colour, *slope, WEIGHTS["grain"] * grain[y, x], WEIGHTS["place"] / PIECE * places])

    targets = np.argwhere(maximum_filter(hole, 2 * PIECE)[:: PIECE // 2, :: PIECE // 2]) * (PIECE // 2)
    _, nearest = cKDTree(seen(sources)).query(seen(targets), k=AMONG)
    chosen = sources[nearest[np.arange(len(targets)), rng.integers(0, AMONG, len(targets))]]
    added = _laid(detail, targets, chosen)
    there = np.sqrt(smooth(np.square(added).mean(-1, keepdims=True), GRAIN))
    added *= np.minimum(1, lacking / np.maximum(there, 1e-4))
    return np.where(hole[..., None], np.clip(image + np.float32(strength) * added, 0, 1), image)


def _laid(detail: np.ndarray, targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Pieces of the detail around `sources` laid around `targets`, both (N, 2): float32 (H, W, 3).

    Where pieces overlap their sum is divided by the root of the squared weights: what is unlike keeps its strength.
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
