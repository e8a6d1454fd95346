"""Adapters kept resident on a loaded base, the least recently used ones dropped beyond a budget of bytes."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn


class Resident:
    """A cache of loaded adapters. Swapping to a resident one is a dictionary lookup: the base is never touched.

    Args:
        budget: bytes of adapter weights to keep; the one in use always stays.
    """

    def __init__(self, budget: int = 2 << 30):
        self.budget = budget
        self._kept: OrderedDict[str, nn.Module] = OrderedDict()

    def get(self, key: str, load: Callable[[], nn.Module]) -> nn.Module:
        """The adapter of a key (its content hash), loaded if it is not here."""
        if key not in self._kept:
            self._kept[key] = load()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and self.bytes > self.budget:
            self._kept.popitem(last=False)
        return self._kept[key]

    @property
    def bytes(self) -> int:
        """Bytes of the weights held now."""
        return sum(p.numel() * p.element_size() for adapter in self._kept.values() for p in adapter.parameters())
