"""Holes for training and evaluating inpainting: random brush strokes, boxes and half images. True is the hole."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

SHARES = (0.05, 0.5)  # of the image; the last stroke or box may exceed it
LEAST = 0.01  # of the image, in a stroke or box
ODDS = {"brush": 0.5, "boxes": 0.3, "half": 0.2}


def random_hole(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Sample a hole for training, bool (H, W): about 5 to 60 % of the image."""
    kind = str(rng.choice(list(ODDS), p=list(ODDS.values())))
    return hole(rng, height, width, kind, rng.uniform(*SHARES))


def hole(rng: np.random.Generator, height: int, width: int, kind: str, share: float) -> np.ndarray:
    """Sample a hole of about a share of the image, bool (H, W), never empty.

    Args:
        rng: the only source of randomness.
        kind: "brush" (thick curved strokes), "boxes", or "half" (one side of the image).
        share: of the pixels, in (0, 1).
    """
    if kind == "half":
        return _half(rng, height, width, share)
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    covered = np.zeros((height, width), bool)
    while covered.mean() < share:
        missing = max(LEAST, share - float(covered.mean()))
        (_stroke if kind == "brush" else _box)(rng, draw, height, width, missing)
        covered = np.array(canvas)
    return covered


def _half(rng: np.random.Generator, height: int, width: int, share: float) -> np.ndarray:
    """Cover one side of the image."""
    covered = np.zeros((height, width), bool)
    if rng.random() < 0.5:
        covered[: max(1, round(share * height))] = True
    else:
        covered[:, : max(1, round(share * width))] = True
    return covered[::-1, ::-1].copy() if rng.random() < 0.5 else covered


def _box(rng: np.random.Generator, draw: ImageDraw.ImageDraw, height: int, width: int, missing: float) -> None:
    """Draw a rectangle of a part of the missing area, with an aspect ratio of up to 3."""
    area = rng.uniform(0.4, 1.0) * missing * height * width
    aspect = 3 ** rng.uniform(-1, 1)
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    draw.rectangle((left, top, left + w - 1, top + h - 1), fill=1)


def _stroke(rng: np.random.Generator, draw: ImageDraw.ImageDraw, height: int, width: int, missing: float) -> None:
    """Draw a curved line with round ends, thinner if little is missing."""
    side = math.sqrt(height * width)
    thick = max(1.0, side * min(rng.uniform(0.04, 0.16), math.sqrt(missing) / 2))
    x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
    points = [(x, y)]
    for _ in range(int(rng.integers(1, 5))):
        angle += rng.uniform(-1.2, 1.2)
        length = rng.uniform(0.5, 1.5) * min(0.3 * side, missing * side * side / thick)
        x, y = x + length * math.cos(angle), y + length * math.sin(angle)
        points.append((x, y))
    draw.line(points, fill=1, width=round(thick), joint="curve")
    for x, y in points:
        draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=1)


def dilated(covered: np.ndarray, pixels: int) -> np.ndarray:
    """Dilate a hole by a square, `pixels` px on every side: bool (H, W)."""
    for axis in (0, 1):
        reach = [(pixels, pixels) if axis == k else (0, 0) for k in (0, 1)]
        counts = np.cumsum(np.pad(covered, reach).astype(np.int32), axis)
        before = np.pad(counts, [(1, 0) if axis == k else (0, 0) for k in (0, 1)])
        length = covered.shape[axis]
        ends = np.take(before, range(2 * pixels + 1, 2 * pixels + 1 + length), axis)
        covered = ends > np.take(before, range(length), axis)
    return covered
