"""How much may lie loaded, so that a folder of huge pictures does not fill the memory before the first is made."""

import threading


class MemoryBudget:
    """Bytes that lie ready: while they are `size` or more nothing new is begun, but for what is waited for."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._wanted: int | None = None
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, index: int) -> None:
        """Waits until there is room, or until item `index` is the one that the rest waits for."""
        with self._changed:
            self._changed.wait_for(lambda: self._used < self._size or index == self._wanted or self._closed)

    def put(self, size: int) -> None:
        """`size` bytes more lie ready; fewer, where it is negative."""
        with self._changed:
            self._used += size
            self._changed.notify_all()

    def want(self, index: int) -> None:
        """Item `index` is waited for: it may begin however full the room is."""
        with self._changed:
            self._wanted = index
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
