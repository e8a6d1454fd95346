"""codi verify, codi doctor: is all well?"""

from __future__ import annotations

from dataclasses import asdict

import typer

from codi_hub.catalog import Catalog
from codi_hub.cli.common import Json, Quiet
from codi_hub.cli.output import Output, table


def register(app: typer.Typer) -> None:
    app.command()(verify)
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


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Checks Python, torch, the device, the home folder, the registry and the bundled models."""
    with Catalog.open() as catalog:
        checks = catalog.doctor()
    rows = [(c["check"], "ok" if c["ok"] else "FAILED", c["detail"]) for c in checks]
    Output(json, quiet).result(checks, table(("check", "", "detail"), rows))
    if not all(c["ok"] for c in checks):
        raise typer.Exit(1)
