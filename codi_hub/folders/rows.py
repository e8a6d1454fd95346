"""The rows of a run: one per item, recorded in a run log and sent as events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from codi_hub.errors import describe
from codi_hub.events import ItemDone, OnEvent
from codi_hub.folders.plan import Item
from codi_hub.paths import path_text

Row = dict[str, Any]
"""input, output, status ("ok", "failed", "skipped", "planned"), seed, error, seconds, and prompt if there is one."""


class RunLog(Protocol):
    """Where a run is recorded, and where a resumed run looks up finished work. Called from one thread."""

    def start(self) -> None:
        """Begin the record of a run. An exception ends the run."""

    def finished(self, item: Item, input_hash: str) -> bool:
        """Return whether the item's existing output was made from this input with the same settings."""
        ...

    def record(self, row: Mapping[str, Any], input_hash: str | None) -> None:
        """Record a finished or failed item."""

    def finish(self, status: str) -> None:
        """End the record: "ok", "failed" or "interrupted"."""


class Rows:
    """Collects the row of each item.

    Args:
        log: records every item that was computed or failed; None records nothing.
        on_event: gets an `ItemDone` per row.
    """

    def __init__(self, items: Sequence[Item], log: RunLog | None, on_event: OnEvent) -> None:
        self._items, self._log, self._on_event = items, log, on_event
        self._rows: dict[int, Row] = {}

    def add(
        self,
        index: int,
        status: str,
        *,
        error: str | None = None,
        seconds: float = 0.0,
        input_hash: str | None = None,
    ) -> None:
        """Add the row of item `index`. If it cannot be recorded, the item is a failed one."""
        item = self._items[index]
        row: Row = {"input": path_text(item.input), "output": path_text(item.output), "status": status}
        row |= {"seed": item.seed, "error": error, "seconds": seconds}
        if item.prompt is not None:
            row["prompt"] = item.prompt
        if self._log is not None and status != "skipped":
            try:
                self._log.record(row, input_hash)
            except Exception as exc:  # noqa: BLE001 - a full disk under the registry must not end the run
                why = f"not recorded: {describe(exc)}"
                row |= {"status": "failed", "error": f"{error}; {why}" if error else f"written, but {why}"}
        self._rows[index] = row
        self._on_event(ItemDone(dict(row), len(self._rows), len(self._items)))

    def in_order(self) -> list[Row]:
        """Return the rows in the order in which the items were planned."""
        return [row for _, row in sorted(self._rows.items())]
