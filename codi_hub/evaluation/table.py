"""Tables of measurements: one row per method, one column per figure, as data, text and Markdown."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Column(NamedTuple):
    """How a figure is shown: heading, decimals, whether higher or lower is better, and what it means."""

    head: str
    decimals: int
    better: str
    meaning: str


COLUMNS = {
    "psnr": Column("PSNR dB", 2, "higher", "peak signal-to-noise ratio against the true picture, dB"),
    "hole_psnr": Column("hole dB", 2, "higher", "the same, within the hole alone"),
    "ssim": Column("SSIM", 4, "higher", "structural similarity with the true picture, at most 1"),
    "gmsd": Column("GMSD", 4, "lower", "gradient magnitude similarity deviation from the true picture"),
    "frechet": Column(
        "Frechet",
        3,
        "lower",
        "Frechet distance between all 64 px patches of the outputs and of the true pictures, in the features of "
        "--features; patches, so that a handful of photographs gives enough samples; not an FID",
    ),
    "perceptual": Column(
        "perceptual",
        4,
        "lower",
        "distance of feature maps from the true picture's, in the same network, by 64 px patches; not LPIPS",
    ),
    "adherence": Column("adherence", 3, "higher", "how well the condition is kept, in the task's own measure"),
    "shuffled": Column("shuffled", 3, "lower", "the same, held against another picture's condition"),
    "margin": Column("margin", 3, "higher", "adherence less shuffled: 0 where the condition is ignored"),
    "done": Column("done", 3, "higher", "how far what was asked for has been done: 1 all of it, 0 nothing"),
    "seam": Column("seam", 3, "nearer 1", "step across the hole's edge, relative to the true picture's"),
    "followed": Column("followed", 3, "higher", "share of the instructions obeyed, read from the picture"),
    **{
        kind: Column(kind, 3, "higher", f"the same, of the edits of the kind {kind}")
        for kind in ("recolour", "remove", "time")
    },
    "kept": Column("kept", 3, "higher", "share of the pixels outside the edit that stay within 10 levels of 255"),
    "seconds": Column("s/image", 3, "lower", "time per image"),
}


@dataclass(frozen=True)
class Figure:
    """What one method did on one image; a figure that was not measured is None."""

    method: str
    image: str
    values: dict[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        return {"method": self.method, "image": self.image, **self.values}


@dataclass(frozen=True)
class Table:
    """Means over images. `rows`: `name`, then a number or None per column; the first row is the baseline."""

    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"columns": self.columns, "rows": self.rows}

    def row(self, name: str) -> dict[str, Any]:
        """The row of that name. Raises KeyError."""
        return {row["name"]: row for row in self.rows}[name]

    def _cells(self) -> list[list[str]]:
        heads = ["", *(head(column) for column in self.columns)]
        return [heads, *([row["name"], *(cell(column, row[column]) for column in self.columns)] for row in self.rows)]

    def as_text(self) -> str:
        """Aligned columns for a terminal, without a trailing newline."""
        lines = self._cells()
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        )

    def as_markdown(self) -> str:
        """A Markdown table, without a trailing newline."""
        first, *rest = ["| " + " | ".join(line) + " |" for line in self._cells()]
        return "\n".join([first, "|-|" + "-:|" * len(self.columns), *rest])


def head(column: str) -> str:
    """A column's heading; `psnr_delta` is the difference from the baseline, written with a sign."""
    if column.endswith("_delta"):
        return f"± {head(column[:-6]).split()[0]}"
    return COLUMNS[column].head if column in COLUMNS else column


def cell(column: str, value: float | None) -> str:
    """A value as text; what was not measured is a dash."""
    if value is None:
        return "-"
    known = COLUMNS.get(column.removesuffix("_delta"))
    decimals = known.decimals if known else 3
    return f"{value:+.{decimals}f}" if column.endswith("_delta") else f"{value:.{decimals}f}"


def legend(columns: Iterable[str] = COLUMNS) -> list[str]:
    """What each known column means, and which way is better: "HEADING: meaning (higher is better)"."""
    known = [COLUMNS[column] for column in columns if column in COLUMNS]
    return [f"{column.head}: {column.meaning} ({column.better} is better)" for column in known]


def mean_table(
    figures: Iterable[Figure], *, against: str, deltas: Iterable[str] = ("psnr", "gmsd"), partial: bool = False
) -> Table:
    """Means over images, one row per method in order of appearance, with differences from the method `against`.

    A mean that includes an image where the figure is missing is None; `partial` takes the mean of the others. Raises
    KeyError if `against` has no figures.
    """
    methods: dict[str, list[dict[str, float | None]]] = {}
    for figure in figures:
        methods.setdefault(figure.method, []).append(figure.values)
    names = list(next(iter(methods.values()))[0])
    means = {
        method: {name: _mean([v[name] for v in values], partial) for name in names}
        for method, values in methods.items()
    }
    baseline = means[against]
    columns: list[str] = []
    for name in names:
        columns += [name, f"{name}_delta"] if name in set(deltas) else [name]
    rows = []
    for method, mean in means.items():
        row: dict[str, Any] = {"name": method}
        for column in columns:
            name = column.removesuffix("_delta")
            row[column] = mean[name] if name == column else _difference(mean[name], baseline[name])
        rows.append(row)
    return Table(columns, rows)


def _mean(values: list[float | None], partial: bool) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and (partial or len(known) == len(values)) else None


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base
