"""Plots of quality against steps: one chart per column, one line per method. Needs matplotlib (the extra `plot`)."""

from importlib.util import find_spec
from pathlib import Path

from codi_hub.evaluation.table import Table

MISSING = "No plot: matplotlib is not installed; pip install 'codi-hub[plot]'"
ACROSS = 3  # charts side by side


def can_plot() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plotted(table: Table) -> list[str]:
    """Return the columns that get a chart: those whose description asks for one."""
    return [name for name in table.columns if name in table.described and table.described[name].plotted]


def plot_quality(table: Table, title: str, path: Path) -> None:
    """Write the charts as PNG.

    Args:
        table: rows with `method` and `steps`; a row without steps is a horizontal line.
        title: above the charts.
        path: of the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    columns = plotted(table)
    across, down = min(ACROSS, len(columns)), -(-len(columns) // ACROSS)
    figure = Figure(figsize=(4.2 * across, 3.2 * down + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    methods = {row["method"]: row["steps"] is None for row in table.rows}
    steps = sorted({row["steps"] for row in table.rows if row["steps"] is not None})
    for k, column in enumerate(columns):
        axes = figure.add_subplot(down, across, k + 1)
        description = table.described[column]
        axes.set_title(f"{description.head} ({description.better} is better)", fontsize=10)
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
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    lines = {label: line for handles, labels in legends for line, label in zip(handles, labels, strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=110)
