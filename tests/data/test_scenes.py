import math
import re

import numpy as np
import pytest

from codi_hub.data.synthetic.raycast import SUPERSAMPLING, Light, Solid, Surface, World, render
from codi_hub.data.synthetic.scenes import scene
from codi_hub.data.synthetic.scenes_words import KINDS, LIGHTS, caption, name_of
from codi_hub.data.synthetic.textures import PATTERNS, pattern

WHITE = (0.8, 0.8, 0.8)
MATTE = Surface("plain", WHITE, WHITE, 1.0)
NOON = Light((0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.3, 0.6), (0.6, 0.7, 0.8), 0.5, 1.0, 0.0, spread=0.0)


def world(*solids: Solid, height: float = 1.0, pitch: float = 0.0, light: Light = NOON) -> World:
    return World(height, pitch, math.tan(math.radians(30)), MATTE, light, solids)


def solid(shape: str, half: tuple[float, float, float] = (1.0, 1.0, 1.0), z: float = 5.0, x: float = 0.0) -> Solid:
    return Solid(shape, (x, z), half, 0.0, MATTE, ("", "red", ""))


def test_a_scene_has_the_documented_form_and_is_reproducible() -> None:
    first = scene(np.random.default_rng(3), 64)
    again = scene(np.random.default_rng(3), 64)
    assert first.image.shape == (64, 64, 3)
    assert first.image.dtype == np.uint8
    assert first.depth.shape == (64, 64)
    assert first.depth.dtype == np.float32
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.depth, again.depth)
    assert first.caption == again.caption
    assert not np.array_equal(first.image, scene(np.random.default_rng(4), 64).image)


def test_many_scenes_are_lit_varied_and_described() -> None:
    scenes = [scene(np.random.default_rng([1, k]), 32) for k in range(60)]
    for one in scenes:
        assert one.depth.max() == pytest.approx(1.0)
        assert one.depth.min() >= 0
        assert re.match(r"^an? .*(sphere|box|cone|cylinder).* (on|in) ", one.caption), one.caption
        assert one.image.std() > 2
    means = [one.image.mean() for one in scenes]
    assert 60 < np.mean(means) < 180
    assert np.std(means) > 15
    assert len({one.caption for one in scenes}) > 55


def test_the_depth_of_the_ground_is_planar_and_the_sky_is_zero() -> None:
    size, height = 32, 1.5
    _, depth, shares = render(world(height=height), size)
    rows = (np.arange(size * SUPERSAMPLING) + 0.5) / (size * SUPERSAMPLING) * 2 - 1
    inverse = np.maximum(rows, 0) * math.tan(math.radians(30)) / height  # 1 / z of the ground along row y
    inverse = inverse.reshape(size, SUPERSAMPLING).mean(1)
    np.testing.assert_allclose(depth, np.repeat(inverse[:, None] / inverse.max(), size, 1), atol=1e-5)
    assert depth[0].max() == 0
    assert shares == []


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [("sphere", 4.0), ("box", 4.0), ("cylinder", 4.0), ("cone", 4.5)],
)
def test_solids_are_hit_where_geometry_predicts(shape: str, nearest: float) -> None:
    size = 65  # an odd size: the middle pixel looks straight ahead, at half the height of the solid
    _, depth, shares = render(world(solid(shape)), size)
    assert shares[0] > 0.02
    # the ground in the lowest row is at 1 / lowest
    lowest = (1 - 1 / size) * math.tan(math.radians(30))
    assert depth[size // 2, size // 2] / depth[-1, 0] == pytest.approx(1 / nearest / lowest, rel=0.01)


def test_a_sphere_covers_its_solid_angle() -> None:
    _, _, shares = render(world(solid("sphere", (0.5, 0.5, 0.5), z=6.0), height=0.5), 128)
    tangent = 0.5 / math.sqrt(36 - 0.25)  # of the cone that touches it
    assert shares[0] == pytest.approx(math.pi * tangent**2 / (2 * math.tan(math.radians(30))) ** 2, rel=0.03)


def test_a_solid_casts_a_shadow_away_from_the_light() -> None:
    low = Light((-0.8, 0.6, 0.0), (1.0, 1.0, 1.0), (0.2, 0.3, 0.6), (0.6, 0.7, 0.8), 0.5, 1.0, 0.0, spread=0.0)
    view = {"height": 4.0, "pitch": 0.65, "light": low}
    empty, _, _ = render(world(**view), 64)
    image, depth, _ = render(world(solid("cylinder", (0.4, 1.0, 0.4)), **view), 64)
    _, flat, _ = render(world(**view), 64)
    ground = np.abs(depth / depth.max() - flat / flat.max()) < 0.005
    darker = (image.astype(int).mean(2) < 0.75 * empty.astype(int).mean(2)) & ground
    assert darker[:, 36:].sum() > 30  # the light comes from the left
    assert darker[:, :24].sum() == 0


def test_haze_gives_the_distance_the_colour_of_the_horizon() -> None:
    thick = Light((0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.3, 0.6), (0.5, 0.5, 0.5), 0.5, 1.0, 2.0, spread=0.0)
    image, _, _ = render(world(solid("box"), light=thick), 32)
    far = image[: 32 // 2 + 2]
    assert far.std() < 2
    assert image[-1].std(-1).max() < 12


@pytest.mark.parametrize("kind", sorted(PATTERNS))
def test_patterns_stay_in_range_and_fade_when_finer_than_a_pixel(kind: str) -> None:
    x, y, z = np.random.default_rng(0).uniform(-9, 9, (3, 4000)).astype(np.float32)
    sharp = pattern(kind, x, y, z, np.float32(0.01))
    coarse = pattern(kind, x, y, z, np.float32(30.0))
    assert sharp.dtype == np.float32
    assert sharp.min() >= 0
    assert sharp.max() <= 1
    if kind != "plain":
        assert coarse.std() < 0.6 * sharp.std()


def test_captions() -> None:
    red = ("sphere", ("large", "red", ""), (0.0, 3.0))
    oak = ("box", ("", "brown", "wooden"), (2.0, 3.2))
    orange = ("cone", ("", "orange", "striped"), (0.1, 6.0))
    assert caption([red], "grass", "at night", False) == "a large red sphere on grass at night"
    assert (
        caption([red, oak], "sand", "in fog", False) == "a large red sphere to the left of a wooden box on sand in fog"
    )
    assert caption([oak, red], "sand", "in fog", False).startswith("a wooden box to the right of a large red sphere")
    assert caption([red, orange], "sand", "in fog", True) == (
        "a large red sphere in front of an orange striped cone on sand in front of mountains in fog"
    )
    assert caption([red, oak, orange], "snow", "at sunset", False) == (
        "a large red sphere, a wooden box and an orange striped cone on snow at sunset"
    )
    assert caption([], "snow", "at sunset", False) == "snow at sunset"


def test_the_shortest_name_that_is_not_ambiguous() -> None:
    red, blue = ("sphere", ("", "red", "")), ("sphere", ("", "blue", ""))
    oak = ("sphere", ("", "brown", "wooden"))
    assert name_of(*red, [red]) == "sphere"
    assert name_of(*red, [red, blue]) == "red sphere"
    assert name_of(*oak, [red, oak]) == "wooden sphere"


def test_the_shares_of_surfaces_add_up_and_every_light_has_words() -> None:
    assert sum(look.share for look in KINDS.values()) == pytest.approx(1.0)
    assert all(look.words for look in LIGHTS.values())
