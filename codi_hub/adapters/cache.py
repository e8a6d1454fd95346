"""Adapters kept in memory on a loaded base; beyond a budget of bytes the least recently used are dropped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from codi_hub.config.values import ADAPTER_MEMORY


class AdapterCache:
    """A cache of loaded adapters. Swapping to a cached one is a dictionary lookup: the base is never touched.

    Attributes:
        budget: bytes of adapter weights to keep; the one in use always stays.
    """

    def __init__(self, budget: int = ADAPTER_MEMORY) -> None:
        self.budget = budget
        self._kept: OrderedDict[str, tuple[nn.Module, int]] = OrderedDict()

    def get(self, key: str, load: Callable[[], nn.Module], expected: int = 0) -> nn.Module:
        """Return the adapter of a key (its content hash), loaded if it is not cached.

        Args:
            key: of the adapter.
            load: loads it.
            expected: bytes that it will take; they are freed before it is loaded.
        """
        if key not in self._kept:
            self._shrink(self.budget - expected, 0)
            adapter = load()
            self._kept[key] = adapter, sum(value.numel() * value.element_size() for value in adapter.parameters())
        self._kept.move_to_end(key)
        self._shrink(self.budget, 1)
        return self._kept[key][0]

    def _shrink(self, budget: int, least: int) -> None:
        while len(self._kept) > least and self.bytes > budget:
            self._kept.popitem(last=False)

    @property
    def bytes(self) -> int:
        """Bytes of the cached weights; what an adapter shares with the base is not counted."""
        return sum(size for _, size in self._kept.values())
