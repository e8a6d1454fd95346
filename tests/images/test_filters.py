"""Harmonic fill."""

import numpy as np
import pytest

from codi_hub.images import filters
from codi_hub.images.filters import boxes, harmonic
from codi_hub.tasks.masks import hole


def test_a_harmonic_function_is_recovered_in_the_hole() -> None:
    y, x = np.mgrid[:150, :130] / 150
    u = np.stack([x * x - y * y, x * y, 0.3 + x], -1).astype(np.float32)
    covered = np.zeros(u.shape[:2], bool)
    covered[20:130, 15:100] = True
    broken = np.where(covered[..., None], np.float32(9), u)
    filled = harmonic(broken, covered)
    assert np.abs(filled - u).max() < 0.02
    assert np.array_equal(filled[~covered], u[~covered])


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (37, 64)])
@pytest.mark.parametrize("kind", ["brush", "boxes", "half"])
def test_constant_surroundings_fill_the_hole_with_their_value(size: tuple[int, int], kind: str) -> None:
    covered = hole(np.random.default_rng(1), *size, kind, 0.4)
    filled = harmonic(np.where(covered[..., None], np.float32(5), np.float32(0.7)), covered)
    assert np.allclose(filled, 0 if covered.all() else 0.7, atol=1e-5)


def test_fill_stays_within_the_range_of_its_surroundings_and_no_hole_changes_nothing() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (40, 40, 2)).astype(np.float32)
    covered = hole(np.random.default_rng(2), 40, 40, "brush", 0.5)
    filled = harmonic(image, covered)
    assert filled[covered].min() >= image[~covered].min()
    assert filled[covered].max() <= image[~covered].max()
    assert np.array_equal(harmonic(image, np.zeros((40, 40), bool)), image)


def test_a_large_hole_is_covered_by_disjoint_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    covered = np.zeros((700, 900), bool)
    for _ in range(12):
        top, left = rng.integers(0, 690), rng.integers(0, 890)
        covered[top : top + rng.integers(1, 90), left : left + rng.integers(1, 90)] = True
    assert len(boxes(covered)) == 1
    assert boxes(np.zeros((8, 8), bool)) == []
    monkeypatch.setattr(filters, "LARGE", 1000)
    split = boxes(covered)
    assert len(split) > 2
    times = np.zeros(covered.shape, int)
    for box in split:
        times[box] += 1
    assert (times[covered] == 1).all()  # each part in exactly one box
    y, x = np.mgrid[:700, :900].astype(np.float32)
    image = np.stack([np.sin(x / 90), np.cos(y / 70), np.sin((x + y) / 110)], -1)
    whole, parts = harmonic(image, covered), image.copy()
    for box in split:
        parts[box] = np.where(covered[box][..., None], harmonic(image[box], covered[box]), parts[box])
    assert np.abs(whole - parts).max() < 0.06  # of a range of 2: within the accuracy of either solution
