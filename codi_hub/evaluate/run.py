"""`codi eval`: chooses how a task is measured, measures it, and leaves table and pictures in a folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from codi_hub.base import FrozenBase
from codi_hub.distill.cache import split
from codi_hub.errors import InvalidInput
from codi_hub.evaluate.depth import evaluate_depth, held_out_scenes
from codi_hub.evaluate.edit import evaluate_edit, held_out_edits
from codi_hub.evaluate.inpaint import evaluate_inpaint
from codi_hub.evaluate.pairs import held_out_scores
from codi_hub.evaluate.photographs import photographs
from codi_hub.evaluate.sheets import sheet
from codi_hub.evaluate.superres import Generate, evaluate_superres
from codi_hub.evaluate.table import Table
from codi_hub.options import EvalOptions
from codi_hub.tasks.base import Task

OnProgress = Callable[[int, int], None]
Pictures = dict[str, dict[str, np.ndarray]]
HELD_OUT_SEED = 0x7E57  # of pairs made on the fly; training draws from small seeds
PAIRS = 16


@dataclass(frozen=True)
class Measured:
    """A table of means, what it is made of, and pictures per image and method."""

    images: int
    table: Table
    details: dict[str, Any]
    pictures: Pictures


def evaluate_task(
    task: Task, base: FrozenBase, generate: Generate, options: EvalOptions, on_progress: OnProgress
) -> Measured:
    """Measures a task in its own way, or on held-out pairs where it has none."""
    measured = MEASURES.get(task.name, _on_pairs)(task, base, generate, options, on_progress)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "eval.json").write_text(json.dumps(measured.details, indent=1))
        (options.out / "table.txt").write_text(measured.table.as_text() + "\n")
        rows = list(measured.pictures.values())
        picture = sheet([list(row.values()) for row in rows], columns=list(rows[0]), labels=list(measured.pictures))
        picture.save(options.out / "sheet.png")
    return measured


def _superres(
    task: Task, base: FrozenBase, generate: Generate, options: EvalOptions, on_progress: OnProgress
) -> Measured:
    photos = photographs(options.data, options.count)

    def autoencode(images: list[np.ndarray]) -> list[np.ndarray]:
        return [round_trip(base, image) for image in images]

    report = evaluate_superres(
        task,
        photos,
        generate,
        steps=options.steps,
        seed=options.seed,
        autoencode=autoencode,
        on_progress=on_progress,
    )
    return Measured(len(photos), report.table, report.as_dict(), report.pictures)


def _inpaint(
    task: Task, base: FrozenBase, generate: Generate, options: EvalOptions, on_progress: OnProgress
) -> Measured:
    photos = photographs(options.data, options.count)
    report = evaluate_inpaint(
        task,
        photos,
        generate,
        steps=options.steps,
        seed=options.seed,
        autoencode=lambda images: [round_trip(base, image) for image in images],
        on_progress=on_progress,
    )
    return Measured(len(photos), report.table, report.as_dict(), report.pictures)


def round_trip(base: FrozenBase, image: np.ndarray) -> np.ndarray:
    """An image, float32 (H, W, 3) in [0, 1], encoded and decoded: the best that the latents allow."""
    import torch

    from codi_hub.engine import pad

    height, width = image.shape[:2]
    with torch.inference_mode():
        batch = pad(torch.from_numpy(image).permute(2, 0, 1)[None].to(base.device), base.multiple)
        decoded = base.decode(base.encode(batch))[0, :, :height, :width]
    return decoded.permute(1, 2, 0).cpu().numpy()


def _depth(task: Task, base: FrozenBase, generate: Generate, options: EvalOptions, on_progress: OnProgress) -> Measured:
    if options.data:
        return _on_pairs(task, base, generate, options, on_progress)
    size = base.unet.config.sample_size * base.factor
    scenes = held_out_scenes(max(2, options.count or 32), size)
    report = evaluate_depth(
        scenes,
        generate,
        task,
        steps=options.steps,
        seed=options.seed,
        on_progress=on_progress,
    )
    shown = dict(list(report.pictures.items())[:8])
    return Measured(len(scenes), report.table, report.as_dict(), shown)


def _edit(task: Task, base: FrozenBase, generate: Generate, options: EvalOptions, on_progress: OnProgress) -> Measured:
    if options.data:
        return _on_pairs(task, base, generate, options, on_progress)
    size = base.unet.config.sample_size * base.factor
    edits = held_out_edits(max(2, options.count or 48), size)

    def autoencode(images: list[np.ndarray]) -> list[np.ndarray]:
        return [round_trip(base, image) for image in images]

    report = evaluate_edit(
        edits, generate, task, steps=options.steps, seed=options.seed, autoencode=autoencode, on_progress=on_progress
    )
    return Measured(len(edits), report.table, report.as_dict(), dict(list(report.pictures.items())[:8]))


def _on_pairs(
    task: Task, base: FrozenBase, generate: Generate, options: EvalOptions, on_progress: OnProgress
) -> Measured:
    from codi_hub.data.sources import open_source

    size = base.unet.config.sample_size * base.factor
    data = options.data or task.training_data
    if task.options.data and not options.data:  # given pictures: the ones that `codi distill` leaves out
        source = open_source(data, task, size=size, seed=HELD_OUT_SEED)
        indices = split(len(source))[1][: options.count]
    else:
        source = open_source(data, task, count=options.count or PAIRS, size=size, seed=HELD_OUT_SEED)
        indices = range(len(source))
    if not indices:
        raise InvalidInput(f"{data}: no pair to measure on")
    pairs = [task.make_pair(source[k], np.random.default_rng([HELD_OUT_SEED, k])) for k in indices]
    scores, made = held_out_scores(task, pairs, generate, steps=options.steps, seed=options.seed)
    on_progress(len(pairs), len(pairs))
    names = {count: f"{count} step{'s' * (count != 1)}" for count in options.steps}
    columns = list(next(iter(scores.values())))
    table = Table(columns, [{"name": names[count], **scores[count]} for count in options.steps])
    pictures: Pictures = {}
    for k, pair in enumerate(pairs[:8]):
        outputs = {names[count]: made[count][k] for count in options.steps}
        pictures[f"pair {k}"] = {"condition": pair.condition, **outputs, "target": pair.target}
    return Measured(len(pairs), table, {"rows": table.rows, "data": data}, pictures)


MEASURES: dict[str, Callable[..., Measured]] = {
    "superres": _superres,
    "inpaint": _inpaint,
    "depth": _depth,
    "edit": _edit,
}
