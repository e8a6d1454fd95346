"""Large images in overlapping tiles: memory is bounded by the tile, not by the image.

Every tile starts from its part of the whole image's noise, so that neighbours agree where they overlap. They are
blended with weights that sum to one at every pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from codi_hub.errors import InvalidInput, UsageError
from codi_hub.images.filters import to_uint16

UNIT = 64  # px: tiles begin at multiples of it, which are multiples of every base's latent cells and levels
MIN_SIDE = 2 * UNIT
AUTO_SIDE = 1024  # px
AUTO_PIXELS = 2 << 20  # of the largest image that is generated whole with "auto"
CALL_PIXELS = 4 << 20  # of the tiles in one call of the generator, unless a batch size is set


class Window(NamedTuple):
    """Where a tile lies in its image.

    Attributes:
        top, left: its first row and column, px.
        height, width: of the whole image, px.
    """

    top: int
    left: int
    height: int
    width: int


class Prepared(Protocol):
    """The part of a task's `Prepared` that tiles need."""

    @property
    def condition(self) -> np.ndarray: ...
    @property
    def conditions(self) -> np.ndarray: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def window(self, rows: slice, columns: slice) -> Any: ...


class Tileable(Protocol):
    """The part of a task that tiles need."""

    @property
    def finishes_tiles(self) -> bool: ...
    def untouched(self, prepared: Any) -> bool: ...
    def finish(self, output: np.ndarray, prepared: Any) -> np.ndarray: ...
    def finish_values(self, output: np.ndarray, prepared: Any) -> np.ndarray: ...


GenerateTiles = Callable[[list[np.ndarray], list[Window]], Sequence[np.ndarray]]
"""(conditions float32 (h, w, C) in [0, 1], of one shape; where each lies) -> outputs float32 (h, w, 3) in [0, 1]."""


