"""codi install, push, pull: take adapters from others, and give them away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from codi_hub.cli.adapters import REF
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.completion import references
from codi_hub.cli.fields import options_from
from codi_hub.cli.output import Output, size
from codi_hub.cli.progress import Display
from codi_hub.config.share import InstallOptions, PullOptions, PushOptions
from codi_hub.reports import InstallResult


def register(app: typer.Typer) -> None:
    app.command("install")(install)
    app.command("push")(push)
    app.command("pull")(pull)


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


@options_from(PushOptions, with_task_flags=False)
def push(
    ref: Annotated[str, typer.Argument(metavar="REF", help=REF, autocompletion=references)],
    where: Annotated[
        str, typer.Argument(metavar="OWNER/NAME|URL", help="Repository on the Hugging Face Hub, or an fsspec URL")
    ],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write an adapter and its card to the Hugging Face Hub, or below an URL such as s3://bucket/name."""
    from codi_hub.hub import Hub

    out = Output(json, quiet)
    _hide_bars(out)
    with Hub.open() as hub, Display(out) as display:
        result = hub.push(ref, where, PushOptions(**given), display)
    total, to = size(sum(result.files.values())), f"{result.destination}, licence {result.licence}"
    text = f"Wrote {result.adapter} for base {result.base} to {to} ({total}): {result.url}"
    if not result.written:
        text = f"{result.destination} has this adapter already; nothing was written."
    if given.get("dry_run"):
        files = "".join(f"\n{path}  {size(count)}" for path, count in result.files.items())
        text = f"Would write {result.adapter} for base {result.base} to {to}:{files}"
    out.result(result.to_json(), text, result.url)


@options_from(PullOptions, with_task_flags=False)
def pull(
    where: Annotated[
        str,
        typer.Argument(
            metavar="OWNER/NAME[@REV]|URL", help="Repository on the Hugging Face Hub, at a revision, or an fsspec URL"
        ),
    ],
    given: dict[str, Any],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download an adapter from the Hugging Face Hub or an URL, check it as `codi install` does, and register it."""
    from codi_hub.hub import Hub

    out = Output(json, quiet)
    _hide_bars(out)
    with Hub.open() as hub:
        result = hub.pull(where, PullOptions(**given))
    _print_installed(out, result)


def _hide_bars(out: Output) -> None:
    """Leave out the hub client's progress bars where nobody watches them."""
    if out.quiet or not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def _print_installed(out: Output, result: InstallResult) -> None:
    where = f"{result.adapter} for base {result.base}"
    if result.adapter is None:
        what = f"an adapter of kind {result.kind} for task {result.task} and base {result.base}"
        out.result(result.to_json(), f"Would register {what}.", result.task)
        return
    text = f"{where} has these weights already; nothing was registered."
    if result.created:
        text = f"Registered {where}, of kind {result.kind}."
        if "latest" not in result.tags:
            why = f"Its score is worse than, or does not compare with, that of {result.task}:latest, which stays"
            text += f"\n{why}; use it as {result.adapter}."
    out.result(result.to_json(), text, result.adapter or "")
