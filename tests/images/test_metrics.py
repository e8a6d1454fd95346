import math

import numpy as np
import pytest

from codi_hub.data.synthetic.scenes import scene
from codi_hub.images.metrics import (
    blur,
    correlation,
    gmsd,
    gradient_magnitude,
    luminance,
    psnr,
    ssim,
    structure_agreement,
)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return scene(np.random.default_rng(21), 96).image


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def gmsd_by_hand(image: np.ndarray, reference: np.ndarray) -> float:
    """Compute GMSD as the paper states it, with loops, on (H, W) in 0..255."""
    magnitudes = []
    for field in (reference, image):
        h, w = field.shape[0] // 2, field.shape[1] // 2
        half = np.zeros((h + 2, w + 2))
        for y in range(h):
            for x in range(w):
                half[y + 1, x + 1] = field[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].sum() / 4
        m = np.zeros((h, w))
        for y in range(h):
            for x in range(w):
                block = half[y : y + 3, x : x + 3]
                m[y, x] = math.hypot((block[:, 0] - block[:, 2]).sum() / 3, (block[0] - block[2]).sum() / 3)
        magnitudes.append(m)
    r, d = magnitudes
    similarity = (2 * r * d + 170) / (r * r + d * d + 170)
    return math.sqrt(((similarity - similarity.mean()) ** 2).mean())


def test_psnr_is_its_formula() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(flat + np.uint8(5), flat) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(flat, flat) == math.inf
    half = np.zeros((4, 4, 3), np.float32)
    assert psnr(half + 0.1, half) == pytest.approx(20, abs=1e-5)
    assert psnr(half + 7, half) == pytest.approx(0)  # values out of range are clipped, as in a file


def test_psnr_is_the_same_for_bytes_and_floats(photo: np.ndarray) -> None:
    worse = noisy(photo, 10)
    assert psnr(worse, photo) == pytest.approx(psnr(worse.astype(np.float64) / 255, photo))


def test_gmsd_of_equal_images_is_zero(photo: np.ndarray) -> None:
    assert gmsd(photo, photo) == 0


def test_gmsd_matches_the_paper_written_with_loops() -> None:
    rng = np.random.default_rng(4)
    reference = rng.integers(0, 256, (14, 18), np.uint8)
    image = noisy(reference, 30)
    colour = [np.repeat(v[..., None], 3, -1) for v in (image, reference)]
    weights = 0.2989 + 0.5870 + 0.1140
    assert gmsd(*colour) == pytest.approx(gmsd_by_hand(image * weights, reference * weights), rel=1e-9)


def test_gmsd_of_a_lost_edge_has_a_closed_form() -> None:
    # On black, a bright square far from the border; the image lost it: similarity is T / (m^2 + T) where the square's
    # edge was and 1 elsewhere. In the halved image of height 40 px, m takes known values along sides and corners.
    reference = np.zeros((40, 40), np.uint8)
    reference[12:28, 12:28] = 90  # 8 x 8 px in the halved 20 x 20
    sides, near, outer = 90.0, 60.0, 30.0
    m = np.zeros((20, 20))
    for k in range(5, 15):
        full = sides if 7 <= k <= 12 else near if k in (6, 13) else outer
        m[k, [5, 6, 13, 14]] = np.hypot(full, 0)
    down = m.T.copy()
    total = np.sqrt(m**2 + down**2)
    similarity = 170 / (total**2 + 170)
    assert gmsd(np.zeros((40, 40), np.uint8), reference) == pytest.approx(similarity.std(), rel=1e-9)


def test_gmsd_and_ssim_get_worse_with_noise(photo: np.ndarray) -> None:
    levels = [noisy(photo, sigma) for sigma in (4, 8, 16, 32)]
    deviations = [gmsd(level, photo) for level in levels]
    similarities = [ssim(level, photo) for level in levels]
    assert deviations == sorted(deviations)
    assert similarities == sorted(similarities, reverse=True)
    assert ssim(photo, photo) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", [psnr, gmsd])
def test_different_shapes_are_refused(metric, photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"different shapes .*\(95, 96, 3\)"):
        metric(photo[1:], photo)


def test_luminance_weights_the_channels() -> None:
    assert luminance(np.array([[[255, 0, 0]]], np.uint8)).item() == pytest.approx(0.2989)
    assert luminance(np.array([[[0.0, 1.0, 0.0]]])).item() == pytest.approx(0.587)
    assert luminance(np.full((2, 2, 1), 51, np.uint8)).tolist() == [[0.2, 0.2], [0.2, 0.2]]


def test_blur_keeps_constants_and_has_the_stated_width() -> None:
    np.testing.assert_allclose(blur(np.full((9, 12), 0.7), 2.0), 0.7)
    dot = np.zeros((41, 41))
    dot[20, 20] = 1
    blurred = blur(dot, 2.0)
    offset = np.arange(41) - 20
    assert (blurred.sum(0) * offset**2).sum() == pytest.approx(4.0, rel=0.03)


def test_the_gradient_of_a_ramp_is_its_slope() -> None:
    y, x = np.mgrid[:6, :7].astype(np.float32)
    np.testing.assert_allclose(gradient_magnitude(3 * x + 4 * y), 5.0, rtol=1e-6)


def test_correlation() -> None:
    a = np.random.default_rng(0).random((5, 6))
    assert correlation(a, 3 * a + 1) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, np.ones_like(a)) == 0


def test_images_agree_with_their_own_depth_map_and_not_with_another() -> None:
    scenes = [scene(np.random.default_rng([77, k]), 96) for k in range(12)]
    own = [structure_agreement(one.image, one.depth) for one in scenes]
    other = [structure_agreement(one.image, scenes[k - 1].depth) for k, one in enumerate(scenes)]
    assert np.mean(own) > 0.4
    assert abs(np.mean(other)) < 0.15
    assert np.mean(np.array(own) > np.array(other)) > 0.9


def test_agreement_ignores_brightness_contrast_and_constant_images() -> None:
    one = scene(np.random.default_rng([77, 3]), 96)
    floats = one.image.astype(np.float64) / 255
    plain = structure_agreement(floats, one.depth)
    assert structure_agreement(0.5 * floats + 0.2, one.depth[..., None]) == pytest.approx(plain, abs=1e-6)
    assert structure_agreement(1 - floats, one.depth) == pytest.approx(plain, abs=1e-3)
    assert structure_agreement(np.full_like(one.image, 90), one.depth) == 0
    assert structure_agreement(one.image, np.full_like(one.depth, 0.5)) == 0
