"""Measure how cost scales: `python -m benchmarks.curves [adapters] [images] [registry]`.

Scales the number of resident adapters, of images in one run, and of rows in the registry. Writes
docs/results/curves.json, a plot of each into docs/images, and a table with the exponents into docs/performance.md: 0 is
a constant cost, 1 a linear one; more than 1 would be a defect.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import memory, registry, shelf
from benchmarks.__main__ import DOCS, PAGE
from benchmarks.table import in_turn
from codi_hub import RunOptions
from codi_hub.hub import Hub

RESULTS = DOCS / "results" / "curves.json"
SECTION = re.compile(r"(?<=<!-- curves -->\n).*?(?=<!-- /curves -->)", re.DOTALL)
IMAGES = (1, 3, 10, 30, 100, 300, 1000)
SIDE = 32  # side of the input images in px; outputs are twice as large
ROWS = (1, 10, 100, 1000, 10_000, 100_000)
ROUNDS = 3


@dataclass(frozen=True)
class Curve:
    """A cost against a size; `points` are (size, cost in `unit`)."""

    part: str
    name: str
    unit: str
    points: list[tuple[int, float]]

    @property
    def exponent(self) -> float:
        """Return the slope of log cost against log size, from the last point at half the size or less to the last."""
        last = self.points[-1]
        first = next((point for point in self.points[::-1] if 2 * point[0] <= last[0]), self.points[0])
        return math.log(last[1] / first[1]) / math.log(last[0] / first[0])


def adapters() -> Iterator[Curve]:
    """Yield the curves of each kind, for 1 to 20 adapters on nano."""
    for kind in shelf.KINDS:
        points = memory.curve("nano", kind)
        for name, unit, factor in (("megabytes", "MB", 1.0), ("seconds", "ms", 1e3), ("load_seconds", "ms", 1e3)):
            what = {"megabytes": "memory", "seconds": "swap", "load_seconds": "load of one more"}[name]
            made = [(point["adapters"], max(point[name] * factor, 1e-3)) for point in points]
            yield Curve("adapters", f"{what}, {kind}", unit, made)


def images() -> Iterator[Curve]:
    """Yield the seconds of a whole run by its number of images, networks loaded."""
    found: dict[str, list[tuple[int, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, Hub.open(Path(folder) / "home") as hub:
        for number in (1, *IMAGES):  # the first loads the networks and is not counted
            for name, seconds in _runs(hub, Path(folder) / "images", number):
                found.setdefault(name, []).append((number, seconds))
    yield from (Curve("images", name, "s", points[1:]) for name, points in found.items())


def _runs(hub: Hub, folder: Path, number: int) -> Iterator[tuple[str, float]]:
    with tempfile.TemporaryDirectory(prefix="in", dir=hub.catalog.registry.home) as name:
        for k in range(number):
            pixels = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(name) / f"{k:04}.png")
        out = hub.catalog.registry.home / f"{folder.name}-{time.monotonic_ns()}"
        variants: dict[str, dict[str, Any]] = {
            "--dry-run": {"dry_run": True},
            "run": {},
            "the same again": {},
            "the same again, --report": {"report": out.with_suffix(".html")},
        }
        for variant, options in variants.items():
            began = time.perf_counter()
            report = hub.run("superres", [Path(name)], RunOptions(out=out, set={"scale": 2}, **options))
            if report.failed:
                raise SystemExit(report.items[0]["error"])
            yield variant, time.perf_counter() - began


def rows() -> Iterator[Curve]:
    """Yield the milliseconds of every registry query by the number of adapters."""
    found: dict[str, list[tuple[int, float]]] = {}
    for number in ROWS:
        with registry.registry_of(number) as catalog:
            for name, seconds in in_turn(registry.questions(catalog, number), ROUNDS).items():
                found.setdefault(name, []).append((number, 1e3 * median(seconds)))
    yield from (Curve("registry", name, "ms", points) for name, points in found.items())


PARTS: dict[str, Callable[[], Iterator[Curve]]] = {"adapters": adapters, "images": images, "registry": rows}
ACROSS = {"adapters": "adapters resident", "images": "images in the run", "registry": "adapters registered"}


def plot(part: str, curves: list[Curve], path: Path) -> None:
    """Plot one panel per unit, on logarithmic axes except the number of adapters."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    units = list(dict.fromkeys(curve.unit for curve in curves))
    figure = Figure(figsize=(5.5 * len(units) + 3.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for k, unit in enumerate(units):
        axes = figure.add_subplot(1, len(units), k + 1)
        for number, curve in enumerate(one for one in curves if one.unit == unit):
            style = {"linestyle": ("-", "--", ":")[number // 10], "color": f"C{number % 10}"}
            axes.plot(*zip(*curve.points, strict=True), marker=".", label=curve.name, **style)
        if part == "adapters":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.set_xscale("log")
        if part != "adapters" or unit == "ms":
            axes.set_yscale("log")
        axes.set_xlabel(ACROSS[part])
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.savefig(path, dpi=110)


def section(curves: list[Curve]) -> str:
    """Return the tables and the plots as Markdown."""
    lines = []
    for part in PARTS:
        mine = [curve for curve in curves if curve.part == part]
        if mine:
            lines += [f"![Cost by {ACROSS[part]}](images/curve-{part}.png)", ""]
            lines += [
                f"| {ACROSS[part]} | cost of {mine[0].points[0][0]:,} | of {mine[0].points[-1][0]:,} | exponent |"
            ]
            lines += ["|-|-:|-:|-:|", *(_line(curve) for curve in mine), ""]
    return "\n".join(lines)


def _line(curve: Curve) -> str:
    first, last = (f"{cost:.3g} {curve.unit}" for _, cost in (curve.points[0], curve.points[-1]))
    return f"| {curve.name} | {first} | {last} | {curve.exponent:.2f} |"


def main() -> None:
    """Measure the parts and update results, plots and page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: a part is one of {', '.join(PARTS)}")
    known = [Curve(**curve) for curve in json.loads(RESULTS.read_text())] if RESULTS.exists() else []
    for part in given.parts or PARTS:
        made = list(PARTS[part]())
        print(*map(_line, made), sep="\n", flush=True)
        plot(part, made, DOCS / "images" / f"curve-{part}.png")
        known = [curve for curve in known if curve.part != part] + made
        RESULTS.write_text(json.dumps([asdict(curve) for curve in known], indent=1) + "\n")
        before, after = SECTION.split(PAGE.read_text())
        PAGE.write_text(before + section(known) + after)


if __name__ == "__main__":
    main()
