"""Inpainting: the condition is the image, its hole filled smoothly, and the hole. Pixels outside it stay the input's.

Evaluated on photographs with random holes against fills without training.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image, ImageChops
from pydantic import Field

from codi_hub import seeds
from codi_hub.errors import InvalidInput, prefixed
from codi_hub.evaluation.metrics import Column
from codi_hub.images.filters import boxes, harmonic, to_uint8
from codi_hub.images.formats import EXTENSIONS
from codi_hub.images.io import decode_image, open_image
from codi_hub.images.metrics import as_float, hole_edge
from codi_hub.images.sidecars import beside
from codi_hub.paths import display_path
from codi_hub.tasks.base import FLAG, ExistingPath, Pair, Prepared, Task, needed, pixels
from codi_hub.tasks.masks import dilated, hole, random_hole
from codi_hub.tasks.texture import textured

if TYPE_CHECKING:
    from codi_hub.data.photographs import Photograph
    from codi_hub.evaluation.context import EvaluationContext, Samples
    from codi_hub.evaluation.measured import Measured

HOLE = 128  # level of 255 from which a mask is white; also the grey that fills a hole without surroundings
# Endings of mask files, after the stem of their image, in order of precedence.
MASKS = tuple(f"{mark}mask{ext}" for mark in "._" for ext in sorted(EXTENSIONS, key=lambda ext: (ext != ".png", ext)))
MAX_DB = 100.0
PART = 768  # px; maximum side of a part of a hole that is textured at once, which takes about 150 bytes per pixel
REACH = 96  # px; margin around such a part from which texture is taken
SMOOTH_FILL = "smooth fill"
OPENCV_RADIUS = 3  # px; neighbourhood of OpenCV's fills, as in its tutorial
KINDS = ("boxes", "brush")  # of holes of an evaluation
SHARE = 0.25  # of the image that such a hole covers, about


class Inpaint(Task):
    """Fills the white area of NAME.mask.png beside NAME.png, or of a given mask, or the transparent area."""

    name = "inpaint"
    summary = "Fill holes in images: white in NAME.mask.png, or transparent"
    condition_channels = 4
    data = "leaves"
    reads_alpha = True
    reads_pairs = False
    lossless = True
    keeps_grey = True
    finishes_tiles = False  # the correction at a hole's boundary extends over the whole hole
    # Pixels outside the hole are exact, so that the PSNR of the image is that of the hole plus a constant.
    score = "psnr"
    distill: ClassVar[dict[str, Any]] = {"count": 5000, "lr": 6e-4}
    baselines = (SMOOTH_FILL,)
    compares_tools = True
    columns: ClassVar[Mapping[str, Column]] = {
        "hole_psnr": Column("hole dB", 2, "higher", "PSNR within the hole alone, dB"),
        "seam": Column(
            "seam", 3, "nearer 1", "step across the hole's boundary, relative to that of the reference image"
        ),
    }

    class Options(Task.Options):
        mask: ExistingPath | None = Field(None, json_schema_extra={FLAG: "FILE|FOLDER"})
        """Mask of all inputs: an image of their size, white in the hole; or a folder with a mask for each, by its name.
        Training uses random holes."""
        grow: int = Field(0, ge=0, le=1024)
        """Dilation of holes on every side, px, for masks that are too tight."""
        texture: float = Field(0.6, ge=0, le=1)
        """Strength of the fine detail, such as grain or grass, that a fill gets from similar places of the image."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Cut a random hole into `image`."""
        image = needed(example, "image", self.name)
        return Pair(image, _condition(image, random_hole(rng, *image.shape[:2])), "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """Find the hole: that of the option `mask`, else of the file beside `path`, else what is over half transparent.

        Raises:
            InvalidInput: none of these, or a mask of another size, or an empty one.
        """
        file = self._mask_of(path)
        covered = _read(file) if file is not None else _transparent(image, path)
        rgb = pixels(image if isinstance(image, Image.Image) else image[..., :3])
        height, width = rgb.shape[:2]
        if covered.shape != (height, width):
            raise InvalidInput(
                f"the mask {file} measures {covered.shape[1]}x{covered.shape[0]} and the image {width}x{height}: "
                "make them equal"
            )
        if not covered.any():
            raise InvalidInput(f"the mask {file} has no white, so there is no hole to fill: paint it white")
        condition = _condition(rgb, dilated(covered, self.options.grow))
        return Prepared(condition, (width, height), opaque=file is None)

    finishes_values = True  # what it overrides of `finish` is where it rounds

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Return the input outside the hole, bit for bit, and the output inside, without a seam.

        The difference between input and output on the hole's boundary is continued into the hole as a harmonic function
        and added to the output: gradients are the output's, the boundary values are the input's (Perez et al., "Poisson
        image editing", 2003). Last, with `texture`, fine detail of the surroundings is added.
        """
        return self._filled(output, prepared, prepared.bytes[..., :3].copy())

    def finish_values(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        return self._filled(output, prepared, prepared.condition[..., :3].copy())

    def _filled(self, output: np.ndarray, prepared: Prepared, image: np.ndarray) -> np.ndarray:
        """Fill the hole of an image, uint8 or float32 in [0, 1], in place."""
        stored, most = (to_uint8, 255) if image.dtype == np.uint8 else (np.asarray, 1)
        holes = prepared.bytes[..., 3] >= HOLE
        parts = boxes(holes)
        for box in parts:
            condition, fill = prepared.window(*box).condition, output[box]
            covered = condition[..., 3] > 0.5
            difference = harmonic(condition[..., :3] - fill, covered)
            image[box][covered] = stored(fill + difference)[covered]
        for box in parts if self.options.texture else ():
            for part in product(*map(_cut, box)):
                covered = holes[part]
                if not covered.any():
                    continue
                wide = tuple(slice(max(0, side.start - REACH), side.stop + REACH) for side in part)
                detailed = textured(image[wide].astype(np.float32) / most, holes[wide], self.options.texture)
                inner = tuple(slice(side.start - more.start, None) for side, more in zip(part, wide, strict=True))
                image[part][covered] = stored(detailed[inner][: covered.shape[0], : covered.shape[1]])[covered]
        return image

    def untouched(self, prepared: Prepared) -> bool:
        return not (prepared.bytes[..., 3] >= HOLE).any()

    def blank(self, width: int, height: int) -> Image.Image:
        """Return an image that is a hole everywhere."""
        return Image.new("RGBA", (width, height))

    def is_sidecar(self, path: Path) -> bool:
        """Return whether it is NAME.mask.*, NAME_mask.* beside an image NAME, or in the folder of the option `mask`."""
        stem, extension = path.stem, path.suffix.lower()
        if extension in EXTENSIONS and stem.lower().endswith(".mask"):
            return True
        folder = self.options.mask
        if folder is not None and folder.is_dir() and folder in path.absolute().parents:
            return True
        image = path.with_name(stem[: -len("_mask")] + extension) if stem.lower().endswith("_mask") else None
        return image is not None and extension in EXTENSIONS and beside(image, tuple(EXTENSIONS)) is not None

    def companions(self, path: Path) -> Sequence[Path]:
        file = self._mask_of(path)
        return () if file is None else (file,)

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None:
        """Return how well the fill joins its surroundings: the PSNR, in dB, of neighbouring pixels across the boundary.

        At most `MAX_DB`; in photographs about 25 dB. None for a hole without a boundary.
        """
        covered = condition[..., 3] > 0.5
        step = hole_edge(np.where(covered[..., None], output, condition[..., :3]), covered)
        return None if step is None else float(min(MAX_DB, -20 * np.log10(max(step, 1e-9))))

    def evaluate(self, context: EvaluationContext) -> Measured:
        """Measure on photographs of `context.data`, by default those of scikit-image; see `compare_with_fills`."""
        from codi_hub.data.photographs import photographs

        return compare_with_fills(self, photographs(context.data, context.count), context)

    def _mask_of(self, path: Path | None) -> Path | None:
        folder = self.options.mask
        if folder is not None and not folder.is_dir():
            return folder
        if path is None:
            return None
        if folder is None:
            return beside(path, MASKS)
        found = mask_in(folder, path)
        if found is None:
            raise InvalidInput(f"no mask for it in {display_path(folder)}: add {path.stem}.png, white in the hole")
        return found


def mask_in(folder: Path, image: Path) -> Path | None:
    """Return the mask of an image in a folder of masks: of the same name and, of several, in the same subfolder."""
    parents = image.absolute().parts[1:-1]
    flat = not any(entry.is_dir() for entry in os.scandir(folder))
    for depth in range(0 if flat else len(parents), -1, -1):
        place = folder.joinpath(*parents[len(parents) - depth :])
        if (found := beside(place / image.name, (*sorted(EXTENSIONS), *MASKS))) is not None:
            return found
    return None


def _cut(side: slice) -> list[slice]:
    """Divide a long side into parts of `PART` px."""
    return [slice(start, min(start + PART, side.stop)) for start in range(side.start, side.stop, PART)]


def _condition(image: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, 4): the image with its hole filled smoothly, and the hole as 255.

    The fill carries the surroundings into the middle of wide holes, beyond the receptive field of a small network.
    """
    filled = image.copy()
    if covered.all():
        filled[:] = HOLE
    else:
        for box in boxes(covered):
            fill = harmonic(image[box].astype(np.float32) / 255, covered[box])
            filled[box][covered[box]] = to_uint8(fill)[covered[box]]
    return np.dstack([filled, np.where(covered, np.uint8(255), np.uint8(0))])


def _read(file: Path) -> np.ndarray:
    """Read the hole of a mask file, bool (H, W): white and opaque. Raises InvalidInput."""
    with prefixed(f"the mask {file}"):
        mask = decode_image(open_image(file))
    white = mask.image.convert("L")  # type: ignore[union-attr]
    if mask.alpha is not None:
        white = ImageChops.multiply(white, mask.alpha)
    return np.asarray(white) >= HOLE


def _transparent(image: Image.Image | np.ndarray, path: Path | None) -> np.ndarray:
    """Return the transparent area of an image, bool (H, W). Raises InvalidInput if there is none."""
    alpha: np.ndarray | None = None
    if isinstance(image, Image.Image):
        alpha = np.asarray(image.getchannel("A")) if "A" in image.getbands() else None
    elif image.ndim == 3 and image.shape[2] == 4:
        alpha = image[..., 3] if image.dtype == np.uint8 else to_uint8(image[..., 3])
    covered = None if alpha is None else alpha < HOLE
    if covered is None or not covered.any():
        where = f"{path.stem}{MASKS[0]} beside it" if path else "an alpha channel"
        raise InvalidInput(f"no hole to fill: paint it white in {where}, make it transparent, or set the option mask")
    return covered


def seeded_hole(photo: Photograph, kind: str, seed: int) -> np.ndarray:
    """Return the hole of a photograph, bool (H, W), by the seed, the kind and the photograph's name."""
    height, width = photo.image.shape[:2]
    return hole(seeds.photograph(seed, kind, photo.name), height, width, kind, SHARE)


def compare_with_fills(task: Inpaint, photos: Sequence[Photograph], context: EvaluationContext) -> Measured:
    """Measure an adapter at several numbers of steps against fills without training.

    These are the harmonic fill and, where OpenCV is installed, its `inpaint`: Telea, "An image inpainting technique
    based on the fast marching method", 2004, and that of Bertalmio et al. by the Navier-Stokes equations, 2001. Every
    photograph gets one hole of every kind, and goes through `prepare` and `finish` as in `codi run`.
    """
    from codi_hub.evaluation.external import INPUTS
    from codi_hub.evaluation.external import MASKS as MASK_FILES
    from codi_hub.evaluation.measured import Comparison

    comparison = Comparison()
    for done, photo in enumerate(photos, 1):
        holes = [seeded_hole(photo, kind, context.seed) for kind in KINDS]
        cuts = [np.where(covered[..., None], np.uint8(HOLE), photo.image) for covered in holes]
        given = {
            INPUTS: [with_hole(cut, covered) for cut, covered in zip(cuts, holes, strict=True)],
            MASK_FILES: [np.where(covered, np.uint8(255), np.uint8(0)) for covered in holes],
        }
        prepared = [task.prepare(with_hole(photo.image, covered)) for covered in holes]
        methods = _baselines(task, photo, holes, prepared, context)
        methods = context.with_tools(methods, given, comparison.count, photo.image.shape)
        methods |= context.sample(task, prepared)
        comparison.inputs(given)
        for k, (covered, kind) in enumerate(zip(holes, KINDS, strict=True)):
            label = f"{photo.name} {kind}"
            for method, samples in methods.items():
                values = _hole_scores(samples.images[k], photo.image, covered)
                comparison.add(method, label, samples.images[k], photo.image, values, samples.seconds)
            comparison.reference(photo.image)
            row = {method: samples.images[k] for method, samples in methods.items()}
            comparison.sheet[label] = {"input": cuts[k], **row, "original": photo.image}
        context.on_progress(done, len(photos))
    details = {"seed": context.seed}
    return comparison.measured(len(photos), against=SMOOTH_FILL, deltas=("hole_psnr",), details=details)


def with_hole(image: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, 4): an image, transparent in its hole."""
    return np.dstack([image, np.where(covered, np.uint8(0), np.uint8(255))])


def _baselines(
    task: Inpaint,
    photo: Photograph,
    holes: Sequence[np.ndarray],
    prepared: Sequence[Prepared],
    context: EvaluationContext,
) -> dict[str, Samples]:
    """Return the images of the methods without an adapter for one photograph, one per hole."""
    from codi_hub.evaluation.context import Samples

    unit = photo.image.astype(np.float32) / 255
    methods = {SMOOTH_FILL: Samples([to_uint8(harmonic(unit, covered)) for covered in holes])}
    methods |= {name: Samples(images) for name, images in _opencv_fills(photo.image, holes).items()}
    if context.autoencode:
        (round_trip,) = context.autoencode([unit])
        methods["autoencoder"] = Samples([task.finish(round_trip, one) for one in prepared])
    return methods


def _opencv_fills(image: np.ndarray, holes: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return OpenCV's fills of uint8 (H, W, 3) by method, one per hole; none if OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        return {}
    methods = {"Telea": cv2.INPAINT_TELEA, "Navier-Stokes": cv2.INPAINT_NS}
    return {
        name: [cv2.inpaint(image, covered.astype(np.uint8), OPENCV_RADIUS, flag) for covered in holes]
        for name, flag in methods.items()
    }


def _hole_scores(image: np.ndarray, reference: np.ndarray, covered: np.ndarray) -> dict[str, float | None]:
    """Return `hole_psnr` in dB, infinite for an exact fill, and `seam`."""
    error = float(np.mean((as_float(image)[covered] - as_float(reference)[covered]) ** 2))
    step, natural = hole_edge(image, covered), hole_edge(reference, covered)
    return {
        "hole_psnr": math.inf if error == 0 else -10 * math.log10(error),
        "seam": step / natural if step is not None and natural else None,
    }
