"""Super-resolution: the condition is the small input, enlarged to the output's size.

Evaluated against bicubic upsampling, on photographs with fixed degradations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from codi_hub import seeds
from codi_hub.errors import InvalidInput
from codi_hub.images.filters import back_projected, resize, smooth, to_uint8, with_low_frequencies
from codi_hub.images.io import MAX_PIXELS
from codi_hub.images.metrics import as_float, psnr
from codi_hub.tasks.base import FLAG, Pair, Prepared, Task, needed, pixels
from codi_hub.tasks.degradation import degrade, degrade_once

if TYPE_CHECKING:
    from codi_hub.data.photographs import Photograph
    from codi_hub.evaluation.context import EvaluationContext, Samples
    from codi_hub.evaluation.measured import Measured

MAX_PSNR = 100.0
SHARPEN_SIGMA = 0.5  # input px
BICUBIC = "bicubic"


@dataclass(frozen=True)
class Degradation:
    """Blur (sigma in px of the full size), then downscaling, noise (sigma of 255), and JPEG quality or no JPEG."""

    blur: float
    noise: float
    jpeg: int | None

    def __str__(self) -> str:
        return f"{self.blur:g}/{self.noise:g}/{self.jpeg}"


GRID = (Degradation(0.8, 3.0, 85), Degradation(1.3, 6.0, 72), Degradation(1.8, 9.0, 60))


class SuperRes(Task):
    """Upscaling by 2 or 4 of images that are small, soft, noisy or badly compressed."""

    name = "superres"
    summary = "Enlarge and restore small, degraded images"
    finishes_tiles = True
    keeps_grey = True
    data = "leaves"
    training_size = 0.75  # degradations are local: smaller crops, more of them
    distill: ClassVar[dict[str, Any]] = {"count": 5000, "lr": 6e-4}
    baselines = (BICUBIC,)
    compares_tools = True
    renamed: ClassVar[Mapping[str, str]] = {"strength": "detail"}

    class Options(Task.Options):
        scale: Literal[2, 4] = Field(4, json_schema_extra={FLAG: "N"})
        """Upscaling factor."""
        both: bool = False
        """Half of the training pairs have the other scale, so that one adapter serves both."""
        preset: Literal["light", "full"] = "light"
        """Degradation of training images: light, or the full pipeline of Real-ESRGAN."""
        detail: float = Field(0.7, ge=0, le=1)
        """Share of the network's change that is applied: an adapter trained on smoother images mistakes some of the
        fine texture of photographs for noise."""
        correct: bool = True
        """Replace the output's low frequencies by the input's."""
        correct_sigma: float = Field(0.75, gt=0, le=16)
        """Cutoff of the low frequencies: sigma of a Gaussian in px of the input."""
        project: float = Field(0.0, ge=0, le=1)
        """Strength of back-projection: agreement of the downscaled output with the input, except for its noise."""
        sharpen: float = Field(0.5, ge=0, le=2)
        """Strength of an unsharp mask: a prediction of the mean of several possible images lacks fine contrast."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Degrade `image`; an example's own `condition`, such as a real small image, is used if it has one."""
        scale = self.options.scale
        if self.options.both and rng.random() < 0.5:
            scale = 6 - scale
        image = needed(example, "image", self.name)
        target = image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]
        height, width = target.shape[:2]
        if example.get("condition") is not None:
            enlarged = _enlarge(pixels(example["condition"]), image.shape[1], image.shape[0])
            return Pair(target, enlarged[:height, :width], "")
        small = degrade(target, scale, rng, self.options.preset)
        return Pair(target, _enlarge(small, width, height), "")

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """See `Task.output_size`."""
        return self.options.scale * width, self.options.scale * height

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """Enlarge the input. Raises InvalidInput for an output of more than `MAX_PIXELS` pixels."""
        small = pixels(image)
        width, height = self.output_size(small.shape[1], small.shape[0])
        if width * height > MAX_PIXELS:
            raise InvalidInput(f"an output of {width}x{height} pixels is over the limit of {MAX_PIXELS}: cut the input")
        return Prepared(_enlarge(small, width, height), (width, height))

    def finish_values(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Return y = condition + detail (output - condition), corrected and sharpened.

        With `correct`, y + G (condition - y), G a Gaussian: colours and light stay the input's. With `project`,
        back-projection. Last the unsharp mask y + sharpen (y - G y), G half an input pixel wide.
        """
        scale = self.options.scale
        output = prepared.condition + self.options.detail * (output - prepared.condition)
        if self.options.correct:
            output = with_low_frequencies(output, prepared.condition, scale * self.options.correct_sigma)
        if self.options.project:
            output = back_projected(output, prepared.condition, scale, self.options.project)
        if self.options.sharpen:
            output = output + self.options.sharpen * (output - smooth(output, scale * SHARPEN_SIGMA))
        return output

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float:
        """Return the PSNR in dB of both, downscaled by averaging to the input's size; at most `MAX_PSNR`."""
        height, width = condition.shape[:2]
        size = (max(1, width // self.options.scale), max(1, height // self.options.scale))
        small, reference = (resize(image, size, Image.Resampling.BOX) for image in (output, condition))
        return min(MAX_PSNR, psnr(small, reference))

    def evaluate(self, context: EvaluationContext) -> Measured:
        """Measure on photographs of `context.data`, by default those of scikit-image; see `compare_with_bicubic`."""
        from codi_hub.data.photographs import photographs

        return compare_with_bicubic(self, photographs(context.data, context.count), context)


def degraded(photo: Photograph, scale: int, degradation: Degradation, seed: int) -> np.ndarray:
    """Return the photograph at 1 / scale of its size, uint8 HWC; the noise depends on the seed and its name."""
    rng = seeds.photograph(seed, photo.name)
    return degrade_once(photo.image, scale, degradation.blur, degradation.noise, degradation.jpeg, rng)


def compare_with_bicubic(
    task: SuperRes,
    photos: Sequence[Photograph],
    context: EvaluationContext,
    degradations: Sequence[Degradation] = GRID,
) -> Measured:
    """Measure an adapter at several numbers of steps against bicubic upsampling.

    Every photograph, with sides that are multiples of the scale, goes through every degradation, and through `prepare`
    and `finish`: the measured images are those that `codi run` writes. The contact sheet has the middle degradation. A
    photograph that comes with its small version is measured on that one alone.

    Raises:
        InvalidInput: a small version that is not 1 / scale of its photograph.
    """
    from codi_hub.evaluation.external import INPUTS
    from codi_hub.evaluation.measured import Comparison

    comparison = Comparison()
    for done, photo in enumerate(photos, 1):
        labelled = _inputs(photo, task.options.scale, degradations, context.seed)
        inputs = list(labelled.values())
        prepared = [task.prepare(Image.fromarray(small)) for small in inputs]
        given = {INPUTS: inputs}
        methods = _baselines(photo, inputs, context)
        methods = context.with_tools(methods, given, comparison.count, photo.image.shape)
        methods |= context.sample(task, prepared)
        comparison.inputs(given)
        for k, label in enumerate(labelled):
            for method, samples in methods.items():
                image = samples.images[k]
                kept = task.adherence(image.astype(np.float32) / 255, prepared[k].condition)
                values = {"adherence": kept}
                comparison.add(method, label, image, photo.image, values, samples.seconds)
            comparison.reference(photo.image)
        middle = len(inputs) // 2
        row = {method: samples.images[middle] for method, samples in methods.items()}
        comparison.sheet[photo.name] = {"input": inputs[middle], **row, "original": photo.image}
        context.on_progress(done, len(photos))
    details = {"scale": task.options.scale, "seed": context.seed}
    return comparison.measured(len(photos), against=BICUBIC, deltas=("psnr", "gmsd"), details=details)


def _inputs(photo: Photograph, scale: int, degradations: Sequence[Degradation], seed: int) -> dict[str, np.ndarray]:
    """Return the inputs of a photograph by label, uint8 HWC: degraded ones, or the one it comes with."""
    if photo.small is None:
        return {f"{photo.name} {one}": degraded(photo, scale, one, seed) for one in degradations}
    (height, width), (wanted, across) = photo.small.shape[:2], photo.image.shape[:2]
    if (height * scale, width * scale) != (wanted, across):
        raise InvalidInput(
            f"{photo.name}: {width}x{height} px is not 1/{scale} of {across}x{wanted} px: choose another scale or pairs"
        )
    return {photo.name: photo.small}


def _baselines(photo: Photograph, inputs: Sequence[np.ndarray], context: EvaluationContext) -> dict[str, Samples]:
    """Return the images of the methods without an adapter for one photograph, one per input."""
    from codi_hub.evaluation.context import Samples

    height, width = photo.image.shape[:2]
    methods = {BICUBIC: Samples([_enlarge(small, width, height) for small in inputs])}
    if context.autoencode:
        (round_trip,) = context.autoencode([as_float(photo.image).astype(np.float32)])
        methods["autoencoder"] = Samples([to_uint8(round_trip)] * len(inputs))
    return methods


def _enlarge(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize uint8 HWC by bicubic interpolation."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
