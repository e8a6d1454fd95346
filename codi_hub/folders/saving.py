"""Finishing and saving of outputs in background threads, behind the computation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_hub.config.options import RunOptions
from codi_hub.errors import CodiError, describe
from codi_hub.folders.loading import LoadedItem
from codi_hub.folders.outputs import FOREIGN, Content, content_of
from codi_hub.folders.rows import RegistryLog, row_of
from codi_hub.images.io import save_image, with_alpha
from codi_hub.images.values import grey
from codi_hub.inference.tiling import finish_output
from codi_hub.objects import exists
from codi_hub.urls import UrlPath

if TYPE_CHECKING:
    from codi_hub.tasks import Task

SAVERS = 2  # threads


class Saver:
    """Saves outputs in the order in which they were submitted.

    Args:
        memory: bytes of outputs that may wait.
        log: records each output before it is renamed to its path.
        options: `overwrite` and `bits` are read.
        origin: returns what an output says of its making, beside the input's metadata; None: outputs say nothing.
    """

    def __init__(
        self,
        task: Task,
        memory: int,
        log: RegistryLog,
        options: RunOptions,
        origin: Callable[[LoadedItem], Mapping[str, Any]] | None = None,
    ) -> None:
        self._task, self._memory = task, memory
        self._log, self._origin = log, origin
        self._overwrite, self._bits = options.overwrite, options.bits
        self._pool = ThreadPoolExecutor(SAVERS, "codi-save")
        self._pending: deque[tuple[LoadedItem, Future[float]]] = deque()

    def submit(self, loaded: LoadedItem, output: np.ndarray) -> None:
        """Save the output of an item, float32 (H, W, 3) in [0, 1], or finished uint8 or uint16 (H, W, 3)."""
        self._pending.append((loaded, self._pool.submit(self._save, loaded, output)))

    def collect(self, limit: int) -> Iterator[tuple[LoadedItem, str | None]]:
        """Yield (item, error or None) of what was saved; wait until at most `limit` outputs are pending."""
        while self._pending and (
            len(self._pending) > limit
            or self._pending[0][1].done()
            or sum(loaded.bytes for loaded, _ in self._pending) > self._memory
        ):
            loaded, future = self._pending.popleft()
            error = future.exception()
            if error is None:
                loaded.seconds += future.result()
            yield loaded, None if error is None else describe(error)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True)

    def _save(self, loaded: LoadedItem, output: np.ndarray) -> float:
        """Return the seconds it took."""
        start = time.perf_counter()
        pixels = finish_output(self._task, output, loaded.prepared, self._bits)
        alpha = None if loaded.prepared.opaque else loaded.alpha
        if loaded.grey and alpha is None and self._task.keeps_grey:
            pixels = grey(pixels)
        metadata = None if self._origin is None else loaded.metadata.with_origin(self._origin(loaded))
        item = loaded.item

        def commit(file: Path) -> None:
            is_there = not self._overwrite and exists(item.output)  # it may have come since the run began
            if is_there:
                last = self._log.last(item)
                if content_of(item.output, last, self._log, loaded.digest) is Content.FOREIGN:
                    raise CodiError(FOREIGN)
            row = row_of(item, "ok", seconds=loaded.seconds + time.perf_counter() - start)
            if item.stamp is not None:
                row["input_stamp"] = item.stamp
            self._log.claim(row, loaded.digest, file)

        try:
            save_image(with_alpha(pixels, alpha), item.output, loaded.icc, metadata=metadata, commit=commit)
        except OSError as exc:
            raise CodiError(f"the output cannot be written: {describe(exc)}") from exc
        if isinstance(item.output, UrlPath):
            self._log.uploaded(item.output)
        return time.perf_counter() - start
