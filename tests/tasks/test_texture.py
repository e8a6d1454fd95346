"""Fine detail in smooth fills: as much as in the surroundings."""

import numpy as np
import pytest
from PIL import Image

from codi_hub.images.filters import harmonic, smooth
from codi_hub.tasks.inpaint import Inpaint
from codi_hub.tasks.texture import textured


def grainy(sigma: float, height: int = 160, width: int = 192) -> np.ndarray:
    """Return grey with noise of a standard deviation, float32 (H, W, 3)."""
    noise = np.random.default_rng(0).normal(0, sigma, (height, width, 3)).astype(np.float32)
    return np.clip(0.5 + noise, 0, 1)


def holed(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the image with a hole of 48 px filled smoothly, and the hole."""
    hole = np.zeros(image.shape[:2], bool)
    hole[60:108, 70:118] = True
    return harmonic(image, hole), hole


def grain(image: np.ndarray, where: np.ndarray) -> float:
    return float((image - smooth(image, 3.0))[where].std())


def test_a_fill_gets_the_grain_of_its_surroundings_and_nothing_else_changes() -> None:
    image = grainy(0.1)
    filled, hole = holed(image)
    finished = textured(filled, hole, 1.0)
    assert grain(filled, hole) < 0.3 * grain(image, hole)
    assert grain(finished, hole) == pytest.approx(grain(image, hole), rel=0.15)
    assert np.array_equal(finished[~hole], image[~hole])
    assert np.abs(smooth(finished, 8.0) - smooth(filled, 8.0)).max() < 0.05  # colours and shapes are the fill's
    assert np.array_equal(finished, textured(filled, hole, 1.0))
    half = textured(filled, hole, 0.5)
    assert np.allclose(half - filled, (finished - filled) / 2, atol=1e-5)


def test_a_fill_with_grain_gets_little_more() -> None:
    image = grainy(0.1)
    _, hole = holed(image)
    assert grain(textured(image, hole, 1.0), hole) == pytest.approx(grain(image, hole), rel=0.1)


def test_each_place_gets_the_grain_of_similar_places() -> None:
    image = grainy(0.1)
    image[:, 96:] = 0.8  # the right half is flat and bright
    filled, hole = holed(image)
    finished = textured(filled, hole, 1.0)
    left, right = hole.copy(), hole.copy()
    left[:, 86:], right[:, :106] = False, False
    assert grain(finished, left) > 3 * grain(finished, right)


def test_without_a_source_of_texture_a_fill_is_unchanged() -> None:
    flat = np.full((96, 96, 3), 0.4, np.float32)
    hole = np.zeros((96, 96), bool)
    hole[40:60, 40:60] = True
    assert np.abs(textured(flat, hole, 1.0) - flat).max() < 1e-6
    small = grainy(0.1, 24, 24)
    assert textured(small, hole[30:54, 30:54], 1.0) is small
    assert textured(flat, np.ones((96, 96), bool), 1.0) is flat


@pytest.mark.parametrize("place", [(0, 0), (148, 168), (70, 0)])
def test_holes_at_the_image_border_are_filled(place: tuple[int, int]) -> None:
    image = (255 * grainy(0.1)).astype(np.uint8)
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[place[0] : place[0] + 40, place[1] : place[1] + 40] = 0
    transparent = Image.fromarray(np.dstack([image, alpha]))
    finished = {}
    for texture in (0.0, 1.0):
        task = Inpaint({"texture": texture})
        prepared = task.prepare(transparent)
        finished[texture] = task.finish(prepared.condition[..., :3], prepared)
        assert np.array_equal(finished[texture][alpha > 0], image[alpha > 0])
    hole = alpha == 0
    plain, rich = (grain(finished[texture] / np.float32(255), hole) for texture in (0.0, 1.0))
    assert rich > 2 * plain


def test_a_hole_wider_than_one_part_is_textured_everywhere() -> None:
    image = (255 * grainy(0.1, 64, 1024)).astype(np.uint8)
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[20:44, 40:984] = 0
    task = Inpaint({"texture": 1.0})
    prepared = task.prepare(Image.fromarray(np.dstack([image, alpha])))
    finished = task.finish(prepared.condition[..., :3], prepared) / np.float32(255)
    for left in range(100, 900, 100):
        inside = np.zeros(alpha.shape, bool)
        inside[24:40, left : left + 100] = True
        assert grain(finished, inside) > 0.4 * grain(image / np.float32(255), inside)
