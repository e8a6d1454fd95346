"""Quality against steps: one small chart per figure, one line per method. Needs matplotlib (the extra `plot`)."""

from importlib.util import find_spec
from pathlib import Path

from codi_hub.evaluation.table import COLUMNS, Table

MISSING = "No plot: matplotlib is not installed; pip install 'codi-hub[plot]'"
ACROSS = 3  # charts side by side
NOT_DRAWN = ("seconds", "shuffled", "margin")


def can_plot() -> bool:
    """Whether matplotlib is here."""
    return find_spec("matplotlib") is not None


def drawn(table: Table) -> list[str]:
    """The columns that get a chart: those that say which way is better, differences and times left out."""
    return [column for column in table.columns if column in COLUMNS and column not in NOT_DRAWN]


def plot_quality(table: Table, title: str, path: Path) -> None:
    """Writes the charts as PNG.

    Args:
        table: rows with `method` and `steps`; a row without steps is drawn as a level line.
        title: above all of them.
        path: of the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    columns = drawn(table)
    across, down = min(ACROSS, len(columns)), -(-len(columns) // ACROSS)
    figure = Figure(figsize=(4.2 * across, 3.2 * down + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    methods = {row["method"]: row["steps"] is None for row in table.rows}
    steps = sorted({row["steps"] for row in table.rows if row["steps"] is not None})
    for k, column in enumerate(columns):
        axes = figure.add_subplot(down, across, k + 1)
        axes.set_title(f"{COLUMNS[column].head} ({COLUMNS[column].better} is better)", fontsize=10)
        for number, (method, level) in enumerate(methods.items()):
            rows = [row for row in table.rows if row["method"] == method and row[column] is not None]
            if level and rows:
                axes.axhline(rows[0][column], color=f"C{number}", linestyle="--", linewidth=1, label=method)
            elif rows:
                points = sorted((row["steps"], row[column]) for row in rows)
                axes.plot(*zip(*points, strict=True), color=f"C{number}", marker="o", label=method)
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("steps")
        axes.grid(alpha=0.3)
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    lines = {label: line for handles, labels in found for line, label in zip(handles, labels, strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=110)
