"""The rows of the benchmark: contestants run in turn, so that other load on the machine affects all alike."""

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
    """A line of the table.

    Attributes:
        what, on: the quantity, and the base it was measured on: `nano`, `sd15`, or "" where no base matters.
        ours, against: the contestants.
        values: one per round, in `unit`; "x" is a ratio.
        goal: bound of the median, `at_most` or at least; None for a figure without a goal.
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
        """Key of the row in the results."""
        return " | ".join((self.what, self.on, self.ours, self.against))

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return median(self.values) <= self.goal if self.at_most else median(self.values) >= self.goal

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table's line."""
        middle, low, high = median(self.values), min(self.values), max(self.values)
        spread = f" ({low:.3g}-{high:.3g})" if len(self.values) > 1 else ""
        goal = "" if self.goal is None else f"{'<=' if self.at_most else '>='} {self.goal:g} {self.unit}"
        verdict = {True: "met", False: "NOT met", None: ""}[self.met]
        return (self.what, self.on, self.ours, self.against, f"{middle:.3g} {self.unit}{spread}", goal, verdict)


def in_turn(
    contestants: Mapping[str, Work], rounds: int, warm_up: int = 1, before: Work | None = None
) -> dict[str, list[float]]:
    """Return the seconds of every round of each contestant. A round runs all of them once, every second one in reverse.

    Args:
        contestants: functions to time, by name.
        rounds: timed rounds.
        warm_up: rounds before them.
        before: called before every function, not timed.
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
    """Return the ratios round by round."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


HEADER = ("what", "on", "ours", "against", "median (spread)", "goal", "")


def markdown(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEADER, ("-",) * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def merged(path: Path, new: Iterable[Row]) -> list[Row]:
    """Replace rows with the same keys in the file of results; return all rows."""
    known = (
        [Row(**row | {"values": tuple(row["values"])}) for row in json.loads(path.read_text())] if path.exists() else []
    )
    rows = {row.key: row for row in [*known, *new]}
    path.write_text(json.dumps([asdict(row) for row in rows.values()], indent=1) + "\n")
    return list(rows.values())
