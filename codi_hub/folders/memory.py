"""A limit on loaded images, so that a folder of large files does not fill the memory."""

import threading


class MemoryBudget:
    """Bytes of loaded images; loading of further ones waits while the budget is used up.

    Args:
        size: bytes from which on no further image is loaded, except the one that is needed next.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._next: int | None = None
        self._closed = False
        self._changed = threading.Condition()

    def wait(self, index: int) -> None:
        """Block until bytes are free, or until item `index` is the one that is needed next."""
        with self._changed:
            self._changed.wait_for(lambda: self._used < self._size or index == self._next or self._closed)

    def add(self, size: int) -> None:
        """Count `size` bytes as used; a negative number frees them."""
        with self._changed:
            self._used += size
            self._changed.notify_all()

    def need(self, index: int) -> None:
        """Let item `index` be loaded even if the budget is used up, since the others wait for it."""
        with self._changed:
            self._next = index
            self._changed.notify_all()

    def close(self) -> None:
        """Release every waiting thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
