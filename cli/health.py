"""codi verify, gc, recover, doctor: check files, delete garbage, register lost adapters, check the installation."""

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
    app.command()(recover)
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


def recover(json: Json = False, quiet: Quiet = False) -> None:
    """Register the adapters in the store and in training folders again, after the database was lost."""
    with Catalog.open() as catalog:
        recovery = catalog.recover()
    refs = [row.ref for row in recovery.rows]
    lines = [f"Registered again: {', '.join(refs)}." if refs else "No adapter was missing."]
    lines += [f"Not registered, its base has to be added first with `codi base add`: {text}" for text in recovery.left]
    lines += [f"Copied to the team's store: {recovery.copied} files that it lacked."] if recovery.copied else []
    document = {"registered": refs, "left": list(recovery.left), "copied": recovery.copied}
    Output(json, quiet).result(document, "\n".join(lines))
    if recovery.left:
        raise typer.Exit(1)


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Check Python, torch, the device, the home folder, the registry, a team's store and the bundled models."""
    with Catalog.open() as catalog:
        checks = catalog.doctor()
    rows = [(c["check"], "ok" if c["ok"] else "FAILED", c["detail"]) for c in checks]
    Output(json, quiet).result(checks, table(("check", "result", "detail"), rows))
    if not all(c["ok"] for c in checks):
        raise typer.Exit(1)
