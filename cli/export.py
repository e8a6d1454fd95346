"""codi export: an adapter in another tool's format."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from codi_hub.cli.adapters import REF
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.completion import bases, references
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output, size
from codi_hub.cli.progress import Display
from codi_hub.config.options import ExportOptions
from codi_hub.errors import printable


def register(app: typer.Typer) -> None:
    app.command("export")(export)


@options_from(ExportOptions, with_task_flags=False)
def export(
    ref: Annotated[str, typer.Argument(metavar="REF", help=REF, autocompletion=references)],
    given: dict[str, Any],
    base: Annotated[
        str | None, typer.Option("--base", help="Base of the adapter (default: the one in use)", autocompletion=bases)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write an adapter for diffusers, A1111 or ComfyUI, with a README that says how to use it."""
    options = ExportOptions(**given)
    from codi_hub.hub import Hub

    out = Output(json, quiet)
    with Hub.open(base=base) as hub, Display(out) as display:
        result = hub.export(ref, options, display)
    where = printable(str(result.folder))
    text = f"Exported {result.adapter} for base {result.base} to {where} ({size(result.bytes)}, {result.dtype})."
    out.result(result.to_json(), text, str(result.folder))
