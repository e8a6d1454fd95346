"""Inpainting against the fillings that need no training, on photographs with known holes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codi_hub.data.photographs import Photograph
from codi_hub.evaluation.measured import Generate, finished, step_name
from codi_hub.evaluation.table import Figure, Table, mean_table
from codi_hub.images.metrics import as_float, gmsd, hole_edge, psnr
from codi_hub.tasks.base import Task

BASELINE = "smooth fill"
RADIUS = 3  # px around a pixel that OpenCV's fillings look at, as in its tutorial
KINDS = ("boxes", "brush")
SHARE = 0.25  # of the picture that a hole takes, about


@dataclass(frozen=True)
class InpaintReport:
    """Figures per method, photograph and hole, their means, and pictures to look at.

    Attributes:
        table: means, one row per method: `hole_psnr` within the hole alone, `psnr` and `gmsd` of the whole picture, and
            `seam`, the step across the hole's edge relative to the original's (1: as there; more: it shows).
        figures: what the means are made of; `image` is "name kind".
        pictures: per photograph and hole: method name -> uint8 HWC, beginning with "input", ending with "original".
    """

    seed: int
    table: Table
    figures: list[Figure]
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.table.as_dict(), "figures": [figure.as_dict() for figure in self.figures]}


def seeded_hole(photo: Photograph, kind: str, seed: int) -> np.ndarray:
    """The hole of a photograph, bool (H, W), by the seed, its kind and the photograph's name."""
    from codi_hub.tasks.masks import hole

    rng = np.random.default_rng([seed, *kind.encode(), *photo.name.encode()])
    height, width = photo.image.shape[:2]
    return hole(rng, height, width, kind, SHARE)


def evaluate_inpaint(
    task: Task,
    photos: Sequence[Photograph],
    generate: Generate,
    *,
    steps: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    autoencode: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> InpaintReport:
    """Measures an inpainting adapter at several numbers of steps against the smoothest filling there is.

    Where OpenCV is installed, also against its `inpaint`: Telea, "An image inpainting technique based on the fast
    marching method", 2004, and the one that Bertalmio et al. made of the Navier-Stokes equations, 2001.

    Args:
        task: gives `prepare` and `finish`, so that what is measured is what `codi run` writes.
        photos: each gets one hole of every kind in `KINDS`.
        generate: the adapter.
        steps: numbers of steps to compare.
        seed: of the holes and of the sampling.
        autoencode: encodes and decodes images, float32 HWC: what the latents allow at best.
        on_progress: told (photographs done, all).
    """
    figures: list[Figure] = []
    pictures: dict[str, dict[str, np.ndarray]] = {}
    for done, photo in enumerate(photos):
        holes = [seeded_hole(photo, kind, seed) for kind in KINDS]
        outputs = _outputs(task, photo, holes, generate, steps, seed, autoencode)
        for method, (images, seconds) in outputs.items():
            for image, covered, kind in zip(images, holes, KINDS, strict=True):
                figures.append(Figure(method, f"{photo.name} {kind}", _measured(image, photo.image, covered, seconds)))
        for k, (covered, kind) in enumerate(zip(holes, KINDS, strict=True)):
            shown = {method: images[k] for method, (images, _) in outputs.items()}
            given = np.where(covered[..., None], np.uint8(128), photo.image)
            pictures[f"{photo.name} {kind}"] = {"input": given, **shown, "original": photo.image}
        if on_progress:
            on_progress(done + 1, len(photos))
    return InpaintReport(seed, mean_table(figures, against=BASELINE, deltas=("hole_psnr",)), figures, pictures)


def _outputs(
    task: Task,
    photo: Photograph,
    holes: list[np.ndarray],
    generate: Generate,
    steps: Sequence[int],
    seed: int,
    autoencode: Callable[[list[np.ndarray]], list[np.ndarray]] | None,
) -> dict[str, tuple[list[np.ndarray], float | None]]:
    """Per method, its images of one photograph (uint8 HWC, one per hole) and the seconds per image."""
    from codi_hub.images.filters import harmonic, to_uint8

    made: dict[str, tuple[list[np.ndarray], float | None]] = {}
    truth = photo.image.astype(np.float32) / 255
    made[BASELINE] = [to_uint8(harmonic(truth, covered)) for covered in holes], None
    made |= {name: (images, None) for name, images in opencv(photo.image, holes).items()}
    prepared = [task.prepare(np.dstack([photo.image, np.where(h, np.uint8(0), np.uint8(255))])) for h in holes]
    if autoencode:
        (round_trip,) = autoencode([truth])
        made["autoencoder"] = [task.finish(round_trip, p) for p in prepared], None
    for count in steps:
        made[step_name(count)] = finished(task, prepared, [""] * len(prepared), generate, count, seed)
    return made


def opencv(image: np.ndarray, holes: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """OpenCV's fillings of uint8 (H, W, 3), per method one for each hole; none where OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        return {}
    methods = {"Telea": cv2.INPAINT_TELEA, "Navier-Stokes": cv2.INPAINT_NS}
    return {
        name: [cv2.inpaint(image, covered.astype(np.uint8), RADIUS, flag) for covered in holes]
        for name, flag in methods.items()
    }


def _measured(
    image: np.ndarray, reference: np.ndarray, covered: np.ndarray, seconds: float | None
) -> dict[str, float | None]:
    error = float(np.mean((as_float(image)[covered] - as_float(reference)[covered]) ** 2))
    step, natural = hole_edge(image, covered), hole_edge(reference, covered)
    return {
        "hole_psnr": math.inf if error == 0 else -10 * math.log10(error),
        "psnr": psnr(image, reference),
        "gmsd": gmsd(image, reference),
        "seam": step / natural if step is not None and natural else None,
        "seconds": seconds,
    }
