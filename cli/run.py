"""codi run: run a task over files and folders, or a file of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output
from codi_hub.cli.progress import Display
from codi_hub.config.options import RunOptions
from codi_hub.errors import UsageError
from codi_hub.reports import JobsReport, RunReport


def register(app: typer.Typer) -> None:
    app.command("run")(options_from(RunOptions)(run))


def run(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="TASK, TASK:VERSION or TASK:TAG")] = None,
    inputs: Annotated[list[Path] | None, typer.Argument(metavar="INPUT", help="Images and folders of images")] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            "--jobs",
            metavar="FILE",
            help='Instead of TASK and INPUT: JSON lines such as {"task": "depth", "input": "maps", "output": "out"}, '
            "with the options of each, as prompt or seed",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    *,
    given: dict[str, Any],
) -> None:
    """Run a task over images and folders. A file that fails is one failed row; the exit code is then 1."""
    options = RunOptions(**given)
    if (task is None or not inputs) == (jobs is None) or (jobs and task):
        raise UsageError("say TASK and INPUT, or --jobs FILE; see `codi run --help`")
    from codi_hub.folders.interrupts import Stopped
    from codi_hub.hub import Hub

    out = Output(json, quiet)
    stopped = None
    with Hub.open(base=options.base) as hub, Display(out) as display:
        try:
            report: RunReport | JobsReport = (
                hub.run_jobs(jobs, options, display) if jobs else hub.run(task or "", inputs or [], options, display)
            )
        except Stopped as error:
            report, stopped = error.report, error
    out.result(report.to_json(), _summary(report, options.dry_run))
    if stopped:
        raise stopped
    if report.failed:
        raise typer.Exit(1)


def _summary(report: RunReport | JobsReport, dry_run: bool) -> str:
    if dry_run:
        lines = [_line(item) for item in report.items]
        planned = sum(item["status"] == "planned" for item in report.items)
        counts = f"{planned} to generate, {report.failed} refused, {report.skipped} finished already"
        return "\n".join([*lines, f"{counts} ({report.summary})"])
    return (
        f"{report.ok} ok, {report.failed} failed, {report.skipped} skipped in {report.seconds:.1f} s "
        f"({report.summary}){_folders(report.items)}"
    )


def _line(item: dict[str, Any]) -> str:
    note = item["error"] or (f"replaces an output {item['replaces']}" if "replaces" in item else "")
    return f"{item['status']}: {item['input']} -> {item['output']}" + (f" ({note})" if note else "")


def _folders(items: list[dict[str, Any]]) -> str:
    folders = sorted({str(Path(item["output"]).parent) for item in items if item.get("output")})
    return f" -> {folders[0]}" + (f" and {len(folders) - 1} more folders" if folders[1:] else "") if folders else ""
