"""Tables of measurements: one row per method, one column per metric, as data, text and Markdown."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from codi_hub.evaluation import metrics
from codi_hub.evaluation.metrics import Column


@dataclass(frozen=True)
class Figure:
    """The values of one method on one image; None for a value that was not measured."""

    method: str
    image: str
    values: dict[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Return the document for eval.json; values that are not finite become null."""
        return {"method": self.method, "image": self.image, **_finite(self.values)}


@dataclass(frozen=True)
class Table:
    """Means over images.

    Attributes:
        columns: names.
        rows: `name`, then a number or None per column; the first row is the baseline.
        described: column by name; by default those of the installed metrics.
    """

    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    described: Mapping[str, Column] = field(default_factory=metrics.columns, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the document for eval.json; values that are not finite become null."""
        return {"columns": self.columns, "rows": [_finite(row) for row in self.rows]}

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of that name. Raises KeyError."""
        return {row["name"]: row for row in self.rows}[name]

    def head(self, column: str) -> str:
        """Return the heading of a column; `psnr_delta` is the difference from the baseline."""
        if column.endswith("_delta"):
            return f"± {self.head(column[:-6]).split()[0]}"
        return self.described[column].head if column in self.described else column

    def cell(self, column: str, value: float | None) -> str:
        """Format a value; differences get a sign, a value that was not measured is a dash."""
        if value is None:
            return "-"
        description = self.described.get(column.removesuffix("_delta"))
        decimals = description.decimals if description else 3
        return f"{value:+.{decimals}f}" if column.endswith("_delta") else f"{value:.{decimals}f}"

    def legend(self) -> list[str]:
        """Return a line for each described column of the table."""
        return legend({name: self.described[name] for name in self.columns if name in self.described})

    def _cells(self) -> list[list[str]]:
        heads = ["", *map(self.head, self.columns)]
        rows = [[row["name"], *(self.cell(column, row[column]) for column in self.columns)] for row in self.rows]
        return [heads, *rows]

    def as_text(self) -> str:
        """Align the columns for a terminal; no trailing newline."""
        lines = self._cells()
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        )

    def as_markdown(self) -> str:
        """Format a Markdown table; no trailing newline."""
        first, *rest = ["| " + " | ".join(line) + " |" for line in self._cells()]
        return "\n".join([first, "|-|" + "-:|" * len(self.columns), *rest])


def legend(described: Mapping[str, Column]) -> list[str]:
    """Return a line for each column: "HEADING: meaning (higher is better)"."""
    return [f"{column.head}: {column.meaning} ({column.better} is better)" for column in described.values()]


def mean_table(
    figures: Iterable[Figure], *, against: str, deltas: Iterable[str] = ("psnr", "gmsd"), partial: bool = False
) -> Table:
    """Average over images: one row per method in order of appearance, with differences from the method `against`.

    A mean over an image without a value is None; with `partial`, the mean of the others. Raises KeyError if `against`
    has no figures.
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
    measured = [value for value in values if value is not None]
    return math.fsum(measured) / len(measured) if measured and (partial or len(measured) == len(values)) else None


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace numbers that JSON cannot hold, such as the infinite PSNR of equal images, by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
