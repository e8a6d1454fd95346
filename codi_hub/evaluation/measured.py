"""What an evaluation found, and how those of several contestants become one table."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from codi_hub.evaluation.distances import PATCH, compare
from codi_hub.evaluation.features import Features
from codi_hub.evaluation.table import Table
from codi_hub.tasks.base import Task

Pictures = dict[str, dict[str, np.ndarray]]

# generate(conditions float32 HWC in [0, 1], prompts, seeds, steps) -> outputs float32 HWC in [0, 1]
Generate = Callable[[list[np.ndarray], list[str], list[int], int], list[np.ndarray]]
TOGETHER = 8  # pictures per call of `generate`
PIXELWISE = ("psnr", "psnr_delta", "ssim", "ssim_delta", "gmsd", "gmsd_delta")


@dataclass(frozen=True)
class Measured:
    """A table of means, what it is made of, and pictures.

    Attributes:
        images: how many pictures were measured on.
        table: the rows of numbers of steps are called as `step_name` says; others are references, such as bicubic.
        details: everything else that eval.json should hold.
        pictures: for the sheet: image -> column -> picture, uint8 or float in [0, 1].
        outputs: row's name -> its finished pictures, uint8 HWC; distances in features are measured on them.
        references: the true picture of each output, or none where nobody knows it.
        notes: lines for people, printed below the table.
    """

    images: int
    table: Table
    details: dict[str, Any]
    pictures: Pictures
    outputs: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict, repr=False)
    references: Sequence[np.ndarray] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contestant:
    """One way of making pictures: an adapter by its reference, or the base alone, at several numbers of steps."""

    name: str
    generate: Generate
    steps: tuple[int, ...]


def finished(
    task: Task,
    prepared: Sequence[Any],
    prompts: Sequence[str],
    generate: Generate,
    steps: int,
    seed: int,
    *,
    together: int = TOGETHER,
) -> tuple[list[np.ndarray], float]:
    """(finished pictures uint8 HWC, seconds per picture that `generate` took), `together` at a time.

    Args:
        task: gives `finish`.
        prepared: what its `prepare` made of the inputs, all of one size.
        prompts: one for each.
        seed: picture k's own is derived from it and k.
    """
    seeds = [seed * 1_000_003 + k for k in range(len(prepared))]
    conditions = [one.condition for one in prepared]
    made: list[np.ndarray] = []
    began = time.perf_counter()
    for start in range(0, len(prepared), together):
        part = slice(start, start + together)
        made += generate(conditions[part], list(prompts[part]), seeds[part], steps)
    seconds = (time.perf_counter() - began) / len(prepared)
    return [task.finish(output, one) for output, one in zip(made, prepared, strict=True)], seconds


def step_name(steps: int) -> str:
    """The row of a number of steps: "1 step", "4 steps"."""
    return f"{steps} step{'s' * (steps != 1)}"


def named(measured: Measured, by: Contestant, *, alone: bool) -> Measured:
    """Says in every row which method and steps made it; beside others, "4 steps" becomes "depth:2, 4 steps"."""
    steps = {step_name(count): count for count in by.steps}
    new = {name: name if alone else f"{by.name}, {name}" for name in steps}

    def renamed(found: Mapping[str, Any]) -> dict[str, Any]:
        return {new.get(name, name): value for name, value in found.items()}

    rows = []
    for row in measured.table.rows:
        name = row["name"]
        method = by.name if name in steps else name
        rows.append({**row, "name": new.get(name, name), "method": method, "steps": steps.get(name)})
    pictures = {image: renamed(columns) for image, columns in measured.pictures.items()}
    table = Table(measured.table.columns, rows)
    return replace(measured, table=table, pictures=pictures, outputs=renamed(measured.outputs))


def merged(parts: Sequence[Measured], contestants: Sequence[Contestant]) -> Measured:
    """One evaluation out of several `named` ones on the same pictures; references are taken from the first."""
    first, *others = parts
    rows, outputs = list(first.table.rows), dict(first.outputs)
    pictures = {image: dict(columns) for image, columns in first.pictures.items()}
    for part in others:
        new = [row for row in part.table.rows if row["steps"] is not None]
        last = max(k for k, row in enumerate(rows) if row["steps"] is not None)
        rows[last + 1 : last + 1] = new
        names = {row["name"] for row in new}
        after = rows[last]["name"]
        pictures = {image: _beside(columns, part.pictures[image], names, after) for image, columns in pictures.items()}
        outputs |= {name: made for name, made in part.outputs.items() if name in names}
    details = first.details
    if others:
        details = details | {"against": {c.name: p.details for c, p in zip(contestants[1:], others, strict=True)}}
    return replace(first, table=Table(first.table.columns, rows), pictures=pictures, outputs=outputs, details=details)


def _beside(
    columns: dict[str, np.ndarray], more: dict[str, np.ndarray], names: set[str], after: str
) -> dict[str, np.ndarray]:
    """`columns` with those of `more` that have one of the names, put behind the column `after`."""
    wider: dict[str, np.ndarray] = {}
    for name, picture in columns.items():
        wider[name] = picture
        if name == after:
            wider |= {other: found for other, found in more.items() if other in names}
    return wider


def with_distances(measured: Measured, features: Features) -> Measured:
    """Adds the columns `frechet` and `perceptual` where the true pictures are known."""
    if not measured.references:
        return measured
    told = compare(features, measured.outputs, measured.references)
    rows = [
        {
            **row,
            "frechet": told[row["name"]].frechet if row["name"] in told else None,
            "perceptual": float(np.mean(told[row["name"]].perceptual)) if row["name"] in told else None,
        }
        for row in measured.table.rows
    ]
    columns = list(measured.table.columns)
    place = 1 + max((k for k, column in enumerate(columns) if column in PIXELWISE), default=-1)
    columns[place:place] = ["frechet", "perceptual"]
    made, true = next(iter(told.values())).samples
    note = f"Frechet: {made} patches of {PATCH} px against {true} of the true pictures; features: {features.name}"
    details = {
        "features": features.name,
        "frechet_samples": {"made": made, "true": true, "patch": PATCH},
        "perceptual": {name: distances.perceptual for name, distances in told.items()},
    }
    return replace(
        measured,
        table=Table(columns, rows),
        details=measured.details | details,
        notes=(*measured.notes, note),
    )


def trimmed(measured: Measured) -> Measured:
    """Without the columns that no row has a figure in."""
    table = measured.table
    columns = [column for column in table.columns if any(row[column] is not None for row in table.rows)]
    return replace(
        measured, table=Table(columns, table.rows), details=measured.details | Table(columns, table.rows).as_dict()
    )
