"""The Frechet distance against closed forms, the perceptual one against its definition and against photographs."""

import numpy as np
import pytest
import torch

from codi_hub.data.synthetic.scenes import scene
from codi_hub.evaluation.distances import compare, frechet, patches, perceptual
from codi_hub.evaluation.features import FeatureNet
from codi_hub.images.filters import smooth


def with_moments(rng: np.random.Generator, mean: np.ndarray, covariance: np.ndarray, count: int = 200) -> np.ndarray:
    """Vectors whose sample mean and covariance are exactly these."""
    raw = rng.standard_normal((count, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(raw, rowvar=False)))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def by_matrix_root(mean_a, cov_a, mean_b, cov_b) -> float:
    """The textbook formula, with the symmetric root (A^1/2 B A^1/2)^1/2 by eigendecomposition."""
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root)).sum()
    return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * shared


def test_frechet_in_one_dimension_is_the_distance_of_means_and_deviations() -> None:
    rng = np.random.default_rng(0)
    a = with_moments(rng, np.array([1.0]), np.array([[4.0]]))
    b = with_moments(rng, np.array([-2.0]), np.array([[0.25]]), count=37)
    assert frechet(a, b) == pytest.approx(3**2 + (2 - 0.5) ** 2, rel=1e-9)


def test_frechet_of_gaussians_with_known_moments() -> None:
    rng = np.random.default_rng(1)
    mean_a, mean_b = rng.standard_normal((2, 6))
    cov_a, cov_b = (m @ m.T + 0.1 * np.eye(6) for m in rng.standard_normal((2, 6, 6)))
    a, b = with_moments(rng, mean_a, cov_a), with_moments(rng, mean_b, cov_b, count=90)
    assert frechet(a, b) == pytest.approx(by_matrix_root(mean_a, cov_a, mean_b, cov_b), rel=1e-9)
    diagonal = [with_moments(rng, np.zeros(3), np.diag(d)) for d in ([1.0, 4.0, 9.0], [4.0, 4.0, 1.0])]
    assert frechet(*diagonal) == pytest.approx(1 + 0 + 4, rel=1e-9)


@pytest.mark.parametrize("count", [400, 20])  # 20 vectors of 50 dimensions have a singular covariance
def test_frechet_is_zero_for_equal_sets_symmetric_and_blind_to_rotation(count: int) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((count, 50)), 1.5 * rng.standard_normal((count + 5, 50)) + 0.2
    turn = np.linalg.qr(rng.standard_normal((50, 50)))[0]
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, rng.permutation(a)) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)
    assert frechet(a @ turn + 3, b @ turn + 3) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a, b) > 1


@pytest.mark.parametrize(("a", "b"), [((1, 4), (9, 4)), ((9, 4), (9, 5)), ((9,), (9,))])
def test_frechet_refuses_sets_without_a_covariance(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"two or more vectors .* not \("):
        frechet(np.zeros(a), np.zeros(b))


def test_perceptual_is_its_formula() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 5.0]])[..., None, None]  # two images, two channels, one position
    b = torch.tensor([[4.0, 3.0], [0.0, 1.0]])[..., None, None]
    assert perceptual([a], [b]).tolist() == pytest.approx([2 * 0.2**2, 0.0])
    halves = torch.cat([a, b], 3), torch.cat([b, b], 3)
    assert perceptual([halves[0], a], [halves[1], b]).tolist() == pytest.approx([(0.04 + 0.08) / 2, 0.0])
    assert perceptual([a], [-a]).tolist() == pytest.approx([4.0, 4.0])


def test_perceptual_grows_with_blur_and_with_noise() -> None:
    torch.manual_seed(0)
    network = FeatureNet()
    image = scene(np.random.default_rng(3), 128).image.astype(np.float32) / 255
    noise = np.random.default_rng(4).standard_normal(image.shape).astype(np.float32)
    blurred = [image, *(smooth(image, sigma) for sigma in (0.5, 1, 2, 4))]
    noisy = [np.clip(image + sigma * noise, 0, 1) for sigma in (0.02, 0.05, 0.1, 0.2)]
    with torch.no_grad():
        reference = network(patches(image))[0]
        distances = [
            [perceptual(network(patches(o))[0], reference).mean().item() for o in row] for row in (blurred, noisy)
        ]
    assert distances[0][0] == 0
    assert distances[0] == sorted(distances[0])
    assert distances[1] == sorted(distances[1])
    assert distances[1][0] > 0


def test_patches_cover_an_image_of_any_size() -> None:
    image = np.random.default_rng(5).integers(0, 256, (100, 130, 3), np.uint8)
    pieces = patches(image)
    assert pieces.shape == (2 * 3, 3, 64, 64)
    assert np.array_equal((pieces[0].permute(1, 2, 0) * 255).round().numpy(), image[:64, :64])
    assert np.array_equal((pieces[-1].permute(1, 2, 0) * 255).round().numpy(), image[-64:, -64:])
    assert patches(image[:128, :128]).shape[0] == 4
    assert patches(image[:40, :100]).shape == (3, 3, 40, 40)
    assert torch.equal(patches(image / 255), pieces)


def test_a_nearer_method_has_smaller_distances() -> None:
    torch.manual_seed(0)
    network = FeatureNet()
    originals = [scene(np.random.default_rng([6, k]), 128).image for k in range(3)]
    outputs = {
        "same": originals,
        "near": [(smooth(o / 255, 0.7) * 255).round().astype(np.uint8) for o in originals],
        "far": [(smooth(o / 255, 3) * 255).round().astype(np.uint8) for o in originals],
    }
    distances = compare(network, outputs, originals)
    assert distances["same"].perceptual == [0, 0, 0]
    assert distances["same"].frechet == pytest.approx(0, abs=1e-6)
    assert 0 < distances["near"].frechet < distances["far"].frechet
    assert all(
        0 < near < far for near, far in zip(distances["near"].perceptual, distances["far"].perceptual, strict=True)
    )
    assert distances["far"].samples == (12, 12)


def test_a_repeated_reference_counts_once() -> None:
    network = FeatureNet()
    originals = [scene(np.random.default_rng([6, k]), 64).image for k in range(3)]
    doubled = [original for original in originals for _ in "ab"]
    once = compare(network, {"m": originals[::-1]}, originals)["m"]
    twice = compare(network, {"m": doubled}, doubled)["m"]
    assert once.samples == (3, 3)
    assert twice.samples == (6, 3)
    with pytest.raises(ValueError, match=r"m: an image of shape \(63, 64, 3\)"):
        compare(network, {"m": [originals[0][1:]]}, originals[:1])
