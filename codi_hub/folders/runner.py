"""A run over planned items: what is finished is skipped, the rest is made, one row per item whatever happens."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from codi_hub.errors import UsageError
from codi_hub.events import Message, OnEvent, ignore
from codi_hub.folders.interrupts import Interrupted, Stopped, WorkersLost
from codi_hub.folders.making import Maker, RunSettings
from codi_hub.folders.outputs import clean_outputs, examine, replacing
from codi_hub.folders.plan import Item
from codi_hub.folders.rows import RegistryLog, Rows
from codi_hub.interrupts import first_interrupt
from codi_hub.objects import exists, listed_once, listing
from codi_hub.objects import unwritable as unwritable_in_store
from codi_hub.paths import display_path, unwritable
from codi_hub.reports import RunReport
from codi_hub.urls import UrlPath

if TYPE_CHECKING:
    from codi_hub.inference.engine import AdapterGenerator
    from codi_hub.tasks import Task


class Workers(Protocol):
    """Processes that make items."""

    def make(
        self, indices: Sequence[int], items: Sequence[Item], rows: Rows, log: RegistryLog, stop: threading.Event
    ) -> list[int]:
        """Make the items of `indices`, with a row for each; return the number of images in each batch.

        Args:
            stop: ends the work after the current batches.

        Raises:
            CodiError: the networks cannot be loaded, or no worker is left.
        """
        ...


class FolderRun:
    """A run of one task over planned items; `run` may be called once.

    Its items are made as `Maker` does it, here or by workers. An existing output is skipped if the log knows it as
    finished, made again if the log knows it otherwise, and else kept.

    Args:
        items: from `plan`.
        task: prepares inputs and finishes outputs.
        load_generator: returns the networks. Called once, before the first image is loaded, and only if there may be
            an image to generate; an exception ends the run.
        log: records the run; a dry run only reads it.
        on_event: gets an `ItemDone` per item. Like the log, it is called from the caller's thread.
        workers: make the items in other processes; None: they are made in this one.
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
        workers: Workers | None = None,
    ) -> None:
        self._items, self._settings, self._options = items, settings, settings.options
        self._log, self._on_event, self._workers = log, on_event, workers
        self._stop = threading.Event()
        self._rows = Rows(items, None if self._options.dry_run else log, on_event)
        self._maker = Maker(items, task, load_generator, settings, log=log, done=self._rows.add, stop=self._stop)

    def run(self) -> RunReport:
        """Process every item.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGHUP, with the report so far; a second one does not wait for the current
                batch.
            Stopped: all workers died, with the report so far.
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

    def _run(self) -> RunReport:
        start, lost = time.perf_counter(), None
        with first_interrupt(self._stop), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of them becomes an error of the item
            try:
                indices = self._unfinished()
                self._report_planned(indices) if self._options.dry_run else self._process(indices)
            except KeyboardInterrupt:
                self._stop.set()
            except WorkersLost as error:
                lost = error
            finally:
                self._maker.close()
        report = self._report(time.perf_counter() - start)
        if self._stop.is_set():
            raise Interrupted(report, len(self._items))
        if lost:
            raise Stopped(str(lost), report) from lost
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
            batches=self._maker.batches,
            items=rows,
            left_out=self._settings.left_out,
            **counts,
        )

    def _unfinished(self) -> list[int]:
        """Return the indices of items to process; the others get their rows. Output folders in stores are listed."""
        with listed_once():
            for out in {item.out for item in self._items if isinstance(item.out, UrlPath)}:
                listing(out)
            return self._undone()

    def _undone(self) -> list[int]:
        indices = range(len(self._items))
        if self._options.overwrite:
            return self._writable(indices)
        done = set()
        existing = [index for index in indices if exists(self._items[index].output)]
        if not self._options.resume:
            for index in existing:
                self._rows.add(index, "failed", error="the output exists already: allow overwrite or resume")
            done.update(existing)
        else:
            for index, digest in self._maker.loader.hashes(existing, self._known(existing)):
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

    def _known(self, indices: Sequence[int]) -> dict[int, str]:
        """Return the sha256 of inputs in a store by the log, where the store says that they have not changed since."""
        known = {}
        for index in () if self._options.verify_outputs else indices:
            stamp = self._items[index].stamp
            last = None if stamp is None else self._log.last(self._items[index])
            if last and last.input_hash and last.input_stamp == stamp:
                known[index] = last.input_hash
        return known

    def _writable(self, indices: Sequence[int]) -> list[int]:
        """Return the indices whose output folder can be written; the others get their rows.

        Raises:
            UsageError: none of them can.
        """
        folders = {index: _written_folder(self._items[index]) for index in indices}
        reasons = {folder: self._unwritable(folder) for folder in set(folders.values())}
        if reasons and all(reasons.values()):
            folder, reason = next(iter(reasons.items()))
            raise UsageError(f"out {display_path(folder)}: cannot be written ({reason}): choose another folder")
        for index in indices:
            if reason := reasons[folders[index]]:
                self._rows.add(index, "failed", error=f"the output folder cannot be written: {reason}")
        return [index for index in indices if not reasons[folders[index]]]

    def _unwritable(self, folder: Path) -> str | None:
        if isinstance(folder, UrlPath):
            return None if self._options.dry_run else unwritable_in_store(folder)
        return unwritable(folder)

    def _report_planned(self, indices: Sequence[int]) -> None:
        for index in indices:
            error = self._items[index].error
            self._rows.add(index, "planned" if error is None else "failed", error=error)

    def _process(self, indices: Sequence[int]) -> None:
        clean_outputs(self._items[index] for index in indices)
        if self._workers is not None:
            if indices:
                self._maker.batches += self._workers.make(indices, self._items, self._rows, self._log, self._stop)
            return
        if any(self._maker.loader.is_candidate(index) for index in indices):
            self._maker.generator()
        self._maker.make(indices)


def _written_folder(item: Item) -> Path:
    """Return the folder whose writing is tried; a store has no folders of its own, so that one stands for all."""
    folder = item.output.parent
    return item.out if isinstance(folder, UrlPath) and item.out else folder
