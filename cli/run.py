"""codi run: run a task over files and folders, or a file of jobs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.completion import references
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output
from codi_hub.cli.progress import Display
from codi_hub.cli.stdin import STDIN, stored_stdin
from codi_hub.config.options import RunOptions
from codi_hub.errors import UsageError, printable
from codi_hub.reports import JobsReport, RunReport
from codi_hub.urls import as_path

NAMED = 3  # files that are left out for one reason, by name


def register(app: typer.Typer) -> None:
    app.command("run")(options_from(RunOptions)(run))


def run(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="TASK, TASK:VERSION or TASK:TAG", autocompletion=references)
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT", help="Images and folders of images, or s3://BUCKET/FOLDER; - is one image on stdin"
        ),
    ] = None,
    jobs: Annotated[
        Path | None,
        typer.Option(
            "--jobs",
            metavar="FILE",
            help='Instead of TASK and INPUT: JSON lines such as {"task": "depth", "input": "maps", "output": "out"}, '
            "with the options of each, as prompt or seed; - is stdin",
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
    with ExitStack() as stack:
        if jobs == STDIN:
            jobs = stack.enter_context(stored_stdin("stdin.jsonl"))
        if inputs and STDIN in inputs:
            if len(inputs) > 1 or options.out is None:
                raise UsageError("- is one image on standard input: give it alone, and the output as --out FILE.png")
            inputs = [stack.enter_context(stored_stdin("stdin"))]
        hub = stack.enter_context(Hub.open(base=options.base))
        display = stack.enter_context(Display(out))
        try:
            report: RunReport | JobsReport = (
                hub.run_jobs(jobs, options, display) if jobs else hub.run(task or "", inputs or [], options, display)
            )
        except Stopped as error:
            report, stopped = error.report, error
    out.result(report.to_json(), _summary(report, options.dry_run))
    for line in _left_out(report):
        out.say(line)
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


def _left_out(report: RunReport | JobsReport) -> list[str]:
    """Return a line per reason for which files were left out."""
    by_reason: dict[str, list[str]] = {}
    for entry in report.left_out:
        by_reason.setdefault(entry["why"], []).append(entry["path"])
    return [
        f"left out: {', '.join(map(printable, paths[:NAMED]))}"
        + (f" and {len(paths) - NAMED} more" if paths[NAMED:] else "")
        + f": {why}"
        for why, paths in by_reason.items()
    ]


def _folders(items: list[dict[str, Any]]) -> str:
    folders = sorted({str(as_path(item["output"]).parent) for item in items if item.get("output")})
    return f" -> {folders[0]}" + (f" and {len(folders) - 1} more folders" if folders[1:] else "") if folders else ""
