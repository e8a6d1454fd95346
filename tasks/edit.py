"""Editing by instruction: the condition is the image, the prompt says what to change in it.

Evaluated on rendered scenes: each kind of edit has a criterion of its own, which the ground truth meets and the
unedited input does not. Added objects are not measured, since an instruction does not say where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from codi_hub import seeds
from codi_hub.data.synthetic.edits import Edit as SceneEdit
from codi_hub.data.synthetic.edits import scene_edit
from codi_hub.errors import UsageError
from codi_hub.evaluation.metrics import Column
from codi_hub.images.filters import smooth, to_uint8
from codi_hub.images.metrics import as_float, psnr
from codi_hub.tasks.base import Pair, Prepared, Task, needed, pixels

if TYPE_CHECKING:
    from codi_hub.evaluation.context import EvaluationContext
    from codi_hub.evaluation.measured import Measured

MAX_PSNR = 100.0
TOUCHED = 2 / 255  # difference between input and target above which a pixel belongs to the edit
BLUR = 1.5  # px; unpredictable texture and the autoencoder's grain are blurred away before a comparison
SHARE = 0.2  # of an image's largest change: with a faint edit, smaller changes are undone
LEAST = 0.015  # change that is undone in every image
SIGMA = 3.0  # px; changes are measured on images blurred by it, so that the autoencoder's errors are none
KINDS = ("recolour", "remove", "time")  # kinds of edits that are evaluated
COUNT = 48  # edits of an evaluation
TOLERANCE = 10  # levels of 255 by which an unchanged pixel may differ
REMAINDER = 0.5  # share of the difference between input and ground truth below which an object counts as removed
LIGHTNESS = 0.5  # weight of lightness relative to hue: shades of one colour differ in lightness most


class Edit(Task):
    """Instructions such as "paint the box green", as in InstructPix2Pix (Brooks et al., CVPR 2023)."""

    name = "edit"
    summary = "Change an image as an instruction says"
    finishes_tiles = True
    data = "edits"
    uses_prompt = True
    needs_prompt = True
    score = "done"  # by PSNR, doing nothing would be among the best
    # a kind that uses the prompt, and a loss relative to the change, so that small objects count as much as the light
    distill: ClassVar[dict[str, Any]] = {"count": 2500, "lr": 6e-4, "kind": "control", "guidance": "relative"}
    columns: ClassVar[Mapping[str, Column]] = {
        "followed": Column(
            "followed", 3, "higher", "share of the instructions followed, by a criterion per kind of edit"
        ),
        **{kind: Column(kind, 3, "higher", f"the same for edits of kind {kind}") for kind in KINDS},
        "kept": Column("kept", 3, "higher", f"share of pixels outside the edit changed by at most {TOLERANCE} of 255"),
    }

    class Options(Task.Options):
        keep: float = Field(0.05, ge=0, lt=1)
        """Change, of 1 and averaged over about 10 px, below which pixels stay those of the input; less if the largest
        change is below five times as much. 0 keeps the network's output everywhere."""

    def make_pair(self, example: Mapping[str, Any], rng: np.random.Generator) -> Pair:
        """Use `image`, `edited`, `edit_prompt`; or, as in pairs of other tools, `condition`, `image`, `caption`."""
        image = needed(example, "image", self.name)
        if example.get("edited") is None and example.get("condition") is not None:
            before, after = pixels(example["condition"]), image
            return Pair(after, before, example.get("edit_prompt") or needed(example, "caption", self.name))
        return Pair(needed(example, "edited", self.name), image, needed(example, "edit_prompt", self.name))

    def finish_values(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Restore the input, bit for bit, where the output differs little from it.

        Input and output are compared after a blur of `SIGMA`; between `keep` and twice that, one fades into the other.
        A faint edit, such as of an object in fog or at night, has a lower threshold.
        """
        if self.options.keep:
            condition = prepared.condition
            change = np.abs(smooth(output, SIGMA) - smooth(condition, SIGMA)).max(-1, keepdims=True)
            threshold = min(self.options.keep, max(LEAST, SHARE * float(change.max())))
            share = np.clip(smooth(change, SIGMA) / threshold - 1, 0, 1)
            output = condition + share * (output - condition)
        return output

    def adherence(self, output: np.ndarray, condition: np.ndarray) -> float:
        """Return how much of the input is left: the PSNR in dB of both, at most `MAX_PSNR`."""
        return min(MAX_PSNR, psnr(output, condition))

    def done(self, output: np.ndarray, pair: Pair) -> float | None:
        """Return 1 - |output - target| / |input - target|, RMS where input and target differ, all blurred by `BLUR`."""
        before, after = (image.astype(np.float32) / 255 for image in (pair.condition, pair.target))
        touched = np.abs(before - after).max(-1) > TOUCHED
        if not touched.any():
            return None
        left, whole = (np.sqrt(np.mean(np.square(smooth(one - after, BLUR)[touched]))) for one in (output, before))
        return float(1 - left / max(float(whole), 1e-6))

    def evaluate(self, context: EvaluationContext) -> Measured:
        """Measure on edits of scenes (`compare_with_ground_truth`), or on the pairs of `context.data`."""
        if context.data:
            return super().evaluate(context)
        edits = held_out_edits(max(2, context.count or COUNT), context.size)
        return compare_with_ground_truth(self, edits, context)


@dataclass(frozen=True)
class Judge:
    """The criterion of one edit of a scene."""

    edit: SceneEdit

    @cached_property
    def touched(self) -> np.ndarray:
        """Return where ground truth and input differ, bool (H, W): the object, its shadow, or everything."""
        before, after = self.edit.before.image, self.edit.after.image
        return np.abs(as_float(before) - as_float(after)).max(-1) > TOUCHED

    def followed(self, image: np.ndarray) -> bool:
        """Return whether an image, uint8 (H, W, 3), follows the instruction.

        Recolouring: of all colours in several shades and the original one, the object's is nearest to a requested one.
        Time of day: of all of them and the input's, the light is nearest to a requested one. Removal: less than half of
        the difference between input and ground truth is left at the object and its shadow.
        """
        if self.edit.kind == "remove":
            return self._distance(image) < REMAINDER * self._distance(self.edit.before.image)
        feature = self._feature(image)
        return min(self._outcomes, key=lambda outcome: math.dist(outcome[1], feature))[0] == self.edit.wanted

    def kept(self, image: np.ndarray) -> float | None:
        """Return the share of unchanged pixels outside the edit. None if the edit covers nearly everything."""
        rest = ~self.touched
        change = np.abs(image.astype(np.float32) - self.edit.before.image).mean(-1)
        return float((change[rest] <= TOLERANCE).mean()) if rest.mean() > 0.02 else None

    def _distance(self, image: np.ndarray) -> float:
        """Return the RMS difference from the ground truth inside the edit, both blurred."""
        own, wanted = (smooth(as_float(one), BLUR)[self.touched] for one in (image, self.edit.after.image))
        return float(np.sqrt(np.mean((own - wanted) ** 2)))

    @cached_property
    def _outcomes(self) -> list[tuple[str, np.ndarray]]:
        """Return (name, feature) of everything an image is compared with; the unedited input is called "input"."""
        before, after = self.edit.before.image, self.edit.after.image
        half = before.shape[0] // 2
        others = [(name, self._feature(image)) for name, image in self.edit.outcomes(half)]
        return [("input", self._feature(before)), (self.edit.wanted, self._feature(after)), *others]

    def _feature(self, image: np.ndarray) -> np.ndarray:
        """Return the mean lightness and colour of the object, or the mean colours of the upper and the lower half."""
        values = as_float(image)
        if self.edit.kind == "time":
            middle = values.shape[0] // 2
            return np.concatenate([half.mean((0, 1)) for half in (values[:middle], values[middle:])])
        mask = Image.fromarray(self.touched.astype(np.float32)).resize(values.shape[1::-1], Image.Resampling.BOX)
        mean = np.average(values.reshape(-1, 3), axis=0, weights=np.asarray(mask).ravel())
        return np.array([LIGHTNESS * math.sqrt(3) * mean.mean(), *(mean - mean.mean())])

    def values(self, image: np.ndarray, other: np.ndarray | None = None) -> dict[str, float | None]:
        """Return the columns of an image; `other` is the output for the instruction of another edit."""
        followed = float(self.followed(image))
        by_kind = {kind: followed if self.edit.kind == kind else None for kind in KINDS}
        shuffled = None if other is None else float(self.followed(other))
        return {"followed": followed, **by_kind, "shuffled": shuffled, "kept": self.kept(image)}


def held_out_edits(count: int = COUNT, size: int = 128) -> list[SceneEdit]:
    """Return edits of the `KINDS` that no training uses."""
    edits: list[SceneEdit] = []
    number = 0
    while len(edits) < count:
        edit = scene_edit(seeds.example(seeds.HELD_OUT, number), size)
        edits += [edit] if edit.kind in KINDS else []
        number += 1
    return edits


def compare_with_ground_truth(task: Edit, edits: Sequence[SceneEdit], context: EvaluationContext) -> Measured:
    """Measure how an adapter follows instructions, at several numbers of steps.

    Each image is also edited by the instruction of the next edit: `shuffled` is the share of those that still pass,
    which is chance. The rows "input" and "ground truth" are what doing nothing and a perfect edit give.

    Raises:
        UsageError: fewer than two edits.
    """
    from codi_hub.evaluation.context import Samples, step_name
    from codi_hub.evaluation.measured import SHOWN, Comparison
    from codi_hub.evaluation.pairs import outputs

    if len(edits) < 2:
        raise UsageError(f"count {len(edits)}: shuffled instructions need at least 2 edits")
    judges = [Judge(edit) for edit in edits]
    rng = seeds.subset(context.seed)
    pairs = [task.make_pair(edit.example, rng) for edit in edits]
    swapped = [replace(pair, prompt=pairs[(k + 1) % len(pairs)].prompt) for k, pair in enumerate(pairs)]
    methods = {
        "input": Samples([edit.before.image for edit in edits]),
        "ground truth": Samples([edit.after.image for edit in edits]),
    }
    if context.autoencode:
        decoded = context.autoencode([as_float(edit.after.image).astype(np.float32) for edit in edits])
        methods["autoencoder"] = Samples([to_uint8(image) for image in decoded])
    others: dict[str, Samples] = {}
    for done, count in enumerate(context.steps, 1):
        methods[step_name(count)] = outputs(task, pairs, context.generate, count, context.seed)
        others[step_name(count)] = outputs(task, swapped, context.generate, count, context.seed)
        context.on_progress(done, len(context.steps))
    comparison = Comparison()
    for k, (edit, judge) in enumerate(zip(edits, judges, strict=True)):
        label = f"{k}: {edit.instruction}"
        for name, samples in methods.items():
            values = judge.values(samples.images[k], others[name].images[k] if name in others else None)
            comparison.add(name, label, samples.images[k], edit.after.image, values, samples.seconds)
        comparison.reference(edit.after.image)
        if k < SHOWN:
            row = {name: methods[name].images[k] for name in others}
            comparison.sheet[label] = {"input": edit.before.image, **row, "ground truth": edit.after.image}
    return comparison.measured(len(edits), against="input", partial=True, details={"seed": context.seed})
