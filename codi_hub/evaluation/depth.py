"""Whether a depth adapter obeys its map: edges of the picture against those of its own map and of another one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codi_hub.evaluation.measured import Generate, step_name
from codi_hub.evaluation.table import Figure, Table, mean_table
from codi_hub.images.metrics import gmsd, psnr, ssim, structure_agreement
from codi_hub.tasks.base import Task

HELD_OUT = 0x7E57  # seeds the scenes to measure on; training seeds its own by small numbers and positions


@dataclass(frozen=True)
class DepthReport:
    """Figures per number of steps and scene, their means, and pictures to look at.

    Attributes:
        table: means of likeness with the scene (`psnr`, `ssim`, `gmsd`), which the map and the prompt leave open, and
            of `adherence` (agreement with the picture's own map), `shuffled` (with another's) and `margin` (their
            difference: 0 means that the map is ignored); the first row is the scenes themselves, what full obedience
            reaches.
        pictures: per scene: "map" float32 HWC, "scene" and each number of steps uint8 HWC.
        outputs: "scenes" and each number of steps -> its pictures, uint8 HWC.
    """

    seed: int
    table: Table
    figures: list[Figure]
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)
    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.table.as_dict(), "figures": [figure.as_dict() for figure in self.figures]}


def held_out_scenes(count: int = 16, size: int = 128) -> list[dict[str, Any]]:
    """Scenes that no training draws, as examples: `image`, `depth` and `caption`."""
    from codi_hub.data.synthetic.scenes import scene

    made = [scene(np.random.default_rng([HELD_OUT, k]), size) for k in range(count)]
    return [{"image": one.image, "depth": one.depth, "caption": one.caption} for one in made]


def evaluate_depth(
    scenes: Sequence[dict[str, Any]],
    generate: Generate,
    task: Task,
    *,
    steps: Sequence[int] = (1, 2, 4, 8),
    seed: int = 0,
    batch: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
) -> DepthReport:
    """Measures how a depth adapter follows its maps.

    Args:
        scenes: held-out examples of one size, two at least: the k-th picture is also held against the map of the next.
        generate: the adapter.
        task: gives `prepare` and `finish`.
        steps: numbers of steps to compare.
        seed: of the sampling.
        batch: scenes per call of `generate`.
        on_progress: told (calls done, all).

    Raises:
        ValueError: fewer than two scenes.
    """
    if len(scenes) < 2:
        raise ValueError(f"shuffled maps need two scenes at least, not {len(scenes)}")
    prepared = [task.prepare(example["depth"]) for example in scenes]
    maps = [p.condition for p in prepared]
    prompts = [example.get("caption", "") for example in scenes]
    seeds = [seed * 1_000_003 + k for k in range(len(scenes))]
    made: dict[str, tuple[list[np.ndarray], float | None]] = {"scenes": ([e["image"] for e in scenes], None)}
    starts = range(0, len(scenes), batch)
    for nth, count in enumerate(steps):
        images: list[np.ndarray] = []
        begun = time.perf_counter()
        for j, start in enumerate(starts):
            part = slice(start, start + batch)
            outputs = generate(maps[part], prompts[part], seeds[part], count)
            images += [task.finish(output, p) for output, p in zip(outputs, prepared[part], strict=True)]
            if on_progress:
                on_progress(nth * len(starts) + j + 1, len(steps) * len(starts))
        made[step_name(count)] = images, (time.perf_counter() - begun) / len(scenes)
    figures = [
        Figure(
            method,
            f"scene {k}",
            _likeness(image, scenes[k]["image"])
            | _obedience(image, maps[k], maps[(k + 1) % len(maps)])
            | {"seconds": seconds},
        )
        for method, (images, seconds) in made.items()
        for k, image in enumerate(images)
    ]
    pictures = {f"scene {k}": _shown(maps[k], k, made) for k in range(len(scenes))}
    finished = {method: images for method, (images, _) in made.items()}
    return DepthReport(seed, mean_table(figures, against="scenes", deltas=()), figures, pictures, finished)


def _likeness(image: np.ndarray, scene: np.ndarray) -> dict[str, float | None]:
    """Nothing for the scene itself, whose PSNR is infinite."""
    if image is scene:
        return dict.fromkeys(("psnr", "ssim", "gmsd"))
    return {"psnr": psnr(image, scene), "ssim": ssim(image, scene), "gmsd": gmsd(image, scene)}


def _obedience(image: np.ndarray, own: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    adherence, shuffled = structure_agreement(image, own), structure_agreement(image, other)
    return {"adherence": adherence, "shuffled": shuffled, "margin": adherence - shuffled}


def _shown(own: np.ndarray, k: int, made: dict[str, tuple[list[np.ndarray], float | None]]) -> dict[str, np.ndarray]:
    return {"map": own, **{method: images[k] for method, (images, _) in made.items()}}
