"""The degradations: sizes, determinism, and that each step does what it is asked for."""

import numpy as np
import pytest

from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.filters import filter2d, luma, smooth
from codi_hub.tasks.degradation import (
    FIRST,
    KERNELS,
    PRESETS,
    SECOND,
    add_gaussian_noise,
    add_poisson_noise,
    blur_kernel,
    degrade,
    degrade_once,
    jpeg,
    random_kernel,
    sinc_kernel,
)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth shapes with some texture, uint8 (96, 128, 3)."""
    rng = np.random.default_rng(0)
    field = smooth(rng.random((96, 128, 3)).astype(np.float32), 4.0)
    field = (field - field.min()) / np.ptp(field) + rng.normal(0, 0.03, field.shape)
    return (np.clip(field, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [2, 4])
def test_result_is_scale_times_smaller_and_depends_on_the_generator(image: np.ndarray, preset: str, scale: int) -> None:
    for seed in range(6):
        one, again = (degrade(image, scale, np.random.default_rng(seed), preset) for _ in range(2))
        assert one.dtype == np.uint8
        assert one.shape == (96 // scale, 128 // scale, 3)
        assert np.array_equal(one, again)
    assert not np.array_equal(one, degrade(image, scale, np.random.default_rng(99), preset))


def test_full_loses_more_than_light(image: np.ndarray) -> None:
    clean = degrade_once(image, 4, 0.5, 0, 95, np.random.default_rng(0)).astype(float)
    errors = {
        preset: np.mean([np.abs(degrade(image, 4, np.random.default_rng(k), preset) - clean).mean() for k in range(12)])
        for preset in PRESETS
    }
    assert 0 < errors["light"] < errors["full"] < 60


@pytest.mark.parametrize("shape", [(33, 57, 3), (5, 4, 3), (4, 200, 3)])
@pytest.mark.parametrize("preset", PRESETS)
def test_odd_and_tiny_images(shape: tuple[int, int, int], preset: str) -> None:
    photo = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for seed in range(4):
        assert degrade(photo, 4, np.random.default_rng(seed), preset).shape == (shape[0] // 4, shape[1] // 4, 3)


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 3), np.uint8)]
)
def test_other_types_and_shapes_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="cannot degrade"):
        degrade(wrong, 4, np.random.default_rng(0))


def test_an_unknown_preset_names_the_presets(image: np.ndarray) -> None:
    with pytest.raises(UsageError, match="'hard': use light or full"):
        degrade(image, 4, np.random.default_rng(0), "hard")


@pytest.mark.parametrize("sigma", [2.0, 8.0, 25.0])
@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_the_requested_level(sigma: float, gray: bool) -> None:
    noise = add_gaussian_noise(np.full((64, 64, 3), 0.5, np.float32), sigma, np.random.default_rng(1), gray=gray) - 0.5
    assert noise.std() * 255 == pytest.approx(sigma, rel=0.05)
    assert (np.ptp(noise, axis=2).max() < 1e-6) == gray


def test_poisson_noise_grows_with_the_root_of_light() -> None:
    ramp = np.repeat(np.linspace(0, 1, 256, dtype=np.float32)[:, None, None], 256, 1).repeat(3, 2)
    noise = add_poisson_noise(ramp, 1.0, np.random.default_rng(0)) - ramp
    assert noise[:2].std() < 0.01
    for row in (64, 250):  # 256 levels, so 256 photons at full light
        assert noise[row - 4 : row + 4].std() == pytest.approx(np.sqrt(ramp[row, 0, 0] / 256), rel=0.1)


def test_noise_of_a_whole_degradation_has_the_requested_level() -> None:
    flat = np.full((256, 256, 3), 128, np.uint8)
    small = degrade_once(flat, 4, 1.0, 6.0, 100, np.random.default_rng(0))
    spread = np.sqrt(0.299**2 + 0.587**2 + 0.114**2)  # of luma, for three channels of 1; JPEG averages the chroma
    assert luma(small.astype(np.float32)).std() == pytest.approx(6.0 * spread, rel=0.05)


def test_jpeg_changes_more_the_lower_its_quality(image: np.ndarray) -> None:
    errors = [np.abs(jpeg(image.astype(np.float32) / 255, q).astype(float) - image).mean() for q in (20, 60, 95)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_every_kernel_sums_to_one_and_is_centred() -> None:
    kernels = [blur_kernel(form, 15, 2.0, 2.0 if isotropic else 0.7, 0.4, 1.3) for form, isotropic, _ in KERNELS]
    kernels += [sinc_kernel(15, cutoff) for cutoff in (np.pi / 5, np.pi / 2, np.pi)]
    for kernel in kernels:
        assert kernel.sum() == pytest.approx(1.0)
        assert np.allclose(kernel, kernel[::-1, ::-1])
        assert kernel.argmax() == kernel.size // 2
    rng = np.random.default_rng(0)
    for ranges in (FIRST, SECOND):
        for _ in range(50):
            drawn = random_kernel(ranges, rng)
            assert drawn.sum() == pytest.approx(1.0)
            assert drawn.shape[0] == drawn.shape[1]
            assert drawn.shape[0] % 2 == 1
    assert sum(odds for *_, odds in KERNELS) == pytest.approx(1.0)


def test_generalised_kernels_become_gaussian_at_beta_one_and_plateaus_are_flatter() -> None:
    gaussian = blur_kernel("gaussian", 21, 2.0, 1.0, 0.5)
    assert np.allclose(blur_kernel("generalised", 21, 2.0, 1.0, 0.5, 1.0), gaussian)
    spread = {beta: blur_kernel("generalised", 21, 2.0, 2.0, 0.0, beta)[10, 11] for beta in (0.5, 4.0)}
    centre = {beta: blur_kernel("generalised", 21, 2.0, 2.0, 0.0, beta)[10, 10] for beta in (0.5, 4.0)}
    assert spread[4.0] / centre[4.0] > 0.99 > 0.8 > spread[0.5] / centre[0.5]
    y, x = np.mgrid[:21, :21] - 10
    assert (gaussian * x * x).sum() > (gaussian * y * y).sum()  # the longer axis is near x
    turned = blur_kernel("gaussian", 21, 2.0, 1.0, 0.5 + np.pi / 2)
    assert np.allclose(turned, np.rot90(gaussian, -1))


def test_the_sinc_kernel_is_a_low_pass() -> None:
    response = np.abs(np.fft.fft2(sinc_kernel(41, np.pi / 2), s=(64, 64)))
    assert response[0, :10].min() > 0.9  # passes below pi / 2, which is 16 of 64
    assert response[0, 22:33].max() < 0.1


def test_smoothing_is_a_gaussian_with_mirrored_edges() -> None:
    photo = np.random.default_rng(0).random((150, 37, 2)).astype(np.float32)
    kernel = blur_kernel("gaussian", 17, 2.0, 2.0)
    assert np.allclose(smooth(photo, 2.0), filter2d(photo, kernel), atol=1e-4)
    assert np.allclose(smooth(np.full((300, 5, 3), 0.3, np.float32), 3.0), 0.3, atol=1e-6)
    impulse = np.zeros((41, 41, 1), np.float32)
    impulse[20, 20] = 1
    assert np.allclose(smooth(impulse, 2.0)[12:29, 12:29, 0], kernel, atol=1e-6)
    assert np.array_equal(smooth(photo, 0.0), photo)
