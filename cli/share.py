"""codi install: take an adapter that someone sends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output
from codi_hub.config.share import InstallOptions
from codi_hub.reports import InstallResult


def register(app: typer.Typer) -> None:
    app.command("install")(install)


@options_from(InstallOptions, with_task_flags=False)
def install(
    path: Annotated[Path, typer.Argument(metavar="PATH|ZIP", help="Folder or zip of `codi export --format codi`")],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Register an adapter that someone sends, after its hash, its base and its task are checked."""
    from codi_hub.hub import Hub

    with Hub.open() as hub:
        result = hub.install(path, InstallOptions(**given))
    _print_installed(Output(json, quiet), result)


def _print_installed(out: Output, result: InstallResult) -> None:
    where = f"{result.adapter} for base {result.base}"
    text = f"{where} has these weights already; nothing was registered."
    if result.created:
        text = f"Registered {where}, of kind {result.kind}."
        if "latest" not in result.tags:
            why = f"Its score is worse than, or does not compare with, that of {result.task}:latest, which stays"
            text += f"\n{why}; use it as {result.adapter}."
    out.result(result.to_json(), text, result.adapter or "")
