"""The vocabulary of scenes, the appearance of each word, and the captions. Colours are sRGB in [0, 1]."""

import math
from dataclasses import dataclass

Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (0.70, 0.22, 0.18),
    "orange": (0.82, 0.50, 0.22),
    "yellow": (0.83, 0.72, 0.30),
    "green": (0.28, 0.50, 0.26),
    "blue": (0.24, 0.38, 0.64),
    "purple": (0.46, 0.32, 0.55),
    "pink": (0.82, 0.58, 0.62),
    "brown": (0.45, 0.32, 0.22),
    "white": (0.86, 0.85, 0.82),
    "gray": (0.50, 0.50, 0.49),
    "black": (0.13, 0.13, 0.14),
}


@dataclass(frozen=True)
class Kind:
    """A surface of solids: texture, cell in units of the solid's size, sampling probability."""

    texture: str
    share: float
    cell: float = 0.5
    pale: bool = False  # the second colour is near white instead of a darker first one
    glossy: bool = False


KINDS: dict[str, Kind] = {
    "": Kind("plain", 0.42, 0.6),
    "shiny": Kind("plain", 0.16, 1.2, glossy=True),
    "striped": Kind("stripes", 0.11, 0.3, pale=True),
    "checkered": Kind("checker", 0.08, 0.45, pale=True),
    "spotted": Kind("spots", 0.06, 0.42, pale=True),
    "wooden": Kind("wood", 0.08, 0.3),
    "marble": Kind("marble", 0.05, 0.6, pale=True, glossy=True),
    "rough": Kind("rough", 0.04, 0.25),
}


@dataclass(frozen=True)
class Floor:
    """A ground's texture and colours. first None: a random colour of `COLOURS`; second None: a paler first one."""

    texture: str
    first: Colour | None
    second: Colour | None
    cell: float
    indoor: bool = False
    gloss: float = 0.0


FLOORS: dict[str, Floor] = {
    "a checkered floor": Floor("checker", None, (0.82, 0.80, 0.75), 0.8, True, 0.25),
    "a wooden floor": Floor("planks", (0.30, 0.19, 0.11), (0.62, 0.45, 0.29), 0.45, True, 0.1),
    "a tiled floor": Floor("tiles", (0.38, 0.37, 0.36), (0.68, 0.63, 0.56), 0.9, True, 0.2),
    "a carpet": Floor("rough", None, None, 0.2, True),
    "grass": Floor("rough", (0.20, 0.28, 0.10), (0.46, 0.52, 0.25), 0.22),
    "sand": Floor("rough", (0.62, 0.52, 0.38), (0.83, 0.75, 0.60), 0.4),
    "snow": Floor("rough", (0.78, 0.82, 0.88), (0.94, 0.95, 0.97), 0.8),
    "concrete": Floor("rough", (0.44, 0.43, 0.42), (0.60, 0.59, 0.57), 0.7, True),
    "a dirt road": Floor("rough", (0.33, 0.25, 0.18), (0.56, 0.45, 0.34), 0.35),
    "a stone pavement": Floor("tiles", (0.25, 0.24, 0.23), (0.55, 0.54, 0.52), 0.5),
}

WALLS: dict[str, tuple[str, Colour, Colour]] = {
    "white": ("plain", (0.84, 0.83, 0.80), (0.78, 0.77, 0.74)),
    "gray": ("plain", (0.55, 0.55, 0.55), (0.48, 0.48, 0.48)),
    "blue": ("plain", (0.42, 0.52, 0.64), (0.37, 0.47, 0.59)),
    "green": ("plain", (0.48, 0.56, 0.45), (0.43, 0.51, 0.40)),
    "yellow": ("plain", (0.80, 0.72, 0.50), (0.75, 0.67, 0.45)),
    "brick": ("bricks", (0.68, 0.65, 0.60), (0.56, 0.31, 0.24)),
    "wooden": ("planks", (0.25, 0.16, 0.10), (0.55, 0.38, 0.24)),
}


@dataclass(frozen=True)
class Look:
    """A time of day: the ranges from which a light is sampled. `sun` is linear light, the sky colours are sRGB."""

    words: str
    elevation: tuple[float, float]  # radians
    sun: Colour
    zenith: Colour
    horizon: Colour
    ambient: float
    exposure: float
    haze: tuple[float, float]
    spread: float = 0.02
    cloudy: bool = False
    stars: float = 0.0


