"""Depth to image: the condition is a depth map, the prompt says what is there.

A map is relative inverse depth: the nearer, the brighter.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageOps

from codi_hub.errors import InvalidInput, NotFound
from codi_hub.images.filters import luma, to_uint8
from codi_hub.images.metrics import structure_agreement
from codi_hub.tasks.base import IMAGES, Pair, Prepared, Task, needed, pixels

MAX_PIXELS = 120_000_000
_loading = threading.Lock()


class Depth(Task):
    """From a depth map (8 or 16-bit image, or .npy), or with `estimate` from a photograph's estimated one."""

    name = "depth"
    summary = "Pictures from depth maps and a prompt"
    finishes_tiles = True
    condition_channels = 1
    data = "scenes"
    uses_prompt = True
    input_extensions = IMAGES | {".npy"}
    score = "adherence"
    distill: ClassVar[dict[str, Any]] = {"count": 2500, "lr": 6e-4, "kind": "control"}  # it reads the prompt

    class Options(Task.Options):
        invert: bool = False
        """The maps hold distances: far is bright."""
        estimate: str | None = None
        """Inputs are photographs: a transformers depth model, as hub id or folder, makes their maps."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """The map is the example's `depth`, or its `condition`, or estimated from `image`; the prompt its `caption`."""
        image = needed(example, "image", self.name)
        if example.get("depth") is None and example.get("condition") is not None:
            example = {**example, "depth": gray(example["condition"])}
        if self.options.estimate and example.get("depth") is None:
            depth = estimate(self.options.estimate, image)
        else:
            depth = normalise(needed(example, "depth", self.name), invert=self.options.invert)
        return Pair(image, to_uint8(depth)[..., None], example.get("caption") or "")

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """An array (H, W) is always a map; a picture is one unless `estimate` is set."""
        if self.options.estimate and not (isinstance(image, np.ndarray) and image.ndim == 2):
            depth = estimate(self.options.estimate, pixels(image))
        else:
            depth = normalise(gray(image), invert=self.options.invert)
        return Prepared(depth[..., None], (depth.shape[1], depth.shape[0]))

    def load(self, path: Path) -> Image.Image | np.ndarray:
        """The map at `path` as float32 (H, W), in its own units; with `estimate`, the photograph."""
        if path.suffix.lower() == ".npy":
            return _read_npy(path)
        if self.options.estimate:
            return Image.open(path)
        try:
            with Image.open(path) as image:
                return gray(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError) as error:
            raise InvalidInput(f"the image data are broken: {error}") from error

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float | None:
        """Whether edges lie where the map's do: a correlation in [-1, 1]. None for a map that has none."""
        return None if np.ptp(condition) == 0 else structure_agreement(output, condition)


def normalise(depth: np.ndarray, *, invert: bool = False) -> np.ndarray:
    """A map in any units as float32 (H, W) in [0, 1], near = 1: its 2nd to 98th percentile; if those agree, its range.

    A constant map becomes 0.5. Values that are not finite become the far end. Raises InvalidInput where none is finite.
    """
    finite = np.isfinite(depth)
    if not finite.any():
        raise InvalidInput("the depth map has no finite value")
    known = depth[finite].astype(np.float64)
    low, high = np.percentile(known, (2, 98))
    if _equal(low, high):
        low, high = known.min(), known.max()
    if _equal(low, high):
        unit = np.full(depth.shape, 0.5, np.float32)
    else:
        filled = np.where(finite, depth, low).astype(np.float64)
        unit = np.clip((filled - low) / (high - low), 0, 1).astype(np.float32)
    return np.where(finite, 1 - unit if invert else unit, np.float32(0))


def _equal(low: float, high: float) -> bool:
    return high - low <= 1e-6 * max(abs(low), abs(high))


def gray(image: Image.Image | np.ndarray) -> np.ndarray:
    """A map as float32 (H, W) in its own units, whatever holds it. Raises InvalidInput for an array of another form."""
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "F") and not image.mode.startswith("I"):
            image = image.convert("L")
        return np.asarray(image).astype(np.float32)
    if image.ndim == 3 and image.shape[2] in (1, 3):
        image = image[..., 0] if image.shape[2] == 1 else luma(image)
    if image.ndim != 2 or not image.size:
        raise InvalidInput(f"an array of shape {image.shape} is no depth map: give (H, W)")
    with np.errstate(over="ignore"):
        values = image.astype(np.float32)
    if np.isinf(values).sum() > np.isinf(image).sum():
        raise InvalidInput(f"a depth map with values beyond {np.finfo(np.float32).max:.1e}: divide it by something")
    return values


def _read_npy(path: Path) -> np.ndarray:
    """Raises InvalidInput for what is no plain array of numbers, before anything large is read."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never unpickles; the header is checked against the size
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InvalidInput(f"not a readable .npy array: {' '.join(str(error).split())}") from error
    if array.dtype.kind not in "fiub":
        raise InvalidInput(f"an array of {array.dtype} is no depth map: save it as numbers")
    if array.size > MAX_PIXELS:
        raise InvalidInput(f"an array of shape {array.shape} is over the limit of {MAX_PIXELS} values: make it smaller")
    return gray(np.squeeze(array))


def estimate(model: str, image: np.ndarray) -> np.ndarray:
    """The map of a uint8 (H, W, 3) photograph, float32 (H, W) in [0, 1], near = 1. Raises NotFound."""
    import torch

    with _loading:
        processor, network = _estimator(model)
    height, width = image.shape[:2]
    device = next(network.parameters()).device
    inputs = processor(images=Image.fromarray(image), return_tensors="pt").to(device)
    with torch.inference_mode():
        depth = network(**inputs).predicted_depth[0].float().cpu().numpy()
    whole = Image.fromarray(depth).resize((width, height), Image.Resampling.BICUBIC)
    metric = getattr(network.config, "depth_estimation_type", "relative") == "metric"
    return normalise(np.asarray(whole), invert=metric)


@lru_cache(maxsize=1)
def _estimator(model: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    try:
        processor = AutoImageProcessor.from_pretrained(model)
        network = AutoModelForDepthEstimation.from_pretrained(model)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise NotFound(f"no depth model {model!r}: give a folder or hub id of a transformers one ({why})") from error
    return processor, network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
