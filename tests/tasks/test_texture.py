"""Fine detail in smooth fillings: as much as around them, where there is some, and nothing where there is not."""

import numpy as np
import pytest
from PIL import Image

from codi_hub.images.filters import harmonic, smooth
from codi_hub.tasks.inpaint import Inpaint
from codi_hub.tasks.texture import textured


def grainy(sigma: float, height: int = 160, width: int = 192) -> np.ndarray:
    """Gray with fine noise of a deviation, float32 (H, W, 3)."""
    noise = np.random.default_rng(0).normal(0, sigma, (height, width, 3)).astype(np.float32)
    return np.clip(0.5 + noise, 0, 1)


def holed(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image with a hole of 48 px filled smoothly, and the hole."""
    hole = np.zeros(image.shape[:2], bool)
    hole[60:108, 70:118] = True
    return harmonic(image, hole), hole


def grain(image: np.ndarray, where: np.ndarray) -> float:
    return float((image - smooth(image, 3.0))[where].std())


def test_a_filling_gets_the_grain_that_is_around_it_and_nothing_else_changes() -> None:
    image = grainy(0.1)
    filled, hole = holed(image)
    made = textured(filled, hole, 1.0)
    assert grain(filled, hole) < 0.3 * grain(image, hole)
    assert grain(made, hole) == pytest.approx(grain(image, hole), rel=0.15)
    assert np.array_equal(made[~hole], image[~hole])
    assert np.abs(smooth(made, 8.0) - smooth(filled, 8.0)).max() < 0.05  # colours and shapes are the filling's
    assert np.array_equal(made, textured(filled, hole, 1.0))
    half = textured(filled, hole, 0.5)
    assert np.allclose(half - filled, (made - filled) / 2, atol=1e-5)


def test_a_filling_that_has_its_grain_gets_hardly_more() -> None:
    image = grainy(0.1)
    _, hole = holed(image)
    assert grain(textured(image, hole, 1.0), hole) == pytest.approx(grain(image, hole), rel=0.1)


def test_each_place_gets_the_grain_of_its_like() -> None:
    image = grainy(0.1)
    image[:, 96:] = 0.8  # the right half is flat and bright
    filled, hole = holed(image)
    made = textured(filled, hole, 1.0)
    left, right = hole.copy(), hole.copy()
    left[:, 86:], right[:, :106] = False, False
    assert grain(made, left) > 3 * grain(made, right)


def test_without_anything_to_take_a_filling_stays() -> None:
    flat = np.full((96, 96, 3), 0.4, np.float32)
    hole = np.zeros((96, 96), bool)
    hole[40:60, 40:60] = True
    assert np.abs(textured(flat, hole, 1.0) - flat).max() < 1e-6
    small = grainy(0.1, 24, 24)
    assert textured(small, hole[30:54, 30:54], 1.0) is small
    assert textured(flat, np.ones((96, 96), bool), 1.0) is flat


@pytest.mark.parametrize("place", [(0, 0), (148, 168), (70, 0)])
def test_holes_at_the_border_of_a_picture_are_filled_to_it(place: tuple[int, int]) -> None:
    image = (255 * grainy(0.1)).astype(np.uint8)
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[place[0] : place[0] + 40, place[1] : place[1] + 40] = 0
    given = Image.fromarray(np.dstack([image, alpha]))
    made = {}
    for texture in (0.0, 1.0):
        task = Inpaint({"texture": texture})
        prepared = task.prepare(given)
        made[texture] = task.finish(prepared.condition[..., :3], prepared)
        assert np.array_equal(made[texture][alpha > 0], image[alpha > 0])
    hole = alpha == 0
    plain, rich = (grain(made[texture] / np.float32(255), hole) for texture in (0.0, 1.0))
    assert rich > 2 * plain


def test_a_hole_wider_than_what_is_filled_together_is_filled_all_over() -> None:
    image = (255 * grainy(0.1, 64, 1024)).astype(np.uint8)
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[20:44, 40:984] = 0
    task = Inpaint({"texture": 1.0})
    prepared = task.prepare(Image.fromarray(np.dstack([image, alpha])))
    made = task.finish(prepared.condition[..., :3], prepared) / np.float32(255)
    for left in range(100, 900, 100):
        there = np.zeros(alpha.shape, bool)
        there[24:40, left : left + 100] = True
        assert grain(made, there) > 0.4 * grain(image / np.float32(255), there)
