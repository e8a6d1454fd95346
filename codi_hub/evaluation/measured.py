"""The result of an evaluation: how a task builds it, and how those of several contestants become one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_hub.evaluation import metrics
from codi_hub.evaluation.context import Generate, step_name
from codi_hub.evaluation.table import Figure, Table, mean_table

if TYPE_CHECKING:
    from codi_hub.evaluation.features import Features

SHOWN = 8  # images on a contact sheet, of synthetic examples
Sheet = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Measured:
    """A table of means, the values behind it, and images.

    Attributes:
        images: number of test images.
        table: rows of numbers of steps are named by `step_name`; the others are baselines and references.
        details: further entries of eval.json.
        sheet: the contact sheet: image -> column -> image, uint8 or float in [0, 1].
        outputs: row -> its finished images, uint8 HWC.
        references: the reference image of each output; empty if unknown.
        prompts: of each output; empty for a task without.
        inputs: what other tools are given for each output, by the kinds of `tools.Inputs`; empty if they cannot be.
        notes: lines printed below the table.
    """

    images: int
    table: Table
    details: dict[str, Any]
    sheet: Sheet = field(default_factory=dict, repr=False)
    outputs: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict, repr=False)
    references: Sequence[np.ndarray] = field(default=(), repr=False)
    prompts: Sequence[str] = ()
    inputs: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()


class Comparison:
    """Collects the images of several methods on the same test images, and measures each with every image metric.

    For each test image, a task calls `add` once per method, then `reference` once; finally `measured`.
    """

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.sheet: Sheet = {}
        self._metrics = metrics.image_metrics()
        self._outputs: dict[str, list[np.ndarray]] = {}
        self._references: list[np.ndarray] = []
        self._inputs: dict[str, list[np.ndarray]] = {}

    @property
    def count(self) -> int:
        """Number of images whose reference is recorded."""
        return len(self._references)

    def add(
        self,
        method: str,
        label: str,
        image: np.ndarray,
        reference: np.ndarray,
        values: Mapping[str, float | None],
        seconds: float | None = None,
    ) -> None:
        """Measure an image of a method.

        Args:
            method: row of the table.
            label: name of the test image.
            image: uint8 HWC.
            reference: of the same shape; if it is `image` itself, the image metrics are None.
            values: columns of the task's own.
            seconds: that generating it took.
        """
        own = image is reference
        scores = {name: None if own else metric(image, reference) for name, metric in self._metrics.items()}
        self.figures.append(Figure(method, label, {**scores, **values, "seconds": seconds}))
        self._outputs.setdefault(method, []).append(image)

    def reference(self, image: np.ndarray) -> None:
        """Record the reference of the test image that was just added."""
        self._references.append(image)

    def inputs(self, inputs: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Record what other tools are given for the next test images; see `tools.Inputs`."""
        for kind, images in inputs.items():
            self._inputs.setdefault(kind, []).extend(images)

    def measured(
        self,
        count: int,
        *,
        against: str,
        deltas: Iterable[str] = (),
        partial: bool = False,
        details: Mapping[str, Any] | None = None,
        prompts: Sequence[str] = (),
    ) -> Measured:
        """Return the result; `against`, `deltas` and `partial` are those of `mean_table`, `prompts` of the images."""
        table = mean_table(self.figures, against=against, deltas=deltas, partial=partial)
        values = [figure.as_dict() for figure in self.figures]
        document = {**(details or {}), **table.as_dict(), "figures": values}
        return Measured(count, table, document, self.sheet, self._outputs, self._references, prompts, self._inputs)


@dataclass(frozen=True)
class Contestant:
    """A row or several: an adapter by its reference, or the base alone, at several numbers of steps."""

    name: str
    generate: Generate
    steps: tuple[int, ...]


