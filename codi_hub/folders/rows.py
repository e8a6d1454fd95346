"""The rows of a run: one per item, recorded in a run log and sent as events."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.errors import CodiError
from codi_hub.events import ItemDone, Message, OnEvent
from codi_hub.folders.plan import Item
from codi_hub.images.io import MAX_BYTES
from codi_hub.objects import local_copies, version
from codi_hub.paths import absolute_path, path_text
from codi_hub.registry.rows import OutputRow, RunItemRow
from codi_hub.registry.store import Stamp, sha256
from codi_hub.urls import UrlPath, as_path, is_url

if TYPE_CHECKING:
    from codi_hub.registry import AdapterRow
    from codi_hub.registry.runs import RunLog

Row = dict[str, Any]
"""input, output, status ("ok", "failed", "skipped", "planned"), seed, error, seconds; and if there is one, prompt,
variant (from 1 for the second image of an input), and replaces: what is known of the existing output."""


def row_of(item: Item, status: str, *, error: str | None = None, seconds: float = 0.0) -> Row:
    """Return the row of an item."""
    row: Row = {"input": path_text(item.input), "output": path_text(item.output), "status": status}
    row |= {"seed": item.seed, "error": error, "seconds": seconds}
    row |= {"variant": item.variant} if item.variant else {}
    return row | ({} if item.prompt is None else {"prompt": item.prompt})


class RegistryLog:
    """Where a run is recorded, and where a resumed run looks up finished work. Used by one thread.

    Args:
        runs: the registry's run log.
        adapter: what the run uses.
        recipe: what decides its outputs, beside input, prompt and seed.
        items: of the run.
        part: the plan's key and the shard, of a run that makes one shard of its plan.
    """

    def __init__(
        self,
        runs: RunLog,
        adapter: AdapterRow,
        recipe: dict[str, Any],
        items: Sequence[Item],
        part: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self._runs, self._adapter, self._recipe, self._items = runs, adapter, recipe, items
        self._plan, self._shard = part
        self._joined = False
        self.run_id: int | None = None
        self._claimed: dict[str, int] = {}  # output -> id of its record
        self._unlogged: str | None = None
        self._warned = False

    def start(self) -> None:
        """Begin the record of a run."""
        with self._logging():
            self.run_id = self._runs.start(
                self._adapter.task, self._adapter.ref, self._recipe, plan=self._plan, shard=self._shard
            )

    def join(self, run_id: int | None) -> None:
        """Record into a run that another process began, of whose items this one sees some; None: record nothing."""
        self.run_id, self._joined = run_id, True

    def last(self, item: Item) -> OutputRow | None:
        """Return the last record of an item's output."""
        if self._joined:
            outputs = [absolute_path(item.output)]
            return self._runs.last_outputs(self._adapter.ref, self._recipe, outputs).get(outputs[0])
        return self._last.get(absolute_path(item.output))

    @cached_property
    def _last(self) -> dict[str, OutputRow]:
        outputs = [absolute_path(item.output) for item in self._items]
        return self._runs.last_outputs(self._adapter.ref, self._recipe, outputs)

    def made(self, items: Mapping[int, Item]) -> dict[int, RunItemRow]:
        """Return the records of those items that this run has made, by index; their files are as they were written."""
        if self.run_id is None:
            return {}
        paths = {index: absolute_path(item.output) for index, item in items.items()}
        found = self._runs.made(self.run_id, paths.values())
        rows = {index: found[path] for index, path in paths.items() if path in found}
        return {index: row for index, row in rows.items() if _is_unchanged(paths[index], row)}

    def wrote(self, digest: str) -> bool:
        """Return whether a run wrote a file with this sha256."""
        return self._runs.wrote(digest)

    def claim(self, row: Row, input_hash: str, file: Path) -> None:
        """Record an output before `file` is renamed to it, so that no file of codi's is unknown to the log.

        Unlike the other methods, it is called from the threads that save.
        """
        stamp, digest = Stamp.of(file), sha256(file)
        time = None if is_url(row["output"]) else stamp.mtime_ns
        written = {"output_hash": digest, "output_bytes": stamp.bytes, "output_mtime_ns": time}
        self._add(row | written, input_hash)

    def uploaded(self, output: UrlPath) -> None:
        """Record the version that an output has in its store, which it has only now. Called as `claim` is."""
        claimed = self._claimed.get(path_text(output))
        if claimed is not None:
            with self._logging():
                self._runs.set_version(claimed, version(output))

    def record_failure(self, row: Row, input_hash: str | None) -> None:
        """Record a failed item, whether or not its output was claimed."""
        claimed = self._claimed.get(row["output"])
        if claimed is None:
            self._add(row, input_hash)
        else:
            with self._logging():
                self._runs.fail_item(claimed, row["error"])

    def finish(self, status: str) -> None:
        """End the record: "ok", "failed" or "interrupted"."""
        if self.run_id is not None:
            with self._logging():
                self._runs.finish(self.run_id, status)

    def warning(self) -> str | None:
        """Return once why something could not be logged: the run goes on without."""
        if self._warned or self._unlogged is None:
            return None
        self._warned = True
        return f"Not everything of this run is logged: {self._unlogged}"

    def _add(self, row: Row, input_hash: str | None) -> None:
        if self.run_id is None:
            return
        fields = {field.name for field in dataclasses.fields(RunItemRow)}
        values = {name: value for name, value in row.items() if name in fields}
        with self._logging():
            values |= {name: absolute_path(row[name]) for name in ("input", "output")}
            item = self._runs.add_item(self.run_id, **values | {"input_hash": input_hash})
            self._claimed[row["output"]] = item

    @contextmanager
    def _logging(self) -> Iterator[None]:
        try:
            yield
        except CodiError as error:
            self._unlogged = self._unlogged or str(error)


