"""The default evaluation: outputs against the targets of held-out pairs, and agreement with the condition."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from codi_hub import seeds
from codi_hub.data.sources import open_source, split
from codi_hub.errors import InvalidInput
from codi_hub.evaluation.context import BATCH, EvaluatedTask, EvaluationContext, Generate, Samples, sample, step_name
from codi_hub.evaluation.measured import SHOWN, Measured
from codi_hub.evaluation.metrics import image_metrics
from codi_hub.evaluation.table import Table

COUNT = 16  # synthetic pairs


class TrainingPair(Protocol):
    """What an evaluation knows of a pair; `codi_hub.tasks.Pair` documents the members."""

    @property
    def target(self) -> np.ndarray: ...
    @property
    def condition(self) -> np.ndarray: ...
    @property
    def prompt(self) -> str: ...
    def prepared(self) -> Any: ...


def outputs(
    task: EvaluatedTask,
    pairs: Sequence[TrainingPair],
    generate: Generate,
    steps: int,
    seed: int,
    *,
    batch: int = BATCH,
) -> Samples:
    """Generate the finished images of held-out pairs of one size; see `sample`."""
    prepared = [pair.prepared() for pair in pairs]
    return sample(task, prepared, [pair.prompt for pair in pairs], generate, steps, seed, batch=batch)


def measure(
    task: EvaluatedTask, pairs: Sequence[TrainingPair], images: Sequence[np.ndarray]
) -> dict[str, float | None]:
    """Return means over images, uint8 HWC: every image metric against the target, `adherence` and `shuffled`.

    `adherence` is to the own condition, `shuffled` to that of the next pair. `done` is there for tasks that define it.
    """
    conditions = [pair.condition.astype(np.float32) / 255 for pair in pairs]
    floats = [image.astype(np.float32) / 255 for image in images]
    own = [task.adherence(image, condition) for image, condition in zip(floats, conditions, strict=True)]
    other = [task.adherence(image, conditions[(k + 1) % len(conditions)]) for k, image in enumerate(floats)]
    targets = [pair.target for pair in pairs]
    done = _mean([task.done(image, pair) for image, pair in zip(floats, pairs, strict=True)])
    return {
        **{name: float(np.mean(list(map(metric, images, targets)))) for name, metric in image_metrics().items()},
        "adherence": _mean(own),
        "shuffled": _mean(other),
    } | ({} if done is None else {"done": done})


def pairs_id(pairs: Sequence[TrainingPair]) -> str:
    """Return a hash of held-out pairs: scores compare where it is the same."""
    digest = hashlib.sha256()
    for pair in pairs:
        for image in (pair.condition, pair.target):
            digest.update(f"{image.shape} {image.dtype} ".encode() + np.ascontiguousarray(image).tobytes())
        digest.update(pair.prompt.encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()[:16]


def held_out_scores(
    task: EvaluatedTask,
    pairs: Sequence[TrainingPair],
    generate: Generate,
    *,
    steps: Sequence[int],
    seed: int = 0,
) -> tuple[dict[int, dict[str, Any]], dict[int, Sequence[np.ndarray]]]:
    """Return the means and the images of each number of steps."""
    scores, images = {}, {}
    for count in steps:
        images[count], seconds = outputs(task, pairs, generate, count, seed)
        scores[count] = measure(task, pairs, images[count]) | {"seconds": seconds}
    return scores, images


def evaluate_pairs(task: EvaluatedTask, context: EvaluationContext) -> Measured:
    """Measure a task on held-out pairs of `context.data` or its own training data.

    Of a folder or data set that is the task's own, those pairs are used that `codi distill` holds out.

    Raises:
        CodiError: data that cannot be used, or no pair in it.
    """
    data = context.data or task.training_data
    if task.options.data and not context.data:
        source = open_source(data, task, size=context.size, seed=seeds.HELD_OUT)
        indices = split(len(source))[1][: context.count]
    else:
        source = open_source(data, task, count=context.count or COUNT, size=context.size, seed=seeds.HELD_OUT)
        indices = range(len(source))
    if not indices:
        raise InvalidInput(f"{data}: no pair to measure on")
    pairs = [task.make_pair(source[k], seeds.example(seeds.HELD_OUT, k)) for k in indices]
    scores, images = held_out_scores(task, pairs, context.generate, steps=context.steps, seed=context.seed)
    context.on_progress(len(pairs), len(pairs))
    names = {count: step_name(count) for count in context.steps}
    columns = list(next(iter(scores.values())))
    table = Table(columns, [{"name": names[count], **scores[count]} for count in context.steps])
    sheet = {}
    for k, pair in enumerate(pairs[:SHOWN]):
        row = {names[count]: images[count][k] for count in context.steps}
        sheet[f"pair {k}"] = {"condition": pair.condition, **row, "target": pair.target}
    finished = {names[count]: list(images[count]) for count in context.steps}
    targets, prompts = [pair.target for pair in pairs], [pair.prompt for pair in pairs]
    return Measured(len(pairs), table, {"data": data}, sheet, finished, targets, prompts)


def _mean(values: list[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None
