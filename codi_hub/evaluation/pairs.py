"""Any task on held-out pairs: outputs against targets, and obedience to the condition against another one's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from codi_hub.evaluation.measured import TOGETHER, Generate, finished
from codi_hub.images.metrics import gmsd, psnr, ssim
from codi_hub.tasks.base import Pair, Prepared, Task


def outputs(
    task: Task, pairs: Sequence[Pair], generate: Generate, steps: int, seed: int, *, together: int = TOGETHER
) -> tuple[list[np.ndarray], float]:
    """What `finished` gives, of an adapter on held-out pairs of one size."""
    prepared = [Prepared(pair.condition, pair.condition.shape[1::-1]) for pair in pairs]
    return finished(task, prepared, [pair.prompt for pair in pairs], generate, steps, seed, together=together)


def measure(task: Task, pairs: Sequence[Pair], pictures: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Means: `psnr`, `ssim`, `gmsd` against the target, `adherence` to the own condition, `shuffled` to another's.

    And `done`, where the task knows what that is.
    """
    conditions = [pair.condition.astype(np.float32) / 255 for pair in pairs]
    floats = [picture.astype(np.float32) / 255 for picture in pictures]
    own = [task.adherence(image, condition) for image, condition in zip(floats, conditions, strict=True)]
    other = [task.adherence(image, conditions[(k + 1) % len(conditions)]) for k, image in enumerate(floats)]
    targets = [pair.target for pair in pairs]
    done = _mean([task.done(image, pair) for image, pair in zip(floats, pairs, strict=True)])
    return {
        **{metric.__name__: float(np.mean(list(map(metric, pictures, targets)))) for metric in (psnr, ssim, gmsd)},
        "adherence": _mean(own),
        "shuffled": _mean(other),
    } | ({} if done is None else {"done": done})


def held_out_scores(
    task: Task, pairs: Sequence[Pair], generate: Generate, *, steps: Sequence[int], seed: int = 0
) -> tuple[dict[int, dict[str, Any]], dict[int, list[np.ndarray]]]:
    """Figures and pictures for each number of steps."""
    scores, pictures = {}, {}
    for count in steps:
        pictures[count], seconds = outputs(task, pairs, generate, count, seed)
        scores[count] = measure(task, pairs, pictures[count]) | {"seconds": seconds}
    return scores, pictures


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
