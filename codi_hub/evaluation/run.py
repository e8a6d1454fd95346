"""Evaluation of a task's adapter and its contestants, and the report folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from codi_hub.evaluation import metrics
from codi_hub.evaluation.context import EvaluatedTask, EvaluationContext
from codi_hub.evaluation.external import read_metrics, save_images, with_imported
from codi_hub.evaluation.features import load_features
from codi_hub.evaluation.measured import Contestant, Measured, merged, named, trimmed, with_set_metrics
from codi_hub.evaluation.plot import MISSING, can_plot, plot_quality
from codi_hub.events import EvaluationStep, OnEvent
from codi_hub.images.sheets import contact_sheet

if TYPE_CHECKING:
    from codi_hub.backbones.backbone import Backbone
    from codi_hub.config.options import EvalOptions
    from codi_hub.evaluation.tools import Tool


def evaluate_task(
    task: EvaluatedTask,
    base: Backbone,
    contestants: Sequence[Contestant],
    options: EvalOptions,
    on_event: OnEvent,
    tools: Sequence[Tool] = (),
) -> Measured:
    """Evaluate each contestant on the same images by the task's own evaluation, and write the report if asked to.

    Args:
        task: provides `evaluate`.
        contestants: the adapter in question, then those to compare with.
        on_event: gets an `EvaluationStep` now and then, over all contestants.
        tools: other tools, which have no steps: their rows stand before those of the contestants.

    Raises:
        CodiError: data or a feature network that cannot be used.
    """
    features = load_features(options.features, base.device)
    requested = metrics.requested(options.metrics, base.device)
    imported = options.import_metrics and read_metrics(options.import_metrics)
    parts = []
    for k, contestant in enumerate(contestants):

        def progress(done: int, total: int, before: int = k) -> None:
            on_event(EvaluationStep(before * total + done, len(contestants) * total))

        context = EvaluationContext(
            generate=contestant.generate,
            steps=contestant.steps,
            seed=options.seed,
            data=options.data,
            count=options.count,
            size=base.latents.native_size,
            tools=() if k else tools,
            autoencode=lambda images: [round_trip(base, image) for image in images],
            on_progress=progress,
        )
        parts.append(named(task.evaluate(context), contestant, alone=len(contestants) == 1))
    measured = with_set_metrics(merged(parts, contestants), features, requested)
    if (options.features or requested) and not measured.references:
        note = f"No further metric and no Frechet distance: {task.name} is measured without reference images"
        measured = replace(measured, notes=(*measured.notes, note))
    if options.save_images:
        save_images(measured, options.save_images)
    if imported:
        measured = with_imported(measured, imported)
    described = replace(measured.table, described=metrics.columns() | dict(task.columns))
    measured = trimmed(replace(measured, table=described))
    if options.out is None:
        return measured
    return write(measured, f"{contestants[0].name} on {measured.images} images", options.out)


def write(measured: Measured, title: str, folder: Path) -> Measured:
    """Write eval.json, the table as text and Markdown, the contact sheet and the plot; note a missing plot."""
    folder.mkdir(parents=True, exist_ok=True)
    if can_plot():
        plot_quality(measured.table, title, folder / "quality.png")
    else:
        measured = replace(measured, notes=(*measured.notes, MISSING))
    document = measured.details | {"notes": measured.notes}
    (folder / "eval.json").write_text(json.dumps(document, indent=1))
    (folder / "table.txt").write_text(measured.table.as_text() + "\n")
    remarks = "".join(f"- {line}\n" for line in [*measured.table.legend(), *measured.notes])
    (folder / "table.md").write_text(f"# {title}\n\n{measured.table.as_markdown()}\n\n{remarks}")
    rows = list(measured.sheet.values())
    sheet = contact_sheet([list(row.values()) for row in rows], columns=list(rows[0]), labels=list(measured.sheet))
    sheet.save(folder / "sheet.png")
    return measured


def round_trip(base: Backbone, image: np.ndarray) -> np.ndarray:
    """Encode and decode an image, float32 (H, W, 3) in [0, 1]: the upper bound of what the latents can represent."""
    import torch

    from codi_hub.inference.engine import pad

    height, width = image.shape[:2]
    with torch.inference_mode():
        batch = pad(torch.from_numpy(image).permute(2, 0, 1)[None].to(base.device), base.latents.multiple)
        decoded = base.decode(base.encode(batch))[0, :, :height, :width]
    return decoded.permute(1, 2, 0).cpu().numpy()