class Tiling(NamedTuple):
    """Which images are generated in tiles.

    Attributes:
        side: of a tile, px, a multiple of `UNIT`.
        max_pixels: of the largest image that is generated whole.
    """

    side: int
    max_pixels: int

    @classmethod
    def parse(cls, value: str) -> Tiling | None:
        """Parse "auto", "off" (None), or the side of a tile in pixels, rounded up to a multiple of `UNIT`.

        Raises:
            UsageError: anything else.
        """
        if value == "off":
            return None
        if value == "auto":
            return cls(AUTO_SIDE, AUTO_PIXELS)
        if not value.isascii() or not value.isdecimal() or len(value) > 6 or int(value) < MIN_SIDE:
            raise UsageError(f"tile {value!r:.40}: auto, off, or a side of at least {MIN_SIDE} pixels")
        side = -(-int(value) // UNIT) * UNIT
        return cls(side, side * side)

    @property
    def overlap(self) -> int:
        """Return the pixels that neighbours share: an eighth of a side, rounded up to a multiple of `UNIT`."""
        return -(-self.side // (8 * UNIT)) * UNIT

    def applies(self, size: tuple[int, int]) -> bool:
        """Return whether an image of (width, height) is generated in tiles."""
        return size[0] * size[1] > self.max_pixels and max(size) > self.side


def spans(length: int, side: int, overlap: int) -> list[slice]:
    """Cover a length with the fewest tiles of one side that share `overlap` or more, evenly; the last may be shorter.

    Args:
        length: px.
        side, overlap: px, multiples of `UNIT`, as is the start of each tile.
    """
    beyond = -(-(length - side) // UNIT)
    if beyond <= 0:
        return [slice(0, length)]
    steps = -(-beyond // ((side - overlap) // UNIT))
    starts = [k * beyond // steps * UNIT for k in range(steps + 1)]
    return [slice(start, min(start + side, length)) for start in starts]


def weights(parts: Sequence[slice], length: int, overlap: int) -> list[np.ndarray]:
    """Return each tile's blending weights along one side, float32 per pixel: linear ramps that sum to 1."""
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


def finish_output(task: Tileable, output: np.ndarray, prepared: Any, bits: int = 8) -> np.ndarray:
    """Return the finished image, (H, W, 3), of a float32 output in [0, 1]; of one of integers, the output itself.

    Args:
        bits: 8 for uint8, 16 for uint16.

    Raises:
        InvalidInput: values that are not finite.
    """
    if output.dtype.kind == "u":  # from `generate_tiled`
        return output
    _check_finite(output)
    return task.finish(output, prepared) if bits == 8 else to_uint16(task.finish_values(output, prepared))


def _check_finite(output: np.ndarray) -> None:
    if not np.isfinite(output).all():
        raise InvalidInput("the output has values that are not numbers: try dtype fp32")


def generate_tiled(
    prepared: Prepared,
    task: Tileable,
    generate: GenerateTiles,
    tiling: Tiling,
    batch: int | None = None,
    bits: int = 8,
) -> np.ndarray:
    """Generate a large image tile by tile.

    Args:
        batch: tiles per call of `generate`; None: as many as have `CALL_PIXELS`.
        bits: of the finished image.

    Returns:
        (H, W, 3): of integers and finished if the task `finishes_tiles`; else float32 in [0, 1], to be finished as a
        whole.

    Raises:
        InvalidInput: an output that is not finite.
    """
    count = batch or max(1, CALL_PIXELS // tiling.side**2)
    width, height = prepared.size
    integers = np.uint8 if bits == 8 else np.uint16
    canvas = np.empty((height, width, 3), integers if task.finishes_tiles else np.float32)
    turned = width > height  # strips of tiles lie across the shorter side
    longer, shorter = (width, height) if turned else (height, width)
    along, across = (spans(length, tiling.side, tiling.overlap) for length in (longer, shorter))
    outer, inner = weights(along, longer, tiling.overlap), weights(across, shorter, tiling.overlap)
    onto = canvas.swapaxes(0, 1) if turned else canvas
    pending = np.zeros((0, shorter, 3), np.float32)  # rows that the next strip overlaps
    for k, part in enumerate(along):
        strip = np.zeros((part.stop - part.start, shorter, 3), np.float32)
        strip[: len(pending)] = pending
        places = [(one, part) if turned else (part, one) for one in across]
        for one, weight, tile in zip(across, inner, _tiles(prepared, task, generate, places, count, bits), strict=True):
            strip[:, one] += outer[k][:, None, None] * weight[:, None] * (tile.swapaxes(0, 1) if turned else tile)
        done = (along[k + 1].start if along[k + 1 :] else longer) - part.start
        onto[part.start : part.start + done] = strip[:done].round() if task.finishes_tiles else strip[:done]
        pending = strip[done:].copy()
    return canvas


def _tiles(
    prepared: Prepared,
    task: Tileable,
    generate: GenerateTiles,
    places: Sequence[tuple[slice, slice]],
    count: int,
    bits: int,
) -> Iterator[np.ndarray]:
    """Yield the tiles at (rows, columns), each as float32 in the canvas's range; `count` are generated per call."""
    width, height = prepared.size
    for start in range(0, len(places), count):
        here = places[start : start + count]
        parts = [prepared.window(*place) for place in here]
        outputs: dict[int, np.ndarray] = {}
        for size in dict.fromkeys(part.size for part in parts):  # only the last of a strip may be smaller
            needed = [k for k, part in enumerate(parts) if part.size == size and not task.untouched(part)]
            if needed:
                windows = [Window(here[k][0].start, here[k][1].start, height, width) for k in needed]
                outputs |= zip(needed, generate([parts[k].conditions for k in needed], windows), strict=True)
        for k, part in enumerate(parts):
            output = outputs[k] if k in outputs else part.condition[..., :3]
            _check_finite(output)
            yield finish_output(task, output, part, bits).astype(np.float32) if task.finishes_tiles else output
