"""Super-resolution against bicubic upsampling, on photographs degraded in known ways."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from codi_hub.data.photographs import Photograph
from codi_hub.evaluation.measured import Generate, finished, step_name
from codi_hub.evaluation.table import Figure, Table, mean_table
from codi_hub.images.filters import to_uint8
from codi_hub.images.metrics import gmsd, psnr, ssim
from codi_hub.tasks.base import Task

BASELINE = "bicubic"


@dataclass(frozen=True)
class Degradation:
    """Blur (sigma, px of the full size), then downscaling, noise (sigma of 255) and JPEG quality, or no JPEG."""

    blur: float
    noise: float
    jpeg: int | None


GRID = (Degradation(0.8, 3.0, 85), Degradation(1.3, 6.0, 72), Degradation(1.8, 9.0, 60))


@dataclass(frozen=True)
class SuperresReport:
    """Figures per method, photograph and degradation, their means, and pictures to look at.

    Attributes:
        table: means, one row per method.
        figures: what the means are made of; `image` is "name blur/noise/jpeg".
        pictures: per photograph, at the middle degradation: method name -> uint8 HWC, beginning with "input" (of the
            input's own size) and ending with "original".
        outputs: method -> its pictures at all degradations, uint8 HWC.
        references: the photograph of each of them.
    """

    scale: int
    seed: int
    table: Table
    figures: list[Figure]
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)
    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)
    references: list[np.ndarray] = field(default_factory=list, repr=False)

    def as_dict(self) -> dict[str, Any]:
        figures = [figure.as_dict() for figure in self.figures]
        return {"scale": self.scale, "seed": self.seed, **self.table.as_dict(), "figures": figures}


def degraded(photo: Photograph, scale: int, degradation: Degradation, seed: int) -> np.ndarray:
    """The photograph at 1/scale of its size, uint8 HWC; the noise depends on the seed and the photograph's name."""
    from codi_hub.tasks.degradation import degrade_once

    rng = np.random.default_rng([seed, *photo.name.encode()])
    return degrade_once(photo.image, scale, degradation.blur, degradation.noise, degradation.jpeg, rng)


def evaluate_superres(
    task: Task,
    photos: Sequence[Photograph],
    generate: Generate,
    *,
    steps: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    degradations: Sequence[Degradation] = GRID,
    autoencode: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> SuperresReport:
    """Measures a super-resolution adapter at several numbers of steps against bicubic upsampling.

    Args:
        task: gives `options.scale`, `prepare` and `finish`, so that what is measured is what `codi run` writes, and
            `adherence`.
        photos: at full size, sides multiples of the scale.
        generate: the adapter.
        steps: numbers of steps to compare.
        seed: of the degradations' noise and of the sampling.
        degradations: each photograph goes through each.
        autoencode: encodes and decodes full-size images, float32 HWC: what the latents allow at best.
        on_progress: told (photographs done, all).
    """
    scale = int(task.options.scale)
    figures: list[Figure] = []
    pictures: dict[str, dict[str, np.ndarray]] = {}
    made: dict[str, list[np.ndarray]] = {}
    references: list[np.ndarray] = []
    for done, photo in enumerate(photos):
        inputs = [degraded(photo, scale, degradation, seed) for degradation in degradations]
        prepared = [task.prepare(Image.fromarray(small)) for small in inputs]
        outputs = _outputs(task, photo, inputs, prepared, generate, steps, seed, autoencode)
        references += [photo.image] * len(inputs)
        for method, (images, seconds) in outputs.items():
            made.setdefault(method, []).extend(images)
            for image, degradation, given in zip(images, degradations, prepared, strict=True):
                label = f"{photo.name} {degradation.blur:g}/{degradation.noise:g}/{degradation.jpeg}"
                kept = task.adherence(image.astype(np.float32) / 255, given.condition)
                values = {**_measured(image, photo.image), "adherence": kept, "seconds": seconds}
                figures.append(Figure(method, label, values))
        middle = len(inputs) // 2
        shown = {method: images[middle] for method, (images, _) in outputs.items()}
        pictures[photo.name] = {"input": inputs[middle], **shown, "original": photo.image}
        if on_progress:
            on_progress(done + 1, len(photos))
    table = mean_table(figures, against=BASELINE)
    return SuperresReport(scale, seed, table, figures, pictures, made, references)


def _outputs(
    task: Task,
    photo: Photograph,
    inputs: list[np.ndarray],
    prepared: list[Any],
    generate: Generate,
    steps: Sequence[int],
    seed: int,
    autoencode: Callable[[list[np.ndarray]], list[np.ndarray]] | None,
) -> dict[str, tuple[list[np.ndarray], float | None]]:
    """Per method, its images of one photograph (uint8 HWC, one per input) and the seconds per image."""
    height, width = photo.image.shape[:2]
    made: dict[str, tuple[list[np.ndarray], float | None]] = {}
    bicubic = [Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC) for small in inputs]
    made[BASELINE] = [np.asarray(image) for image in bicubic], None
    if autoencode:
        (round_trip,) = autoencode([photo.image.astype(np.float32) / 255])
        made["autoencoder"] = [to_uint8(round_trip)] * len(inputs), None
    for count in steps:
        made[step_name(count)] = finished(task, prepared, [""] * len(prepared), generate, count, seed)
    return made


def _measured(image: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    return {"psnr": psnr(image, reference), "ssim": ssim(image, reference), "gmsd": gmsd(image, reference)}
