"""Grouping of loaded items by shape, so that each group can be one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from codi_hub.folders.loading import LoadedItem

WAITING = 4  # batches' worth of items that may wait for others of their shape


class ShapeGroups:
    """Items that wait for others of their shape.

    Args:
        batch_size: (height, width) in pixels -> items of that shape in a full batch.
        memory: bytes of items that may wait.
    """

    def __init__(self, batch_size: Callable[[int, int], int], memory: int) -> None:
        self._batch_size, self._memory = batch_size, memory
        self._groups: dict[tuple[int, int], list[LoadedItem]] = {}

    def add(self, loaded: LoadedItem) -> list[LoadedItem]:
        """Add an item; return a group that is to be computed now, or nothing.

        That is the item's own group if it is full, else the oldest one if too many items wait.
        """
        size = loaded.prepared.size
        group = self._groups.setdefault(size, [])
        group.append(loaded)
        if len(group) >= self._full(size):
            return self._groups.pop(size)
        return self._groups.pop(next(iter(self._groups))) if self._crowded() else []

    def rest(self) -> Iterator[list[LoadedItem]]:
        """Yield the groups that are left."""
        yield from self._groups.values()

    def _full(self, size: tuple[int, int]) -> int:
        width, height = size
        return self._batch_size(height, width)

    def _crowded(self) -> bool:
        waiting = sum(len(group) / self._full(size) for size, group in self._groups.items())
        return waiting >= WAITING or sum(one.bytes for group in self._groups.values() for one in group) >= self._memory