LIGHTS: dict[str, Look] = {
    "day": Look("in daylight", (0.5, 1.2), (1.35, 1.25, 1.08), (0.32, 0.50, 0.74), (0.74, 0.82, 0.89), 0.62, 1.15,
                (0.0, 0.012), cloudy=True),
    "overcast": Look("on a cloudy day", (0.8, 1.3), (0.28, 0.28, 0.28), (0.66, 0.69, 0.72), (0.80, 0.81, 0.82), 1.0,
                     1.2, (0.004, 0.03), spread=0.2, cloudy=True),
    "sunset": Look("at sunset", (0.14, 0.34), (1.5, 0.78, 0.36), (0.36, 0.42, 0.55), (0.90, 0.68, 0.50), 0.6, 1.05,
                   (0.002, 0.02), cloudy=True),
    "night": Look("at night", (0.5, 1.1), (0.15, 0.17, 0.22), (0.07, 0.09, 0.14), (0.21, 0.24, 0.30), 1.0, 1.3,
                  (0.0, 0.01), stars=0.5),
    "fog": Look("in fog", (0.6, 1.2), (0.22, 0.22, 0.22), (0.76, 0.78, 0.79), (0.78, 0.79, 0.80), 0.95, 1.15,
                (0.07, 0.18), spread=0.25),
    "lamp": Look("indoors", (0.6, 1.1), (0.95, 0.84, 0.66), (0.62, 0.58, 0.52), (0.66, 0.63, 0.58), 0.85, 1.1,
                 (0.0, 0.0), spread=0.07),
}  # fmt: skip

EDITS: dict[str, list[str]] = {  # instructions; {} is the name of the solid, then its colour
    "recolour": ["make the {} {}", "turn the {} {}", "paint the {} {}", "change the colour of the {} to {}"],
    "remove": ["remove the {}", "take the {} away", "delete the {}"],
    "add": ["add {}"],
}
TIME_EDITS: dict[str, list[str]] = {
    "day": ["make it daytime", "turn it into day", "put it in daylight"],
    "sunset": ["make it sunset", "turn it into sunset", "show it at sunset"],
    "night": ["turn it into night", "make it night", "show it at night"],
    "fog": ["add fog", "make it foggy"],
}

Described = tuple[str, tuple[str, str, str], tuple[float, float]]  # shape, (size, colour, kind), (x, z)


def article(phrase: str) -> str:
    """Prefix the indefinite article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _phrase(shape: str, words: tuple[str, str, str]) -> str:
    size, colour, kind = words
    if kind == "wooden":
        colour = ""
    return article(" ".join(word for word in (size, colour, kind, shape) if word))


def name_of(shape: str, words: tuple[str, str, str], among: list[tuple[str, tuple[str, str, str]]]) -> str:
    """Return the shortest unambiguous name of a solid among others: its shape, with its colour if others share it."""
    alone = sum(other == shape for other, _ in among) == 1
    return shape if alone else f"{'wooden' if words[2] == 'wooden' else words[1]} {shape}"


def caption(solids: list[Described], ground: str, around: str, mountains: bool) -> str:
    """Describe what is visible, such as "a large red sphere and a small green box on grass at sunset".

    Args:
        solids: the visible ones, nearest first.
        ground: a key of `FLOORS`.
        around: words for the light or the wall.
        mountains: whether there are hills at the horizon.
    """
    phrases = [_phrase(shape, words) for shape, words, _ in solids]
    if len(solids) == 2:
        (_, _, one), (_, _, two) = solids
        beside = two[0] - one[0]
        if abs(beside) > 1.2 * abs(two[1] - one[1]):
            joined = f"{phrases[0]} to the {'left' if beside > 0 else 'right'} of {phrases[1]}"
        elif math.hypot(beside) < 0.5 * abs(two[1] - one[1]):
            joined = f"{phrases[0]} in front of {phrases[1]}"
        else:
            joined = " and ".join(phrases)
    else:
        joined = " and ".join([*filter(None, [", ".join(phrases[:-1])]), *phrases[-1:]])
    place = f"{joined} on {ground}" if solids else ground
    hills = " in front of mountains" if mountains else ""
    return f"{place}{hills} {around}"
