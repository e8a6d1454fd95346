"""codi export: an adapter in another tool's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codi_hub.cli.adapters import REF
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.output import Output, size
from codi_hub.config.options import EXPORT_DTYPES, EXPORT_FORMATS, ExportOptions
from codi_hub.errors import printable


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    ref: Annotated[str, typer.Argument(metavar="REF", help=REF)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make")],
    format: Annotated[
        str, typer.Option("--format", metavar="|".join(EXPORT_FORMATS), help="diffusers: a ControlNet's folder")
    ] = ExportOptions.format,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="|".join(EXPORT_DTYPES), help="Precision of the weights")
    ] = ExportOptions.dtype,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export")] = False,
    base: Annotated[str | None, typer.Option("--base", help="Base of the adapter (default: the one in use)")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Writes an adapter as a ControlNet that plain diffusers loads, with a README that says how it is used."""
    options = ExportOptions(out=out, format=format, dtype=dtype, overwrite=overwrite)
    from codi_hub.hub import Hub

    with Hub.open(base=base) as hub:
        made = hub.export(ref, options)
    where = printable(str(made.folder))
    text = f"Exported {made.adapter} for base {made.base} to {where} ({size(made.bytes)}, {made.dtype})."
    Output(json, quiet).result(made.to_json(), text, str(made.folder))