def named(measured: Measured, by: Contestant, *, alone: bool) -> Measured:
    """Add `method` and `steps` to every row; beside other contestants, "4 steps" becomes "depth:2, 4 steps"."""
    steps = {step_name(count): count for count in by.steps}
    new = {name: name if alone else f"{by.name}, {name}" for name in steps}

    def renamed(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {new.get(name, name): value for name, value in entries.items()}

    rows = []
    for row in measured.table.rows:
        name = row["name"]
        method = by.name if name in steps else name
        rows.append({**row, "name": new.get(name, name), "method": method, "steps": steps.get(name)})
    sheet = {image: renamed(columns) for image, columns in measured.sheet.items()}
    table = replace(measured.table, rows=rows)
    return replace(measured, table=table, sheet=sheet, outputs=renamed(measured.outputs))


def merged(parts: Sequence[Measured], contestants: Sequence[Contestant]) -> Measured:
    """Join several `named` evaluations of the same test images; baselines and references are those of the first."""
    first, *others = parts
    rows, outputs = list(first.table.rows), dict(first.outputs)
    sheet = {image: dict(columns) for image, columns in first.sheet.items()}
    for part in others:
        new = [row for row in part.table.rows if row["steps"] is not None]
        last = max(k for k, row in enumerate(rows) if row["steps"] is not None)
        rows[last + 1 : last + 1] = new
        names = {row["name"] for row in new}
        after = rows[last]["name"]
        sheet = {image: _inserted(columns, part.sheet[image], names, after) for image, columns in sheet.items()}
        outputs |= {name: images for name, images in part.outputs.items() if name in names}
    details = first.details
    if others:
        details = details | {"against": {c.name: p.details for c, p in zip(contestants[1:], others, strict=True)}}
    return replace(first, table=replace(first.table, rows=rows), sheet=sheet, outputs=outputs, details=details)


def _inserted(
    columns: dict[str, np.ndarray], more: dict[str, np.ndarray], names: set[str], after: str
) -> dict[str, np.ndarray]:
    """Insert the columns of `more` that have one of the names after the column `after`."""
    wider: dict[str, np.ndarray] = {}
    for name, image in columns.items():
        wider[name] = image
        if name == after:
            wider |= {other: value for other, value in more.items() if other in names}
    return wider


def with_set_metrics(
    measured: Measured,
    features: Features | None,
    requested: Sequence[tuple[metrics.WeightMetric, metrics.Compare]] = (),
) -> Measured:
    """Add the columns of every set metric and requested metric after those of the image metrics.

    Without references, nothing is measured.
    """
    if not measured.references:
        return measured
    placed = {*metrics.image_metrics()}
    sets = metrics.ImageSets(measured.outputs, measured.references, measured.prompts)
    results = [
        (metric.columns, metric.compare(measured.outputs, measured.references, features))
        for metric in metrics.set_metrics()
    ] + [(metric.columns, compare(sets)) for metric, compare in requested]
    for described, scores in results:
        if scores is not None:
            measured = with_columns(measured, described, scores, placed)
            placed |= described.keys()
    return measured


def with_columns(
    measured: Measured, described: Mapping[str, metrics.Column], scores: metrics.SetScores, after: Set[str]
) -> Measured:
    """Add columns to the table behind the last of those named `after`, with the details and notes of the scores."""
    rows = [
        {**row, **{name: scores.values.get(row["name"], {}).get(name) for name in described}}
        for row in measured.table.rows
    ]
    columns = list(measured.table.columns)
    place = 1 + max((k for k, name in enumerate(columns) if name.removesuffix("_delta") in after), default=-1)
    columns[place:place] = described
    return replace(
        measured,
        table=replace(measured.table, columns=columns, rows=rows),
        details=measured.details | dict(scores.details),
        notes=(*measured.notes, *scores.notes),
    )


def trimmed(measured: Measured) -> Measured:
    """Drop the columns in which no row has a value."""
    table = measured.table
    columns = [column for column in table.columns if any(row[column] is not None for row in table.rows)]
    table = replace(table, columns=columns)
    return replace(measured, table=table, details=measured.details | table.as_dict())
