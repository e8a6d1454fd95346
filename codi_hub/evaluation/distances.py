"""Distances between images, and between sets of images, in the features of a network.

The formulas are those of FID and LPIPS, the network is another one: values cannot be compared with either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codi_hub.images.metrics import as_float

PATCH = 64  # px; side of the patches that are compared
EPS = 1e-10  # as in the reference code of Zhang et al. 2018

Network = Callable[[Tensor], tuple[Sequence[Tensor], Tensor]]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Frechet distance of the Gaussians fitted to two sets of vectors, (N, D) and (M, D).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau, 1982; Heusel et al., 2017, eq. 6), in
    float64. With C = R^T R / (N - 1), R from the QR decomposition of the centred vectors, the trace of the root is the
    sum of the singular values of R_a R_b^T. No matrix root is needed, and fewer vectors than dimensions are no problem
    numerically; the estimate is biased upwards for few samples: compare values of equal numbers of samples only.

    Raises:
        ValueError: fewer than two vectors, or different lengths.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two or more vectors of one length on each side are needed, not {a.shape} and {b.shape}")
    (mu_a, root_a), (mu_b, root_b) = _fitted(a), _fitted(b)
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    squared = np.sum((mu_a - mu_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * shared
    return max(0.0, float(squared))


def _fitted(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and a root R of the covariance: R^T R = C."""
    values = vectors.astype(np.float64)
    mean = values.mean(0)
    return mean, np.linalg.qr(values - mean, mode="r") / np.sqrt(len(values) - 1)


def perceptual(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the distance (B,) in [0, 4] of images by their feature maps, two lists of (B, C, H, W).

    Features are normalised to unit length at each position; squared distances, summed over channels, are averaged over
    positions and maps (Zhang et al., 2018, eq. 1, with all weights equal). 0 for equal directions everywhere.
    """
    distances = [(_unit(x) - _unit(y)).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(distances).mean(0)


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.norm(dim=1, keepdim=True) + EPS)


def patches(image: np.ndarray, side: int = PATCH) -> Tensor:
    """Cut an image, HWC uint8 or float in [0, 1], into square patches that cover it: float32 (N, 3, side, side).

    The patches form a regular grid and overlap unless the sides are multiples; a smaller image gives smaller patches.
    """
    pixels = torch.from_numpy(as_float(image).astype(np.float32)).permute(2, 0, 1)
    side = min(side, *pixels.shape[1:])
    tops, lefts = ([round(k) for k in np.linspace(0, n - side, -(-n // side))] for n in pixels.shape[1:])
    return torch.stack([pixels[:, top : top + side, left : left + side] for top in tops for left in lefts])


@dataclass(frozen=True)
class Distances:
    """The distances of one method's images from the references.

    Attributes:
        frechet: between all patches of both; None if there is only one.
        perceptual: per image, the mean over its patches.
        samples: numbers of patches of the method and of the references.
    """

    frechet: float | None
    perceptual: list[float]
    samples: tuple[int, int]


@torch.inference_mode()
def compare(
    network: Network, outputs: Mapping[str, Sequence[np.ndarray]], references: Sequence[np.ndarray]
) -> dict[str, Distances]:
    """Compare the images of each method with the references, by patches, so that a few photographs suffice.

    Args:
        network: images in [0, 1], (B, 3, H, W) -> feature maps, and vectors (B, D).
        outputs: method -> images HWC, the k-th of the shape of `references[k]`.
        references: one that occurs several times counts once in the Frechet distance.

    Raises:
        ValueError: an image and its reference have different shapes.
    """
    vectors: dict[str, list[np.ndarray]] = {method: [] for method in outputs}
    distances: dict[str, list[float]] = {method: [] for method in outputs}
    target_vectors: dict[int, np.ndarray] = {}
    last: int | None = None
    maps: Sequence[Tensor] = []
    for k, reference in enumerate(references):
        if id(reference) != last:
            maps, pooled = network(patches(reference))
            target_vectors[id(reference)], last = pooled.float().cpu().numpy(), id(reference)
        for method, images in outputs.items():
            if images[k].shape != reference.shape:
                raise ValueError(f"{method}: an image of shape {images[k].shape} is compared with {reference.shape}")
            own, pooled = network(patches(images[k]))
            vectors[method].append(pooled.float().cpu().numpy())
            distances[method].append(float(perceptual(own, maps).mean()))
    target = np.concatenate(list(target_vectors.values()))
    samples = {method: np.concatenate(rows) for method, rows in vectors.items()}
    return {
        method: Distances(
            frechet(rows, target) if min(len(rows), len(target)) > 1 else None,
            distances[method],
            (len(rows), len(target)),
        )
        for method, rows in samples.items()
    }
