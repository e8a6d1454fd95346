"""Planned items through a task and a generator, loading ahead and saving behind; one row each, whatever happens."""

import contextlib
import math
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from codi_hub.errors import CodiError, InvalidInput, describe
from codi_hub.folders.memory import MemoryBudget
from codi_hub.folders.plan import Item
from codi_hub.images.io import LoadedImage, decode_image, input_hash, open_image, save_image, with_alpha
from codi_hub.inference import tiling as tiles
from codi_hub.inference.tiling import NOT_FINITE, Tiling, Window, generate_tiled
from codi_hub.paths import path_text
from codi_hub.reports import JobsReport, RunReport

Generate = Callable[..., list[np.ndarray]]
"""(conditions, all of one shape, float32 HWC in [0, 1]; prompts; seeds) -> outputs, float32 HWC in [0, 1].

For tiles of a larger picture, a fourth argument says where each lies: `Window`s.
"""
Row = dict[str, Any]
Answer = TypeVar("Answer")

LOADERS = 2
SAVERS = 2
WAITING_BYTES = 256 << 20  # of pictures at each of three places: loaded, waiting for others of their shape, being saved


class Prepared(tiles.Prepared, Protocol):
    """The part of a task's `Prepared` that the runner reads."""

    @property
    def opaque(self) -> bool: ...


class Runnable(tiles.Tileable, Protocol):
    """The part of a task that a run needs. `load`, `prepare` and `finish` are called from several threads at once.

    `load` returns an image, opened but as stored (it is made upright and RGB afterwards, RGBA for a task that
    `reads_alpha`), or an array for `prepare`.
    """

    @property
    def reads_alpha(self) -> bool: ...
    def companions(self, path: Path) -> Sequence[Path]: ...
    def load(self, path: Path) -> Image.Image | np.ndarray: ...
    def prepare(
        self, image: Image.Image | np.ndarray, path: Path | None = None, rng: np.random.Generator | None = None
    ) -> Prepared: ...


class Stopped(CodiError):
    """A run that ended before its end, or could not say so; what was made has its rows in `report`."""

    def __init__(self, why: str, report: RunReport | JobsReport) -> None:
        super().__init__(why)
        self.report: Any = report


class Interrupted(Stopped):
    """Ctrl-C: what was in hand is finished and reported, the rest is not begun."""

    exit_code = 130

    def __init__(self, report: RunReport | JobsReport, planned: int) -> None:
        done = f"{len(report.items)} of {planned} images"
        super().__init__(f"interrupted after {done}: the same command again goes on from there", report)


@dataclass(slots=True)
class _Loaded:
    """An item ready to be computed; `seconds` grows as it passes through."""

    index: int
    item: Item
    digest: str
    alpha: Image.Image | None
    icc: bytes | None
    prepared: Prepared
    seconds: float

    @property
    def bytes(self) -> int:
        """What its condition and its output take, about."""
        return 6 * math.prod(self.prepared.size)


def run_folder(
    items: Sequence[Item],
    task: Runnable,
    generate: Generate,
    *,
    name: str,
    adapter: str,
    steps: int,
    batch: int = 1,
    tiling: Tiling | None = None,
    overwrite: bool = False,
    resume: bool = True,
    dry_run: bool = False,
    begin: Callable[[], object] | None = None,
    done: Callable[[Item, str], bool] | None = None,
    record: Callable[[Row], object] | None = None,
    on_item: Callable[[Row], object] | None = None,
) -> RunReport:
    """Run every item and report on each, in the order planned.

    Items whose condition has the same shape are generated together, up to `batch` of them, in the order planned. If a
    batch fails, its items are tried alone. An output that exists is skipped if `done(item, input_hash)` says that this
    very work was done, and made again if not; with `overwrite` it is always made again, and without `resume` it is a
    failed item. Pictures that `tiling` cuts are made alone, in tiles. `begin` is called before the first image is
    loaded, if any can be; what it raises ends the run. `record` gets the row of each item that was made or failed:
    input, output, input_hash, status, seed, error, seconds, and its prompt if it has one; `on_item` the report's row of
    every item as it comes. All are called from the caller's thread.

    A `dry_run` reads no picture and makes none: its rows say "planned" of what would be made.

    Raises Interrupted, with the report so far, after Ctrl-C; a second Ctrl-C does not wait for what is in hand.
    """
    run = _Run(items, task, generate, max(1, batch), tiling, record, on_item)
    began = time.perf_counter()
    with _first_interrupt(run.stop), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of them becomes a row
        try:
            todo = run.todo(overwrite, resume, done)
            run.only_said(todo) if dry_run else run.everything(todo, begin)
        except KeyboardInterrupt:
            run.stop.set()
        finally:
            run.close()
    rows = [row for _, row in sorted(run.rows.items())]
    tally = {status: sum(row["status"] == status for row in rows) for status in ("ok", "failed", "skipped")}
    seconds = time.perf_counter() - began
    report = RunReport(task=name, adapter=adapter, steps=steps, seconds=seconds, items=rows, **tally)
    if run.stop.is_set():
        raise Interrupted(report, len(items))
    return report