def _is_unchanged(path: str, row: RunItemRow) -> bool:
    if is_url(path):
        return _is_unchanged_object(as_path(path), row)
    try:
        info = os.stat(path)
    except OSError:
        return False
    return (info.st_size, info.st_mtime_ns) == (row.output_bytes, row.output_mtime_ns)


def _is_unchanged_object(path: Path, row: RunItemRow) -> bool:
    try:
        if row.output_mtime_ns is not None:
            return isinstance(path, UrlPath) and version(path) == row.output_mtime_ns
        with local_copies([path], MAX_BYTES) as local:  # a kill came between the upload and its record
            return sha256(local(path)) == row.output_hash
    except CodiError:
        return False


class Rows:
    """Collects the row of each item.

    Args:
        log: records every item that failed; None records nothing.
        on_event: gets an `ItemDone` per row.

    Attributes:
        replaces: what is known of the existing outputs that will be replaced, by index.
    """

    def __init__(self, items: Sequence[Item], log: RegistryLog | None, on_event: OnEvent) -> None:
        self._items, self._log, self._on_event = items, log, on_event
        self._rows: dict[int, Row] = {}
        self.replaces: dict[int, str] = {}

    def add(
        self,
        index: int,
        status: str,
        *,
        error: str | None = None,
        seconds: float = 0.0,
        input_hash: str | None = None,
        recorded: bool = False,
    ) -> None:
        """Add the row of item `index`. One with the status ok was recorded when its output was written.

        Args:
            recorded: whether a worker has recorded the failure.
        """
        row = row_of(self._items[index], status, error=error, seconds=seconds)
        if index in self.replaces and status in ("ok", "planned"):
            row["replaces"] = self.replaces[index]
        if self._log is not None:
            if status == "failed" and not recorded:
                self._log.record_failure(row, input_hash)
            if text := self._log.warning():
                self._on_event(Message(text))
        self._rows[index] = row
        self._on_event(ItemDone(dict(row), len(self._rows), len(self._items)))

    def in_order(self) -> list[Row]:
        """Return the rows in the order in which the items were planned."""
        return [row for _, row in sorted(self._rows.items())]
