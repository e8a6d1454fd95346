"""Depth to image: the condition is a depth map, the prompt describes the content.

A map is relative inverse depth: near is bright. Evaluated on rendered scenes whose depth maps are known.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from codi_hub import seeds
from codi_hub.errors import InvalidInput, NotFound, UsageError
from codi_hub.evaluation.metrics import Column
from codi_hub.images.depth_maps import as_map, read_map
from codi_hub.images.filters import to_uint8
from codi_hub.images.formats import ARRAYS, EXTENSIONS
from codi_hub.images.metrics import structure_agreement
from codi_hub.tasks.base import FLAG, Pair, Prepared, Task, needed, pixels

if TYPE_CHECKING:
    from codi_hub.evaluation.context import EvaluationContext
    from codi_hub.evaluation.measured import Measured

COUNT = 32  # scenes of an evaluation
SCENES = "scenes"  # row of the scenes themselves
_loading = threading.Lock()


class Depth(Task):
    """Depth maps (images, .npy or .npz), or with `estimate` photographs whose maps a model estimates."""

    name = "depth"
    summary = "Image from a depth map and a prompt"
    finishes_tiles = True
    condition_channels = 1
    data = "scenes"
    uses_prompt = True
    input_extensions = EXTENSIONS | ARRAYS
    score = "adherence"
    distill: ClassVar[dict[str, Any]] = {"count": 2500, "lr": 6e-4, "kind": "control"}  # a kind that uses the prompt
    columns: ClassVar[Mapping[str, Column]] = {
        "margin": Column(
            "margin", 3, "higher", "adherence minus shuffled: 0 if the condition is ignored", plotted=False
        )
    }

    class Options(Task.Options):
        invert: bool = False
        """Maps hold distances: far is bright."""
        estimate: str | None = Field(None, json_schema_extra={FLAG: "MODEL"})
        """Transformers depth model, a hub id or folder, that estimates the maps of photographs given as inputs."""

    @property
    def size_is_free(self) -> bool:
        return True

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Use the example's `depth`, or its `condition`, or an estimate from `image`; the prompt is its `caption`."""
        image = needed(example, "image", self.name)
        if example.get("depth") is None and example.get("condition") is not None:
            example = {**example, "depth": as_map(example["condition"])}
        if self.options.estimate and example.get("depth") is None:
            depth = estimate(self.options.estimate, image)
        else:
            depth = normalise(needed(example, "depth", self.name), invert=self.options.invert)
        return Pair(image, to_uint8(depth)[..., None], example.get("caption") or "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """Normalise a map. An array (H, W) is always a map, an image is one unless `estimate` is set."""
        if self.options.estimate and not (isinstance(image, np.ndarray) and image.ndim == 2):
            depth = estimate(self.options.estimate, pixels(image))
        else:
            depth = normalise(as_map(image), invert=self.options.invert)
        return Prepared(depth[..., None], (depth.shape[1], depth.shape[0]))

    def load(self, path: Path) -> Image.Image | np.ndarray:
        """Read the map at `path` as float32 (H, W), in its own units; with `estimate`, open the photograph."""
        if self.options.estimate and path.suffix.lower() not in ARRAYS:
            return Image.open(path)
        return read_map(path)

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None:
        """Return the agreement of the output's edges with the map's, in [-1, 1]. None for a constant map."""
        return None if np.ptp(condition) == 0 else structure_agreement(output, condition)

    def evaluate(self, context: EvaluationContext) -> Measured:
        """Measure on rendered scenes (`compare_with_scenes`), or on the pairs of `context.data`."""
        if context.data:
            return super().evaluate(context)
        return compare_with_scenes(self, held_out_scenes(max(2, context.count or COUNT), context.size), context)


def held_out_scenes(count: int = 16, size: int = 128) -> list[dict[str, Any]]:
    """Return scenes that no training uses, as examples with `image`, `depth` and `caption`."""
    from codi_hub.data.synthetic.scenes import scene

    scenes = [scene(seeds.example(seeds.HELD_OUT, k), size) for k in range(count)]
    return [{"image": one.image, "depth": one.depth, "caption": one.caption} for one in scenes]


def compare_with_scenes(task: Depth, scenes: Sequence[dict[str, Any]], context: EvaluationContext) -> Measured:
    """Measure how an adapter follows the depth maps of scenes, at several numbers of steps.

    The image metrics compare with the scene, of which map and prompt leave much open. `adherence` is the agreement with
    the image's own map, `shuffled` with that of the next scene, `margin` their difference. The first row is the scenes
    themselves: the values of full adherence.

    Raises:
        UsageError: fewer than two scenes.
    """
    from codi_hub.evaluation.context import Samples, sample, step_name
    from codi_hub.evaluation.measured import SHOWN, Comparison

    if len(scenes) < 2:
        raise UsageError(f"count {len(scenes)}: shuffled maps need at least 2 scenes")
    prepared = [task.prepare(example["depth"]) for example in scenes]
    maps = [one.condition for one in prepared]
    methods = {SCENES: Samples([example["image"] for example in scenes])}
    prompts = [example.get("caption", "") for example in scenes]
    for done, count in enumerate(context.steps, 1):
        methods[step_name(count)] = sample(task, prepared, prompts, context.generate, count, context.seed)
        context.on_progress(done, len(context.steps))
    comparison = Comparison()
    for k, example in enumerate(scenes):
        for method, samples in methods.items():
            image, other = samples.images[k], maps[(k + 1) % len(maps)]
            adherence, shuffled = structure_agreement(image, maps[k]), structure_agreement(image, other)
            values = {"adherence": adherence, "shuffled": shuffled, "margin": adherence - shuffled}
            comparison.add(method, f"scene {k}", image, example["image"], values, samples.seconds)
        comparison.reference(example["image"])
        if k < SHOWN:
            row = {method: samples.images[k] for method, samples in methods.items()}
            comparison.sheet[f"scene {k}"] = {"map": maps[k], **row}
    return comparison.measured(len(scenes), against=SCENES, details={"seed": context.seed}, prompts=prompts)


def normalise(depth: np.ndarray, *, invert: bool = False) -> np.ndarray:
    """Scale a map in any units to float32 (H, W) in [0, 1], near = 1.

    The 2nd to 98th percentile, or if these are equal the range, becomes [0, 1]; a constant map becomes 0.5. Values that
    are not finite become the far end. Raises InvalidInput if none is finite.
    """
    finite = np.isfinite(depth)
    if not finite.any():
        raise InvalidInput("the depth map has no finite value")
    values = depth[finite].astype(np.float64)
    low, high = np.percentile(values, (2, 98))
    if _equal(low, high):
        low, high = values.min(), values.max()
    if _equal(low, high):
        unit = np.full(depth.shape, 0.5, np.float32)
    else:
        filled = np.where(finite, depth, low).astype(np.float64)
        unit = np.clip((filled - low) / (high - low), 0, 1).astype(np.float32)
    return np.where(finite, 1 - unit if invert else unit, np.float32(0))


def _equal(low: float, high: float) -> bool:
    """Return whether a range is empty up to rounding."""
    return high - low <= 1e-6 * max(abs(low), abs(high))


def estimate(model: str, image: np.ndarray) -> np.ndarray:
    """Estimate the map of a uint8 (H, W, 3) photograph, float32 (H, W) in [0, 1], near = 1. Raises NotFound."""
    import torch

    with _loading:
        processor, network = _estimator(model)
    height, width = image.shape[:2]
    device = next(network.parameters()).device
    inputs = processor(images=Image.fromarray(image), return_tensors="pt").to(device)
    with torch.inference_mode():
        depth = network(**inputs).predicted_depth[0].float().cpu().numpy()
    resized = Image.fromarray(depth).resize((width, height), Image.Resampling.BICUBIC)
    metric = getattr(network.config, "depth_estimation_type", "relative") == "metric"
    return normalise(np.asarray(resized), invert=metric)


@lru_cache(maxsize=1)
def _estimator(model: str) -> tuple[Any, Any]:
    """Load the processor and the network of a depth model. Raises NotFound."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    try:
        processor = AutoImageProcessor.from_pretrained(model)
        network = AutoModelForDepthEstimation.from_pretrained(model)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise NotFound(f"no depth model {model!r}: give a folder or hub id of a transformers one ({why})") from error
    return processor, network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
