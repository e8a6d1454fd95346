"""The queue between requests and the networks: one thread generates, in batches that adapters and clients share."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from codi_hub.errors import CodiError

BATCH = 8  # images that are given to the networks together


class QueueFull(CodiError):
    """More images wait than are allowed to."""


class Stopping(CodiError):
    """The server stops, and begins nothing new."""


@dataclass(eq=False)
class Work:
    """One image to generate.

    Attributes:
        base: name of the base.
        ref: adapter and version, such as depth:3: what a tag pointed to when the request came.
        image, mask, prompt, seed, size, steps, strength, options: see `Hub.generate`.
        result: gets the image, or the error.
    """

    base: str
    ref: str
    image: Image.Image
    mask: Image.Image | None
    prompt: str
    seed: int
    size: tuple[int, int] | None
    steps: int
    strength: float
    options: Mapping[str, Any]
    result: Future[Image.Image] = field(default_factory=Future)

    @property
    def adapter(self) -> tuple[str, str]:
        """Whose turn it is: adapters take turns."""
        return self.base, self.ref

    @property
    def group(self) -> Hashable:
        """Equal for images that one call can generate; options are those of one task."""
        task = self.ref.partition(":")[0] if self.options else ""
        return self.base, self.steps, self.image.size, self.size, task, str(sorted(self.options.items()))


class Queue:
    """A bounded queue with a thread that generates.

    Adapters take turns, so that many requests for one do not keep another's waiting; what waits meanwhile and fits into
    the batch goes with it.

    Args:
        generate: returns an image per work; all have one `group`.
        limit: images that may wait.
        pixels: of all inputs that may wait.
        batch: images given to `generate` together.
        on_batch: told of each batch's size.
    """

    def __init__(
        self,
        generate: Callable[[Sequence[Work]], Sequence[Image.Image]],
        limit: int,
        pixels: int,
        batch: int = BATCH,
        on_batch: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.generate, self.limit, self.pixels, self.batch, self.on_batch = generate, limit, pixels, batch, on_batch
        self._waiting: OrderedDict[tuple[str, str], deque[Work]] = OrderedDict()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="codi-generate", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def length(self) -> int:
        """Images that wait."""
        return sum(map(len, self._waiting.values()))

    def submit(self, works: Sequence[Work]) -> None:
        """Let some images wait for their turn, all of them or none.

        Raises:
            QueueFull: there is no room. Stopping: see `stop`.
        """
        with self._changed:
            if self._stopping:
                raise Stopping("the server is stopping")
            if (waiting := self.length) + len(works) > self.limit:
                raise QueueFull(f"{waiting} images wait, and {self.limit} may: try again later")
            inputs = {id(work.image): work.image for work in (*self._all(), *works)}.values()
            if sum(image.width * image.height for image in inputs) > self.pixels:
                raise QueueFull("the images that wait have as many pixels as the memory is for: try again later")
            for work in works:
                self._waiting.setdefault(work.adapter, deque()).append(work)
            self._changed.notify()

    def stop(self, timeout: float | None = None) -> None:
        """Finish the batch in progress; everything that waits gets `Stopping`."""
        with self._changed:
            self._stopping = True
            waiting = self._all()
            self._waiting.clear()
            self._changed.notify()
        for work in waiting:
            if work.result.set_running_or_notify_cancel():
                work.result.set_exception(Stopping("the server is stopping"))
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _all(self) -> list[Work]:
        return [work for works in self._waiting.values() for work in works]

    def _run(self) -> None:
        while works := self._next():
            self.on_batch(len(works))
            self._finish(works)

    def _next(self) -> list[Work]:
        """Wait for the next batch; empty when the queue stops."""
        with self._changed:
            while True:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return []
                works = [work for work in self._take() if work.result.set_running_or_notify_cancel()]
                if works:
                    return works

    def _take(self) -> list[Work]:
        """Take a batch: of the adapter whose turn it is and of the others, one each in their order until it is full."""
        taken: list[Work] = []
        group = next(iter(self._waiting.values()))[0].group
        found = True
        while found and len(taken) < self.batch:
            found = False
            for adapter in [*self._waiting]:
                works = self._waiting[adapter]
                if len(taken) < self.batch and works[0].group == group:
                    taken.append(works.popleft())
                    found = True
                    self._waiting.move_to_end(adapter)
                    if not works:
                        del self._waiting[adapter]
        return taken

    def _finish(self, works: Sequence[Work]) -> None:
        """Generate a batch. Where that fails, each image is tried alone, so that no request fails with another."""
        try:
            made = self.generate(works)
        except Exception as error:  # noqa: BLE001 - whatever it is, the request gets it, and the thread lives
            if len(works) > 1:
                for work in works:
                    self._finish([work])
            else:
                works[0].result.set_exception(error)
            return
        for work, image in zip(works, made, strict=True):
            work.result.set_result(image)
