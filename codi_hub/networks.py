"""The catalogue with its networks loaded: what `Hub` runs, distils, measures and exports with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_hub.catalog import Catalog
from codi_hub.config.options import ADAPTER_MEMORY
from codi_hub.errors import Mismatch
from codi_hub.reports import ExportResult

if TYPE_CHECKING:
    import numpy as np

    from codi_hub.adapters import Adapter
    from codi_hub.backbones.unet import Fingerprint, FrozenBase
    from codi_hub.config.options import ExportOptions
    from codi_hub.registry import AdapterRow, BaseRow
    from codi_hub.tasks import Task

PIXELS_TOGETHER = 1 << 20  # output pixels computed in one batch, unless --batch says otherwise

Generate = Callable[..., "list[np.ndarray]"]


class Networks(Catalog):
    """One loaded base per (name, device, dtype), adapters kept resident."""

    def __init__(self, home: Path | None = None, base: str | None = None) -> None:
        super().__init__(home, base)
        self._loaded: dict[tuple[str, str, str], Any] = {}

    def _loaded_base(self, name: str, device: str, dtype: str) -> Any:
        """(base, its resident adapters), loaded once.

        Raises:
            NotFound, InvalidInput, Mismatch: the base is not there or is not what was registered.
        """
        from codi_hub.adapters.cache import Resident
        from codi_hub.backbones.unet import FrozenBase
        from codi_hub.inference.engine import choose_device, choose_dtype

        where = choose_device(device)
        precision = choose_dtype(dtype, where)
        key = (name, str(where), str(precision))
        if key not in self._loaded:
            row = self.registry.bases.get(name)
            base = FrozenBase.load(row.source, device=where, dtype=precision)
            _check_unchanged(row, base.fingerprint)
            self._loaded[key] = base, Resident()
        return self._loaded[key]

    def use(
        self,
        ref: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        allow_base_mismatch: bool = False,
        adapter_memory: int = ADAPTER_MEMORY,
    ) -> tuple[FrozenBase, Adapter, AdapterRow]:
        """An adapter on its loaded base; one that is resident already costs a dictionary lookup.

        Args:
            adapter_memory: bytes of the base's adapters to keep; those used least recently go first.

        Raises:
            NotFound, InvalidInput, Mismatch: see `registry.adapters` and `adapters.format.load`.
        """
        row = self.registry.adapters.resolve(ref, base=self._base)
        return self._resident(row, device, dtype, allow_base_mismatch, adapter_memory)

    def _resident(
        self,
        row: AdapterRow,
        device: str,
        dtype: str,
        allow_base_mismatch: bool = False,
        adapter_memory: int = ADAPTER_MEMORY,
    ) -> tuple[FrozenBase, Adapter, AdapterRow]:
        from codi_hub.adapters import format

        base, resident = self._loaded_base(row.base, device, dtype)
        resident.budget = adapter_memory

        def load() -> Adapter:
            record = format.read_record(self.registry.adapters.file(row, format.RECORD))
            weights = self.registry.adapters.file(row, format.WEIGHTS)
            return format.load(weights, record, base, allow_base_mismatch=allow_base_mismatch)

        expected = row.bytes * base.dtype.itemsize // format.ITEMSIZE
        return base, resident.get(row.sha256, load, expected), row

    def _check(self, row: AdapterRow, task: Task, allow_base_mismatch: bool = False) -> None:
        """Raises Mismatch or InvalidInput for an adapter that its base or the task cannot use, before it is loaded."""
        from codi_hub.adapters import format
        from codi_hub.backbones.unet import Fingerprint

        base = self.registry.bases.get(row.base)
        record = format.read_record(self.registry.adapters.file(row, format.RECORD))
        format.check_condition(record, row.ref, task.name, task.condition_channels)
        mark = Fingerprint(base.family, base.sketch or {})
        format.check(
            record, self.registry.adapters.file(row, format.WEIGHTS), mark, allow_base_mismatch=allow_base_mismatch
        )

    def export(self, ref: str, options: ExportOptions) -> ExportResult:
        """Writes an adapter as another tool reads it.

        Raises:
            Mismatch: an adapter that the format cannot hold. Conflict: the folder is taken. And what `use` raises.
        """
        from codi_hub.adapters import format
        from codi_hub.interop import diffusers, folders

        folder = folders.check_free(options.out, diffusers.is_export, options.overwrite)
        row = self.registry.adapters.resolve(ref, base=self._base)
        file = self.registry.adapters.file(row, format.RECORD)
        record = format.read_record(file)
        diffusers.check_exportable(record, row.ref)
        base, adapter, _ = self._resident(row, "cpu", options.dtype)
        card = diffusers.readme(record, base, ref=row.ref, base_name=row.base)
        diffusers.write(folder, adapter, base, file, card, overwrite=options.overwrite)
        return ExportResult(
            adapter=row.ref,
            base=row.base,
            kind=row.kind,
            format=options.format,
            dtype=options.dtype,
            folder=folder,
            bytes=sum(path.stat().st_size for path in folder.iterdir()),
        )

    def generator(
        self,
        base: FrozenBase,
        adapter: Adapter,
        *,
        sampler: str = "ddim",
        temperature: float = 1.0,
        **compiling: Any,
    ) -> Generate:
        """(conditions, prompts, seeds, steps) -> pictures, split so that one batch stays within `PIXELS_TOGETHER`.

        `compiling` is what `Engine` is told of it.
        """
        from codi_hub.inference.engine import Engine

        engine = Engine(base, **compiling)

        def generate(conditions: Any, prompts: Any, seeds: Any, steps: int, windows: Any = None) -> list[np.ndarray]:
            height, width = conditions[0].shape[:2]
            together = max(1, PIXELS_TOGETHER // (height * width))
            made: list[np.ndarray] = []
            for start in range(0, len(conditions), together):
                part = slice(start, start + together)
                made += engine.generate(
                    adapter,
                    conditions[part],
                    prompts[part],
                    seeds[part],
                    steps=steps,
                    sampler=sampler,
                    temperature=temperature,
                    windows=windows and windows[part],
                )
            return made

        return generate


def _check_unchanged(row: BaseRow, mark: Fingerprint) -> None:
    """Raises Mismatch where a base is no longer what was registered."""
    try:
        mark.check(row.family, row.sketch)
    except Mismatch as error:
        changed = f"family {mark.family}, then {row.family}" if mark.family != row.family else "its weights differ"
        raise Mismatch(
            f"base {row.name} is not what was registered, at {row.source} ({changed}): "
            "restore it, or register it under another name with `codi base add NAME FOLDER`"
        ) from error
