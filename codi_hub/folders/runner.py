"""A run over planned items: load ahead, generate in batches, save behind, one row per item whatever happens."""

from __future__ import annotations

import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_hub import __version__
from codi_hub.config.options import RunOptions
from codi_hub.errors import UsageError, describe
from codi_hub.events import Message, OnEvent, ignore
from codi_hub.folders.grouping import ShapeGroups
from codi_hub.folders.interrupts import Interrupted
from codi_hub.folders.loading import LoadedItem, Loader
from codi_hub.folders.outputs import examine, replacing
from codi_hub.folders.plan import Item
from codi_hub.folders.rows import RegistryLog, Rows
from codi_hub.folders.saving import Saver
from codi_hub.inference.tiling import Tiling, Window, generate_tiled
from codi_hub.interrupts import first_interrupt
from codi_hub.partial import clean
from codi_hub.paths import display_path, path_text, unwritable
from codi_hub.reports import RunReport

if TYPE_CHECKING:
    from codi_hub.folders.conditions import FurtherCondition
    from codi_hub.inference.engine import AdapterGenerator, Generated
    from codi_hub.tasks import Task

LOAD_AHEAD = 8  # items, before the first batch shows how many fit
MEMORY = 256 << 20


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run treats its items.

    Attributes:
        task: name of the task, for the report.
        adapter: reference of the adapter, for the report.
        steps: sampling steps, for the report.
        options: `batch`, `tile`, `size`, `overwrite`, `resume`, `verify_outputs`, `dry_run`, and for the report
            `strength` are read.
        left_out: files that are no items, for the report: path, why.
        also: further conditions of every item.
        memory: bytes of images that may wait at each of three places: loaded, grouped by shape, to be saved.
    """

    task: str
    adapter: str
    steps: int
    options: RunOptions
    left_out: list[dict[str, str]] = field(default_factory=list)
    also: Sequence[FurtherCondition] = ()
    memory: int = MEMORY


class FolderRun:
    """A run of one task over planned items; `run` may be called once.

    Items of one shape are generated together, in the order planned. If a batch fails, its items are tried alone. An
    existing output is skipped if the log knows it as finished, made again if the log knows it otherwise, and else kept.

    Args:
        items: from `plan`.
        task: prepares inputs and finishes outputs.
        load_generator: returns the networks. Called once, before the first image is loaded, and only if there may be
            an image to generate; an exception ends the run.
        log: records the run; a dry run only reads it.
        on_event: gets an `ItemDone` per item. Like the log, it is called from the caller's thread.
    """

    def __init__(
        self,
        items: Sequence[Item],
        task: Task,
        load_generator: Callable[[], AdapterGenerator],
        settings: RunSettings,
        *,
        log: RegistryLog,
        on_event: OnEvent = ignore,
    ) -> None:
        self._items, self._task, self._settings = items, task, settings
        self._generator = functools.cache(load_generator)
        self._log = log
        self._options, self._tiling = settings.options, Tiling.parse(settings.options.tile)
        self._stop = threading.Event()
        self._on_event = on_event
        self._rows = Rows(items, None if self._options.dry_run else log, on_event)
        further = [one.task for one in settings.also]
        self._loader = Loader(items, task, self._stop, settings.memory, further, self._options.size)
        origin = self._origin if self._options.metadata else None
        self._saver = Saver(task, settings.memory, log, self._options, origin)
        self._batches: list[int] = []
        self._largest = self._options.batch or LOAD_AHEAD

    def run(self) -> RunReport:
        """Process every item.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGHUP, with the report so far; a second one does not wait for the current
                batch.
        """
        if self._options.dry_run:
            return self._run()
        self._log.start()
        status = "failed"
        try:
            report = self._run()
            status = "failed" if report.failed else "ok"
        except Interrupted:
            status = "interrupted"
            raise
        finally:
            self._log.finish(status)
        return report

    def _origin(self, loaded: LoadedItem) -> dict[str, Any]:
        """Return what an output says of its making: adapter, steps, strength, seed, prompt, input by name and hash."""
        item, settings = loaded.item, self._settings
        origin = {"codi_hub": __version__, "adapter": settings.adapter, "steps": settings.steps, "seed": item.seed}
        origin |= {} if self._options.strength == 1 else {"strength": self._options.strength}
        if settings.also:
            files = [path_text(path.name) for path in item.also]
            origin["also"] = [one.recorded | {"input": file} for one, file in zip(settings.also, files, strict=True)]
        names = {"input": path_text(item.name), "input_sha256": loaded.digest}
        return origin | ({} if item.prompt is None else {"prompt": item.prompt}) | names

    def _run(self) -> RunReport:
        start = time.perf_counter()
        with first_interrupt(self._stop), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of them becomes an error of the item
            try:
                indices = self._unfinished()
                self._report_planned(indices) if self._options.dry_run else self._process(indices)
            except KeyboardInterrupt:
                self._stop.set()
            finally:
                self._loader.close()
                self._collect(limit=0)
                self._saver.close()
        report = self._report(time.perf_counter() - start)
        if self._stop.is_set():
            raise Interrupted(report, len(self._items))
        return report

    def _report(self, seconds: float) -> RunReport:
        rows = self._rows.in_order()
        counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "failed", "skipped")}
        return RunReport(
            task=self._settings.task,
            adapter=self._settings.adapter,
            steps=self._settings.steps,
            strength=self._options.strength,
            also=[one.recorded for one in self._settings.also],
            seconds=seconds,
            batches=self._batches,
            items=rows,
            left_out=self._settings.left_out,
            **counts,
        )

    def _unfinished(self) -> list[int]:
        """Return the indices of items to process; the others get their rows."""
        indices = range(len(self._items))
        if self._options.overwrite:
            return self._writable(indices)
        done = set()
        existing = [index for index in indices if os.path.lexists(self._items[index].output)]
        if not self._options.resume:
            for index in existing:
                self._rows.add(index, "failed", error="the output exists already: allow overwrite or resume")
            done.update(existing)
        else:
            for index, digest in self._loader.hashes(existing):
                found = examine(self._items[index], digest, self._log, verify=self._options.verify_outputs)
                if found.finished and self._items[index].error is None:
                    self._rows.add(index, "skipped")
                    done.add(index)
                elif found.error:
                    self._rows.add(index, "failed", error=found.error)
                    done.add(index)
                elif found.replaces:
                    self._rows.replaces[index] = found.replaces
        if text := replacing(self._rows.replaces.values()):
            self._on_event(Message(text))
        return self._writable([index for index in indices if index not in done])

    def _writable(self, indices: Sequence[int]) -> list[int]:
        """Return the indices whose output folder can be written; the others get their rows.

        Raises:
            UsageError: none of them can.
        """
        reasons = {folder: unwritable(folder) for folder in {self._items[index].output.parent for index in indices}}
        if reasons and all(reasons.values()):
            folder, reason = next(iter(reasons.items()))
            raise UsageError(f"out {display_path(folder)}: cannot be written ({reason}): choose another folder")
        for index in indices:
            if reason := reasons[self._items[index].output.parent]:
                self._rows.add(index, "failed", error=f"the output folder cannot be written: {reason}")
        return [index for index in indices if not reasons[self._items[index].output.parent]]

    def _report_planned(self, indices: Sequence[int]) -> None:
        for index in indices:
            error = self._items[index].error
            self._rows.add(index, "planned" if error is None else "failed", error=error)

    def _process(self, indices: Sequence[int]) -> None:
        for folder in {self._items[index].output.parent for index in indices}:
            clean(folder)
        if any(self._loader.is_candidate(index) for index in indices):
            self._generator()
        groups = ShapeGroups(self._batch_size, self._settings.memory)
        for index, loaded in self._loader.loaded(indices, depth=lambda: self._largest):
            self._collect(limit=2 * self._largest)
            if isinstance(loaded, BaseException):
                self._rows.add(index, "failed", error=describe(loaded))
            elif self._is_tiled(loaded):
                self._compute([loaded])
            elif group := groups.add(loaded):
                self._compute(group)
        for group in groups.rest():
            if not self._stop.is_set():
                self._compute(group)

    def _batch_size(self, height: int, width: int) -> int:
        return self._options.batch or self._generator().auto_batch(height, width)

    def _compute(self, group: list[LoadedItem]) -> None:
        """Generate a group of one shape and hand it to the saver; if that fails, try each item alone."""
        start = time.perf_counter()
        outputs, error = self._generate(group)
        share = (time.perf_counter() - start) / len(group)
        for loaded in group:
            loaded.seconds += share
        if outputs is not None:
            for loaded, output in zip(group, outputs, strict=True):
                self._saver.submit(loaded, output)
        elif len(group) == 1:
            self._add_row(group[0], error)
        else:
            for loaded in group:
                if not self._stop.is_set():
                    self._compute([loaded])

    def _generate(self, group: list[LoadedItem]) -> tuple[list[np.ndarray] | None, str]:
        """Return (outputs, "") or (None, error): the frames of a raised exception would keep the batch in memory."""
        prompts = [loaded.item.prompt or "" for loaded in group]
        seeds = [loaded.item.seed for loaded in group]
        try:
            if self._is_tiled(group[0]):
                return [self._generate_tiled(group[0], prompts[0])], ""
            conditions = [loaded.prepared.conditions for loaded in group]
            made = self._generator().generate(conditions, prompts, seeds, batch=self._options.batch)
        except Exception as exc:  # noqa: BLE001 - whatever an image does to the networks, the others go on
            return None, describe(exc)
        if len(made.images) != len(group):
            return None, f"the generator returned {len(made.images)} images for {len(group)} conditions"
        self._count(made)
        return list(made.images), ""

    def _is_tiled(self, loaded: LoadedItem) -> bool:
        return self._tiling is not None and self._tiling.applies(loaded.prepared.size)

    def _generate_tiled(self, loaded: LoadedItem, prompt: str) -> np.ndarray:
        seed, batch = loaded.item.seed, self._options.batch

        def generate(conditions: list[np.ndarray], windows: list[Window]) -> Sequence[np.ndarray]:
            if self._stop.is_set():  # the remaining tiles may take minutes
                raise KeyboardInterrupt
            prompts, seeds = [prompt] * len(windows), [seed] * len(windows)
            made = self._generator().generate(conditions, prompts, seeds, batch=batch, windows=windows)
            self._count(made)
            return made.images

        assert self._tiling is not None
        return generate_tiled(loaded.prepared, self._task, generate, self._tiling, batch, self._options.bits)

    def _count(self, made: Generated) -> None:
        self._batches += made.batches
        self._largest = max(self._largest, *made.batches)

    def _collect(self, limit: int) -> None:
        for loaded, error in self._saver.collect(limit):
            self._add_row(loaded, error)

    def _add_row(self, loaded: LoadedItem, error: str | None) -> None:
        status = "ok" if error is None else "failed"
        self._rows.add(loaded.index, status, error=error, seconds=loaded.seconds, input_hash=loaded.digest)
