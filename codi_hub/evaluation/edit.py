"""Whether an edit adapter does what it is told, read from the picture, and leaves the rest alone.

Each kind of edit has a criterion of its own, which the edited twin meets and the unedited input does not. Things that
were added are not measured: an instruction does not say where they should be.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from codi_hub.data.synthetic.edits import Edit, scene_edit
from codi_hub.evaluation.depth import HELD_OUT
from codi_hub.evaluation.measured import Generate, step_name
from codi_hub.evaluation.pairs import outputs
from codi_hub.evaluation.table import Figure, Table, mean_table
from codi_hub.images.filters import smooth, to_uint8
from codi_hub.images.metrics import as_float
from codi_hub.tasks.base import Task
from codi_hub.tasks.edit import BLUR, TOUCHED

KINDS = ("recolour", "remove", "time")
KEPT = 10  # levels by which a pixel may differ and still be called the same
DONE = 0.5  # of the way from the input to the twin that a removal may lack
LIGHTNESS = 0.5  # weight beside hue: shades of one colour differ in lightness most


@dataclass(frozen=True)
class Judge:
    """Tells whether a picture shows what an edit asked for."""

    edit: Edit

    @cached_property
    def touched(self) -> np.ndarray:
        """Where the twin differs from the input, bool (H, W): the thing itself, its shadow, or everything."""
        before, after = self.edit.before.image, self.edit.after.image
        return np.abs(as_float(before) - as_float(after)).max(-1) > TOUCHED

    def followed(self, picture: np.ndarray) -> bool:
        """Whether uint8 (H, W, 3) obeys the instruction.

        A recolouring: of all colours in several shades, and the one it had, the thing's is nearest to one asked for. A
        time of day: of all of them and the input's, the picture's light is nearest to one asked for. A removal: where
        the thing and its shadow were, less than half of the difference between input and twin is left.
        """
        if self.edit.kind == "remove":
            return self._distance(picture) < DONE * self._distance(self.edit.before.image)
        seen = self._feature(picture)
        return min(self._looks, key=lambda look: math.dist(look[1], seen))[0] == self.edit.wanted

    def kept(self, picture: np.ndarray) -> float | None:
        """Share of the pixels outside the edit that are as they were. None where nothing is to be kept."""
        rest = ~self.touched
        change = np.abs(picture.astype(np.float32) - self.edit.before.image).mean(-1)
        return float((change[rest] <= KEPT).mean()) if rest.mean() > 0.02 else None

    def _distance(self, picture: np.ndarray) -> float:
        """Root mean square difference from the twin where the edit is, both blurred a little."""
        seen, wanted = (smooth(as_float(image), BLUR)[self.touched] for image in (picture, self.edit.after.image))
        return float(np.sqrt(np.mean((seen - wanted) ** 2)))

    @cached_property
    def _looks(self) -> list[tuple[str, np.ndarray]]:
        """(name, feature) of what a picture may be taken for; what is not renamed from the input is called "input"."""
        before, after = self.edit.before.image, self.edit.after.image
        half = before.shape[0] // 2
        others = [(name, self._feature(image)) for name, image in self.edit.outcomes(half)]
        return [("input", self._feature(before)), (self.edit.wanted, self._feature(after)), *others]

    def _feature(self, picture: np.ndarray) -> np.ndarray:
        """Of the thing, its mean lightness and colour; of the light, the mean colour of the upper and lower half."""
        image = as_float(picture)
        if self.edit.kind == "time":
            middle = image.shape[0] // 2
            return np.concatenate([half.mean((0, 1)) for half in (image[:middle], image[middle:])])
        mask = Image.fromarray(self.touched.astype(np.float32)).resize(image.shape[1::-1], Image.Resampling.BOX)
        mean = np.average(image.reshape(-1, 3), axis=0, weights=np.asarray(mask).ravel())
        return np.array([LIGHTNESS * math.sqrt(3) * mean.mean(), *(mean - mean.mean())])


@dataclass(frozen=True)
class EditReport:
    """Figures per number of steps and edit, their means, and pictures to look at.

    Attributes:
        table: means of `followed` (instructions obeyed), the same by kind of edit, `shuffled` (outputs for another's
            instruction that still pass: chance), `kept` (share of the pixels outside the edit that stay) and `seconds`.
            The rows "input" and "twin" are what doing nothing and doing it right would give.
        pictures: per edit, called by its instruction: "input", each number of steps and "twin", uint8 HWC.
    """

    seed: int
    table: Table
    figures: list[Figure]
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.table.as_dict(), "figures": [figure.as_dict() for figure in self.figures]}


def held_out_edits(count: int = 48, size: int = 128) -> list[Edit]:
    """Edits that no training draws, of the kinds that can be measured."""
    found: list[Edit] = []
    number = 0
    while len(found) < count:
        edit = scene_edit(np.random.default_rng([HELD_OUT, number]), size)
        found += [edit] if edit.kind in KINDS else []
        number += 1
    return found


def evaluate_edit(
    edits: Sequence[Edit],
    generate: Generate,
    task: Task,
    *,
    steps: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    autoencode: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EditReport:
    """Measures how an edit adapter follows instructions.

    Args:
        edits: held-out ones of one size, two at least: each picture is also edited by the next one's instruction.
        generate: the adapter.
        task: gives `make_pair` and `finish`.
        steps: numbers of steps to compare.
        seed: of the sampling.
        autoencode: encodes and decodes pictures, float32 HWC: what the latents leave of the twin.
        on_progress: told (numbers of steps done, all).

    Raises:
        ValueError: fewer than two edits.
    """
    if len(edits) < 2:
        raise ValueError(f"shuffled instructions need two edits at least, not {len(edits)}")
    judges = [Judge(edit) for edit in edits]
    rng = np.random.default_rng(seed)
    pairs = [task.make_pair(edit.example, rng) for edit in edits]
    turned = [replace(pair, prompt=pairs[(k + 1) % len(pairs)].prompt) for k, pair in enumerate(pairs)]
    made = {"input": [edit.before.image for edit in edits], "twin": [edit.after.image for edit in edits]}
    if autoencode:
        decoded = autoencode([as_float(edit.after.image).astype(np.float32) for edit in edits])
        made["autoencoder"] = [to_uint8(image) for image in decoded]
    figures = [_figure(name, k, judges[k], image) for name, images in made.items() for k, image in enumerate(images)]
    shown = {f"{k}: {edit.instruction}": {"input": edit.before.image} for k, edit in enumerate(edits)}
    for done, count in enumerate(steps):
        name = step_name(count)
        images, seconds = outputs(task, pairs, generate, count, seed)
        others, _ = outputs(task, turned, generate, count, seed)
        for k, (image, other, row) in enumerate(zip(images, others, shown.values(), strict=True)):
            row[name] = image
            figures.append(_figure(name, k, judges[k], image, other, seconds))
        if on_progress:
            on_progress(done + 1, len(steps))
    for edit, row in zip(edits, shown.values(), strict=True):
        row["twin"] = edit.after.image
    return EditReport(seed, mean_table(figures, against="input", deltas=(), partial=True), figures, shown)


def _figure(
    method: str,
    number: int,
    judge: Judge,
    image: np.ndarray,
    other: np.ndarray | None = None,
    seconds: float | None = None,
) -> Figure:
    followed = float(judge.followed(image))
    by_kind = {kind: followed if judge.edit.kind == kind else None for kind in KINDS}
    shuffled = None if other is None else float(judge.followed(other))
    values = {"followed": followed, **by_kind, "shuffled": shuffled, "kept": judge.kept(image), "seconds": seconds}
    return Figure(method, f"{number}: {judge.edit.instruction}", values)
