"""Training pairs as the task makes them, ahead of their use in processes of their own, which import no torch."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from typing import Any

from codi_hub import interrupts, seeds
from codi_hub.tasks.base import Pair, Task

FEW = 64  # pairs that are sooner created by this process than by others, which have to start
AHEAD = 8  # pairs per worker that are created before they are asked for


@dataclass(frozen=True)
class PairsSpec:
    """Source, task and size of the pairs; enough for another process to create pair k.

    Attributes:
        like: built-in task.
        options: its options.
        data: source, as `codi_hub.data.sources.open_source` takes it.
        count: number of pairs; None: all.
        size: side of the images in pixels.
        seed: of the data.
        columns: of a table, by field.
    """

    like: str
    options: dict[str, Any]
    data: str
    count: int | None
    size: int
    seed: int
    columns: str = ""


def open_pairs(spec: PairsSpec) -> tuple[Any, Task]:
    """Open the source and the task that a spec names."""
    from codi_hub import tasks
    from codi_hub.data.sources import open_source

    task = tasks.load(spec.like, spec.options)
    source = open_source(spec.data, task, count=spec.count, size=spec.size, seed=spec.seed, columns=spec.columns)
    return source, task


_worker: tuple[Any, Task, int] | None = None


def _start_worker(spec: PairsSpec) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("codi_hub.data").disabled = True  # `_pair` returns what was skipped
    _worker = (*open_pairs(spec), spec.seed)


def _end_with_parent() -> None:
    """End this process when the one that started it was killed: a queue that nobody fills is never closed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def pair_at(source: Any, task: Task, seed: int, index: int) -> Pair:
    """Return pair `index` of a source, the same at every call."""
    return task.make_pair(source[index], seeds.pair(seed, index))


def _pair(index: int) -> tuple[Pair, dict[int, str]]:
    """Return a pair, and the rows that the source has skipped so far: row -> reason."""
    assert _worker is not None  # `_start_worker` has run
    return pair_at(*_worker, index), dict(getattr(_worker[0], "skipped", {}))


class PairMaker:
    """Creates pairs, ahead of their use in `workers` processes where the order is known (0: one a core, up to 8).

    `opened` is the source and the task of `spec`, where they are open already.
    """

    def __init__(self, spec: PairsSpec, workers: int, opened: tuple[Any, Task] | None = None) -> None:
        self._source, self._task = opened or open_pairs(spec)
        self._spec, self._workers = spec, workers or min(8, os.cpu_count() or 1)
        self._order: Iterator[int] = iter(())
        self._pool: ProcessPoolExecutor | None = None
        self._ahead: dict[int, Future[tuple[Pair, dict[int, str]]]] = {}
        self._started = False  # whether a process has created a pair

    def expect(self, order: Iterable[int]) -> None:
        """Start the processes, which create pairs in this order from now on; not for a few pairs."""
        self.close()
        order = iter(order)
        first = list(islice(order, FEW)) if self._workers > 1 else []
        if len(first) == FEW:
            self._order = chain(first, order)
            # spawned, not forked: a fork of a process with running torch threads can deadlock
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"), _start_worker, (self._spec,))
            with interrupts.ignored():  # the processes start here: a terminal sends signals to them too
                self._submit()

    def pair(self, index: int) -> Pair:
        """Return pair `index` of the source."""
        future = self._ahead.pop(index, None)
        if self._pool is not None:
            self._submit()
            self._started = self._started or any(one.done() for one in self._ahead.values())
        if future is not None and (self._started or not future.cancel()):  # until then this process is sooner
            pair, skipped = future.result()
            for row in skipped.keys() - getattr(self._source, "skipped", skipped).keys():
                self._source.skip(row, skipped[row])
            return pair
        return pair_at(self._source, self._task, self._spec.seed, index)

    def _submit(self) -> None:
        assert self._pool is not None
        for index in islice(self._order, max(0, AHEAD * self._workers - len(self._ahead))):
            if index not in self._ahead:
                self._ahead[index] = self._pool.submit(_pair, index)
        if not self._ahead:
            self.close()  # nothing is left to create: the processes end

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._ahead, self._order, self._started = None, {}, iter(()), False
