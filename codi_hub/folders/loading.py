"""Loading of inputs in background threads, ahead of the computation."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from codi_hub.errors import CodiError, InvalidInput
from codi_hub.folders.memory import MemoryBudget
from codi_hub.folders.plan import Item, Items
from codi_hub.images.formats import ARRAYS
from codi_hub.images.io import MAX_BYTES, LoadedImage, decode_image, input_hash, open_image
from codi_hub.images.metadata import Metadata
from codi_hub.objects import local_copies
from codi_hub.urls import as_path

if TYPE_CHECKING:
    from codi_hub.tasks import Prepared, Task

Answer = TypeVar("Answer")

LOADERS = 2  # threads


@dataclass(slots=True)
class LoadedItem:
    """An item ready for the networks.

    Attributes:
        digest: sha256 of its input files.
        alpha: the input's alpha channel, for the output.
        icc: the input's ICC profile, for the output.
        grey: whether the input is grey.
        metadata: the input's, for the output.
        seconds: time spent on it so far, in all threads.
    """

    index: int
    item: Item
    digest: str
    alpha: Image.Image | None
    icc: bytes | None
    grey: bool
    metadata: Metadata
    prepared: Prepared
    seconds: float

    @property
    def bytes(self) -> int:
        """Return the approximate size of its condition and its output."""
        return 6 * math.prod(self.prepared.size)


class Loader:
    """Hashes, decodes and prepares items.

    Args:
        stop: ends every iteration when it is set.
        memory: bytes of loaded items that may wait.
        further: tasks of the items' further conditions.
        size: (width, height) to which inputs are resized; None: they stay as they are.
    """

    def __init__(
        self,
        items: Items,
        task: Task,
        stop: threading.Event,
        memory: int,
        further: Sequence[Task] = (),
        size: tuple[int, int] | None = None,
    ) -> None:
        self._items, self._task, self._stop, self._further, self._size = items, task, stop, further, size
        self._budget = MemoryBudget(memory)
        self._pool = ThreadPoolExecutor(LOADERS, "codi-load")

    def hashes(self, indices: Iterable[int], known: Mapping[int, str]) -> Iterator[tuple[int, str | None]]:
        """Yield (index, sha256 of the input) in order; None if the input cannot be read.

        Args:
            known: those that need not be computed, by index.
        """

        def digest(index: int) -> str:
            return known.get(index) or self._hash(index)

        for index, future in self._ahead(digest, indices, lambda: 4 * LOADERS):
            yield index, None if future.exception() else future.result()

    def loaded(
        self, indices: Iterable[int], depth: Callable[[], int]
    ) -> Iterator[tuple[int, LoadedItem | BaseException]]:
        """Yield (index, item or the exception of loading it) in order.

        Args:
            depth: returns how many items to load ahead now: those of the next batch, while one is computed.
        """
        for index, future in self._ahead(self._load, indices, lambda: depth() + LOADERS):
            if (error := future.exception()) is not None:
                yield index, error
            else:
                loaded = future.result()
                self._budget.add(-loaded.bytes)
                yield index, loaded

    def is_candidate(self, index: int) -> bool:
        """Return whether the item may be an image, by its header alone."""
        item = self._items[index]
        try:
            if item.error is None and item.input.suffix.lower() not in ARRAYS:
                with local_copies([item.input], MAX_BYTES) as local:
                    open_image(local(item.input)).close()
        except CodiError:
            return False
        return item.error is None

    def close(self) -> None:
        """Drop what was loaded ahead, and end the threads."""
        self._budget.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ahead(
        self, work: Callable[[int], Answer], indices: Iterable[int], depth: Callable[[], int]
    ) -> Iterator[tuple[int, Future[Answer]]]:
        """Yield (index, completed future of work(index)) in order, at most `depth()` of them submitted ahead."""
        source = iter(indices)
        pending: deque[tuple[int, Future[Answer]]] = deque()
        while not self._stop.is_set():
            while len(pending) < depth() and (index := next(source, None)) is not None:
                pending.append((index, self._pool.submit(work, index)))
            if not pending:
                return
            self._budget.need(pending[0][0])
            pending[0][1].exception()  # waits
            yield pending.popleft()

    def _hash(self, index: int) -> str:
        with _local(self._items[index]) as item:
            return self._hash_local(item)

    def _hash_local(self, item: Item) -> str:
        also = zip(self._further, item.also, strict=True)
        files = [file for task, path in also for file in (path, *task.companions(path))]
        return input_hash(item.input, [*self._task.companions(item.input), *files])

    def _load(self, index: int) -> LoadedItem:
        item, start = self._items[index], time.perf_counter()
        if item.error is not None:
            raise InvalidInput(item.error)
        self._budget.wait(index)
        with _local(item) as here:
            digest = self._hash_local(here)
            image, prepared = _prepared(self._task, here.input, item.seed, self._size)
            if item.also:
                also = zip(self._further, here.also, strict=True)
                others = [_prepared(task, path, item.seed, self._size)[1] for task, path in also]
                prepared = prepared.with_further(others)
        seconds = time.perf_counter() - start
        loaded = LoadedItem(index, item, digest, image.alpha, image.icc, image.grey, image.metadata, prepared, seconds)
        self._budget.add(loaded.bytes)
        return loaded


@contextmanager
def _local(item: Item) -> Iterator[Item]:
    """Yield the item with its files here; those in a store are copied into a temporary folder."""
    if item.stamp is None:
        yield item
        return
    with local_copies([item.input, *item.also, *map(as_path, item.companions)], MAX_BYTES) as local:
        yield replace(item, input_file=str(local(item.input)), also=tuple(map(local, item.also)))


def _prepared(task: Task, path: Path, seed: int, size: tuple[int, int] | None) -> tuple[LoadedImage, Prepared]:
    """Return a file as decoded, and resized if a size is given, and as its task prepares it."""
    if path.suffix.lower() not in ARRAYS:
        open_image(path).close()  # checks the header: a task's own `load` need not be safe
    source = task.load(path)
    image = decode_image(source) if isinstance(source, Image.Image) else LoadedImage(source)
    if size is not None:
        image = image.fitted(size)
    pixels = image.with_alpha() if task.reads_alpha else image.image
    return image, task.prepare(pixels, path=path, rng=np.random.default_rng(seed))
