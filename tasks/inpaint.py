"""Inpainting: the condition is the picture, its hole filled smoothly, and the hole. What is outside stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageChops
from pydantic import Field

from codi_hub.errors import InvalidInput
from codi_hub.images.filters import boxes, harmonic, to_uint8
from codi_hub.images.metrics import hole_edge
from codi_hub.tasks.base import ExistingFile, Pair, Prepared, Task, needed, pixels
from codi_hub.tasks.masks import grown, random_hole
from codi_hub.tasks.texture import textured

HOLE = 128  # of 255, from where on a mask is white; and what a hole shows that has nothing around it
SIDECAR = ".mask.png"
MAX_DB = 100.0
PART = 768  # px a side of a hole, at most, that get their texture together: it takes some 150 bytes a pixel
REACH = 96  # px around them in which it is looked for


class Inpaint(Task):
    """Fills what NAME.mask.png beside NAME.png has white, or what is transparent, or the white of one given mask."""

    name = "inpaint"
    summary = "Fill holes in pictures: white in NAME.mask.png, or transparent"
    condition_channels = 4
    data = "leaves"
    reads_alpha = True
    reads_pairs = False
    lossless = True
    finishes_tiles = False  # what a hole lacks at its edge is spread over the whole of it
    # Pixels outside the hole are exact, so the mean PSNR of the whole is that of the hole plus a constant.
    score = "psnr"
    distill: ClassVar[dict[str, Any]] = {"count": 5000, "lr": 6e-4}

    class Options(Task.Options):
        mask: ExistingFile | None = None
        """The hole of every input: a picture of its size, white where it is. Training draws its own holes."""
        grow: int = Field(0, ge=0, le=1024)
        """Pixels by which holes are made larger on every side, for masks drawn too tight."""
        texture: float = Field(0.6, ge=0, le=1)
        """How much fine detail, such as grain or grass, a filling gets from places of the picture that look like it."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Cuts a random hole into `image`."""
        image = needed(example, "image", self.name)
        return Pair(image, _condition(image, random_hole(rng, *image.shape[:2])), "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """The hole is that of the option `mask`, else of the file beside `path`, else what is over half transparent.

        Raises InvalidInput where there is none of these, it has another size, or it is empty.
        """
        file = self._mask_of(path)
        covered = _read(file) if file is not None else _transparent(image, path)
        known = pixels(image if isinstance(image, Image.Image) else image[..., :3])
        height, width = known.shape[:2]
        if covered.shape != (height, width):
            raise InvalidInput(
                f"the mask {file} measures {covered.shape[1]}x{covered.shape[0]} and the picture {width}x{height}: "
                "make them equal"
            )
        if not covered.any():
            raise InvalidInput(f"the mask {file} has no white, so there is no hole to fill: paint it white")
        condition = _condition(known, grown(covered, self.options.grow))
        return Prepared(condition, (width, height), opaque=file is None)

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Outside the hole the input, bit for bit. Inside, the output plus what the input lacks from it on the hole's
        edge, spread harmonically: the gradients are the output's and the edge is the input's, so no seam is left
        (Perez et al., "Poisson image editing", 2003, for the membrane that guides towards an inserted picture).
        Last, with `texture`, fine detail from around.
        """
        known = prepared.bytes
        picture, holes = known[..., :3].copy(), known[..., 3] >= HOLE
        apart = boxes(holes)
        for box in apart:
            condition, made = prepared.window(*box).condition, output[box]
            covered = condition[..., 3] > 0.5
            lacking = harmonic(condition[..., :3] - made, covered)
            picture[box][covered] = to_uint8(made + lacking)[covered]
        for box in apart if self.options.texture else ():
            for part in product(*map(_cut, box)):
                covered = holes[part]
                if not covered.any():
                    continue
                wide = tuple(slice(max(0, side.start - REACH), side.stop + REACH) for side in part)
                made = textured(picture[wide].astype(np.float32) / 255, holes[wide], self.options.texture)
                inner = tuple(slice(side.start - more.start, None) for side, more in zip(part, wide, strict=True))
                picture[part][covered] = to_uint8(made[inner][: covered.shape[0], : covered.shape[1]])[covered]
        return picture

    def untouched(self, prepared: Prepared) -> bool:
        return not (prepared.bytes[..., 3] >= HOLE).any()

    def is_sidecar(self, path: Path) -> bool:
        return path.name.lower().endswith(SIDECAR)

    def companions(self, path: Path) -> Sequence[Path]:
        file = self._mask_of(path)
        return () if file is None else (file,)

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None:
        """How well the filling joins what is there: the PSNR, in dB, between pixels on either side of the hole's edge.

        At most `MAX_DB`; a photograph itself has some 25 dB. None for a hole without an edge.
        """
        covered = condition[..., 3] > 0.5
        step = hole_edge(np.where(covered[..., None], output, condition[..., :3]), covered)
        return None if step is None else float(min(MAX_DB, -20 * np.log10(max(step, 1e-9))))

    def _mask_of(self, path: Path | None) -> Path | None:
        if self.options.mask is not None:
            return self.options.mask
        beside = None if path is None else path.with_name(path.stem + SIDECAR)
        return beside if beside is not None and beside.is_file() else None


def _cut(side: slice) -> list[slice]:
    """A long side in pieces of `PART` px."""
    return [slice(start, min(start + PART, side.stop)) for start in range(side.start, side.stop, PART)]


def _condition(image: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4): the picture with its hole filled smoothly, and the hole as 255.

    So the middle of a wide hole, which no network of a few levels sees out of, is told what surrounds it.
    """
    shown = image.copy()
    if covered.all():
        shown[:] = HOLE
    else:
        for box in boxes(covered):
            smooth = harmonic(image[box].astype(np.float32) / 255, covered[box])
            shown[box][covered[box]] = to_uint8(smooth)[covered[box]]
    return np.dstack([shown, np.where(covered, np.uint8(255), np.uint8(0))])


def _read(file: Path) -> np.ndarray:
    """The hole in a mask file, bool (H, W): white, and not transparent. Raises InvalidInput."""
    from codi_hub.images.io import decode_image, open_image

    try:
        found = decode_image(open_image(file))
    except InvalidInput as error:
        raise InvalidInput(f"the mask {file}: {error}") from error
    white = found.image.convert("L")  # type: ignore[union-attr]
    if found.alpha is not None:
        white = ImageChops.multiply(white, found.alpha)
    return np.asarray(white) >= HOLE


def _transparent(image: Image.Image | np.ndarray, path: Path | None) -> np.ndarray:
    """The hole that an alpha channel makes, bool (H, W). Raises InvalidInput where there is none."""
    alpha: np.ndarray | None = None
    if isinstance(image, Image.Image):
        alpha = np.asarray(image.getchannel("A")) if "A" in image.getbands() else None
    elif image.ndim == 3 and image.shape[2] == 4:
        alpha = image[..., 3] if image.dtype == np.uint8 else to_uint8(image[..., 3])
    covered = None if alpha is None else alpha < HOLE
    if covered is None or not covered.any():
        beside = f"{path.stem}{SIDECAR} beside it" if path else "an alpha channel"
        raise InvalidInput(f"no hole to fill: paint one white in {beside}, make it transparent, or give --mask FILE")
    return covered
