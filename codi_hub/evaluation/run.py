"""`codi eval`: chooses how a task is measured, measures it, and leaves table and pictures in a folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from codi_hub.backbones.unet import FrozenBase
from codi_hub.config.options import EvalOptions
from codi_hub.data.photographs import photographs
from codi_hub.errors import InvalidInput
from codi_hub.evaluation.depth import evaluate_depth, held_out_scenes
from codi_hub.evaluation.edit import evaluate_edit, held_out_edits
from codi_hub.evaluation.features import load_features
from codi_hub.evaluation.inpaint import evaluate_inpaint
from codi_hub.evaluation.measured import (
    Contestant,
    Generate,
    Measured,
    Pictures,
    merged,
    named,
    step_name,
    trimmed,
    with_distances,
)
from codi_hub.evaluation.pairs import held_out_scores
from codi_hub.evaluation.plot import MISSING, can_plot, plot_quality
from codi_hub.evaluation.superres import evaluate_superres
from codi_hub.evaluation.table import Table, legend
from codi_hub.images.sheets import contact_sheet
from codi_hub.tasks.base import Task
from codi_hub.training.latents import split

OnProgress = Callable[[int, int], None]
HELD_OUT_SEED = 0x7E57  # of pairs made on the fly; training draws from small seeds
PAIRS = 16


def evaluate_task(
    task: Task,
    base: FrozenBase,
    contestants: Sequence[Contestant],
    options: EvalOptions,
    on_progress: OnProgress,
) -> Measured:
    """Measures a task in its own way, or on held-out pairs where it has none: each contestant on the same pictures.

    Args:
        contestants: the adapter in question, then what it is held against.
        on_progress: told (pictures done, all), over all contestants.

    Raises:
        CodiError: data or a feature network that cannot be used.
    """
    features = load_features(options.features, base.device)
    measure = MEASURES.get(task.name, _on_pairs)
    parts = []
    for k, one in enumerate(contestants):

        def progress(done: int, total: int, before: int = k) -> None:
            on_progress(before * total + done, len(contestants) * total)

        part = measure(task, base, one.generate, replace(options, steps=one.steps), progress)
        parts.append(named(part, one, alone=len(contestants) == 1))
    measured = merged(parts, contestants)
    if features:
        measured = with_distances(measured, features)
    if options.features and not measured.references:
        note = f"No Frechet or perceptual distance: {task.name} is measured without true pictures"
        measured = replace(measured, notes=(*measured.notes, note))
    measured = trimmed(measured)
    return (
        write(measured, f"{contestants[0].name} on {measured.images} images", options.out) if options.out else measured
    )


def write(measured: Measured, title: str, folder: Path) -> Measured:
    """Leaves eval.json, the table as text and Markdown, the sheet and the plot; a note says if there is no plot."""
    folder.mkdir(parents=True, exist_ok=True)
    if can_plot():
        plot_quality(measured.table, title, folder / "quality.png")
    else:
        measured = replace(measured, notes=(*measured.notes, MISSING))
    document = measured.details | {"notes": measured.notes}
    (folder / "eval.json").write_text(json.dumps(document, indent=1))
    (folder / "table.txt").write_text(measured.table.as_text() + "\n")
    remarks = "".join(f"- {line}\n" for line in [*legend(measured.table.columns), *measured.notes])
    (folder / "table.md").write_text(f"# {title}\n\n{measured.table.as_markdown()}\n\n{remarks}")
    rows = list(measured.pictures.values())
    picture = contact_sheet([list(row.values()) for row in rows], columns=list(rows[0]), labels=list(measured.pictures))
    picture.save(folder / "sheet.png")
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
    found = report.outputs, report.references
    return Measured(len(photos), report.table, report.as_dict(), report.pictures, *found)


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
    shown = report.pictures.values()
    outputs = {row["name"]: [columns[row["name"]] for columns in shown] for row in report.table.rows}
    true = [columns["original"] for columns in shown]
    return Measured(len(photos), report.table, report.as_dict(), report.pictures, outputs, true)


def round_trip(base: FrozenBase, image: np.ndarray) -> np.ndarray:
    """An image, float32 (H, W, 3) in [0, 1], encoded and decoded: the best that the latents allow."""
    import torch

    from codi_hub.inference.engine import pad

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
    true = [example["image"] for example in scenes]
    return Measured(len(scenes), report.table, report.as_dict(), shown, report.outputs, true)


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
    rows = list(report.pictures.values())
    outputs = {name: [row[name] for row in rows] for name in map(step_name, options.steps)}
    twins = [edit.after.image for edit in edits]
    shown = dict(list(report.pictures.items())[:8])
    return Measured(len(edits), report.table, report.as_dict(), shown, outputs, twins)


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
    names = {count: step_name(count) for count in options.steps}
    columns = list(next(iter(scores.values())))
    table = Table(columns, [{"name": names[count], **scores[count]} for count in options.steps])
    pictures: Pictures = {}
    for k, pair in enumerate(pairs[:8]):
        outputs = {names[count]: made[count][k] for count in options.steps}
        pictures[f"pair {k}"] = {"condition": pair.condition, **outputs, "target": pair.target}
    finished = {names[count]: images for count, images in made.items()}
    true = [pair.target for pair in pairs]
    return Measured(len(pairs), table, {"data": data}, pictures, finished, true)


# how a task is measured: (task, base, generate, options, on_progress) -> Measured, for one way of making its pictures
MEASURES: dict[str, Callable[..., Measured]] = {
    "superres": _superres,
    "inpaint": _inpaint,
    "depth": _depth,
    "edit": _edit,
}
