"""Export of an adapter in another tool's format."""

from __future__ import annotations

from pathlib import Path

from codi_hub.config.options import ExportOptions
from codi_hub.errors import UsageError
from codi_hub.events import OnEvent
from codi_hub.operations.context import Context
from codi_hub.registry import AdapterRow
from codi_hub.reports import ExportResult

STORED = "fp16"  # unless an adapter was imported in another precision
DTYPES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}  # as safetensors spells them


def export(context: Context, ref: str, options: ExportOptions, on_event: OnEvent) -> ExportResult:
    """Write an adapter as another tool reads it, or as `codi install` does; see `Hub.export`."""
    if options.format == "codi":
        return _export_package(context, ref, options, on_event)
    import torch

    from codi_hub.adapters import format
    from codi_hub.inference.models import Placement
    from codi_hub.interop import folders
    from codi_hub.interop.export import Export
    from codi_hub.interop.formats import FORMATS

    folder = folders.check_free(options.out, folders.is_export, options.overwrite)
    mismatch = options.allow_base_mismatch
    row = context.resolve(ref, allow_base_mismatch=mismatch, on_event=on_event)
    record_file = context.catalog.registry.adapters.file(row, format.RECORD)
    record = format.read_record(record_file)
    target = FORMATS[options.format]
    target.check(record, row.ref)
    placement = Placement(device="cpu", dtype=options.dtype, allow_base_mismatch=mismatch)
    loaded = context.models.load(row, placement)
    made = Export(row.ref, row.base, record, loaded.adapter, loaded.base)
    with torch.no_grad():
        texts = {format.CARD: target.readme(made), format.RECORD: record_file.read_text(encoding="utf-8")}
        files = texts | target.contents(made)
    folders.write_files(folder, files, loaded.base.dtype, overwrite=options.overwrite)
    return ExportResult(
        adapter=row.ref,
        base=row.base,
        kind=row.kind,
        format=options.format,
        dtype=options.dtype,
        folder=folder,
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
    )


def _export_package(context: Context, ref: str, options: ExportOptions, on_event: OnEvent) -> ExportResult:
    """Write an adapter's own files into a folder or a zip."""
    from codi_hub.backbones.weights import read_header
    from codi_hub.interop import package

    out = package.check_out(options.out, options.overwrite)
    if options.dtype != STORED:
        raise UsageError(f"dtype {options.dtype}: format codi has the weights as they are stored; leave it out")
    row = context.resolve(ref, allow_base_mismatch=options.allow_base_mismatch, on_event=on_event)
    files = own_files(context, row)
    package.write(out, files, overwrite=options.overwrite)
    written = [out] if out.is_file() else [*out.iterdir()]
    return ExportResult(
        adapter=row.ref,
        base=row.base,
        kind=row.kind,
        format=options.format,
        dtype=DTYPES.get(read_header(Path(files[package.WEIGHTS])).dtype, STORED),
        folder=out,
        bytes=sum(path.stat().st_size for path in written),
    )


def own_files(context: Context, row: AdapterRow) -> dict[str, Path | str]:
    """Return an adapter's files by name: its weights, its record with their hash, and its card, written if it has none.

    Raises:
        NotFound, InvalidInput: see `Adapters.file`.
    """
    from codi_hub.interop.package import CARD, WEIGHTS
    from codi_hub.record import RECORD, read_record
    from codi_hub.training.model_card import write_card

    adapters = context.catalog.registry.adapters
    record = read_record(adapters.file(row, RECORD)).model_copy(update={"weights": row.sha256})
    has_card = CARD in adapters.files(row)
    card = adapters.file(row, CARD) if has_card else write_card(record, row.parameters)
    return {WEIGHTS: adapters.file(row, WEIGHTS), RECORD: record.to_json(), CARD: card}
