"""What the rows are measured on, and the figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codi_hub import seeds, tasks
from codi_hub.backbones.unet import FrozenBase
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

TOGETHER = 64  # pictures at a time


@dataclass(frozen=True)
class HeldOut:
    """A task's pairs that nothing is trained on; of edits, what tells whether one was carried out."""

    task: Task
    pairs: list[Pair]
    judges: list[Judge]

    @classmethod
    def of(cls, name: str) -> "HeldOut":
        """The pairs of a built-in task."""
        task = tasks.load(name, AS_MADE.get(name, {}))
        judges: list[Judge] = []
        if name == "edit":
            judges = [Judge(edit) for edit in held_out_edits(MEASURED, SIZE)]
            examples: Any = [judge.edit.example for judge in judges]
        else:
            examples = open_source(DATA[name], task, count=MEASURED, size=SIZE, seed=seeds.HELD_OUT)
        made = [task.make_pair(examples[k], seeds.example(seeds.HELD_OUT, k)) for k in range(MEASURED)]
        return cls(task, made, judges)

    def sampled(self, generate: Generate, steps: int) -> tuple[list[np.ndarray], float]:
        """(pictures uint8 HWC, seconds per picture). Picture k begins with the same noise in every row."""
        return outputs(self.task, self.pairs, generate, steps, 0, batch=TOGETHER)

    def figures(self, pictures: Sequence[np.ndarray], features: Features) -> dict[str, float]:
        """Means over the pictures, and their Frechet distance from the true ones."""
        found = measure(self.task, self.pairs, pictures)
        distances = compare(features, {"": pictures}, [pair.target for pair in self.pairs])[""]
        found |= {"frechet": distances.frechet, "perceptual": float(np.mean(distances.perceptual))}
        if self.judges:
            pairs = list(zip(self.judges, pictures, strict=True))
            found["followed"] = float(np.mean([judge.followed(picture) for judge, picture in pairs]))
            kept = [judge.kept(picture) for judge, picture in pairs]
            found["kept"] = float(np.mean([share for share in kept if share is not None]))
        return {name: value for name, value in found.items() if value is not None}

    def references(self, base: FrozenBase) -> dict[str, list[np.ndarray]]:
        """What costs no adapter: the condition as it is, where it is a picture, and the target through the latents."""
        made = {}
        if self.pairs[0].condition.shape[2] >= 3:  # of inpainting, the hole filled smoothly
            made["the condition itself"] = [pair.condition[..., :3] for pair in self.pairs]
        targets = [pair.target.astype(np.float32) / 255 for pair in self.pairs]
        made["the true picture, through the autoencoder"] = [to_uint8(round_trip(base, image)) for image in targets]
        return made
