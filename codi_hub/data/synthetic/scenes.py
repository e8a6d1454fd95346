"""Rendered scenes of simple solids: an image, its depth map, and a caption of what is visible."""

import math
from dataclasses import dataclass, replace

import numpy as np

from codi_hub.data.synthetic.raycast import Colour, Light, Solid, Surface, World, render
from codi_hub.data.synthetic.scenes_words import COLOURS, FLOORS, KINDS, LIGHTS, WALLS, caption

VISIBLE = 0.006  # share of the image above which the caption mentions a solid
PROMINENT = 0.015  # minimum share of the largest solid of an image


@dataclass(frozen=True)
class Scene:
    """A rendered image.

    Attributes:
        image: uint8 (size, size, 3), sRGB.
        depth: float32 (size, size), relative inverse depth in [0, 1]; the nearest pixel is 1, the sky 0.
        caption: description of what is visible.
    """

    image: np.ndarray
    depth: np.ndarray
    caption: str


@dataclass(frozen=True)
class Setting:
    """A world and the words for its surroundings."""

    world: World
    ground: str
    around: str  # "at sunset", "in front of a blue wall"
    clock: str  # a key of LIGHTS


def _linear(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """Convert an sRGB colour, randomly varied, to linear light."""
    value = np.array(colour) * rng.normal(1, 3 * spread) + rng.normal(0, spread, 3)
    r, g, b = (np.clip(value, 0.02, 0.95) ** 2.2).tolist()
    return r, g, b


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Sample uniformly."""
    return float(rng.uniform(low, high))


def light_of(rng: np.random.Generator, clock: str) -> Light:
    """Sample the light of a time of day, a key of LIGHTS."""
    look = LIGHTS[clock]
    elevation, azimuth = _between(rng, *look.elevation), _between(rng, 0, 2 * math.pi)
    if clock == "sunset":  # low, and usually in front of the camera, where it colours the sky
        azimuth = _between(rng, -0.3 * math.pi, 1.3 * math.pi)
    flat = math.cos(elevation)
    towards = (flat * math.cos(azimuth), math.sin(elevation), flat * math.sin(azimuth))
    strength = _between(rng, 0.85, 1.15)
    r, g, b = look.sun
    return Light(
        towards=towards,
        sun=(r * strength, g * strength, b * strength),
        zenith=_linear(rng, look.zenith, 0.015),
        horizon=_linear(rng, look.horizon, 0.015),
        ambient=look.ambient * _between(rng, 0.8, 1.2),
        exposure=look.exposure * _between(rng, 0.85, 1.2),
        haze=_between(rng, *look.haze),
        clouds=_between(rng, 0.2, 0.8) if look.cloudy and rng.random() < 0.75 else 0.0,
        stars=look.stars,
        spread=look.spread,
        pool=_between(rng, 3.0, 9.0) if clock == "lamp" else 0.0,
    )


def surface_of(rng: np.random.Generator, kind: str, colour: Colour, scale: float) -> Surface:
    """Sample a surface: a colour with a darker or a pale second one."""
    look = KINDS[kind]
    own = _linear(rng, colour, 0.025)
    if look.pale:
        pale = _between(rng, 0.75, 0.92)
        second = _linear(rng, (pale, pale, pale * 0.95), 0.02)
    else:
        dark = _between(rng, 0.45, 0.75)
        second = (own[0] * dark, own[1] * dark, own[2] * dark)
    gloss = _between(rng, 0.5, 1.0) if look.glossy else 0.0
    return Surface(look.texture, own, second, scale * look.cell, gloss)


def _solid(rng: np.random.Generator, at: tuple[float, float], size: float, size_word: str) -> Solid:
    """Sample a solid of a size at (x, z)."""
    shape = str(rng.choice(["sphere", "box", "cone", "cylinder"], p=[0.34, 0.32, 0.16, 0.18]))
    kind = str(rng.choice(list(KINDS), p=[look.share for look in KINDS.values()]))
    colour = "brown" if kind == "wooden" else str(rng.choice(list(COLOURS)))
    if shape == "sphere":
        half = (size, size, size)
    elif shape == "box":
        half = (size * _between(rng, 0.6, 1.0), size * _between(rng, 0.55, 1.15), size * _between(rng, 0.6, 1.0))
    else:
        radius = size * _between(rng, 0.55, 0.9)
        half = (radius, size * _between(rng, 0.7, 1.25), radius)
    yaw = _between(rng, -math.pi, math.pi)
    return Solid(shape, at, half, yaw, surface_of(rng, kind, COLOURS[colour], size), (size_word, colour, kind))


def place(rng: np.random.Generator, solids: list[Solid], tan: float, distance: float) -> Solid | None:
    """Sample another solid in view that overlaps no other and has another name; None after 12 failures."""
    for _ in range(12):
        z = distance * _between(rng, 0.75, 1.7)
        x = z * tan * _between(rng, -0.8, 0.8)
        size_word = str(rng.choice(["small", "", "large"], p=[0.3, 0.45, 0.25]))
        low, high = {"small": (0.22, 0.36), "": (0.42, 0.7), "large": (0.85, 1.2)}[size_word]
        new = _solid(rng, (x, z), _between(rng, low, high), size_word)
        apart = all(math.dist(new.at, t.at) > 0.85 * (max(new.half[::2]) + max(t.half[::2])) + 0.1 for t in solids)
        if apart and all((t.shape, t.words[1]) != (new.shape, new.words[1]) for t in solids):
            return new
    return None


def _setting(rng: np.random.Generator) -> Setting:
    """Sample a world: light, ground, solids, and a camera that looks at them."""
    indoor = rng.random() < 0.25
    clock = (
        "lamp"
        if indoor
        else str(rng.choice(["day", "overcast", "sunset", "night", "fog"], p=[0.42, 0.16, 0.2, 0.12, 0.1]))
    )
    choices = [word for word, floor in FLOORS.items() if floor.indoor or not indoor]
    ground_word = str(rng.choice(choices))
    floor = FLOORS[ground_word]
    cell = floor.cell * _between(rng, 0.75, 1.35)
    first = _linear(rng, floor.first or COLOURS[str(rng.choice(list(COLOURS)))], 0.025)
    r, g, b = first
    paler = (0.45 * r + 0.06, 0.45 * g + 0.06, 0.45 * b + 0.06)
    second = _linear(rng, floor.second, 0.02) if floor.second else paler
    ground = Surface(floor.texture, first, second, cell, floor.gloss)
    tan = math.tan(0.5 * _between(rng, math.radians(38), math.radians(62)))
    distance = _between(rng, 2.1, 3.9)
    solids: list[Solid] = []
    for _ in range(int(rng.choice([1, 2, 3, 4, 5], p=[0.24, 0.3, 0.24, 0.14, 0.08]))):
        new = place(rng, solids, tan, distance)
        solids += [new] if new else []
    height = float(np.exp(rng.uniform(math.log(0.5), math.log(3.4))))
    middle = sum(t.at[1] for t in solids) / len(solids)
    level = sum(t.centre[1] for t in solids) / len(solids)
    pitch = math.atan2(height - level, middle) + float(rng.normal(0, 0.25)) * tan
    wall, around, wall_at = None, LIGHTS[clock].words, 0.0
    if indoor:
        word = str(rng.choice(list(WALLS)))
        wall_at = max(t.at[1] + max(t.half) for t in solids) + _between(rng, 0.4, 3.0)
        wall_texture, wall_colour, wall_second = WALLS[word]
        wall_cell = _between(rng, 0.4, 0.8) if wall_texture == "bricks" else 1.5
        wall = Surface(wall_texture, _linear(rng, wall_colour, 0.02), _linear(rng, wall_second, 0.02), wall_cell)
        around = f"in front of a {word} wall"
    hills = _between(rng, 0.06, 0.2) if not indoor and clock != "fog" and rng.random() < 0.4 else 0.0
    light = light_of(rng, clock)
    if indoor and light.towards[2] > -0.1:  # the lamp is on the camera's side of the wall
        x, y, z = light.towards
        light = replace(light, towards=(x, y, -z))
    drift = _between(rng, 3, 90)
    world = World(height, pitch, tan, ground, light, tuple(solids), wall, wall_at, hills, drift)
    return Setting(world, ground_word, around, clock)


def rendered(setting: Setting, size: int) -> tuple[Scene, list[Solid], float]:
    """Render and describe a setting; return the scene, the visible solids, nearest first, and the largest share."""
    image, depth, shares = render(setting.world, size)
    visible = [t for t, share in zip(setting.world.solids, shares, strict=True) if share >= VISIBLE]
    visible.sort(key=lambda solid: solid.at[1])
    mountains = setting.world.hills > 0.12 and setting.world.pitch < 0.5 * math.atan(setting.world.tan)
    text = caption([(t.shape, t.words, t.at) for t in visible], setting.ground, setting.around, mountains)
    return Scene(image, depth, text), visible, max(shares, default=0.0)


def viewed(rng: np.random.Generator, size: int) -> tuple[Setting, Scene, list[Solid]]:
    """Sample a setting with a prominent solid; return it, its scene and the visible solids, nearest first."""
    while True:  # fewer than one in a hundred settings is rejected
        setting = _setting(rng)
        drawn, visible, largest = rendered(setting, size)
        if largest > PROMINENT:
            return setting, drawn, visible


def scene(rng: np.random.Generator, size: int) -> Scene:
    """Render a random scene.

    Args:
        rng: the only source of randomness; the same state gives the same scene.
        size: side of the image, px.
    """
    return viewed(rng, size)[1]