@contextlib.contextmanager
def _first_interrupt(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C sets `stop`, so that nothing is cut in the middle; the next one interrupts as usual."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or previous is not signal.default_int_handler:
        yield  # not ours to catch: a server's thread, a caller's own handler, or `nohup`
        return

    def first(signum: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class _Run:
    """One run's state: the queues on both sides of the computation, and the rows."""

    def __init__(
        self,
        items: Sequence[Item],
        task: Runnable,
        generate: Generate,
        batch: int,
        tiling: Tiling | None,
        record: Callable[[Row], object] | None,
        on_item: Callable[[Row], object] | None,
    ) -> None:
        self.items, self.task, self.generate = items, task, generate
        self.batch, self.tiling, self.record, self.on_item = batch, tiling, record, on_item
        self.stop = threading.Event()
        self.rows: dict[int, Row] = {}
        self.loaders = ThreadPoolExecutor(LOADERS, "codi-load")
        self.savers = ThreadPoolExecutor(SAVERS, "codi-save")
        self.room = MemoryBudget(WAITING_BYTES)
        self.saving: deque[tuple[_Loaded, Future[float]]] = deque()

    def todo(self, overwrite: bool, resume: bool, done: Callable[[Item, str], bool] | None) -> list[int]:
        everything = range(len(self.items))
        return list(everything if overwrite else self._not_done(everything, resume, done))

    def only_said(self, todo: Sequence[int]) -> None:
        """Rows of what would be done; nothing is recorded."""
        self.record = None
        for index in todo:
            error = self.items[index].error
            self._row(index, "planned" if error is None else "failed", error=error)

    def everything(self, todo: Sequence[int], begin: Callable[[], object] | None) -> None:
        if begin is not None and any(self._promising(index) for index in todo):
            begin()
        waiting: dict[tuple[int, int], list[_Loaded]] = {}
        for index, future in self._ahead(self._load, todo, depth=self.batch + LOADERS):
            self._collect(at_most=2 * self.batch)
            if (error := future.exception()) is not None:
                self._row(index, "failed", error=describe(error))
                continue
            loaded = future.result()
            self.room.put(-loaded.bytes)
            size = loaded.prepared.size
            waiting.setdefault(size, []).append(loaded)
            if len(waiting[size]) >= self.batch or self._is_cut(loaded):
                self._compute(waiting.pop(size))
            elif _crowded(waiting, 4 * self.batch):
                self._compute(waiting.pop(next(iter(waiting))))
        for group in waiting.values():
            if not self.stop.is_set():
                self._compute(group)

    def close(self) -> None:
        """Wait for what is being saved, and report it; drop what was loaded ahead."""
        self.room.close()
        self.loaders.shutdown(wait=True, cancel_futures=True)
        self._collect(at_most=0)
        self.savers.shutdown(wait=True)

    def _ahead(
        self, work: Callable[[int], Answer], indices: Iterable[int], depth: int
    ) -> Iterator[tuple[int, Future[Answer]]]:
        """(index, finished future of work(index)) in order, at most `depth` begun beyond the one that is out."""
        source = iter(indices)
        begun: deque[tuple[int, Future[Answer]]] = deque()
        while not self.stop.is_set():
            while len(begun) < depth and (index := next(source, None)) is not None:
                begun.append((index, self.loaders.submit(work, index)))
            if not begun:
                return
            self.room.want(begun[0][0])
            begun[0][1].exception()  # waits
            yield begun.popleft()

    def _not_done(
        self, indices: Sequence[int], resume: bool, done: Callable[[Item, str], bool] | None
    ) -> Iterator[int]:
        """The items that have to be run; those whose output is there already get their rows."""
        there = [index for index in indices if os.path.lexists(self.items[index].output)]
        finished = set()
        if not resume:
            for index in there:
                self._row(index, "failed", error="the output exists already: use --overwrite or --resume")
            finished.update(there)
        elif done is not None:
            for index, future in self._ahead(self._hash, there, depth=4 * LOADERS):
                if future.exception() is None and done(self.items[index], future.result()):
                    self._row(index, "skipped")
                    finished.add(index)
        return (index for index in indices if index not in finished)

    def _promising(self, index: int) -> bool:
        """Whether the item may turn out to be a picture, by its header: where none does, nothing has to be begun."""
        item = self.items[index]
        try:
            if item.error is None and item.input.suffix.lower() != ".npy":
                open_image(item.input).close()
        except InvalidInput:
            return False
        return item.error is None

    def _hash(self, index: int) -> str:
        path = self.items[index].input
        return input_hash(path, self.task.companions(path))

    def _load(self, index: int) -> _Loaded:
        item, began = self.items[index], time.perf_counter()
        if item.error is not None:
            raise InvalidInput(item.error)
        self.room.enter(index)
        digest = self._hash(index)
        if item.input.suffix.lower() != ".npy":
            open_image(item.input).close()  # a task's own loader need not know what a hostile header can do
        loaded = self.task.load(item.input)
        shot = decode_image(loaded) if isinstance(loaded, Image.Image) else LoadedImage(loaded)
        image = shot.with_alpha() if self.task.reads_alpha else shot.image
        prepared = self.task.prepare(image, path=item.input, rng=np.random.default_rng(item.seed))
        ready = _Loaded(index, item, digest, shot.alpha, shot.icc, prepared, time.perf_counter() - began)
        self.room.put(ready.bytes)
        return ready

    def _compute(self, group: list[_Loaded]) -> bool:
        """Whether a group of one shape was generated and handed to the savers; if it was not, each is tried alone."""
        began = time.perf_counter()
        outputs, error = self._generated(group)
        share = (time.perf_counter() - began) / len(group)
        for loaded in group:
            loaded.seconds += share
        if outputs is not None:
            self.saving.extend(
                (one, self.savers.submit(self._save, one, out)) for one, out in zip(group, outputs, strict=True)
            )
        elif len(group) == 1:
            self._row(group[0].index, "failed", group[0], error)
            return False
        else:
            alone = [self._compute([loaded]) for loaded in group if not self.stop.is_set()]
            if not all(alone):
                return False
            self.batch = max(1, self.batch // 2)  # each went alone: together they were too much for the memory
        return True

    def _generated(self, group: list[_Loaded]) -> tuple[list[np.ndarray] | None, str]:
        """(outputs, "") or (None, why); the exception ends here, for its frames would keep the batch's memory."""
        prompts = [loaded.item.prompt or "" for loaded in group]
        seeds = [loaded.item.seed for loaded in group]
        try:
            if self._is_cut(group[0]):
                return [self._tiled(group[0], prompts, seeds)], ""
            outputs = self.generate([loaded.prepared.condition for loaded in group], prompts, seeds)
        except Exception as exc:  # noqa: BLE001 - whatever one image does to the networks, the rest go on
            return None, describe(exc)
        if len(outputs) != len(group):
            return None, f"{len(outputs)} outputs came back for {len(group)} images"
        return list(outputs), ""

    def _is_cut(self, loaded: _Loaded) -> bool:
        return self.tiling is not None and self.tiling.cuts(loaded.prepared.size)

    def _tiled(self, loaded: _Loaded, prompt: list[str], seed: list[int]) -> np.ndarray:
        def make(conditions: list[np.ndarray], windows: list[Window]) -> list[np.ndarray]:
            if self.stop.is_set():  # many minutes may be left of it
                raise KeyboardInterrupt
            return self.generate(conditions, prompt * len(windows), seed * len(windows), windows)

        assert self.tiling is not None
        return generate_tiled(loaded.prepared, self.task, make, self.tiling)

    def _save(self, loaded: _Loaded, output: np.ndarray) -> float:
        began = time.perf_counter()
        if output.dtype == np.uint8:  # made in tiles, and finished
            pixels = output
        elif np.isfinite(output).all():
            pixels = self.task.finish(output, loaded.prepared)
        else:
            raise InvalidInput(NOT_FINITE)
        alpha = None if loaded.prepared.opaque else loaded.alpha
        try:
            save_image(with_alpha(pixels, alpha), loaded.item.output, loaded.icc)
        except OSError as exc:
            raise CodiError(f"the output cannot be written: {describe(exc)}") from exc
        return time.perf_counter() - began

    def _collect(self, at_most: int) -> None:
        """The rows of what has been saved; waits until no more than `at_most`, and not too many bytes, are left."""
        while self.saving and (
            len(self.saving) > at_most
            or self.saving[0][1].done()
            or sum(loaded.bytes for loaded, _ in self.saving) > WAITING_BYTES
        ):
            loaded, future = self.saving.popleft()
            error = future.exception()
            if error is None:
                loaded.seconds += future.result()
                self._row(loaded.index, "ok", loaded)
            else:
                self._row(loaded.index, "failed", loaded, describe(error))

    def _row(self, index: int, status: str, loaded: _Loaded | None = None, error: str | None = None) -> None:
        item = self.items[index]
        row: Row = {"input": path_text(item.input), "output": path_text(item.output)}
        seconds = loaded.seconds if loaded is not None else 0.0
        row |= {"status": status, "seed": item.seed, "error": error, "seconds": seconds}
        if item.prompt is not None:
            row["prompt"] = item.prompt
        if self.record is not None and status != "skipped":
            try:
                self.record({**row, "input_hash": loaded.digest if loaded is not None else None})
            except Exception as exc:  # noqa: BLE001 - a full disk under the registry must not end the run either
                why = f"not recorded: {describe(exc)}"
                row |= {"status": "failed", "error": f"{error}; {why}" if error else f"written, but {why}"}
        self.rows[index] = row
        if self.on_item is not None:
            self.on_item(dict(row))


def _crowded(waiting: dict[tuple[int, int], list[_Loaded]], most: int) -> bool:
    """Whether too much waits for company: the oldest size is then run as it is."""
    loaded = [one for group in waiting.values() for one in group]
    return len(loaded) >= most or sum(one.bytes for one in loaded) >= WAITING_BYTES
