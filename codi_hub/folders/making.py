"""Making of items: load ahead, generate in batches, save behind. It says of every item how it went."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from codi_hub import __version__
from codi_hub.config.options import RunOptions
from codi_hub.errors import describe
from codi_hub.folders.grouping import ShapeGroups
from codi_hub.folders.loading import LoadedItem, Loader
from codi_hub.folders.plan import Items
from codi_hub.folders.saving import Saver
from codi_hub.inference.tiling import Tiling, Window, generate_tiled
from codi_hub.paths import path_text

if TYPE_CHECKING:
    from codi_hub.folders.conditions import FurtherCondition
    from codi_hub.folders.rows import RegistryLog
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


class Done(Protocol):
    """Takes the status of an item: "ok" (recorded when its output was written) or "failed"."""

    def __call__(
        self, index: int, status: str, *, error: str | None = None, seconds: float = 0.0, input_hash: str | None = None
    ) -> object: ...


class Maker:
    """Makes items in one process, on one device.

    Items of one shape are generated together, in the order given. If a batch fails, its items are tried alone.

    Args:
        items: of the run.
        task: prepares inputs and finishes outputs.
        load_generator: returns the networks; called once, when they are first needed.
        log: records each output before it gets its name.
        done: takes the status of each item, in the caller's thread.
        stop: ends the work after the current batch when it is set.

    Attributes:
        loader: reads inputs.
        batches: number of images in each batch so far.
    """

    def __init__(
        self,
        items: Items,
        task: Task,
        load_generator: Callable[[], AdapterGenerator],
        settings: RunSettings,
        *,
        log: RegistryLog,
        done: Done,
        stop: threading.Event,
    ) -> None:
        self._task, self._settings, self._options = task, settings, settings.options
        self.generator = functools.cache(load_generator)
        self._tiling = Tiling.parse(settings.options.tile)
        self._done, self._stop = done, stop
        further = [one.task for one in settings.also]
        self.loader = Loader(items, task, stop, settings.memory, further, self._options.size)
        origin = self._origin if self._options.metadata else None
        self._saver = Saver(task, settings.memory, log, self._options, origin)
        self.batches: list[int] = []
        self._largest = self._options.batch or LOAD_AHEAD

    def make(self, indices: Iterable[int]) -> None:
        """Make the items of `indices`, which may be an iterator that waits for others."""
        groups = ShapeGroups(self._batch_size, self._settings.memory)
        for index, loaded in self.loader.loaded(indices, depth=lambda: self._largest):
            self._collect(limit=2 * self._largest)
            if isinstance(loaded, BaseException):
                self._done(index, "failed", error=describe(loaded))
            elif self._is_tiled(loaded):
                self._compute([loaded])
            elif group := groups.add(loaded):
                self._compute(group)
        for group in groups.rest():
            if not self._stop.is_set():
                self._compute(group)

    def flush(self) -> None:
        """Wait for the outputs that are being saved, and tell their status."""
        self._collect(limit=0)

    def close(self) -> None:
        """Drop what was loaded ahead, save what was made, and end the threads."""
        self.loader.close()
        self.flush()
        self._saver.close()

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

    def _batch_size(self, height: int, width: int) -> int:
        return self._options.batch or self.generator().auto_batch(height, width)

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
            made = self.generator().generate(conditions, prompts, seeds, batch=self._options.batch)
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
            made = self.generator().generate(conditions, prompts, seeds, batch=batch, windows=windows)
            self._count(made)
            return made.images

        assert self._tiling is not None
        return generate_tiled(loaded.prepared, self._task, generate, self._tiling, batch, self._options.bits)

    def _count(self, made: Generated) -> None:
        self.batches += made.batches
        self._largest = max(self._largest, *made.batches)

    def _collect(self, limit: int) -> None:
        for loaded, error in self._saver.collect(limit):
            self._add_row(loaded, error)

    def _add_row(self, loaded: LoadedItem, error: str | None) -> None:
        status = "ok" if error is None else "failed"
        self._done(loaded.index, status, error=error, seconds=loaded.seconds, input_hash=loaded.digest)
