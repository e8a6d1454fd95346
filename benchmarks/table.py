"""The benchmark's rows: contestants do the same work in turn, so that whatever else the machine does falls on all."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what, on: the row of the design's table, and where it was measured: `nano`, `sd15`, or "" where no base matters.
        ours, against: who is compared.
        values: one per round, in `unit`; "x" is a ratio.
        goal: what the median is to be, `at_most` or at least; None for a figure that only explains another.
    """

    what: str
    on: str
    ours: str
    against: str
    values: tuple[float, ...]
    unit: str = "x"
    goal: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def key(self) -> str:
        return " | ".join((self.what, self.on, self.ours, self.against))

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return median(self.values) <= self.goal if self.at_most else median(self.values) >= self.goal

    def cells(self) -> tuple[str, ...]:
        middle, low, high = median(self.values), min(self.values), max(self.values)
        spread = f" ({low:.3g}-{high:.3g})" if len(self.values) > 1 else ""
        goal = "" if self.goal is None else f"{'<=' if self.at_most else '>='} {self.goal:g} {self.unit}"
        verdict = {True: "met", False: "NOT met", None: ""}[self.met]
        return (self.what, self.on, self.ours, self.against, f"{middle:.3g} {self.unit}{spread}", goal, verdict)


def in_turn(
    contestants: Mapping[str, Work], rounds: int, warm_up: int = 1, before: Work | None = None
) -> dict[str, list[float]]:
    """Seconds of every round of each contestant. A round goes once through all of them, every other one backwards.

    Args:
        before: done ahead of every work, and not measured.
    """
    for _ in range(warm_up):
        for work in contestants.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants.items())
        for name, work in order[::-1] if number % 2 else order:
            gc.collect()
            if before:
                before()
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(above: Iterable[float], below: Iterable[float]) -> tuple[float, ...]:
    """Round by round."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


HEADER = ("what", "on", "ours", "against", "median (spread)", "goal", "")


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table."""
    lines = [HEADER, ("-",) * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def merged(path: Path, made: Iterable[Row]) -> list[Row]:
    """Puts rows into the file of results in the place of those they measure anew; gives all."""
    known = (
        [Row(**row | {"values": tuple(row["values"])}) for row in json.loads(path.read_text())] if path.exists() else []
    )
    rows = {row.key: row for row in [*known, *made]}
    path.write_text(json.dumps([asdict(row) for row in rows.values()], indent=1) + "\n")
    return list(rows.values())
