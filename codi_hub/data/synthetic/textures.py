"""Procedural textures: weights in [0, 1] that mix two colours, as functions of the point in space.

Points are in units of the texture (one cell, one stripe, one ring). `blur` is the side of a pixel's footprint in that
unit: a pattern finer than a pixel fades to its mean instead of aliasing.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from codi_hub import seeds

BANK = 512  # side of the stored noise, px
Array = np.ndarray


@lru_cache(maxsize=1)
def _bank() -> Array:
    """Return tileable 1/f noise, float32 (BANK, BANK), zero mean, unit standard deviation."""
    frequency = np.hypot(np.fft.fftfreq(BANK)[:, None], np.fft.rfftfreq(BANK)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(seeds.constant(77).standard_normal((BANK, BANK))) / frequency
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(BANK, BANK))
    return (field / field.std()).astype(np.float32)


def noise(u: Array, v: Array) -> Array:
    """Sample 1/f noise at (u, v) bilinearly, float32 of unit standard deviation; one unit is 32 stored values."""
    u, v = u * 32.0, v * 32.0
    row, column = np.floor(u), np.floor(v)
    a, b = u - row, v - column
    i = row.astype(np.int32) & (BANK - 1)
    j = column.astype(np.int32) & (BANK - 1)
    i1, j1 = (i + 1) & (BANK - 1), (j + 1) & (BANK - 1)
    field = _bank().ravel()
    i, i1 = i * BANK, i1 * BANK
    upper = field[i + j] * (1 - b) + field[i + j1] * b
    lower = field[i1 + j] * (1 - b) + field[i1 + j1] * b
    return upper * (1 - a) + lower * a


def _solid(x: Array, y: Array, z: Array) -> Array:
    """Sample noise in space from the 2D field: the third coordinate shifts the other two."""
    return noise(0.23 * x + 0.31 * y, 0.23 * z + 0.19 * y)


def _edge(wave: Array, blur: Array) -> Array:
    """Turn a wave of sin/cos into bands with edges of one pixel."""
    return 0.5 + 0.5 * np.clip(wave / (np.pi * blur + 1e-3), -1.0, 1.0)


def _plain(x: Array, y: Array, z: Array, blur: Array) -> Array:
    return np.clip(0.25 + 0.25 * _solid(x, y, z), 0.0, 1.0)


def _checker(x: Array, y: Array, z: Array, blur: Array) -> Array:
    return _edge(np.cos(np.pi * x) * np.cos(np.pi * y) * np.cos(np.pi * z), blur)


def _stripes(x: Array, y: Array, z: Array, blur: Array) -> Array:
    return _edge(np.cos(np.pi * (y + 0.45 * x)), blur)


def _wood(x: Array, y: Array, z: Array, blur: Array) -> Array:
    grain = noise(0.9 * x + 0.35 * y, 0.06 * z + 0.05 * y)
    rings = np.sin(4.0 * np.hypot(0.3 * x + 1.3, 0.7 * y - 0.8) + 2.2 * grain)
    return np.clip(0.45 + 0.28 * rings / (1 + blur) + 0.16 * grain, 0.0, 1.0)


def _planks(x: Array, y: Array, z: Array, blur: Array) -> Array:
    board = np.floor(x)
    tone = noise(board * 0.37, board * 0.81) * 0.14
    grain = noise(1.1 * x + board * 5.0, 0.08 * z + board * 0.7)
    gap = np.clip((0.5 - np.abs(x - board - 0.5)) / (blur + 0.03), 0.0, 1.0)
    fade = 1.0 / (1.0 + blur)
    return np.clip(0.85 + (0.3 * tone + 0.13 * grain - 0.4) * fade - 0.8 * (1 - gap) * fade, 0.0, 1.0)


def _marble(x: Array, y: Array, z: Array, blur: Array) -> Array:
    vein = np.abs(np.sin(1.3 * x + 0.8 * y + 0.6 * z + 1.9 * _solid(x, y, z)))
    return np.exp(-5.0 * vein) * 0.85 / (1.0 + blur)


def _spots(x: Array, y: Array, z: Array, blur: Array) -> Array:
    dots = np.cos(np.pi * x) * np.cos(np.pi * z) + np.cos(np.pi * y) * np.cos(np.pi * z) - 0.55
    return _edge(0.6 * dots, blur)


def _rough(x: Array, y: Array, z: Array, blur: Array) -> Array:
    fine = noise(2.1 * x + 0.7 * y, 2.1 * z + 1.3 * y)
    return np.clip(0.5 + (0.22 * fine + 0.12 * _solid(x, y, z)) / (1.0 + 0.6 * blur), 0.0, 1.0)


def _tiles(x: Array, y: Array, z: Array, blur: Array) -> Array:
    gap = np.minimum(np.abs(x - np.rint(x)), np.abs(z - np.rint(z)))
    tone = 0.1 * noise(np.rint(x + 0.5) * 0.41, np.rint(z + 0.5) * 0.67)
    line = np.clip((gap - 0.02) / (blur + 0.02), 0.0, 1.0)
    return np.clip(0.85 + (tone - 0.75 * (1 - line)) / (1.0 + blur * blur), 0.0, 1.0)


def _bricks(x: Array, y: Array, z: Array, blur: Array) -> Array:
    row = np.floor(y * 2.0)
    along = x + 0.5 * (row % 2)
    gap = np.minimum(np.abs(along - np.rint(along)), 0.5 * np.abs(y * 2.0 - np.rint(y * 2.0)))
    tone = 0.16 * noise(np.floor(along) * 0.53, row * 0.71) + 0.1 * noise(x * 1.3, y * 1.3)
    line = np.clip((gap - 0.02) / (blur + 0.02), 0.0, 1.0)
    return np.clip(0.8 + (tone - 0.8 * (1 - line)) / (1.0 + blur), 0.0, 1.0)


PATTERNS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "plain": _plain,
    "checker": _checker,
    "stripes": _stripes,
    "wood": _wood,
    "planks": _planks,
    "marble": _marble,
    "spots": _spots,
    "rough": _rough,
    "tiles": _tiles,
    "bricks": _bricks,
}


def pattern(kind: str, x: Array, y: Array, z: Array, blur: Array) -> Array:
    """Return the weight of the second colour at each point, float32 in [0, 1].

    Args:
        kind: a name in `PATTERNS`.
        x, y, z: float32 arrays of one shape, in units of the texture, y up.
        blur: side of a pixel's footprint in the same unit; broadcasts with them.
    """
    return PATTERNS[kind](x, y, z, blur)
