"""The harmonic filling."""

import numpy as np
import pytest

from codi_hub.images import filters
from codi_hub.images.filters import boxes, harmonic
from codi_hub.tasks.masks import hole


def test_a_harmonic_picture_is_found_again_in_the_hole() -> None:
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
def test_what_surrounds_a_hole_in_one_value_fills_it_with_that(size: tuple[int, int], kind: str) -> None:
    covered = hole(np.random.default_rng(1), *size, kind, 0.4)
    filled = harmonic(np.where(covered[..., None], np.float32(5), np.float32(0.7)), covered)
    assert np.allclose(filled, 0 if covered.all() else 0.7, atol=1e-5)


def test_nothing_is_beyond_what_surrounds_it_and_no_hole_changes_nothing() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (40, 40, 2)).astype(np.float32)
    covered = hole(np.random.default_rng(2), 40, 40, "brush", 0.5)
    filled = harmonic(image, covered)
    assert filled[covered].min() >= image[~covered].min()
    assert filled[covered].max() <= image[~covered].max()
    assert np.array_equal(harmonic(image, np.zeros((40, 40), bool)), image)


def test_a_large_hole_is_taken_apart_into_boxes_that_hold_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    covered = np.zeros((700, 900), bool)
    for _ in range(12):
        top, left = rng.integers(0, 690), rng.integers(0, 890)
        covered[top : top + rng.integers(1, 90), left : left + rng.integers(1, 90)] = True
    assert len(boxes(covered)) == 1
    assert boxes(np.zeros((8, 8), bool)) == []
    monkeypatch.setattr(filters, "LARGE", 1000)
    found = boxes(covered)
    assert len(found) > 2
    times = np.zeros(covered.shape, int)
    for box in found:
        times[box] += 1
    assert (times[covered] == 1).all()  # each part in one box, with what is around it
    y, x = np.mgrid[:700, :900].astype(np.float32)
    image = np.stack([np.sin(x / 90), np.cos(y / 70), np.sin((x + y) / 110)], -1)
    whole, parts = harmonic(image, covered), image.copy()
    for box in found:
        parts[box] = np.where(covered[box][..., None], harmonic(image[box], covered[box]), parts[box])
    assert np.abs(whole - parts).max() < 0.06  # of a range of 2: as exactly as either is solved
