"""The rows of a run: one per item, recorded in a run log and sent as events."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.errors import CodiError, describe
from codi_hub.events import ItemDone, OnEvent
from codi_hub.folders.plan import Item
from codi_hub.paths import path_text

if TYPE_CHECKING:
    from codi_hub.registry import AdapterRow
    from codi_hub.registry.runs import RunLog

Row = dict[str, Any]
"""input, output, status ("ok", "failed", "skipped", "planned"), seed, error, seconds, and prompt if there is one."""


class RegistryLog:
    """Where a run is recorded, and where a resumed run looks up finished work. Used by one thread.

    Args:
        runs: the registry's run log.
        adapter: what the run uses.
        recipe: what decides its outputs, beside input, prompt and seed.
        items: of the run.
    """

    def __init__(self, runs: RunLog, adapter: AdapterRow, recipe: dict[str, Any], items: Sequence[Item]) -> None:
        self._runs, self._adapter, self._recipe, self._items = runs, adapter, recipe, items
        self._run_id: int | None = None

    def start(self) -> None:
        """Begin the record of a run. An exception ends the run."""
        self._run_id = self._runs.start(self._adapter.task, self._adapter.ref, self._recipe)

    def finished(self, item: Item, input_hash: str) -> bool:
        """Return whether the existing output was made from this input with the same prompt, seed and recipe."""
        return self._finished.get(absolute_output(item.output)) == (input_hash, item.prompt, item.seed)

    @cached_property
    def _finished(self) -> dict[str, tuple[str | None, str | None, int]]:
        outputs = [absolute_output(item.output) for item in self._items]
        return self._runs.finished_outputs(self._adapter.ref, self._recipe, outputs)

    def record(self, row: Mapping[str, Any], input_hash: str | None) -> None:
        """Record a finished or failed item."""
        assert self._run_id is not None
        output = absolute_output(row["output"])
        self._runs.add_item(self._run_id, **{**row, "output": output}, input_hash=input_hash)

    def finish(self, status: str) -> None:
        """End the record: "ok", "failed" or "interrupted"."""
        assert self._run_id is not None
        with suppress(CodiError):  # the rows are recorded: a missing end is not worth the run's report
            self._runs.finish(self._run_id, status)


def absolute_output(output: Path | str) -> str:
    """Return an output's path as the run log stores it, whatever the working directory is."""
    return os.path.abspath(path_text(output))


class Rows:
    """Collects the row of each item.

    Args:
        log: records every item that was computed or failed; None records nothing.
        on_event: gets an `ItemDone` per row.
    """

    def __init__(self, items: Sequence[Item], log: RegistryLog | None, on_event: OnEvent) -> None:
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
