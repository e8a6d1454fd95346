"""Distances between pictures, and between sets of them, in the features of a network.

They are what FID and LPIPS are with another network, so they bear neither name and cannot be compared with either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codi_hub.images.metrics import as_float

PATCH = 64  # px a side of the pieces that pictures are compared in
EPS = 1e-10  # as in the reference code of Zhang et al. 2018

Network = Callable[[Tensor], tuple[Sequence[Tensor], Tensor]]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of vectors, (N, D) and (M, D).

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau, 1982; Heusel et al., 2017, eq. 6), in
    float64. With C = R^T R / (N - 1), R from the QR decomposition of the centred vectors, the root's trace is the sum
    of the singular values of R_a R_b^T. So no matrix root is taken, and fewer vectors than dimensions do no harm to
    the arithmetic; the estimate itself is biased upwards by few samples, and only compares at equal numbers.

    Raises:
        ValueError: fewer than two vectors, or of different lengths.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two or more vectors of one length on each side are needed, not {a.shape} and {b.shape}")
    (mu_a, root_a), (mu_b, root_b) = _fitted(a), _fitted(b)
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    squared = np.sum((mu_a - mu_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * shared
    return max(0.0, float(squared))


def _fitted(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and a root R of the covariance: R^T R = C."""
    values = vectors.astype(np.float64)
    mean = values.mean(0)
    return mean, np.linalg.qr(values - mean, mode="r") / np.sqrt(len(values) - 1)


def perceptual(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Distance of pictures from their feature maps, two lists of (B, C, H, W): (B,), in 0..4.

    Features are scaled to unit length at each place; squared distances, summed over channels, are averaged over space
    and over maps (Zhang et al., 2018, eq. 1, with all weights equal). 0 where they agree in direction everywhere.
    """
    distances = [(_unit(x) - _unit(y)).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(distances).mean(0)


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.norm(dim=1, keepdim=True) + EPS)


def patches(image: np.ndarray, side: int = PATCH) -> Tensor:
    """An image, HWC uint8 or float in [0, 1], in square pieces that cover it: float32 (N, 3, side, side).

    The pieces lie on an even grid and overlap where the sides are no multiples; a smaller image makes smaller pieces.
    """
    pixels = torch.from_numpy(as_float(image).astype(np.float32)).permute(2, 0, 1)
    side = min(side, *pixels.shape[1:])
    tops, lefts = ([round(k) for k in np.linspace(0, n - side, -(-n // side))] for n in pixels.shape[1:])
    return torch.stack([pixels[:, top : top + side, left : left + side] for top in tops for left in lefts])


@dataclass(frozen=True)
class Distances:
    """One method's pictures against the true ones.

    Attributes:
        frechet: of all their patches against all patches of the true pictures; None where there is only one.
        perceptual: per picture, the mean over its patches.
        samples: numbers of patches, the method's and the true ones.
    """

    frechet: float | None
    perceptual: list[float]
    samples: tuple[int, int]


@torch.inference_mode()
def compare(
    network: Network, made: Mapping[str, Sequence[np.ndarray]], references: Sequence[np.ndarray]
) -> dict[str, Distances]:
    """Each method's pictures against the true ones, both in patches, so that a handful of photographs is enough.

    Args:
        network: images in [0, 1], (B, 3, H, W) -> feature maps, and vectors (B, D).
        made: method -> pictures HWC, the k-th to be like `references[k]` and as large.
        references: the true pictures; one that stands there several times counts once in the Frechet distance.

    Raises:
        ValueError: a picture is not as large as its reference.
    """
    vectors: dict[str, list[np.ndarray]] = {method: [] for method in made}
    distances: dict[str, list[float]] = {method: [] for method in made}
    true: dict[int, np.ndarray] = {}
    last: int | None = None
    maps: Sequence[Tensor] = []
    for k, reference in enumerate(references):
        if id(reference) != last:
            maps, pooled = network(patches(reference))
            true[id(reference)], last = pooled.float().cpu().numpy(), id(reference)
        for method, pictures in made.items():
            if pictures[k].shape != reference.shape:
                raise ValueError(f"{method}: a picture of shape {pictures[k].shape} is compared with {reference.shape}")
            own, pooled = network(patches(pictures[k]))
            vectors[method].append(pooled.float().cpu().numpy())
            distances[method].append(float(perceptual(own, maps).mean()))
    target = np.concatenate(list(true.values()))
    made_of = {method: np.concatenate(rows) for method, rows in vectors.items()}
    return {
        method: Distances(
            frechet(rows, target) if min(len(rows), len(target)) > 1 else None,
            distances[method],
            (len(rows), len(target)),
        )
        for method, rows in made_of.items()
    }
