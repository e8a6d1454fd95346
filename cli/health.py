"""codi verify, gc, doctor: check files, delete garbage, check the installation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from codi_hub.catalog import Catalog
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.output import Output, size, table


def register(app: typer.Typer) -> None:
    app.command()(verify)
    app.command()(gc)
    app.command()(doctor)


def verify(json: Json = False, quiet: Quiet = False) -> None:
    """Rehash every file and report each difference between files and registry."""
    with Catalog.open() as catalog:
        problems = catalog.verify()
    rows = [(p.kind, str(p.path), p.message) for p in problems]
    text = table(("problem", "file", "remedy"), rows) if rows else "Every file is as recorded."
    Output(json, quiet).result({"ok": not problems, "problems": [asdict(p) for p in problems]}, text)
    if problems:
        raise typer.Exit(1)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files without deleting them")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete the files of removed adapters and the partial files of killed processes. Training folders stay."""
    with Catalog.open() as catalog:
        garbage = catalog.collect(dry_run=dry_run)
    total = sum(file.bytes for file in garbage)
    rows = [(file.path, size(file.bytes), file.message) for file in garbage]
    text = "Nothing to delete."
    if garbage:
        verb = "Would delete" if dry_run else "Deleted"
        count = "1 file" if len(garbage) == 1 else f"{len(garbage)} files"
        text = f"{table(('file', 'size', 'origin'), rows)}\n{verb} {count}, {size(total)}."
    document = {"dry_run": dry_run, "bytes": total, "files": [asdict(file) for file in garbage]}
    Output(json, quiet).result(document, text)


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Check Python, torch, the device, the home folder, the registry and the bundled models."""
    with Catalog.open() as catalog:
        checks = catalog.doctor()
    rows = [(c["check"], "ok" if c["ok"] else "FAILED", c["detail"]) for c in checks]
    Output(json, quiet).result(checks, table(("check", "result", "detail"), rows))
    if not all(c["ok"] for c in checks):
        raise typer.Exit(1)
