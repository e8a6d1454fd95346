"""codi import: a ControlNet of another tool as a version of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output
from codi_hub.config.options import ImportOptions
from codi_hub.errors import one_line


def register(app: typer.Typer) -> None:
    app.command("import")(import_)


@options_from(ImportOptions, with_task_flags=False)
def import_(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of a diffusers ControlNet, or one .safetensors file")
    ],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a ControlNet of diffusers, ComfyUI or A1111 a version of a task, to be run, distilled and exported."""
    options = ImportOptions(**given)
    from codi_hub.hub import Hub

    with Hub.open() as hub:
        result = hub.import_controlnet(path, options)
    task = f"Registered task {result.task}, like pairs.\n" if result.registered_task else ""
    text = f"{task}Imported {one_line(result.file, 80)} ({result.format}) as {result.adapter} for base {result.base}."
    if result.latest != result.adapter:
        text += f"\n{result.latest} stays the latest; use it as {result.adapter}."
    out = Output(json, quiet)
    out.result(
        result.to_json(), f"{text}\nDistil it: codi distill {result.task} --from {result.adapter}", result.adapter
    )
