"""Holes: shares, kinds, reproducibility."""

import numpy as np
import pytest

from codi_hub.tasks.masks import ODDS, dilated, hole, random_hole


@pytest.mark.parametrize("size", [(64, 64), (48, 160)])
def test_training_holes_are_5_to_60_percent_and_differ(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    shares = [random_hole(rng, *size).mean() for _ in range(200)]
    assert min(shares) > 0.04
    assert max(shares) < 0.6
    assert np.std(shares) > 0.1


@pytest.mark.parametrize("kind", ODDS)
def test_a_hole_has_the_requested_share_and_is_reproducible(kind: str) -> None:
    holes = [hole(np.random.default_rng(seed), 96, 128, kind, 0.25) for seed in range(20)]
    assert all(0.24 <= one.mean() < 0.36 for one in holes)
    assert np.array_equal(holes[3], hole(np.random.default_rng(3), 96, 128, kind, 0.25))
    assert len({one.tobytes() for one in holes}) > (1 if kind == "half" else 15)
    assert all(one.dtype == bool and one.shape == (96, 128) for one in holes)


@pytest.mark.parametrize("kind", ODDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_the_smallest_images_have_holes(kind: str, size: tuple[int, int]) -> None:
    assert all(hole(np.random.default_rng(seed), *size, kind, 0.3).any() for seed in range(10))


def test_half_images_cover_all_four_sides() -> None:
    holes = [hole(np.random.default_rng(seed), 8, 8, "half", 0.5) for seed in range(40)]
    assert {tuple(one[corner] for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1))) for one in holes} == {
        (True, True, False, False),
        (False, False, True, True),
        (True, False, True, False),
        (False, True, False, True),
    }


def test_dilation() -> None:
    dot = np.zeros((9, 11), bool)
    dot[4, 1] = True
    larger = np.zeros_like(dot)
    larger[2:7, :4] = True
    assert np.array_equal(dilated(dot, 2), larger)
    assert np.array_equal(dilated(dot, 0), dot)
    assert dilated(dot, 100).all()
    assert not dilated(np.zeros((3, 3), bool), 5).any()
