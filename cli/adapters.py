"""codi list, codi show: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from codi_hub.catalog import Catalog, adapter_json
from codi_hub.cli.common import Base, Json, Quiet
from codi_hub.cli.output import Output, details, size

HEADER = ("adapter", "task", "version", "base", "kind", "steps", "size", "score", "tags")


def register(app: typer.Typer) -> None:
    app.command("list")(list_adapters)
    app.command("ls", hidden=True)(list_adapters)
    app.command("show")(show)


def list_adapters(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="Only this task")] = None,
    base: Base = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Lists the adapters: task, version, base, kind, steps, size, score. Also: codi ls."""
    with Catalog.open() as catalog:
        rows = catalog.list(task, base)
    table = [
        (r.ref, r.task, r.version, r.base, r.kind, r.steps, size(r.bytes), r.score, ", ".join(r.tags)) for r in rows
    ]
    Output(json, quiet).table(
        [adapter_json(row) for row in rows], HEADER, table, "No adapters yet: make one with `codi distill TASK`."
    )


def show(
    ref: Annotated[str, typer.Argument(metavar="REF", help="TASK, TASK:VERSION, TASK:TAG, or the name of a base")],
    base: Base = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shows one adapter, task or base in full."""
    with Catalog.open(base=base) as catalog:
        document = catalog.show(ref)
    card = document.get("card")
    text = details({key: value for key, value in document.items() if key not in ("card", "config", "sketch")})
    Output(json, quiet).result(document, f"{text}\n\n{card.strip()}" if card else text, document.get("ref") or ref)
