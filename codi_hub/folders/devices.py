"""One process per device, all of them pulling items from one plan.

The parent plans, hands out items, and gets a row for each back; the workers load, generate, save, and record in the
registry themselves. What a dead worker had is made by the others.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from codi_hub.errors import CodiError, describe
from codi_hub.events import Message, OnEvent
from codi_hub.folders.interrupts import WorkersLost
from codi_hub.folders.making import Done, Maker
from codi_hub.folders.outputs import clean_outputs
from codi_hub.folders.plan import Item
from codi_hub.folders.rows import RegistryLog, Rows, row_of
from codi_hub.interrupts import ignored

PULLED = 4  # items at a time, unless the batch is given
LIVES = 2  # workers that may die with an item before it fails
WAKE = 0.2  # seconds between looks at `stop`


class Setup(Protocol):
    """How a worker gets its networks; it is pickled."""

    def maker(
        self, device: str, items: dict[int, Item], done: Done, stop: threading.Event, on_event: OnEvent
    ) -> tuple[Maker, RegistryLog]:
        """Return what makes items on a device, with its networks loaded, and its log."""
        ...


@dataclass(eq=False)
class _Worker:
    """A process as its parent sees it; `held` are the items that it has been given and has not finished."""

    device: str
    process: BaseProcess
    connection: Connection
    held: dict[int, Item] = field(default_factory=dict)
    is_idle: bool = False


class DeviceWorkers:
    """Makes items by one process per device.

    Args:
        devices: a name each, such as "cuda:0"; "cpu" may stand several times and shares the cores.
        setup: what the workers load.
        batch: number of images computed together, if it is given: workers pull as many at a time.
        on_event: told what the workers say, and of those that died.
    """

    def __init__(self, devices: Sequence[str], setup: Setup, batch: int | None, on_event: OnEvent) -> None:
        self._devices, self._setup, self._on_event = devices, setup, on_event
        self._pulled = batch or PULLED

    def make(
        self, indices: Sequence[int], items: Sequence[Item], rows: Rows, log: RegistryLog, stop: threading.Event
    ) -> list[int]:
        """See `runner.Workers`."""
        return _Round(self, indices, items, rows, log, stop).run()

    def start(self, count: int) -> list[_Worker]:
        """Start the processes, at most `count`; they ignore the signals that this one takes."""
        context = multiprocessing.get_context("spawn")
        devices = self._devices[:count]
        threads = max(1, (os.cpu_count() or 1) // max(1, devices.count("cpu")))
        workers = []
        with ignored():
            for device in devices:
                here, there = context.Pipe()
                arguments = (self._setup, device, threads, there, logger_levels())
                process = context.Process(target=_work, args=arguments, name=f"codi-{device}", daemon=True)
                process.start()
                there.close()
                workers.append(_Worker(device, process, here))
        return workers


def logger_levels() -> dict[str, int]:
    """Return the levels that were set in this process, so that a worker's libraries are as quiet as here."""
    loggers = logging.root.manager.loggerDict
    return {name: one.level for name, one in loggers.items() if isinstance(one, logging.Logger) and one.level}


