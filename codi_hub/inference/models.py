"""Loaded networks: bases by name, device and dtype, and the adapters on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from codi_hub.config.base import BaseOptions
from codi_hub.config.values import ADAPTER_MEMORY

if TYPE_CHECKING:
    from codi_hub.adapters.adapter import Adapter
    from codi_hub.adapters.cache import AdapterCache
    from codi_hub.backbones.backbone import Backbone
    from codi_hub.registry import AdapterRow, Registry


class ConditionedTask(Protocol):
    """The part of a task that decides which adapters it can use."""

    @property
    def name(self) -> str: ...
    @property
    def condition_channels(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where networks are loaded.

    Attributes:
        device: "auto", "cpu", "cuda" or "mps".
        dtype: "auto", "fp32", "fp16" or "bf16".
        adapter_memory: bytes of a base's adapters that stay loaded; the least recently used are dropped first.
        allow_base_mismatch: load an adapter that was trained on another base of the family.
    """

    device: str = "auto"
    dtype: str = "auto"
    adapter_memory: int = ADAPTER_MEMORY
    allow_base_mismatch: bool = False


class Loaded(NamedTuple):
    """An adapter on its base."""

    base: Backbone
    adapter: Adapter
    row: AdapterRow


class ModelCache:
    """Loads bases and adapters once, and keeps them.

    Args:
        registry: returns the registry; called when something is loaded.
    """

    def __init__(self, registry: Callable[[], Registry]) -> None:
        self._registry = registry
        self._bases: dict[tuple[str, str, str], tuple[Backbone, AdapterCache]] = {}

    def base(self, name: str, placement: Placement = Placement()) -> Backbone:
        """Return a registered base.

        Raises:
            NotFound, InvalidInput, Mismatch: it does not exist, or has changed since it was registered.
        """
        return self._base(name, placement)[0]

    def load(self, row: AdapterRow, placement: Placement = Placement()) -> Loaded:
        """Return an adapter on its base; for one that is loaded already, this is a dictionary lookup.

        Raises:
            NotFound, InvalidInput, Mismatch: the adapter or its base cannot be used.
        """
        from codi_hub.adapters import format

        base, cache = self._base(row.base, placement)
        cache.budget = placement.adapter_memory
        files = self._registry().adapters

        def load() -> Adapter:
            record = format.read_record(files.file(row, format.RECORD))
            weights = files.file(row, format.WEIGHTS)
            return format.load(weights, record, base, allow_base_mismatch=placement.allow_base_mismatch)

        size = row.bytes * base.dtype.itemsize // format.ITEMSIZE
        return Loaded(base, cache.get(row.sha256, load, size), row)  # type: ignore[arg-type]

    def check(self, row: AdapterRow, task: ConditionedTask, *, allow_base_mismatch: bool = False) -> None:
        """Check that an adapter fits its base and a task, without loading networks.

        Raises:
            Mismatch, InvalidInput: it does not.
        """
        from codi_hub.adapters import format
        from codi_hub.backbones.fingerprint import Fingerprint

        registry = self._registry()
        base = registry.bases.get(row.base)
        record = format.read_record(registry.adapters.file(row, format.RECORD))
        format.check_condition(record, row.ref, task.name, task.condition_channels)
        fingerprint = Fingerprint(base.family, base.sketch or {})
        weights = registry.adapters.file(row, format.WEIGHTS)
        format.check(record, weights, fingerprint, allow_base_mismatch=allow_base_mismatch)

    def release_others(self, base: str) -> None:
        """Unload every base but one: two may not fit into the memory."""
        for key in [key for key in self._bases if key[0] != base]:
            del self._bases[key]

    def _base(self, name: str, placement: Placement) -> tuple[Backbone, AdapterCache]:
        from codi_hub import backbones
        from codi_hub.adapters.cache import AdapterCache
        from codi_hub.backbones.fingerprint import check_unchanged
        from codi_hub.inference.devices import choose_device, choose_dtype

        device = choose_device(placement.device)
        dtype = choose_dtype(placement.dtype, device)
        key = (name, str(device), str(dtype))
        if key not in self._bases:
            row = self._registry().bases.get(name)
            base = backbones.load(BaseOptions.of(row), device=device, dtype=dtype)
            check_unchanged(row, base.fingerprint)
            self._bases[key] = base, AdapterCache()
        return self._bases[key]
