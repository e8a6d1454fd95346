"""Large pictures in overlapping tiles, so that memory is bounded by the tile and not by the picture.

Every tile starts from its part of the whole picture's noise, so neighbours agree where they overlap before they are
blended (the weights of all tiles add up to one at every pixel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from codi_hub.errors import InvalidInput, UsageError

UNIT = 64  # px: tiles begin at multiples of it, which every base's latents and levels divide
LEAST = 2 * UNIT
AUTO_SIDE = 1024
AUTO_PIXELS = 2 << 20  # up to here a picture is made whole, unless told otherwise
TOGETHER_PIXELS = 4 << 20  # of tiles handed to the generator at a time


NOT_FINITE = "the output has values that are not numbers: try --dtype fp32"


class Window(NamedTuple):
    """Where a tile lies in its picture, in pixels."""

    top: int
    left: int
    height: int  # of the whole picture, as is width
    width: int


class Prepared(Protocol):
    """The part of a task's `Prepared` that tiles need."""

    @property
    def condition(self) -> np.ndarray: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def window(self, rows: slice, columns: slice) -> Any: ...


class Tileable(Protocol):
    """The part of a task that tiles need."""

    @property
    def finishes_tiles(self) -> bool: ...
    def untouched(self, prepared: Any) -> bool: ...
    def finish(self, output: np.ndarray, prepared: Any) -> np.ndarray: ...


Make = Callable[[list[np.ndarray], list[Window]], list[np.ndarray]]
"""(conditions float32 (h, w, C) in [0, 1], of one shape; where each lies) -> outputs float32 (h, w, 3) in [0, 1]."""


class Tiling(NamedTuple):
    """Which pictures are cut, and into tiles of what `side` in pixels, a multiple of `UNIT`."""

    side: int
    above: int  # pixels that a picture may have and still be made whole

    @classmethod
    def parse(cls, said: str) -> Tiling | None:
        """ "auto", "off", or a side in pixels, taken up to the next multiple of `UNIT`. Raises UsageError."""
        if said == "off":
            return None
        if said == "auto":
            return cls(AUTO_SIDE, AUTO_PIXELS)
        if not said.isascii() or not said.isdecimal() or len(said) > 6 or int(said) < LEAST:
            raise UsageError(f"--tile must be auto, off, or a side of at least {LEAST} pixels, not {said!r}")
        side = -(-int(said) // UNIT) * UNIT
        return cls(side, side * side)

    @property
    def overlap(self) -> int:
        """Pixels that neighbours share: an eighth of a side."""
        return -(-self.side // (8 * UNIT)) * UNIT

    def cuts(self, size: tuple[int, int]) -> bool:
        """Whether a picture of (width, height) is made in tiles."""
        return size[0] * size[1] > self.above and max(size) > self.side


def spans(length: int, side: int, overlap: int) -> list[slice]:
    """The fewest tiles of one `side` that cover `length` and share `overlap` or more, evenly; the last may be cut off.

    All three are pixels, the last two multiples of `UNIT`, and so is where each tile begins.
    """
    beyond = -(-(length - side) // UNIT)
    if beyond <= 0:
        return [slice(0, length)]
    steps = -(-beyond // ((side - overlap) // UNIT))
    starts = [k * beyond // steps * UNIT for k in range(steps + 1)]
    return [slice(start, min(start + side, length)) for start in starts]


def weights(parts: Sequence[slice], length: int, overlap: int) -> list[np.ndarray]:
    """How much each tile counts along one side, float32 per pixel of it: ramps towards its neighbours, their sum 1."""
    own = []
    for part in parts:
        along = np.arange(part.start, part.stop)
        rising = along - part.start + 1 if part.start > 0 else np.full(len(along), overlap)
        falling = part.stop - along if part.stop < length else np.full(len(along), overlap)
        own.append(np.minimum(np.minimum(rising, falling), overlap).astype(np.float32))
    total = np.zeros(length, np.float32)
    for part, weight in zip(parts, own, strict=True):
        total[part] += weight
    return [weight / total[part] for part, weight in zip(parts, own, strict=True)]


def generate_tiled(prepared: Prepared, task: Tileable, make: Make, tiling: Tiling) -> np.ndarray:
    """One large picture, tile by tile.

    Returns:
        (H, W, 3): uint8 and finished, where the task `finishes_tiles`; else float32, to be finished as a whole.

    Raises:
        InvalidInput: an output that is not finite.
    """
    width, height = prepared.size
    canvas = np.empty((height, width, 3), np.uint8 if task.finishes_tiles else np.float32)
    turned = width > height  # strips lie across the shorter side
    longer, shorter = (width, height) if turned else (height, width)
    along, across = (spans(length, tiling.side, tiling.overlap) for length in (longer, shorter))
    outer, inner = weights(along, longer, tiling.overlap), weights(across, shorter, tiling.overlap)
    onto = canvas.swapaxes(0, 1) if turned else canvas
    pending = np.zeros((0, shorter, 3), np.float32)  # what the next strip still adds to
    for k, part in enumerate(along):
        strip = np.zeros((part.stop - part.start, shorter, 3), np.float32)
        strip[: len(pending)] = pending
        places = [(one, part) if turned else (part, one) for one in across]
        for one, weight, tile in zip(across, inner, _tiles(prepared, task, make, places, tiling), strict=True):
            strip[:, one] += outer[k][:, None, None] * weight[:, None] * (tile.swapaxes(0, 1) if turned else tile)
        done = (along[k + 1].start if along[k + 1 :] else longer) - part.start
        onto[part.start : part.start + done] = strip[:done].round() if task.finishes_tiles else strip[:done]
        pending = strip[done:].copy()
    return canvas


def _tiles(
    prepared: Prepared, task: Tileable, make: Make, places: Sequence[tuple[slice, slice]], tiling: Tiling
) -> Iterator[np.ndarray]:
    """Tiles at (rows, columns), each as float32 in the canvas's range."""
    width, height = prepared.size
    together = max(1, TOGETHER_PIXELS // tiling.side**2)
    for start in range(0, len(places), together):
        here = places[start : start + together]
        parts = [prepared.window(*place) for place in here]
        made: dict[int, np.ndarray] = {}
        for size in dict.fromkeys(part.size for part in parts):  # only the last of a strip may be smaller
            asked = [k for k, part in enumerate(parts) if part.size == size and not task.untouched(part)]
            if asked:
                windows = [Window(here[k][0].start, here[k][1].start, height, width) for k in asked]
                made |= zip(asked, make([parts[k].condition for k in asked], windows), strict=True)
        for k, part in enumerate(parts):
            output = made[k] if k in made else part.condition[..., :3]
            if not np.isfinite(output).all():
                raise InvalidInput(NOT_FINITE)
            yield task.finish(output, part).astype(np.float32) if task.finishes_tiles else output
