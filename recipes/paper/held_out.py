"""The held-out pairs of each task, and the figures of a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codi_hub import seeds, tasks
from codi_hub.backbones.backbone import Backbone
from codi_hub.data.sources import open_source
from codi_hub.evaluation.context import Generate
from codi_hub.evaluation.distances import compare
from codi_hub.evaluation.features import Features
from codi_hub.evaluation.pairs import measure, outputs
from codi_hub.evaluation.run import round_trip
from codi_hub.images.filters import to_uint8
from codi_hub.tasks.base import Pair, Task
from codi_hub.tasks.edit import Judge, held_out_edits
from recipes.paper.rows import AS_MADE, DATA, MEASURED, SIZE

BATCH = 64


@dataclass(frozen=True)
class HeldOut:
    """A task's held-out pairs; for edits also what decides whether an instruction was followed."""

    task: Task
    pairs: list[Pair]
    judges: list[Judge]

    @classmethod
    def of(cls, name: str) -> "HeldOut":
        """Return the pairs of a built-in task."""
        task = tasks.load(name, AS_MADE.get(name, {}))
        judges: list[Judge] = []
        if name == "edit":
            judges = [Judge(edit) for edit in held_out_edits(MEASURED, SIZE)]
            examples: Any = [judge.edit.example for judge in judges]
        else:
            examples = open_source(DATA[name], task, count=MEASURED, size=SIZE, seed=seeds.HELD_OUT)
        pairs = [task.make_pair(examples[k], seeds.example(seeds.HELD_OUT, k)) for k in range(MEASURED)]
        return cls(task, pairs, judges)

    def sampled(self, generate: Generate, steps: int) -> tuple[list[np.ndarray], float]:
        """Return images, uint8 (H, W, 3), and seconds per image. Image k starts from the same noise in every row."""
        return outputs(self.task, self.pairs, generate, steps, 0, batch=BATCH)

    def figures(self, images: Sequence[np.ndarray], features: Features) -> dict[str, float]:
        """Return means over the images, and their Frechet distance from the ground truth."""
        found = measure(self.task, self.pairs, images)
        distances = compare(features, {"": images}, [pair.target for pair in self.pairs])[""]
        found |= {"frechet": distances.frechet, "perceptual": float(np.mean(distances.perceptual))}
        if self.judges:
            pairs = list(zip(self.judges, images, strict=True))
            found["followed"] = float(np.mean([judge.followed(image) for judge, image in pairs]))
            kept = [judge.kept(image) for judge, image in pairs]
            found["kept"] = float(np.mean([share for share in kept if share is not None]))
        return {name: value for name, value in found.items() if value is not None}

    def references(self, base: Backbone) -> dict[str, list[np.ndarray]]:
        """Return baselines: the condition, where it is an image, and the target through the autoencoder."""
        images = {}
        if self.pairs[0].condition.shape[2] >= 3:  # for inpainting, with the hole filled smoothly
            images["the condition itself"] = [pair.condition[..., :3] for pair in self.pairs]
        targets = [pair.target.astype(np.float32) / 255 for pair in self.pairs]
        images["the ground truth, through the autoencoder"] = [to_uint8(round_trip(base, image)) for image in targets]
        return images
