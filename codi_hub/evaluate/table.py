"""Tables of measurements: one row per method, one column per figure, as data and as text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

DECIMALS = {"psnr": 2, "hole_psnr": 2, "ssim": 4, "gmsd": 4, "seconds": 3}
HEADS = {"psnr": "PSNR dB", "hole_psnr": "hole dB", "ssim": "SSIM", "gmsd": "GMSD", "seconds": "s/image"}


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

    def as_text(self) -> str:
        """Aligned columns for a terminal, without a trailing newline."""
        lines = [["", *(head(column) for column in self.columns)]]
        lines += [[row["name"], *(cell(column, row[column]) for column in self.columns)] for row in self.rows]
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        )


def head(column: str) -> str:
    """A column's heading; `psnr_delta` is the difference from the baseline, written with a sign."""
    if column.endswith("_delta"):
        return f"± {HEADS.get(column[:-6], column[:-6]).split()[0]}"
    return HEADS.get(column, column)


def cell(column: str, value: float | None) -> str:
    """A value as text; what was not measured is a dash."""
    if value is None:
        return "-"
    decimals = DECIMALS.get(column.removesuffix("_delta"), 3)
    return f"{value:+.{decimals}f}" if column.endswith("_delta") else f"{value:.{decimals}f}"


def mean_table(figures: Iterable[Figure], *, against: str, deltas: Iterable[str] = ("psnr", "gmsd")) -> Table:
    """Means over images, one row per method in order of appearance, with differences from the method `against`.

    A mean that includes an image where the figure is missing is None. Raises KeyError if `against` has no figures.
    """
    methods: dict[str, list[dict[str, float | None]]] = {}
    for figure in figures:
        methods.setdefault(figure.method, []).append(figure.values)
    names = list(next(iter(methods.values()))[0])
    means = {method: {name: _mean([v[name] for v in values]) for name in names} for method, values in methods.items()}
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


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base
