"""codi run: a task over files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output
from codi_hub.cli.progress import Display
from codi_hub.options import RunOptions


def register(app: typer.Typer) -> None:
    app.command("run")(run)


@options_from(RunOptions)
def run(
    task: Annotated[str, typer.Argument(metavar="TASK", help="TASK, TASK:VERSION or TASK:TAG")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="Images and folders of images")],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Runs a task over images and folders. One bad file is one failed row; exit code 1 says that there was one."""
    options = RunOptions(**given)
    from codi_hub.hub import Hub

    out = Output(json, quiet)
    with Hub.open(base=options.base) as hub, Display(out) as display:
        report = hub.run(task, inputs, options, on_event=display)
    out.result(
        report.to_json(),
        f"{report.ok} ok, {report.failed} failed, {report.skipped} skipped in {report.seconds:.1f} s "
        f"({report.adapter}, {report.steps} steps){_where(report.items)}",
    )
    if report.failed:
        raise typer.Exit(1)


def _where(items: list[dict[str, Any]]) -> str:
    folders = sorted({str(Path(item["output"]).parent) for item in items if item.get("output")})
    return f" -> {folders[0]}" + (f" and {len(folders) - 1} more folders" if folders[1:] else "") if folders else ""
