"""Editing by instruction: the condition is the picture as it is, the prompt says what to change in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from codi_hub.images.filters import smooth, to_uint8
from codi_hub.images.metrics import psnr
from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels

MAX_PSNR = 100.0
TOUCHED = 2 / 255  # between input and target, above which a pixel belongs to the edit
BLUR = 1.5  # px; texture that no one could guess, and the autoencoder's grain, do not count
SHARE = 0.2  # of a picture's largest change, up to which what lies beside a faint edit is left as it was
LEAST = 0.015  # change that is left as it was in any picture
SIGMA = 3.0  # px, within which a change is looked for: what the latents blur is none


class Edit(Task):
    """Instructions such as "paint the box green", as in InstructPix2Pix (Brooks et al., CVPR 2023)."""

    name = "edit"
    summary = "Change a picture as an instruction says"
    finishes_tiles = True
    data = "edits"
    uses_prompt = True
    needs_prompt = True
    score = "done"  # by PSNR, who does nothing would be among the best
    # an encoder that reads the instruction, and a loss in which a thing counts as much as the light on all of them
    distill: ClassVar[dict[str, Any]] = {"count": 2500, "lr": 6e-4, "kind": "control", "guidance": "relative"}

    class Options(Task.Options):
        keep: float = Field(0.05, ge=0, lt=1)
        """How much the mean of some 10 px may change, of 1, to be left as it was; less where no change in a picture is
        five times as large. 0 takes all that the network made."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """From `image`, `edited`, `edit_prompt`; or, as other tools lay pairs out, `condition`, `image`, `caption`."""
        image = needed(example, "image", self.name)
        if example.get("edited") is None and example.get("condition") is not None:
            before, after = pixels(example["condition"]), image
            return Pair(after, before, example.get("edit_prompt") or needed(example, "caption", self.name))
        return Pair(needed(example, "edited", self.name), image, needed(example, "edit_prompt", self.name))

    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared:
        """The picture itself."""
        picture = pixels(image)
        return Prepared(picture, (picture.shape[1], picture.shape[0]))

    def finish(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Where the picture was hardly changed, it is the input to the bit: no instruction asked for more.

        Compared are input and output smoothed by `SIGMA`; from `keep` to twice that, one fades into the other. A faint
        edit, of a thing in fog or by night, has a lower bound of its own.
        """
        if self.options.keep:
            known = prepared.condition
            change = np.abs(smooth(output, SIGMA) - smooth(known, SIGMA)).max(-1, keepdims=True)
            kept = min(self.options.keep, max(LEAST, SHARE * float(change.max())))
            share = np.clip(smooth(change, SIGMA) / kept - 1, 0, 1)
            output = known + share * (output - known)
        return to_uint8(output)

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float:
        """How much of the input is left: PSNR in dB between the two, at most `MAX_PSNR`."""
        return min(MAX_PSNR, psnr(output, condition))

    def done(self, output: np.ndarray, pair: Pair) -> float | None:
        """1 - |output - target| / |input - target|, root mean squares where the two differ, all blurred a little."""
        before, after = (picture.astype(np.float32) / 255 for picture in (pair.condition, pair.target))
        touched = np.abs(before - after).max(-1) > TOUCHED
        if not touched.any():
            return None
        left, there = (
            np.sqrt(np.mean(np.square(smooth(picture - after, BLUR)[touched]))) for picture in (output, before)
        )
        return float(1 - left / max(float(there), 1e-6))
