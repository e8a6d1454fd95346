"""Export of an adapter in another tool's format."""

from __future__ import annotations

from codi_hub.config.options import ExportOptions
from codi_hub.events import OnEvent
from codi_hub.operations.context import Context
from codi_hub.reports import ExportResult


def export(context: Context, ref: str, options: ExportOptions, on_event: OnEvent) -> ExportResult:
    """Write an adapter as another tool reads it; see `Hub.export`."""
    from codi_hub.adapters import format
    from codi_hub.inference.models import Placement
    from codi_hub.interop import diffusers, folders, readme

    folder = folders.check_free(options.out, folders.is_export, options.overwrite)
    mismatch = options.allow_base_mismatch
    row = context.resolve(ref, allow_base_mismatch=mismatch, on_event=on_event)
    record_file = context.catalog.registry.adapters.file(row, format.RECORD)
    record = format.read_record(record_file)
    diffusers.check_exportable(record, row.ref)
    placement = Placement(device="cpu", dtype=options.dtype, allow_base_mismatch=mismatch)
    loaded = context.models.load(row, placement)
    card = readme.readme(record, loaded.base, ref=row.ref, base_name=row.base)
    diffusers.write(folder, loaded.adapter, loaded.base, record_file, card, overwrite=options.overwrite)
    return ExportResult(
        adapter=row.ref,
        base=row.base,
        kind=row.kind,
        format=options.format,
        dtype=options.dtype,
        folder=folder,
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
    )