def set_levels(levels: Mapping[str, int]) -> None:
    """Set the levels of loggers in a worker."""
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class _Round:
    """The parent's side of one run."""

    def __init__(
        self,
        pool: DeviceWorkers,
        indices: Sequence[int],
        items: Sequence[Item],
        rows: Rows,
        log: RegistryLog,
        stop: threading.Event,
    ) -> None:
        self._pool, self._items, self._rows, self._log, self._stop = pool, items, rows, log, stop
        self._waiting = deque(indices)
        self._deaths: Counter[int] = Counter()
        self._batches: list[int] = []
        self._workers: list[_Worker] = []

    def run(self) -> list[int]:
        self._workers = self._pool.start(len(self._waiting))
        try:
            while self._workers:
                self._turn()
            if self._waiting and not self._stop.is_set():
                raise WorkersLost(
                    f"all workers died with {len(self._waiting)} images left: the same command again continues there; "
                    "with fewer devices or a smaller batch each has more memory"
                )
            return self._batches
        finally:
            for worker in self._workers:  # after an error, or a second Ctrl-C
                worker.process.kill()
                worker.process.join()

    def _turn(self) -> None:
        """Answer what the workers ask, and give the idle ones new work or their end."""
        for connection in wait([worker.connection for worker in self._workers], WAKE):
            worker = next(one for one in self._workers if one.connection is connection)
            try:
                self._take(worker, *worker.connection.recv())
            except (EOFError, OSError):
                self._died(worker)
        is_over = not self._waiting and not any(worker.held for worker in self._workers)
        for worker in self._workers:
            if worker.is_idle and (self._waiting or is_over or self._stop.is_set()):
                worker.is_idle = False
                self._give(worker, None if is_over else self._next())

    def _take(self, worker: _Worker, what: str, value: Any) -> None:
        if what == "need":
            self._give(worker, self._next())
        elif what == "idle":
            worker.is_idle = True
        elif what == "row":
            index, status, details = value
            worker.held.pop(index)
            self._rows.add(index, status, **details, recorded=True)
        elif what == "message":
            self._pool._on_event(Message(value))
        elif what == "error":
            raise value
        elif what == "end":
            self._batches += value
            self._workers.remove(worker)
            worker.process.join()
            worker.connection.close()

    def _next(self) -> list[tuple[int, Item]] | None:
        """Return items for a worker; none if there is nothing to do now, None to end."""
        if self._stop.is_set():
            return None
        number = min(self._pool._pulled, len(self._waiting))
        return [(index, self._items[index]) for index in (self._waiting.popleft() for _ in range(number))]

    def _give(self, worker: _Worker, work: list[tuple[int, Item]] | None) -> None:
        worker.held |= work or []
        with suppress(OSError):  # it has died: the next `recv` says so
            worker.connection.send(work)

    def _died(self, worker: _Worker) -> None:
        """Take back what a dead worker had: finished items get their row, the others are made by the next worker."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        clean_outputs(worker.held.values())
        made = self._log.made(worker.held)
        again = []
        for index in worker.held:
            self._deaths[index] += 1
            if index in made:
                self._rows.add(index, "ok", seconds=made[index].seconds)
            elif self._deaths[index] >= LIVES:
                self._rows.add(index, "failed", error=f"{LIVES} workers died while they had this image")
            else:
                again.append(index)
        self._waiting.extendleft(reversed(again))
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._pool._on_event(
            Message(f"The worker on {worker.device} died ({how}); {len(again)} of its images go to the others")
        )


def _work(setup: Setup, device: str, threads: int, connection: Connection, levels: Mapping[str, int]) -> None:
    """Make items until the parent says that it is over; end with the parent."""
    set_levels(levels)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
                import torch

                torch.set_num_threads(threads)
            _Work(setup, device, connection).run()
        except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent was killed
            raise
        except CodiError as error:
            connection.send(("error", error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to say it
            connection.send(("error", CodiError(f"{device}: {describe(error)}")))


class WorkerSide:
    """The items of a worker, and what it tells of them. A failure is recorded here, an output when it is written.

    Args:
        setup: gives `maker` and `log`.
        row: takes (index, status, further arguments of `Rows.add`) of an item that is done.
        message: takes a text for people.
        stop: ends the work.
    """

    def __init__(
        self,
        setup: Setup,
        device: str,
        row: Callable[[tuple[int, str, dict[str, Any]]], object],
        message: Callable[[str], object],
        stop: threading.Event,
    ) -> None:
        self.items: dict[int, Item] = {}
        self._row, self._message = row, message
        self.maker, self.log = setup.maker(device, self.items, self._done, stop, self._say)

    def _done(
        self, index: int, status: str, *, error: str | None = None, seconds: float = 0.0, input_hash: str | None = None
    ) -> None:
        item = self.items.pop(index)
        if status == "failed":
            self.log.record_failure(row_of(item, status, error=error, seconds=seconds), input_hash)
        if text := self.log.warning():
            self._message(text)
        self._row((index, status, {"error": error, "seconds": seconds}))

    def _say(self, event: Any) -> None:
        if isinstance(event, Message):
            self._message(event.text)


class _Work:
    """The work of a process, which asks its parent for items."""

    def __init__(self, setup: Setup, device: str, connection: Connection) -> None:
        self._connection = connection
        self._stop = threading.Event()
        self._side = WorkerSide(setup, device, partial(self._send, "row"), partial(self._send, "message"), self._stop)

    def run(self) -> None:
        try:
            while (first := self._ask("idle")) is not None:
                self._side.maker.make(chain((index for index, _ in first), self._pull()))
                self._side.maker.flush()
        finally:
            self._side.maker.close()
        self._send("end", self._side.maker.batches)

    def _send(self, what: str, value: Any) -> None:
        self._connection.send((what, value))

    def _pull(self) -> Iterator[int]:
        while work := self._ask("need"):
            yield from (index for index, _ in work)

    def _ask(self, what: str) -> list[tuple[int, Item]] | None:
        self._send(what, None)
        work: list[tuple[int, Item]] | None = self._connection.recv()
        if work is None:
            self._stop.set()
        else:
            self._side.items.update(work)
        return work
