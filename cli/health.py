"""codi verify, gc, doctor: is all well?"""

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
    """Rehashes every file and reports what differs from the registry, either way."""
    with Catalog.open() as catalog:
        problems = catalog.verify()
    rows = [(p.kind, str(p.path), p.message) for p in problems]
    text = table(("problem", "file", "what to do"), rows) if rows else "Every file is as recorded."
    Output(json, quiet).result({"ok": not problems, "problems": [asdict(p) for p in problems]}, text)
    if problems:
        raise typer.Exit(1)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Deletes the files of removed adapters and what killed processes left. Folders of distillations stay."""
    with Catalog.open() as catalog:
        found = catalog.collect(dry_run=dry_run)
    total = sum(garbage.bytes for garbage in found)
    rows = [(garbage.path, size(garbage.bytes), garbage.message) for garbage in found]
    text = "Nothing to delete."
    if found:
        verb = "Would delete" if dry_run else "Deleted"
        count = "1 file" if len(found) == 1 else f"{len(found)} files"
        text = f"{table(('file', 'size', 'what it was'), rows)}\n{verb} {count}, {size(total)}."
    document = {"dry_run": dry_run, "bytes": total, "files": [asdict(garbage) for garbage in found]}
    Output(json, quiet).result(document, text)


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Checks Python, torch, the device, the home folder, the registry and the bundled models."""
    with Catalog.open() as catalog:
        checks = catalog.doctor()
    rows = [(c["check"], "ok" if c["ok"] else "FAILED", c["detail"]) for c in checks]
    Output(json, quiet).result(checks, table(("check", "", "detail"), rows))
    if not all(c["ok"] for c in checks):
        raise typer.Exit(1)
